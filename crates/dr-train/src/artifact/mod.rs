//! Between a [`Model`](crate::nn::Model) and its file ([`dr_runtime::file`]): making files of models, models of files, files at one
//! precision or of a plan, and the descriptions of this crate's own networks.

mod description;
mod network;

pub use description::Described;
pub use dr_runtime::file::{
    ATTACHMENTS, Artifact, ArtifactError, ArtifactKind, CHAT_TEMPLATE, Description, FORMAT_VERSION,
    GENERATION_CONFIG, InputShape, MAX_HEADER_BYTES, METADATA_KEY, TOKENIZER, TOKENIZER_CONFIG, TensorEntry,
    TensorValues, Values,
};
pub use network::SavedModel;
#[cfg(feature = "program")]
pub(crate) use network::parameter_shapes;
