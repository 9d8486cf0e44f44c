//! What is said on the standard error while something goes on, and how much of it.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Verbosity {
    /// What goes wrong.
    #[cfg_attr(not(feature = "program"), expect(dead_code, reason = "errors of a library are results"))]
    Errors,
    /// And what goes on.
    Usual,
    /// And what is decided on the way.
    Details,
}

static VERBOSITY: AtomicU8 = AtomicU8::new(Verbosity::Usual as u8);

/// Whether there is a line that is to be written over.
static LINE: AtomicBool = AtomicBool::new(false);

/// Lets the program say so much from now on.
#[cfg(feature = "program")]
pub(crate) fn set_verbosity(verbosity: Verbosity) {
    VERBOSITY.store(verbosity as u8, Ordering::Relaxed);
}

fn is_said(of: Verbosity) -> bool {
    of as u8 <= VERBOSITY.load(Ordering::Relaxed)
}

/// A line on the standard error. That nobody reads it is no reason to stop.
pub(crate) fn note(text: impl Display) {
    say(Verbosity::Usual, text);
}

/// The same of what went wrong.
#[cfg(feature = "program")]
pub(crate) fn error(text: impl Display) {
    say(Verbosity::Errors, text);
}

/// The same of what is decided on the way.
pub(crate) fn detail(text: impl Display) {
    say(Verbosity::Details, text);
}

fn say(of: Verbosity, text: impl Display) {
    if is_said(of) {
        clear_line();
        let _ = writeln!(stderr(), "{text}");
    }
}

/// Whether lines that are written over are seen.
pub(crate) fn has_lines() -> bool {
    is_said(Verbosity::Usual) && stderr().is_terminal()
}

/// Writes over the line before, where such lines are seen.
pub(crate) fn show_line(text: &str) {
    if has_lines() {
        LINE.store(true, Ordering::Relaxed);
        let text: String = text.chars().filter(|c| !c.is_control()).take(COLUMNS).collect();
        let _ = write!(stderr(), "\r\x1b[2K{text}").and_then(|()| stderr().flush());
    }
}

/// Takes the line away that is to be written over, if there is one.
pub(crate) fn clear_line() {
    if LINE.swap(false, Ordering::Relaxed) {
        let _ = write!(stderr(), "\r\x1b[2K").and_then(|()| stderr().flush());
    }
}

/// A line of more characters would go on in the next one, which nothing would write over.
const COLUMNS: usize = 79;
