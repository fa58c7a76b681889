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
    #[cfg(test)]
    pub const OFF: Paint = Paint { on: false };

    /// On a terminal, unless `NO_COLOR` asks for none.
    pub fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Paint { on: std::io::stdout().is_terminal() && !refused }
    }

    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.on || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Strong => "1",
            Tone::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
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

/// Writes the answer; a closed pipe (`| head`) is no error.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
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
    fn colour_does_not_count_as_width() {
        let mut t = Table::default();
        t.row(["ok", "1"]);
        t.tone(0, Tone::Good);
        t.row(["failed", "2"]);
        assert_eq!(t.render("", Paint { on: true }), "\x1b[32mok\x1b[0m      1\nfailed  2\n");
    }
}
