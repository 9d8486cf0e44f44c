//! How good boxes and classes of pixels are, measured as COCO's and torchmetrics' programs do.

mod boxes;
mod confusion;
mod mean_ap;

pub use boxes::{Rect, iou, nms};
pub use confusion::Confusion;
pub use mean_ap::{Detection, MeanAp, Truth, mean_ap};
