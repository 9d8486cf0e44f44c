//! [`ModelKind`]: a network by its name.

use super::{
    ConvNetKind, LlamaKind, MOBILENET_V2, RESNET8, RESNET18, RESNET20, RESNET32, RESNET34, RESNET50,
};
use crate::config::task::CLASSIFY;
use crate::names::Names;
use crate::nn::{Model, TraceError};
use burn::tensor::Device;
use dr_runtime::file::InputShape;

/// What a network is made for, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes<'a> {
    /// What it is to do.
    pub task: &'a str,
    /// An image; of a language model, as many columns as there are positions.
    pub input: InputShape,
    /// Classes, of a segmentation with the background; of a language model the tokens.
    pub classes: usize,
    /// Channels that the first convolution makes, or features of a position.
    pub width: usize,
    /// Blocks of a language model.
    pub layers: usize,
}

/// A network that is asked for by its name. A program adds its own to those of this crate
/// ([`Registry`](crate::experiment::Registry)).
pub trait ModelKind: Sync {
    /// The name in flags, files and messages.
    fn name(&self) -> &'static str;

    /// What it can be made for.
    fn tasks(&self) -> &'static [&'static str] {
        &[CLASSIFY]
    }

    /// The width of its networks if nothing else is asked for.
    fn usual_width(&self) -> usize;

    /// A float network; the same `seed` gives the same weights on every device.
    ///
    /// # Errors
    /// Those of [`Model::trace`].
    fn init(&self, sizes: &Sizes, seed: u64, device: &Device) -> Result<Model, TraceError>;

    /// Elements of the largest weight, or less: no memory is taken for a network that a file is too small for.
    fn largest_weight(&self, _: &Sizes) -> usize {
        0
    }

    /// What state dicts that it can start from call the tensor `name` of the float network; `None` if they have no such tensor.
    fn state_dict_name(&self, name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    /// What files say about the sizes of a language model.
    fn language(&self, _: &Sizes) -> Option<serde_json::Value> {
        None
    }
}

/// The networks of this crate.
#[must_use]
pub fn models() -> Names<dyn ModelKind> {
    const IMAGES: [&ConvNetKind; 7] =
        [&RESNET8, &RESNET20, &RESNET32, &RESNET18, &RESNET34, &RESNET50, &MOBILENET_V2];
    let images = IMAGES.map(|kind| kind as &dyn ModelKind);
    Names::new("model", <dyn ModelKind>::name, images).with(&LlamaKind)
}
