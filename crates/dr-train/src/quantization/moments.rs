//! [`Moments`]: what the outputs of a quantized layer have to do with those in floats.

use super::planes::Planes;
use rayon::prelude::*;

/// Means, variances and the covariance of an output in floats, `y`, and quantized, `x`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    mean: [f64; 2],
    variance: [f64; 2],
    covariance: f64,
}

/// `slope * x + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub slope: f32,
    pub offset: f32,
}

/// Outputs that vary less hold nothing that a slope could be taken from.
const LEAST_VARIANCE: f64 = 1e-10;

/// The slopes that there can be.
const SLOPES: [f64; 2] = [0.5, 2.0];

impl Moments {
    /// Those of each channel, of batches that are looked at twice, one after the other: `[y, x]` of each.
    pub fn of(batches: usize, pair: impl Fn(usize) -> [Planes; 2]) -> Vec<Self> {
        let (mut all, mut count): (Vec<Self>, f64) = (vec![], 0.0);
        for pair in (0..batches).map(&pair) {
            all.resize(pair[0].dims[1], Self::default());
            count += (pair[0].values.len() / all.len().max(1)) as f64;
            all.par_iter_mut().enumerate().for_each(|(channel, of)| {
                for [y, x] in values(&pair, channel) {
                    of.mean[0] += y;
                    of.mean[1] += x;
                }
            });
        }
        let count = count.max(1.0);
        all.iter_mut().flat_map(|of| &mut of.mean).for_each(|sum| *sum /= count);
        for pair in (0..batches).map(&pair) {
            all.par_iter_mut().enumerate().for_each(|(channel, of)| {
                let mean = of.mean;
                for [y, x] in values(&pair, channel) {
                    let (y, x) = (y - mean[0], x - mean[1]);
                    of.variance[0] += y * y;
                    of.variance[1] += x * x;
                    of.covariance += y * x;
                }
            });
        }
        for of in &mut all {
            of.variance = of.variance.map(|sum| sum / count);
            of.covariance /= count;
        }
        all
    }

    /// The line from `x` to `y` with the least squared error, of slopes that are not far from 1.
    pub fn line(&self) -> Line {
        let [y, x] = self.mean;
        let slope = match self.variance[1] > LEAST_VARIANCE && self.covariance > 0.0 {
            true => (self.covariance / self.variance[1]).clamp(SLOPES[0], SLOPES[1]),
            false => 1.0,
        };
        Line { slope: slope as f32, offset: (y - slope * x) as f32 }
    }

    /// The variance of all outputs in floats over the mean squared error of lines, in dB.
    pub fn signal_to_noise(of: &[Self], lines: &[Line]) -> f64 {
        let signal: f64 = of.iter().map(|moments| moments.variance[0]).sum();
        let noise = |(Self { mean: [my, mx], variance: [y, x], covariance }, line): (&Self, &Line)| {
            let [slope, offset] = [line.slope, line.offset].map(f64::from);
            y + slope * (slope * x - 2.0 * covariance) + (slope * mx + offset - my).powi(2)
        };
        let noise: f64 = of.iter().zip(lines).map(noise).sum();
        10.0 * (signal / noise.max(signal * 1e-15).max(f64::MIN_POSITIVE)).max(f64::MIN_POSITIVE).log10()
    }
}

/// The values of a channel in both.
fn values([y, x]: &[Planes; 2], channel: usize) -> impl Iterator<Item = [f64; 2]> {
    let planes = y.channel(channel).zip(x.channel(channel));
    planes.flat_map(|(y, x)| y.iter().zip(x).map(|(&y, &x)| [f64::from(y), f64::from(x)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planes(values: &[f32]) -> Planes {
        Planes { values: values.to_vec(), dims: [1, 3, 1, values.len() / 3] }
    }

    #[test]
    fn lines_have_the_least_error_and_slopes_near_one() {
        let x = planes(&[1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
        // A line; nothing to take a slope from; the other way round.
        let y = planes(&[2.5, 4.0, 5.5, 7.0, 3.0, 5.0, 3.0, 5.0, 1.0, 0.0, 1.0, 0.0]);
        let moments = Moments::of(1, |_| [&y, &x].map(|of| planes(&of.values)));
        let lines: Vec<Line> = moments.iter().map(Moments::line).collect();
        assert_eq!(lines[0], Line { slope: 1.5, offset: 1.0 });
        assert_eq!(lines[1], Line { slope: 1.0, offset: 3.0 });
        assert_eq!(lines[2], Line { slope: 1.0, offset: 0.0 });
        let mut mapped = planes(&x.values);
        mapped.map_channels(&lines);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        for channel in 0..3 {
            let [found, expected] = [&mapped, &y].map(|of| mean(of.channel(channel).next().unwrap()));
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
        let noise: f32 = mapped.values.iter().zip(&y.values).map(|(x, y)| (x - y).powi(2)).sum::<f32>() / 4.0;
        let signal = 2.8125 + 1.0 + 0.25;
        let expected = 10.0 * f64::from(signal / noise).log10();
        assert!((Moments::signal_to_noise(&moments, &lines) - expected).abs() < 1e-4, "not {expected} dB");
    }

    #[test]
    fn slopes_are_clamped() {
        let values = [[0.0, 9.0, 0.0, 0.1, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]];
        let moments = Moments::of(1, |_| values.map(|of| planes(&of)));
        let slopes = moments.iter().map(|moments| moments.line().slope).collect::<Vec<_>>();
        assert_eq!(slopes, [2.0, 0.5, 1.0]);
    }
}
