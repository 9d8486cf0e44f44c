//! [`Rates`]: learning rates where none are asked for.

use super::kinds::OptimizerKind;

/// The highest learning rates of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of float training.
    pub lr: f64,
    /// Of the weights in joint training.
    pub joint_lr: f64,
    /// Of scales and zero points.
    pub scale_lr: f64,
}

impl Rates {
    /// Those that go with an optimizer, for random weights or for trained ones, which smaller steps keep.
    ///
    /// Steps of Adam have the size of the rate, whatever the gradient is: scales are some thousandths.
    #[must_use]
    pub const fn usual(optimizer: OptimizerKind, trained: bool) -> Self {
        let [lr, joint_lr, scale_lr] = match (optimizer, trained) {
            (OptimizerKind::Sgd, false) => [0.1, 0.02, 0.01],
            (OptimizerKind::Sgd, true) => [0.01, 0.01, 0.01],
            (OptimizerKind::Adam | OptimizerKind::AdamW, false) => [1e-3, 1e-3, 1e-5],
            (OptimizerKind::Adam | OptimizerKind::AdamW, true) => [1e-4, 3e-4, 1e-5],
        };
        Self { lr, joint_lr, scale_lr }
    }
}
