//! A program on a pseudo-terminal, as a person at a keyboard sees it: `script` (util-linux) holds the terminal, and what
//! the program writes is kept as a screen of characters, without colours.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use crate::tools::cluster::wait_for;

const ROWS: usize = 40;
const COLUMNS: usize = 140;
/// What the shell writes after the program, before the state of the terminal.
const ENDED: &str = "terminal afterwards:";

/// The terminal, and who types at it.
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    written: watch::Receiver<Vec<u8>>,
}

/// How the program ended.
pub struct Ended {
    pub code: i32,
    /// Of the terminal, as `stty -a` prints it.
    pub settings: String,
    /// All that was written.
    pub written: String,
}

// === impl Terminal ===

impl Terminal {
    /// Starts the program. No argument may hold a quote.
    pub fn start(program: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let line = format!("'{}' '{}'", program.display(), args.join("' '"));
        let shell = format!("stty rows {ROWS} cols {COLUMNS}; {line}; code=$?; echo '{ENDED}'; stty -a; exit $code");
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &shell, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("NO_COLOR")
            .env_remove("COLUMNS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start script")?;
        let keyboard = child.stdin.take().context("no keyboard")?;
        let mut output = child.stdout.take().context("no screen")?;
        let (send, written) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer).await {
                send.send_modify(|all| all.extend_from_slice(&buffer[..length]));
            }
        });
        Ok(Self { child, keyboard, written })
    }

    pub async fn press(&mut self, keys: &str) -> anyhow::Result<()> {
        self.keyboard.write_all(keys.as_bytes()).await.context("type")?;
        self.keyboard.flush().await.context("type")
    }

    /// The screen as it is, a line of text per row.
    pub fn screen(&self) -> String {
        screen(&String::from_utf8_lossy(&self.written.borrow()))
    }

    /// Waits until the screen is as asked for, and returns it.
    pub async fn shows(&self, what: &str, holds: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        wait_for(what, Duration::from_secs(30), || async {
            let screen = self.screen();
            Ok(if holds(&screen) { Ok(screen) } else { Err(format!("the screen is\n{screen}")) })
        })
        .await
    }

    /// Waits for the program's end.
    pub async fn ended(mut self) -> anyhow::Result<Ended> {
        let status = tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await;
        let status = status.with_context(|| format!("it goes on:\n{}", self.screen()))?.context("wait for script")?;
        // The reader ends with the output, and the sender with it.
        while self.written.changed().await.is_ok() {}
        let written = String::from_utf8_lossy(&self.written.borrow()).into_owned();
        let (before, settings) = written.rsplit_once(ENDED).context("the shell did not go on after the program")?;
        ensure!(!settings.is_empty(), "stty prints nothing");
        Ok(Ended { code: status.code().unwrap_or(-1), settings: settings.to_owned(), written: before.to_owned() })
    }
}

impl Ended {
    /// Whether the terminal is as before: lines, echo, the first screen and a cursor.
    pub fn is_restored(&self) -> bool {
        let has = |word: &str| self.settings.split_whitespace().any(|w| w.trim_end_matches(';') == word);
        let last = |on: &str, off: &str| self.written.rfind(on) > self.written.rfind(off);
        has("icanon") && has("echo") && last("\x1b[?1049l", "\x1b[?1049h") && last("\x1b[?25h", "\x1b[?25l")
    }
}

/// What a terminal shows of this text: characters, lines, moves of the cursor and cleared screens; other sequences change
/// no character.
fn screen(text: &str) -> String {
    let mut cells = vec![vec![' '; COLUMNS]; ROWS];
    let (mut row, mut column) = (0, 0);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                let mut numbers = String::new();
                let last = loop {
                    match chars.next() {
                        Some(c @ '@'..='~') => break c,
                        Some(c) => numbers.push(c),
                        None => break ' ',
                    }
                };
                let at = |n: usize| numbers.split(';').nth(n).and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1) - 1;
                match last {
                    'H' | 'f' => (row, column) = (at(0).min(ROWS - 1), at(1).min(COLUMNS - 1)),
                    'J' => cells.iter_mut().for_each(|line| line.fill(' ')),
                    _ => {}
                }
            }
            '\x1b' => drop(chars.next()),
            '\r' => column = 0,
            '\n' => row = (row + 1).min(ROWS - 1),
            c if c.is_control() => {}
            c if column < COLUMNS => {
                cells[row][column] = c;
                column += 1;
            }
            _ => {}
        }
    }
    let lines = cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn screen_follows_the_cursor_and_forgets_what_is_cleared() {
        assert_eq!(screen("gone\x1b[2J\x1b[1;3Hab\x1b[38;5;2mc\x1b[0m\x1b[2;1Hx\r\nz"), "  abc\nx\nz");
        assert_eq!(screen("one\x1b[1;1HT"), "Tne");
        assert_eq!(screen("\x1b[?1049h\x1b[999;1Hlast").lines().count(), ROWS);
    }

    #[test]
    fn terminal_is_restored_when_lines_echo_screen_and_cursor_are_back() {
        let ended =
            |settings: &str, written: &str| Ended { code: 0, settings: settings.into(), written: written.into() };
        let sound = "\x1b[?1049h\x1b[?25l…\x1b[?1049l\x1b[?25h";
        assert!(ended("isig icanon iexten echo;", sound).is_restored());
        assert!(!ended("isig -icanon echo", sound).is_restored());
        assert!(!ended("icanon -echo", sound).is_restored());
        assert!(!ended("icanon echo", "\x1b[?1049h\x1b[?25l\x1b[?25h").is_restored());
        assert!(!ended("icanon echo", "\x1b[?1049h\x1b[?25l\x1b[?1049l").is_restored());
    }

    #[tokio::test]
    async fn program_sees_a_terminal_and_its_exit_code_is_passed_on() -> anyhow::Result<()> {
        let script = "test -t 0 && stty size; read -r word; exit $word";
        let mut terminal = Terminal::start(Path::new("/bin/sh"), &["-c", script])?;
        terminal.shows("its size", |screen| screen.contains(&format!("{ROWS} {COLUMNS}"))).await?;
        terminal.press("7\n").await?;
        assert_eq!(terminal.ended().await?.code, 7);
        Ok(())
    }
}
