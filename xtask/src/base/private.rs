//! Directories and files of a cluster that no other user may read, write or replace: they hold the
//! keys of its administrator, and this program executes what they name. Everything is checked before
//! anything in it is read.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Only its owner lists, enters or changes it.
const DIRECTORY: u32 = 0o700;
/// Only its owner reads or writes it.
const FILE: u32 = 0o600;
/// Others may start what is in it.
const PROGRAMS: u32 = 0o755;
/// Group or others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// In such a directory only the owner of an entry may rename or remove it.
const STICKY: u32 = 0o1000;

/// Refuses a state directory that another user made or could have written to. One that is missing is
/// accepted; one of ours that others may merely read is closed to them.
pub fn check_state(dir: &Path) -> Result<()> {
    let found = match dir.symlink_metadata() {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("looking at the state directory {}", dir.display()))?,
    };
    let me = caller();
    let refuse = |why: &str| -> Result<()> {
        bail!(
            "the state directory {} {why}: nothing in it was read or executed. Remove it, or choose another with --state-dir",
            dir.display()
        )
    };
    if !found.is_dir() {
        return refuse("is not a directory");
    }
    if found.uid() != me {
        return refuse(&format!("belongs to user {}, not to you (user {me})", found.uid()));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return refuse("can be written by other users");
    }
    check_ancestors(dir, me)?;
    if found.mode() & 0o777 != DIRECTORY {
        std::fs::set_permissions(dir, Permissions::from_mode(DIRECTORY))
            .with_context(|| format!("closing {} to other users", dir.display()))?;
    }
    Ok(())
}

/// A directory above that another user can write lets that user put another one in our place.
fn check_ancestors(dir: &Path, me: u32) -> Result<()> {
    let parent = dir.parent().unwrap_or(dir);
    let parent = parent.canonicalize().with_context(|| format!("resolving {}", parent.display()))?;
    for above in parent.ancestors() {
        let found = above.metadata().with_context(|| format!("looking at {}", above.display()))?;
        ensure!(
            keeps_entries(&found, me),
            "{} is above the state directory {} and can be changed by other users; choose another with --state-dir",
            above.display(),
            dir.display()
        );
    }
    Ok(())
}

/// Whether nobody but `me` and root can rename or remove what `me` has in the directory.
fn keeps_entries(dir: &Metadata, me: u32) -> bool {
    (dir.uid() == me || dir.uid() == 0) && (dir.mode() & WRITABLE_BY_OTHERS == 0 || dir.mode() & STICKY != 0)
}

/// Makes the state directory, or checks the one that is there.
pub fn make_state(dir: &Path) -> Result<()> {
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    make(dir)?;
    check_state(dir)
}

