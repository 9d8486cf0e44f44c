//! BatchNorm in training and its gradients, in f64.

use crate::cpu::BatchNormShape;

/// The values of each channel.
fn by_channel(x: &[f32], shape: &BatchNormShape) -> Vec<Vec<f64>> {
    let mut channels = vec![vec![]; shape.channels];
    for (i, &value) in x.iter().enumerate() {
        channels[i / shape.positions % shape.channels].push(f64::from(value));
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

/// `y`, mean and variance, as [`crate::cpu::batch_norm`].
pub fn batch_norm(
    x: &[f32], gamma: &[f32], beta: &[f32], shape: &BatchNormShape,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (means, variances): (Vec<f64>, Vec<f64>) =
        by_channel(x, shape).iter().map(|values| moments(values)).unzip();
    let y = |(i, &x): (usize, &f32)| {
        let c = i / shape.positions % shape.channels;
        let normal = (f64::from(x) - means[c]) / (variances[c] + shape.epsilon).sqrt();
        f64::from(gamma[c]) * normal + f64::from(beta[c])
    };
    (x.iter().enumerate().map(y).collect(), means, variances)
}

/// `dx`, `dgamma` and `dbeta`, as [`crate::cpu::batch_norm_backward`].
pub fn batch_norm_backward(
    x: &[f32], gamma: &[f32], dy: &[f32], shape: &BatchNormShape,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (xs, dys) = (by_channel(x, shape), by_channel(dy, shape));
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
    let dx = (0..x.len()).filter_map(|i| inner[i / shape.positions % shape.channels].next()).collect();
    (dx, dgamma, dbeta)
}
