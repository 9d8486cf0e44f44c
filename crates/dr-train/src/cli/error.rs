//! [`CommandError`].

use std::error::Error;
use std::fmt;
use std::path::Path;

/// Why a command stopped: one line, and perhaps a second one with something to try.
///
/// Any error turns into one with `?`, with its causes. (For that it cannot itself be a [`std::error::Error`].)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    message: String,
    hint: Option<String>,
    exit_code: u8,
}

/// Exit code of what makes no sense, whatever the files hold: flags and values that do not go together.
const WRONG_USE: u8 = 2;

/// Exit code of what cannot be done.
const FAILURE: u8 = 1;

impl CommandError {
    /// Wrong use, with this message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: one_line(&message.into()), hint: None, exit_code: WRONG_USE }
    }

    /// Something that cannot be done, with this message.
    #[must_use]
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(message).with_exit_code(FAILURE)
    }

    /// What is wrong with a file.
    #[must_use]
    pub fn about(path: &Path, error: impl fmt::Display) -> Self {
        Self::failure(format!("`{}`: {error}", path.display()))
    }

    /// The same with something to try.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(&hint.into()));
        self
    }

    /// The same with another exit code.
    #[must_use]
    pub const fn with_exit_code(mut self, exit_code: u8) -> Self {
        self.exit_code = exit_code;
        self
    }

    /// The exit code of the program.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl<E: Error> From<E> for CommandError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Many errors already quote their cause.
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self::failure(message)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Line breaks and other control characters become spaces: a file name may hold anything.
fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
