//! What is said on the standard error while something goes on.

use std::fmt::Display;
use std::io::{Write, stderr};

/// A line on the standard error. That nobody reads it is no reason to stop.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}
