//! Text for people: aligned columns, sparing colour on a terminal, plain in a pipe; and JSON or YAML
//! for programs.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use serde::Serialize;

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Json,
    Yaml,
    /// Text with more in it.
    Wide,
}

impl Format {
    /// The value of `-o`.
    pub fn asked(value: Option<&str>) -> Result<Option<Format>, crate::Failure> {
        let known = |value: &str| <Format as clap::ValueEnum>::from_str(value, false);
        let unknown =
            |value: &str| crate::Failure::Usage(format!("-o {value:?} is no format; write json, yaml or wide"));
        value.map(|value| known(value).map_err(|_| unknown(value))).transpose()
    }
}

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warn,
    Bad,
    Strong,
    Faint,
}

impl Paint {
    /// Without colours.
    pub const OFF: Paint = Paint { on: false };

    /// On a terminal, unless `NO_COLOR` asks for none.
    pub fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Paint { on: std::io::stdout().is_terminal() && !refused }
    }

    pub fn is_on(self) -> bool {
        self.on
    }

    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.on || text.is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[{RESET}m", tone.code())
    }
}

/// Where nothing says how wide text may be.
const WIDTH: u16 = 120;

/// Columns of the terminal.
pub fn width() -> u16 {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let terminal = || ratatui::crossterm::terminal::size().ok().map(|(w, _)| w);
    columns.or_else(terminal).unwrap_or(WIDTH).clamp(20, 400)
}

/// As every program finds out: the first of three variables that is set.
pub fn unicode() -> bool {
    let set = |name: &&str| std::env::var(name).is_ok_and(|v| !v.is_empty());
    let name = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find(|name| set(name));
    let value = name.and_then(|name| std::env::var(name).ok()).unwrap_or_default().to_lowercase();
    value.contains("utf-8") || value.contains("utf8")
}

const RESET: &str = "0";

impl Tone {
    /// All that [`Paint`] writes.
    const CODES: [&str; 6] = ["32", "33", "31", "1", "2", RESET];

    fn code(self) -> &'static str {
        Self::CODES[self as usize]
    }
}

/// JSON or YAML when asked for.
pub fn machine<T: Serialize>(format: Option<Format>, value: &T) -> Option<String> {
    match format? {
        Format::Json => serde_json::to_string_pretty(value).ok().map(|s| s + "\n"),
        Format::Yaml => serde_yaml::to_string(value).ok(),
        Format::Wide => None,
    }
}

/// Columns padded to their widest cell, two spaces between them; no trailing blanks. Widths are
/// counted before painting.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<(String, Option<Tone>)>>,
}

impl Table {
    pub fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) {
        self.rows.push(cells.into_iter().map(|c| (c.into(), None)).collect());
    }

    /// Colours the last row's cell.
    pub fn tone(&mut self, column: usize, tone: Tone) {
        if let Some(cell) = self.rows.last_mut().and_then(|r| r.get_mut(column)) {
            cell.1 = Some(tone);
        }
    }

    pub fn render(&self, indent: &str, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|(s, _)| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::from(indent);
            for (c, (text, tone)) in row.iter().enumerate() {
                let painted = tone.map_or_else(|| text.clone(), |t| paint.paint(t, text));
                line.push_str(&painted);
                if row[c + 1..].iter().any(|(s, _)| !s.is_empty()) {
                    line.push_str(&" ".repeat(widths[c] - text.chars().count() + 2));
                }
            }
            let _ = writeln!(out, "{line}");
        }
        out
    }
}

/// For terminals without UTF-8.
pub fn ascii(text: &str) -> String {
    let plain = |c: char| match c {
        '·' => '-',
        '→' => '>',
        '×' => 'x',
        '≤' | '≥' => '=',
        '−' => '-',
        c if c.is_ascii() => c,
        _ => '?',
    };
    text.chars().map(plain).collect()
}

/// Writes the answer; a closed pipe (`| head`) is no error.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(harmless(text).as_bytes()).and_then(|()| stdout.flush());
}

/// Without what steers a terminal, but for line ends, tabs and our own colours: part of what is shown comes from
/// tenants and their engines.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = Tone::CODES.iter().map(|code| format!("\x1b[{code}m")).find(|colour| rest.starts_with(colour));
        let length = colour.as_ref().map_or(c.len_utf8(), String::len);
        if colour.is_some() || matches!(c, '\n' | '\t') || !steers(c) {
            out.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    out
}

/// Control characters, and those that turn the direction of what follows.
fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_without_blanks() {
        let mut t = Table::default();
        t.row(["NAME", "READY", ""]);
        t.row(["a-long-name", "1/1", "x"]);
        assert_eq!(t.render("", Paint::OFF), "NAME         READY\na-long-name  1/1    x\n");
    }

    #[test]
    fn what_steers_a_terminal_is_left_out_and_our_colours_stay() {
        let paint = Paint { on: true };
        for tone in [Tone::Good, Tone::Warn, Tone::Bad, Tone::Strong, Tone::Faint] {
            let painted = paint.paint(tone, "ok\tno\n");
            assert_eq!(harmless(&painted), painted);
        }
        let cases = [
            ("\x1b]0;title\x07x", "]0;titlex"),
            ("\x1b[8mhidden\x1b[2Jgone", "[8mhidden[2Jgone"),
            ("over\rwritten\x08", "overwritten"),
            ("\u{9b}31mC1", "31mC1"),
            ("a\u{202e}b\u{2066}c", "abc"),
            ("模型 ß …", "模型 ß …"),
            ("\x1b", ""),
        ];
        for (text, shown) in cases {
            assert_eq!(harmless(text), shown, "{text:?}");
        }
    }

    #[test]
    fn colour_does_not_count_as_width() {
        let mut t = Table::default();
        t.row(["ok", "1"]);
        t.tone(0, Tone::Good);
        t.row(["failed", "2"]);
        assert_eq!(t.render("", Paint { on: true }), "\x1b[32mok\x1b[0m      1\nfailed  2\n");
    }
}
