//! What `dr_runtime::tensors` will be.
#![allow(missing_docs, clippy::unimplemented, clippy::must_use_candidate, clippy::missing_errors_doc)]

use crate::artifact::Artifact;
use crate::nn::Value;
use burn::tensor::{Device, Tensor};
use dr_kernels::integer::CodeQuantizer;
use dr_precision::{BitWidth, Precision};
use dr_runtime::graph::Graph;
use std::time::Duration;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum RuntimeError {
    #[error("not there yet")]
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    Integer,
    WeightOnly,
}

#[derive(Clone, Debug)]
pub struct Network;

#[derive(Clone, Debug, Default)]
pub struct Cache;

#[derive(Clone, Debug)]
pub struct LayerParts {
    pub bits: BitWidth,
    pub codes: Vec<i32>,
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub input: CodeQuantizer,
}

impl Network {
    pub fn load(_: &Artifact, _: Precision, _: Arithmetic, _: &Device) -> Result<Self, RuntimeError> {
        Err(RuntimeError::Missing)
    }

    pub fn forward(&self, _: impl Into<Value>) -> Result<Tensor<2>, RuntimeError> {
        Err(RuntimeError::Missing)
    }

    pub fn forward_timed(&self, _: impl Into<Value>) -> Result<(Tensor<2>, Vec<Duration>), RuntimeError> {
        Err(RuntimeError::Missing)
    }

    pub fn read(&self, _: &[u32], _: &mut Cache) -> Result<Vec<f32>, RuntimeError> {
        Err(RuntimeError::Missing)
    }

    pub fn switch(&mut self, _: Precision) -> Result<(), RuntimeError> {
        Err(RuntimeError::Missing)
    }

    pub fn precision(&self) -> Precision {
        unimplemented!()
    }

    pub fn model_bytes(&self) -> usize {
        unimplemented!()
    }

    pub fn graph(&self) -> &Graph {
        unimplemented!()
    }

    pub fn layer(&self, _: usize) -> LayerParts {
        unimplemented!()
    }
}
