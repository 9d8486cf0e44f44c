//! Which settings make sense.

use super::image_size::{ImageSize, MOST};
use super::train::{LanguageSettings, TrainConfig};
use std::ops::RangeInclusive;
use thiserror::Error;

/// A setting outside what makes sense.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{name} {value}: expected {expected}")]
pub struct ConfigError {
    /// The setting, spelt like its flag.
    pub name: &'static str,
    /// What it is set to.
    pub value: f64,
    /// What it can be set to.
    pub expected: &'static str,
}

impl TrainConfig {
    /// Whether all numbers are in range.
    ///
    /// # Errors
    /// The first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = "a whole number of at least 1";
        let rate_range = "a number above 0 and at most 1";
        let not_negative = "a finite number of at least 0";
        let rate = |value: f64| value > 0.0 && value <= 1.0;
        let part = |value: f64| (0.0..1.0).contains(&value);
        let non_negative = |value: f64| value.is_finite() && value >= 0.0;
        // `as f64`: only shown.
        let within = |value: usize, range: RangeInclusive<usize>| (value as f64, range.contains(&value));
        let number = |value: f64, is_sound: fn(f64) -> bool| (value, is_sound(value));
        let ImageSize { rows, columns } = self.image_size;
        let LanguageSettings { vocabulary, hidden, layers, context } = self.language;
        let heads = (hidden as f64, (64..=1 << 14).contains(&hidden) && hidden.is_multiple_of(64));
        let pairs = "a whole number of at least 2, for BatchNorm's statistics";
        let limit = self.limit_train.unwrap_or(usize::MAX);
        let checks = [
            ("epochs", within(self.epochs, 1..=usize::MAX), at_least_one),
            ("batch-size", within(self.batch_size, 2..=usize::MAX), pairs),
            ("accumulate", within(self.accumulate, 1..=usize::MAX), at_least_one),
            ("lr", number(self.lr, rate), rate_range),
            ("joint-lr", number(self.joint_lr, rate), rate_range),
            ("scale-lr", number(self.scale_lr, non_negative), not_negative),
            ("weight-decay", number(self.weight_decay, non_negative), not_negative),
            ("warmup-epochs", number(self.warmup_epochs, non_negative), not_negative),
            ("clip-norm", number(self.clip_norm, non_negative), not_negative),
            ("mixup", number(self.mixup, |value| (0.0..=8.0).contains(&value)), "a number from 0 to 8"),
            ("label-smoothing", number(self.label_smoothing, part), "a number of at least 0 and below 1"),
            ("ema", number(self.ema, part), "a number of at least 0 and below 1"),
            ("patience", within(self.patience.unwrap_or(1), 1..=usize::MAX), at_least_one),
            ("vocabulary", within(vocabulary, 257..=1 << 17), "257 to 131072 tokens"),
            ("hidden", heads, "a multiple of 64 up to 16384"),
            ("layers", within(layers, 1..=256), "1 to 256 blocks"),
            ("context", within(context, 2..=1 << 17), "2 to 131072 positions"),
            ("draws", within(self.draws, 1..=MOST_DRAWS), "a whole number from 1 to 64"),
            ("image-size", within(rows, 8..=MOST), "8 to 4096 pixels"),
            ("image-size", within(columns, 8..=MOST), "8 to 4096 pixels"),
            (
                "limit-train",
                within(limit, self.batch_size..=usize::MAX),
                "at least as many images as the batch size",
            ),
        ];
        match checks.into_iter().find(|(_, (_, is_sound), _)| !is_sound) {
            Some((name, (value, _), expected)) => Err(ConfigError { name, value, expected }),
            None => Ok(()),
        }
    }
}

/// Each is a pass of every step.
const MOST_DRAWS: usize = 64;
