//! Files that are no model although they have the name of one.
//!
//! What is downloaded in a model's place is often a Git LFS pointer, a web page or nothing at all. The
//! error of a parser ("it does not start with GGUF") sends people to look for a damaged file; the name
//! of the thing sends them to the right command.

/// What a file is instead of a model, with what to do about it. `None` when it is nothing of this kind.
pub(crate) fn instead_of_a_model(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    let starts = |prefix: &[u8]| text.len() >= prefix.len() && text[..prefix.len()].eq_ignore_ascii_case(prefix);
    if bytes.is_empty() {
        return Some("it is empty: fetch it again");
    }
    if starts(b"version https://git-lfs.github.com/spec/") || starts(b"version https://hawser.github.com/spec/") {
        return Some("it is a Git LFS pointer, not the file that it points to: fetch that with `git lfs pull`");
    }
    if starts(b"<!doctype html") || starts(b"<html") {
        return Some("it is a web page: fetch the file itself, with access to it if it needs that");
    }
    let zip = bytes.starts_with(b"PK\x03\x04");
    (zip || bytes.starts_with(b"\x80\x02"))
        .then_some("it is a PyTorch pickle, which can run code: convert it to safetensors or GGUF")
}

#[cfg(test)]
mod tests {
    use super::instead_of_a_model;

    #[track_caller]
    fn check(bytes: &[u8], says: Option<&str>) {
        let found = instead_of_a_model(bytes);
        assert!(found.is_some() == says.is_some() && found.unwrap_or("").contains(says.unwrap_or("")), "{found:?}");
    }

    #[test]
    fn pointer_page_pickle_and_nothing_are_named() {
        check(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 98362432\n", Some("Git LFS pointer"));
        check(b"\n<!DOCTYPE html><html>", Some("web page"));
        check(b"PK\x03\x04...", Some("pickle"));
        check(b"", Some("empty"));
    }

    #[test]
    fn model_files_and_noise_are_not() {
        for bytes in [&b"GGUF\x03\0\0\0"[..], b"{}", b"\x40\0\0\0\0\0\0\0{\"a\":1}", b"v"] {
            check(bytes, None);
        }
    }
}
