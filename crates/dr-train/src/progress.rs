//! [`Progress`]: how far some work is, on a terminal.

use crate::note::{clear_line, show_line};
use std::cell::Cell;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// A line that says how far some work is: it comes after a second, is written over, and goes away in the end. It is only seen on
/// a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    started: Instant,
    /// When the line is to be written again.
    next: Cell<Instant>,
}

/// Work that is done before is not worth a line.
const FIRST: Duration = Duration::from_secs(1);

/// Lines that come faster are not read.
const PAUSE: Duration = Duration::from_millis(100);

impl Progress {
    /// Of work that begins now.
    pub(crate) fn new(what: impl Display) -> Self {
        let started = Instant::now();
        Self { what: what.to_string(), started, next: Cell::new(started + FIRST) }
    }

    /// Of work that does not say how far it is: the line is there at once.
    #[cfg(feature = "program")]
    pub(crate) fn unknown(what: impl Display) -> Self {
        show_line(&format!("{what} .."));
        Self::new(what)
    }

    /// So much of so much is done, and what else there is to say.
    pub(crate) fn show(&self, done: usize, of: usize, more: impl Display) {
        let now = Instant::now();
        if now < self.next.get() {
            return;
        }
        self.next.set(now + PAUSE);
        let left = remaining(now - self.started, done, of).map(|left| format!(", {left} left"));
        let (what, left) = (&self.what, left.unwrap_or_default());
        show_line(&format!("{what} {done} of {of}{left}{more}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        clear_line();
    }
}

/// How long the rest takes if it goes on like this.
fn remaining(elapsed: Duration, done: usize, of: usize) -> Option<String> {
    let seconds = elapsed.as_secs_f64() * of.checked_sub(done)? as f64 / done as f64;
    let seconds = if seconds.is_finite() { seconds.round() as u64 } else { return None };
    Some(match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left() {
        let left = |elapsed, done, of| remaining(Duration::from_secs(elapsed), done, of);
        assert_eq!(left(10, 1, 2).as_deref(), Some("10 s"));
        assert_eq!(left(10, 2, 40).as_deref(), Some("3:10 min"));
        assert_eq!(left(100, 1, 100).as_deref(), Some("2:45 h"));
        assert_eq!(left(5, 3, 3).as_deref(), Some("0 s"));
        // Nothing is done yet, and more than there was to do.
        assert_eq!((left(10, 0, 2), left(10, 3, 2)), (None, None));
    }
}
