//! Files that this agent writes.

use std::io::Write;
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
        std::fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn write_draft(draft: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(draft)?;
    file.write_all(text)?;
    file.sync_all()
}
