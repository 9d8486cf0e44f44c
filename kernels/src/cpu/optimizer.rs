//! Steps of optimizers, each one pass over memory: of single operations, as Burn has them on `flex`, they take one for each.

use super::blocks::TASK;
use super::isa::{Isa, run_on};
use rayon::prelude::*;

/// What steps of all optimizers have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerStep {
    /// Learning rate.
    pub rate: f64,
    /// The gradient is scaled down to this L2 norm if it is larger, before the decay.
    pub clip_norm: Option<f32>,
    /// Times the weight is added to the gradient: an L2 penalty.
    pub decay: f32,
}

/// A step of stochastic gradient descent with Nesterov's momentum: `v' = m v + g`, `w' = w - rate (g + m v')`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// What it has in common with those of other optimizers.
    pub common: OptimizerStep,
    /// What stays of the velocity, `m`.
    pub momentum: f32,
}

/// A step of Adam (Kingma and Ba, arXiv:1412.6980, algorithm 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// What it has in common with those of other optimizers.
    pub common: OptimizerStep,
    /// What stays of the first and of the second moment.
    pub betas: [f32; 2],
    /// What is added to the root of the second moment.
    pub epsilon: f32,
    /// The number of this step, from 1 on.
    pub time: usize,
    /// Times the learning rate and the weight is subtracted from the weight, which AdamW does (Loshchilov and Hutter,
    /// arXiv:1711.05101, algorithm 2).
    pub decoupled_decay: f32,
}

impl OptimizerStep {
    /// What the gradient is multiplied with.
    fn factor(&self, gradient: &[f32]) -> f32 {
        let Some(most) = self.clip_norm else { return 1.0 };
        // Tasks do not depend on the number of threads, and so the sum does not.
        let sums: Vec<f64> =
            gradient.par_chunks(TASK).map(|part| run_on!(Isa::detect(), |_| squares(part))).collect();
        let norm = sums.iter().sum::<f64>().sqrt() as f32;
        (most / (norm + f32::MIN_POSITIVE)).min(1.0)
    }
}

/// The sum of squares.
#[inline(always)]
fn squares(values: &[f32]) -> f64 {
    const SIDE_BY_SIDE: usize = 32;
    let mut total = 0.0;
    for values in values.chunks(1 << 10) {
        let mut sums = [0.0f32; SIDE_BY_SIDE];
        let mut whole = values.chunks_exact(SIDE_BY_SIDE);
        for values in &mut whole {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value * value;
            }
        }
        for (sum, value) in sums.iter_mut().zip(whole.remainder()) {
            *sum += value * value;
        }
        total += sums.into_iter().map(f64::from).sum::<f64>();
    }
    total
}

impl SgdStep {
    /// Takes the step. The first one starts from a velocity of zeros.
    ///
    /// # Panics
    /// If the slices have not one length.
    pub fn apply(&self, w: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
        assert_eq!([gradient.len(), velocity.len()], [w.len(); 2], "tensors of other sizes");
        let factor = self.common.factor(gradient);
        let parts = w.par_chunks_mut(TASK).zip(gradient.par_chunks(TASK)).zip(velocity.par_chunks_mut(TASK));
        parts.for_each(|((w, gradient), velocity)| {
            run_on!(Isa::detect(), |_| self.apply_to(w, gradient, velocity, factor));
        });
    }

    #[inline(always)]
    fn apply_to(&self, w: &mut [f32], gradient: &[f32], velocity: &mut [f32], factor: f32) {
        let Self { common, momentum } = *self;
        let rate = common.rate as f32;
        for ((w, g), v) in w.iter_mut().zip(gradient).zip(velocity) {
            let g = *w * common.decay + g * factor;
            *v = g + *v * momentum;
            *w -= (*v * momentum + g) * rate;
        }
    }
}

impl AdamStep {
    /// Takes the step. The first one starts from moments of zeros.
    ///
    /// # Panics
    /// If the slices have not one length.
    pub fn apply(&self, w: &mut [f32], gradient: &[f32], moments: [&mut [f32]; 2]) {
        let [first, second] = moments;
        assert_eq!([gradient.len(), first.len(), second.len()], [w.len(); 3], "tensors of other sizes");
        let factor = self.common.factor(gradient);
        let moments = first.par_chunks_mut(TASK).zip(second.par_chunks_mut(TASK));
        let parts = w.par_chunks_mut(TASK).zip(gradient.par_chunks(TASK)).zip(moments);
        parts.for_each(|((w, gradient), (first, second))| {
            run_on!(Isa::detect(), |_| self.apply_to(w, gradient, first, second, factor));
        });
    }

    /// The corrections of the moments' bias: what the first moment is multiplied with, and `epsilon`.
    pub(crate) fn corrections(&self) -> [f32; 2] {
        let [first, second] =
            self.betas.map(|beta| 1.0 - beta.powi(i32::try_from(self.time).unwrap_or(i32::MAX)));
        [second.sqrt() / first, self.epsilon * second.sqrt()]
    }

    #[inline(always)]
    fn apply_to(&self, w: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], factor: f32) {
        let Self { common, betas: [beta_1, beta_2], .. } = *self;
        let ([correction, epsilon], rate) = (self.corrections(), common.rate as f32);
        let kept = (1.0 - common.rate * f64::from(self.decoupled_decay)) as f32;
        for (((w, g), m), v) in w.iter_mut().zip(gradient).zip(first).zip(second) {
            let g = *w * common.decay + g * factor;
            *m = *m * beta_1 + g * (1.0 - beta_1);
            *v = *v * beta_2 + g * g * (1.0 - beta_2);
            *w = *w * kept - *m * correction / (v.sqrt() + epsilon) * rate;
        }
    }
}
