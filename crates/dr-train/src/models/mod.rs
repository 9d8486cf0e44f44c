//! Networks, each written once.

mod architecture;
mod block;
mod conv_net;
mod dense;
mod llama;
mod torchvision;

pub use conv_net::{ConvNet, ConvNetConfig};
pub use dense::{BOX_OUTPUTS, DenseConfig, Detector, Segmenter};
pub use llama::{Llama, LlamaConfig, LlamaConfigError};
