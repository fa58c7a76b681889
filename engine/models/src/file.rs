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
        // SAFETY: the mapping is only sound while no process truncates or rewrites the file. Models
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

/// Text of a file's, as an error shows it: on one line, and not all of it when it is long.
pub fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let mut chars = text.chars();
    let mut out = String::new();
    for c in chars.by_ref().take(MOST) {
        if c.is_control() { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    if chars.next().is_some() {
        out.push('…');
    }
    out
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
    use super::{shown, thousands};

    #[test]
    fn text_is_shown_on_one_line_of_bounded_length() {
        assert_eq!(shown("it's \"fine\""), "it's \"fine\"");
        assert_eq!(shown("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(shown(&"é".repeat(201)), "é".repeat(200) + "…");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(98_362_432), "98,362,432");
    }
}
