//! BatchNorm in training and its gradients, in f64.

use crate::cpu::BatchNormShape;

/// The values of each channel.
fn by_channel(x: impl Iterator<Item = f64>, shape: &BatchNormShape) -> Vec<Vec<f64>> {
    let mut channels = vec![vec![]; shape.channels];
    for (i, value) in x.enumerate() {
        channels[i % shape.channels].push(value);
    }
    channels
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean and population variance.
fn moments(values: &[f64]) -> (f64, f64) {
    let mean_value = mean(values);
    (mean_value, mean(&values.iter().map(|x| (x - mean_value).powi(2)).collect::<Vec<_>>()))
}

/// The values in f64.
fn wide(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    values.iter().map(|&value| value.into())
}

/// `y`, mean and variance, as [`crate::cpu::batch_norm`].
pub fn batch_norm(
    x: &[f32], gamma: &[f32], beta: &[f32], residual: Option<&[f32]>, shape: &BatchNormShape,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (means, variances): (Vec<f64>, Vec<f64>) =
        by_channel(wide(x), shape).iter().map(|values| moments(values)).unzip();
    let y = |(i, x): (usize, f64)| {
        let c = i % shape.channels;
        let normal = (x - means[c]) / (variances[c] + shape.epsilon).sqrt();
        let y = f64::from(gamma[c]) * normal
            + f64::from(beta[c])
            + residual.map_or(0.0, |residual| residual[i].into());
        shape.clip.map_or(y, |high| y.clamp(0.0, high.into()))
    };
    (wide(x).enumerate().map(y).collect(), means, variances)
}

/// `dx`, `dgamma`, `dbeta` and the gradient of the residual, as [`crate::cpu::batch_norm_backward`].
pub fn batch_norm_backward(
    x: &[f32], gamma: &[f32], y: &[f32], dy: &[f32], shape: &BatchNormShape,
) -> (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>) {
    let dy: Vec<f64> = wide(dy)
        .zip(y)
        .map(|(dy, y)| if shape.clip.is_some_and(|high| !(*y > 0.0 && *y < high)) { 0.0 } else { dy })
        .collect();
    let (xs, dys) = (by_channel(wide(x), shape), by_channel(dy.iter().copied(), shape));
    let (mut dgamma, mut dbeta, mut inner) = (vec![], vec![], vec![]);
    for (c, (x, dy)) in xs.iter().zip(&dys).enumerate() {
        let (mean_x, variance) = moments(x);
        let inverse = 1.0 / (variance + shape.epsilon).sqrt();
        let normal: Vec<f64> = x.iter().map(|x| (x - mean_x) * inverse).collect();
        let products: Vec<f64> = normal.iter().zip(dy).map(|(x, dy)| x * dy).collect();
        let (mean_dy, mean_product) = (mean(dy), mean(&products));
        dgamma.push(products.iter().sum());
        dbeta.push(dy.iter().sum());
        let gain = f64::from(gamma[c]) * inverse;
        let dx = normal.iter().zip(dy).map(|(x, dy)| gain * (dy - mean_dy - x * mean_product));
        inner.push(dx.collect::<Vec<f64>>().into_iter());
    }
    let dx = (0..x.len()).filter_map(|i| inner[i % shape.channels].next()).collect();
    (dx, dgamma, dbeta, dy)
}
