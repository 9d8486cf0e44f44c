//! Which settings make sense.

use super::train::TrainConfig;
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
        let non_negative = |value: f64| value.is_finite() && value >= 0.0;
        // `as f64`: only shown.
        let checks = [
            ("epochs", self.epochs as f64, self.epochs >= 1, at_least_one),
            (
                "batch-size",
                self.batch_size as f64,
                self.batch_size >= 2,
                "a whole number of at least 2, for BatchNorm's statistics",
            ),
            ("accumulate", self.accumulate as f64, self.accumulate >= 1, at_least_one),
            ("lr", self.lr, rate(self.lr), rate_range),
            ("joint-lr", self.joint_lr, rate(self.joint_lr), rate_range),
            ("scale-lr", self.scale_lr, non_negative(self.scale_lr), not_negative),
            ("weight-decay", self.weight_decay, non_negative(self.weight_decay), not_negative),
            ("warmup-epochs", self.warmup_epochs, non_negative(self.warmup_epochs), not_negative),
            ("clip-norm", self.clip_norm, non_negative(self.clip_norm), not_negative),
            (
                "vocabulary",
                self.language.vocabulary as f64,
                (257..=1 << 17).contains(&self.language.vocabulary),
                "257 to 131072 tokens",
            ),
            (
                "hidden",
                self.language.hidden as f64,
                (64..=1 << 14).contains(&self.language.hidden) && self.language.hidden.is_multiple_of(64),
                "a multiple of 64 up to 16384",
            ),
            (
                "layers",
                self.language.layers as f64,
                (1..=256).contains(&self.language.layers),
                "1 to 256 blocks",
            ),
            (
                "context",
                self.language.context as f64,
                (2..=1 << 17).contains(&self.language.context),
                "2 to 131072 positions",
            ),
            (
                "draws",
                self.draws as f64,
                (1..=MOST_DRAWS).contains(&self.draws),
                "a whole number from 1 to 64",
            ),
            (
                "image-size",
                self.image_size as f64,
                (8..=MOST_PIXELS).contains(&self.image_size),
                "8 to 4096 pixels",
            ),
            (
                "limit-train",
                self.limit_train.unwrap_or(usize::MAX) as f64,
                self.limit_train.is_none_or(|limit| limit >= self.batch_size),
                "at least as many images as the batch size",
            ),
        ];
        match checks.into_iter().find(|check| !check.2) {
            Some((name, value, _, expected)) => Err(ConfigError { name, value, expected }),
            None => Ok(()),
        }
    }
}

/// Rows and columns.
const MOST_PIXELS: usize = 4096;

/// Each is a pass of every step.
const MOST_DRAWS: usize = 64;
