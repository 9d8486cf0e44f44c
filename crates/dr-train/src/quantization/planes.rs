//! [`Planes`]: values of a batch on the host, channel by channel.

use super::moments::Line;
use crate::nn::Value;
use crate::nn::quantizers::host;
use burn::tensor::{Device, Tensor, TensorData};
use dr_runtime::tensors::Floats;
use rayon::prelude::*;
use std::borrow::Cow;

/// Values of a batch; of rows, and of the last axis of arrays, images of one pixel.
pub(super) struct Planes {
    /// Of batch, channels, rows and columns.
    pub values: Vec<f32>,
    /// These four sizes.
    pub dims: [usize; 4],
}

impl Planes {
    /// Those of a value.
    ///
    /// # Panics
    /// If it is tokens, or an array of no floats.
    pub fn of(value: &Value) -> Self {
        let values = match value {
            Value::Images(images) => host(&images.clone().channels_first()),
            Value::Rows(rows) => host(rows),
            Value::Floats(floats) => host(&floats.clone().into_values()),
            Value::Array(array) => {
                array.floats().map(Cow::into_owned).unwrap_or_else(|error| panic!("{error}"))
            }
            Value::Tokens(_) => panic!("tokens: expected images or rows"),
        };
        Self { values, dims: Self::dims(value) }
    }

    /// The sizes of a value, of batch, channels, rows and columns.
    pub fn dims(value: &Value) -> [usize; 4] {
        match value {
            Value::Images(images) => images.dims(),
            Value::Rows(rows) => {
                let [n, features] = rows.dims();
                [n, features, 1, 1]
            }
            Value::Floats(floats) => Self::runs(floats.dims()),
            Value::Array(array) => Self::runs(array.dims()),
            Value::Tokens(tokens) => {
                let [n, positions] = tokens.dims();
                [n, positions, 1, 1]
            }
        }
    }

    /// Those of the last one of some axes.
    fn runs(dims: &[usize]) -> [usize; 4] {
        let runs = dims.iter().rev().skip(1).product();
        [runs, dims.last().copied().unwrap_or(1), 1, 1]
    }

    /// Of values `[batch, rows, columns, channels]`; `dims` are in the other order.
    pub fn from_channels_last(values: &[f32], dims: [usize; 4]) -> Self {
        let [_, channels, rows, columns] = dims;
        let pixels = (rows * columns).max(1);
        let mut planes = vec![0.0; values.len()];
        let images = planes.par_chunks_mut((channels * pixels).max(1));
        images.zip(values.par_chunks((channels * pixels).max(1))).for_each(|(planes, values)| {
            for (channel, plane) in planes.chunks_mut(pixels).enumerate() {
                let of_channel = values.iter().skip(channel).step_by(channels);
                plane.iter_mut().zip(of_channel).for_each(|(to, from)| *to = *from);
            }
        });
        Self { values: planes, dims }
    }

    /// As a value of the kind of another one, of an array with the same axes before the last.
    ///
    /// # Panics
    /// If there are not as many of them.
    pub fn like(self, other: &Value) -> Value {
        let Self { values, dims } = self;
        let ([batch, channels, ..], device) = (dims, Device::flex());
        let array = |values: Vec<f32>, of: &[usize]| {
            let (_, before) = of.split_last().expect("an array has an axis of features");
            let count = values.len();
            let values = Tensor::<1>::from_data(TensorData::new(values, [count]), &device);
            let floats = Floats::from(values).sized([before, &[channels]].concat());
            Value::Floats(floats.unwrap_or_else(|error| panic!("{error}")))
        };
        match other {
            Value::Floats(floats) => array(values, floats.dims()),
            Value::Array(of) => array(values, of.dims()),
            Value::Rows(_) => {
                Tensor::<2>::from_data(TensorData::new(values, [batch, channels]), &device).into()
            }
            _ => Tensor::<4>::from_data(TensorData::new(values, dims), &device).into(),
        }
    }

    /// The values of a channel, image by image.
    pub fn channel(&self, channel: usize) -> impl Iterator<Item = &[f32]> {
        let [_, channels, rows, columns] = self.dims;
        self.values.chunks((rows * columns).max(1)).skip(channel).step_by(channels)
    }

    /// Replaces the values of each channel.
    pub fn map_channels(&mut self, lines: &[Line]) {
        let [_, _, rows, columns] = self.dims;
        let planes = self.values.par_chunks_mut((rows * columns).max(1)).enumerate();
        planes.for_each(|(at, plane)| {
            let Line { slope, offset } = lines[at % lines.len()];
            plane.iter_mut().for_each(|value| *value = slope * *value + offset);
        });
    }
}
