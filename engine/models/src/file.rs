//! A file mapped read-only, and numbers as people read them.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// The bytes of a model file. Pages come in when touched and may be dropped again.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    pub fn open(path: &Path) -> std::io::Result<Mapped> {
        let file = File::open(path)?;
        // SAFETY: the mapping is only sound while nobody truncates or rewrites the file. Models
        // are delivered in read-only images or written once and renamed; a writer in place would
        // break every engine that maps its weights. Nothing here keeps a reference after loading.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Mapped(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// `98362432` → `98,362,432`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(98_362_432), "98,362,432");
    }
}
