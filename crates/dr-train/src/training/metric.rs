//! Loss and top-1 accuracy of each precision, as metrics of Burn's `Learner`.

use crate::data::Target;
use burn::tensor::ExecutionError;
use burn::tensor::{Tensor, TensorReadError};
use burn::train::ItemLazy;
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry,
    state::{FormatOptions, NumericMetricState},
};
use std::sync::Arc;

/// What a step computed: each pass.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    pub(super) passes: Vec<PassOutput>,
}

/// What a pass computed.
#[derive(Clone, Debug)]
pub(super) struct PassOutput {
    /// `[1]`
    loss: Tensor<1>,
    /// Right answers, `[1]`.
    right: Tensor<1>,
    /// Answers.
    count: usize,
}

impl PassOutput {
    pub(super) fn new(loss: Tensor<1>, output: Tensor<2>, target: &impl Target) -> Self {
        let (right, count) = target.right(output);
        Self { loss, right, count }
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        if let Some(pass) = self.passes.first() {
            pass.loss.device().flush()?;
        }
        let plain = |PassOutput { loss, right, count }| PassOutput {
            loss: loss.without_autodiff(),
            right: right.without_autodiff(),
            count,
        };
        Ok(Self { passes: self.passes.into_iter().map(plain).collect() })
    }
}

impl Adaptor<StepOutput> for StepOutput {
    fn adapt(&self) -> StepOutput {
        self.clone()
    }
}

/// How the metrics' names start; a space and the name of the pass follow.
pub(super) const LOSS: &str = "Loss";
/// See [`LOSS`].
pub(super) const TOP1: &str = "Top-1";

/// Which number of a pass a metric follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    Loss,
    Top1,
}

/// Loss or top-1 accuracy of the pass at `position`.
#[derive(Clone)]
pub(super) struct PassMetric {
    name: MetricName,
    position: usize,
    quantity: Quantity,
    state: NumericMetricState,
}

impl PassMetric {
    pub(super) fn new(pass: &str, position: usize, quantity: Quantity) -> Self {
        let name = Arc::new(format!("{} {pass}", if quantity == Quantity::Loss { LOSS } else { TOP1 }));
        Self { name, position, quantity, state: NumericMetricState::default() }
    }

    fn format(&self) -> FormatOptions {
        let options = FormatOptions::new(self.name());
        match self.quantity {
            Quantity::Loss => options.precision(4),
            Quantity::Top1 => options.unit("%").precision(2),
        }
    }
}

impl Metric for PassMetric {
    type Input = StepOutput;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        let top1 = self.quantity == Quantity::Top1;
        NumericAttributes { unit: top1.then(|| "%".to_string()), higher_is_better: top1 }.into()
    }

    fn update(&mut self, item: &StepOutput, _: &MetricMetadata) -> Result<SerializedEntry, TensorReadError> {
        // A step that was stopped for a loss that is not finite has no passes.
        if let Some(PassOutput { loss, right, count }) = item.passes.get(self.position) {
            let value = match self.quantity {
                Quantity::Loss => loss.clone().try_into_scalar::<f64>()?,
                Quantity::Top1 => 100.0 * right.clone().try_into_scalar::<f64>()? / (*count).max(1) as f64,
            };
            self.state.update(value, *count);
        }
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for PassMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}
