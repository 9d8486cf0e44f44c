//! What networks do: the names of the tasks of this crate.

/// Gives each image a class.
pub const CLASSIFY: &str = "classify";

/// Gives each pixel of an image a class.
pub const SEGMENT: &str = "segment";

/// Finds objects in an image and their boxes.
pub const DETECT: &str = "detect";

/// Predicts the next token of a text: a language model.
pub const LANGUAGE: &str = "lm";

/// What networks did before there was a choice.
pub(crate) fn before() -> String {
    CLASSIFY.to_owned()
}
