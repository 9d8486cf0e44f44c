//! Which codes can be switched, as types.

use std::fmt;

/// Codes of the width that they were quantized to: what is saved, and what other widths are made of.
#[derive(Clone, Copy, Debug)]
pub enum Stored {}

/// Codes of a width that they were switched to. Switching them again would be another rounding, so nothing switches them.
#[derive(Clone, Copy, Debug)]
pub enum Narrowed {}

/// [`Stored`] or [`Narrowed`].
pub trait CodeState: sealed::Sealed + Clone + Copy + fmt::Debug + Send + Sync + 'static {}

impl CodeState for Stored {}
impl CodeState for Narrowed {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Stored {}
    impl Sealed for super::Narrowed {}
}
