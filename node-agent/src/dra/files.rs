//! Files that this agent writes. Only root reads them, and no pod has any of their directories mounted.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file so that readers see the old content or the new one, also after a power cut.
pub fn write_atomically(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let draft = path.with_extension("tmp");
    let result = write_draft(&draft, text).and_then(|()| std::fs::rename(&draft, path));
    if result.is_err() {
        // A full disk must not be kept full by our draft.
        let _ = std::fs::remove_file(&draft);
        return result;
    }
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn write_draft(draft: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = match create(draft) {
        // Left by an agent that was killed while it wrote, or put there by another process: never written to.
        Err(err) if err.kind() == ErrorKind::AlreadyExists => {
            std::fs::remove_file(draft)?;
            create(draft)?
        }
        created => created?,
    };
    file.write_all(text)?;
    file.sync_all()
}

/// A new file, or an error: nothing that is there is opened, a link least of all.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn link_in_the_place_of_the_draft_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("passwd"), dir.path().join("claim.json"));
        std::fs::write(&target, "root").unwrap();
        symlink(&target, dir.path().join("claim.tmp")).unwrap();
        write_atomically(&path, b"{}").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"root");
        assert_eq!(std::fs::read(&path).unwrap(), b"{}");
        assert_eq!(path.symlink_metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn draft_of_a_killed_agent_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("checkpoint.tmp"), "half").unwrap();
        write_atomically(&dir.path().join("checkpoint.json"), b"whole").unwrap();
        assert_eq!(std::fs::read(dir.path().join("checkpoint.json")).unwrap(), b"whole");
        assert!(!dir.path().join("checkpoint.tmp").exists());
    }
}
