//! [`Images`]: images on a device, in one of two orders.

use burn::tensor::{Device, Tensor};

/// Images on a device, their channels first or last: as those who computed them have them. To change the order is a view, not a copy.
#[derive(Clone, Debug)]
pub struct Images {
    tensor: Tensor<4>,
    channels_last: bool,
}

impl From<Tensor<4>> for Images {
    /// Of images `[batch, channels, rows, columns]`.
    fn from(tensor: Tensor<4>) -> Self {
        Self { tensor, channels_last: false }
    }
}

impl Images {
    /// Those of a tensor `[batch, rows, columns, channels]`.
    #[must_use]
    pub const fn with_channels_last(tensor: Tensor<4>) -> Self {
        Self { tensor, channels_last: true }
    }

    /// `[batch, channels, rows, columns]`
    #[must_use]
    pub fn channels_first(self) -> Tensor<4> {
        if self.channels_last { self.tensor.permute([0, 3, 1, 2]) } else { self.tensor }
    }

    /// `[batch, rows, columns, channels]`
    #[must_use]
    pub fn channels_last(self) -> Tensor<4> {
        if self.channels_last { self.tensor } else { self.tensor.permute([0, 2, 3, 1]) }
    }

    /// Whether they are `[batch, rows, columns, channels]`.
    #[must_use]
    pub const fn has_channels_last(&self) -> bool {
        self.channels_last
    }

    /// Batch, channels, rows and columns.
    #[must_use]
    pub fn dims(&self) -> [usize; 4] {
        let dims = self.tensor.dims();
        let [batch, rows, columns, channels] = dims;
        if self.channels_last { [batch, channels, rows, columns] } else { dims }
    }

    /// The device that they are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.tensor.device()
    }

    /// A tensor in either order.
    #[must_use]
    pub const fn tensor(&self) -> &Tensor<4> {
        &self.tensor
    }

    /// What a function that does not depend on the order makes of them.
    #[must_use]
    pub fn map(self, f: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Self {
        Self { tensor: f(self.tensor), ..self }
    }

    /// What a function of two tensors in one order makes of these and others.
    #[must_use]
    pub fn zip(self, other: Self, f: impl FnOnce(Tensor<4>, Tensor<4>) -> Tensor<4>) -> Self {
        let other = if self.channels_last { other.channels_last() } else { other.channels_first() };
        self.map(|tensor| f(tensor, other))
    }
}
