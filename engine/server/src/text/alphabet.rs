//! GPT-2's alphabet: every byte as a printable character, so that vocabularies can be text.

use std::collections::HashMap;

/// Printable Latin-1 bytes are themselves, the other 68 come after U+0100.
pub(super) fn byte_to_char(byte: u8) -> char {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !is_printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

pub(super) fn char_to_byte() -> HashMap<char, u8> {
    (0..=255).map(|byte| (byte_to_char(byte), byte)).collect()
}
