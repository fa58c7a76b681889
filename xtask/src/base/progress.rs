//! One line with the progress of a long step and its remaining time. On a terminal it is
//! redrawn; in a log it is repeated every twenty seconds.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const LOG_EVERY: Duration = Duration::from_secs(20);
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// A long step. Dropping it leaves the last state on the screen.
pub struct Progress {
    label: String,
    start: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Starts the clock of the step called `label`.
    pub fn new(label: &str) -> Self {
        Self { label: label.into(), start: Instant::now(), shown: None, terminal: std::io::stderr().is_terminal() }
    }

    /// `done` of `total` units; `total` 0 means that the total is not known yet.
    pub fn set(&mut self, done: usize, total: usize, detail: &str) {
        let every = if self.terminal { DRAW_EVERY } else { LOG_EVERY };
        if self.shown.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        self.shown = Some(Instant::now());
        self.draw(&line(&self.label, done, total, self.start.elapsed(), detail));
    }

    /// The step is done: shows its duration.
    pub fn finish(mut self, detail: &str) {
        let text = format!("{:<12} {detail}  {}", self.label, seconds(self.start.elapsed()));
        self.draw(&text);
        if self.terminal {
            eprintln!();
        }
    }

    fn draw(&mut self, text: &str) {
        let mut err = std::io::stderr();
        let done = if self.terminal { write!(err, "\r\x1b[2K{text}") } else { writeln!(err, "{text}") };
        done.and_then(|()| err.flush()).ok(); // standard error is closed: not a reason to fail
    }
}

fn line(label: &str, done: usize, total: usize, elapsed: Duration, detail: &str) -> String {
    if total == 0 {
        return format!("{label:<12} {detail}  {}", seconds(elapsed));
    }
    let done = done.min(total);
    let cells = done * 10 / total;
    let bar = "█".repeat(cells) + &" ".repeat(10 - cells);
    let eta = match done {
        0 => String::new(),
        _ => format!("  eta {}", seconds(elapsed.mul_f64((total - done) as f64 / done as f64))),
    };
    format!("{label:<12} ▕{bar}▏ {:>3} %  {detail}{eta}", done * 100 / total)
}

/// `4.8 s`, `52 s`, `2 min 10 s`.
pub fn seconds(d: Duration) -> String {
    match d.as_secs_f64() {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s => format!("{} min {} s", s as u64 / 60, s as u64 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(done: usize, total: usize, secs: u64, want: &str) {
        assert_eq!(line("kubernetes", done, total, Duration::from_secs(secs), "kubelet"), want);
    }

    #[test]
    fn an_unknown_total_shows_only_the_time() {
        check(3, 0, 5, "kubernetes   kubelet  5.0 s");
    }
    #[test]
    fn the_estimate_follows_from_the_pace_so_far() {
        check(1, 4, 100, "kubernetes   ▕██        ▏  25 %  kubelet  eta 5 min 0 s");
    }
    #[test]
    fn before_the_first_unit_there_is_no_estimate() {
        check(0, 4, 9, "kubernetes   ▕          ▏   0 %  kubelet");
    }
    #[test]
    fn more_than_everything_is_everything() {
        check(9, 4, 8, "kubernetes   ▕██████████▏ 100 %  kubelet  eta 0.0 s");
    }
}
