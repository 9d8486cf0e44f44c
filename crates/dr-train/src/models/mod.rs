//! Networks, each written once.

mod architecture;
mod block;
mod conv_net;
mod dense;
mod kind;
mod llama;
mod torchvision;

pub use architecture::{
    ConvNetKind, MOBILENET_V2, RESNET8, RESNET18, RESNET20, RESNET32, RESNET34, RESNET50,
};
pub use conv_net::{ConvNet, ConvNetConfig};
pub use dense::{BOX_OUTPUTS, Detector, Segmenter};
pub use kind::{ModelKind, Sizes, models};
pub use llama::{Llama, LlamaConfig, LlamaConfigError, LlamaKind};