/// Makes a directory that is closed to others, or closes the one that is there.
pub fn make(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(DIRECTORY).create(dir) {
        Err(err) if err.kind() != ErrorKind::AlreadyExists => {
            Err(err).with_context(|| format!("making {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file that only its owner can read, whatever the umask is and whatever was there.
pub fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let fail = || format!("writing {}", path.display());
    let mut file = create(path).with_context(fail)?;
    file.set_permissions(Permissions::from_mode(FILE)).with_context(fail)?;
    file.write_all(text.as_ref()).with_context(fail)
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Makes a directory for programs, and all above it: others may read it, and none but its owner write.
pub fn make_programs(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(PROGRAMS)
        .create(dir)
        .with_context(|| format!("making the cache {}", dir.display()))
}

/// Refuses programs in a directory that another user made or can write to. With sudo, the user who
/// called it counts as the caller: the cache lies in that user's home.
pub fn check_programs(dir: &Path) -> Result<()> {
    let resolved = dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))?;
    let found = resolved.metadata().with_context(|| format!("looking at {}", resolved.display()))?;
    let trusted = [Some(0), Some(caller()), sudo_user()];
    ensure!(
        trusted.contains(&Some(found.uid())) && found.mode() & WRITABLE_BY_OTHERS == 0,
        "{} belongs to user {} (mode {:o}): no program in it is started. Remove it, or set XDG_CACHE_HOME to a directory \
         that only you can write",
        resolved.display(),
        found.uid(),
        found.mode() & 0o7777
    );
    Ok(())
}

fn caller() -> u32 {
    // SAFETY: geteuid cannot fail.
    unsafe { libc::geteuid() }
}

fn sudo_user() -> Option<u32> {
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("stowage-private-{name}-{}", std::process::id()));
            std::fs::remove_dir_all(&dir).ok();
            make(&dir).unwrap();
            Self(dir)
        }

        fn mode(&self, file: &str) -> u32 {
            self.0.join(file).symlink_metadata().unwrap().mode() & 0o7777
        }

        fn set(&self, file: &str, mode: u32) {
            std::fs::set_permissions(self.0.join(file), Permissions::from_mode(mode)).unwrap();
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    fn refused(dir: &Path) -> String {
        check_state(dir).unwrap_err().to_string()
    }

    #[test]
    fn missing_state_directory_is_accepted_and_made_for_its_owner_alone() {
        let t = Temporary::new("missing");
        check_state(&t.0.join("state")).unwrap();
        make_state(&t.0.join("state")).unwrap();
        assert_eq!(t.mode("state"), 0o700);
    }

    #[test]
    fn own_directory_that_others_may_read_is_closed_to_them() {
        let t = Temporary::new("readable");
        make(&t.0.join("state")).unwrap();
        t.set("state", 0o755);
        check_state(&t.0.join("state")).unwrap();
        assert_eq!(t.mode("state"), 0o700);
    }

    #[test]
    fn state_that_others_could_have_written_is_refused() {
        let t = Temporary::new("writable");
        make(&t.0.join("state")).unwrap();
        t.set("state", 0o770);
        assert!(refused(&t.0.join("state")).contains("can be written by other users"));
        // Beneath a directory in which others may rename it.
        t.set("state", 0o700);
        t.set("", 0o777);
        assert!(refused(&t.0.join("state")).contains("is above the state directory"));
        // As in /var/tmp, where they may not.
        t.set("", 0o1777);
        check_state(&t.0.join("state")).unwrap();
    }

    #[test]
    fn link_in_the_place_of_the_state_directory_is_refused() {
        let t = Temporary::new("link");
        make(&t.0.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(t.0.join("elsewhere"), t.0.join("state")).unwrap();
        assert!(refused(&t.0.join("state")).contains("is not a directory"));
    }

    #[test]
    fn state_and_programs_of_another_user_are_refused() {
        if caller() != 0 {
            return; // only root can give a directory away
        }
        let t = Temporary::new("foreign");
        make(&t.0.join("state")).unwrap();
        std::os::unix::fs::chown(t.0.join("state"), Some(65_532), None).unwrap();
        let why = refused(&t.0.join("state"));
        assert!(why.contains("belongs to user 65532") && why.contains("nothing in it was read or executed"), "{why}");
        assert!(check_programs(&t.0.join("state")).unwrap_err().to_string().contains("no program in it is started"));
        // The link's own owner does not count, what it leads to does.
        std::os::unix::fs::symlink(t.0.join("state"), t.0.join("bin")).unwrap();
        assert!(check_programs(&t.0.join("bin")).is_err());
        check_programs(&t.0).unwrap();
    }

    #[test]
    fn file_that_was_readable_is_private_after_it_is_written() {
        let t = Temporary::new("file");
        std::fs::write(t.0.join("ca.key"), "old").unwrap();
        t.set("ca.key", 0o644);
        write(&t.0.join("ca.key"), "new").unwrap();
        assert_eq!((t.mode("ca.key"), std::fs::read(t.0.join("ca.key")).unwrap()), (0o600, b"new".to_vec()));
        std::os::unix::fs::symlink(t.0.join("ca.key"), t.0.join("link")).unwrap();
        assert!(write(&t.0.join("link"), "other").is_err());
    }
}
