//! Waits on conditions with a deadline. Nothing here guesses how long something takes.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// What a look at the condition found.
pub enum Seen<T> {
    /// It holds.
    Yes(T),
    /// Not yet, and what is missing.
    NotYet(String),
}

/// Looks again and again until the condition holds. An error of `look` ends the wait: it means that
/// the condition cannot come true any more.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let missing = match look()? {
            Seen::Yes(found) => return Ok(found),
            Seen::NotYet(missing) => missing,
        };
        if start.elapsed() > limit {
            bail!("{what}: not after {} s: {missing}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
