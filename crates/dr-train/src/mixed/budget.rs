//! [`Budget`]: what a plan may take.

use super::search::MAX_COST;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// What a plan may take at most.
///
/// Parses and prints `avg-bits=4`, `size=250KB`, `bitops=1.2G` and `latency=1.5ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bits of a weight, on average over the weights of all layers but the first and the last, which stay at the highest
    /// width whatever the plan.
    AverageBits(f64),
    /// Bytes of the exported model: its packed codes and all its scales, BatchNorm terms and biases.
    Size(u64),
    /// Multiply-accumulates of one image, each times the bits of its weight and of its activation, over all layers.
    BitOps(u64),
    /// Nanoseconds of a pass in integers.
    Latency(u64),
}

/// What of a plan is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BudgetKind {
    /// [`Budget::AverageBits`].
    #[serde(rename = "avg-bits")]
    AverageBits,
    /// [`Budget::Size`].
    Size,
    /// [`Budget::BitOps`].
    #[serde(rename = "bitops")]
    BitOps,
    /// [`Budget::Latency`].
    Latency,
}

impl BudgetKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::AverageBits, Self::Size, Self::BitOps, Self::Latency];

    /// What is before the `=`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AverageBits => "avg-bits",
            Self::Size => "size",
            Self::BitOps => "bitops",
            Self::Latency => "latency",
        }
    }

    /// Units by name, the largest decimal one last; the first is the default, if it has no name.
    const fn units(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::AverageBits => &[("", 1.0)],
            Self::Size => {
                &[("MiB", 1_048_576.0), ("KiB", 1024.0), ("B", 1.0), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9)]
            }
            Self::BitOps => &[("", 1.0), ("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)],
            Self::Latency => &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)],
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::AverageBits => "a number above 0, for example `avg-bits=4`",
            Self::Size => {
                "a number above 0 and a unit of B, KB, KiB, MB, MiB or GB, for example `size=250KB`"
            }
            Self::BitOps => "a number above 0 and a unit of K, M, G or T or none, for example `bitops=1.2G`",
            Self::Latency => "a number above 0 and a unit of ns, us, ms or s, for example `latency=1.5ms`",
        }
    }
}

/// Text that is not a budget.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("budget `{text}`: expected {expected}")]
pub struct BudgetError {
    /// The text as it was given.
    pub text: String,
    /// What it could be.
    pub expected: String,
}

impl Budget {
    /// What it limits.
    #[must_use]
    pub const fn kind(&self) -> BudgetKind {
        match self {
            Self::AverageBits(_) => BudgetKind::AverageBits,
            Self::Size(_) => BudgetKind::Size,
            Self::BitOps(_) => BudgetKind::BitOps,
            Self::Latency(_) => BudgetKind::Latency,
        }
    }

    /// What is after the `=`.
    #[must_use]
    pub fn amount(&self) -> String {
        match *self {
            Self::AverageBits(bits) => bits.to_string(),
            Self::Size(whole) | Self::BitOps(whole) | Self::Latency(whole) => {
                in_units(whole, self.kind().units())
            }
        }
    }

    /// The limit in bits, bytes, bit operations or nanoseconds.
    #[must_use]
    pub const fn value(&self) -> f64 {
        match *self {
            Self::AverageBits(bits) => bits,
            Self::Size(whole) | Self::BitOps(whole) | Self::Latency(whole) => whole as f64,
        }
    }
}

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let wrong = |expected: &str| BudgetError { text: text.to_owned(), expected: expected.to_owned() };
        let kinds = "avg-bits=N, size=N, bitops=N or latency=N, for example `avg-bits=4` or `size=250KB`";
        let (name, amount) = text.split_once('=').ok_or_else(|| wrong(kinds))?;
        let kind =
            BudgetKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| wrong(kinds))?;
        let digits = amount.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(amount.len());
        let (number, unit) = amount.split_at(digits);
        let value = || {
            let number: f64 = number.parse().ok()?;
            let (_, unit) = kind.units().iter().find(|(name, _)| *name == unit)?;
            Some(number * unit)
        };
        let value = value().filter(|value| *value > 0.0 && *value <= MAX_COST as f64);
        let whole = || value.map(|value| value.round() as u64).filter(|&whole| whole > 0);
        match kind {
            BudgetKind::AverageBits => value.map(Self::AverageBits),
            BudgetKind::Size => whole().map(Self::Size),
            BudgetKind::BitOps => whole().map(Self::BitOps),
            BudgetKind::Latency => whole().map(Self::Latency),
        }
        .ok_or_else(|| wrong(kind.expected()))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}={}", self.kind().name(), self.amount()))
    }
}

/// In the largest decimal unit that leaves something before the point, with all its decimals.
fn in_units(whole: u64, units: &[(&str, f64)]) -> String {
    let fitting = units.iter().rev().find(|(_, unit)| *unit <= whole as f64);
    let (name, unit) = fitting.map_or(("", 1), |&(name, unit)| (name, unit as u64));
    let (before, after) = (whole / unit, whole % unit);
    let places = unit.ilog10() as usize;
    let after = format!("{after:0places$}");
    match after.trim_end_matches('0') {
        "" => format!("{before}{name}"),
        after => format!("{before}.{after}{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn budgets_parse_and_print() {
        for (text, budget) in [
            ("avg-bits=4", Budget::AverageBits(4.0)),
            ("avg-bits=3.75", Budget::AverageBits(3.75)),
            ("size=1B", Budget::Size(1)),
            ("size=250KB", Budget::Size(250_000)),
            ("size=1.5MB", Budget::Size(1_500_000)),
            ("bitops=1.2G", Budget::BitOps(1_200_000_000)),
            ("bitops=17", Budget::BitOps(17)),
            ("bitops=2T", Budget::BitOps(2_000_000_000_000)),
            ("latency=1.5ms", Budget::Latency(1_500_000)),
            ("latency=20us", Budget::Latency(20_000)),
            ("latency=2s", Budget::Latency(2_000_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(budget));
            assert_eq!(budget.to_string(), text);
        }
        assert_eq!("size=64KiB".parse(), Ok(Budget::Size(65_536)));
        assert_eq!(Budget::Size(65_536).to_string(), "size=65.536KB");
        assert_eq!("size=0.5MiB".parse(), Ok(Budget::Size(524_288)));
    }

    #[test]
    fn other_texts_are_refused() {
        let error = |text: &str| text.parse::<Budget>().unwrap_err().to_string();
        assert_eq!(
            error("size=250"),
            "budget `size=250`: expected a number above 0 and a unit of B, KB, KiB, MB, MiB or GB, for example `size=250KB`"
        );
        assert_eq!(
            error("bits=4"),
            "budget `bits=4`: expected avg-bits=N, size=N, bitops=N or latency=N, for example `avg-bits=4` or `size=250KB`"
        );
        for text in [
            "",
            "4",
            "=",
            "avg-bits",
            "avg-bits=",
            "avg-bits=0",
            "avg-bits=-4",
            "avg-bits=4b",
            "avg-bits=nan",
            "avg-bits=inf",
            "avg-bits=1e3",
            "avg-bits=1.2.3",
            "avg-bits=.",
            "avg-bits= 4",
            "size=0B",
            "size=0.1B",
            "size=1 KB",
            "size=1kb",
            "bitops=1Q",
            "bitops=999999999T",
            "latency=1",
            "latency=1m",
            "Latency=1ms",
        ] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_printed_is_read(whole in 1..=MAX_COST, bits in 1e-6..1e3f64) {
            let budgets =
                [Budget::Size(whole), Budget::BitOps(whole), Budget::Latency(whole), Budget::AverageBits(bits)];
            for budget in budgets {
                // Decimals of a double: the last digits of numbers near 2^53 may be lost.
                let read = budget.to_string().parse::<Budget>().unwrap();
                prop_assert!((read.value() - budget.value()).abs() <= 1e-15 * budget.value(), "{}", budget);
                prop_assert!(whole > 1 << 40 || read == budget, "{}", budget);
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,20}", name in 0..5usize, amount in "[0-9.]{0,30}", unit in ".{0,4}") {
            let _ = text.parse::<Budget>();
            let name = ["avg-bits", "size", "bitops", "latency", "x"][name];
            let _ = format!("{name}={amount}{unit}").parse::<Budget>();
            let _ = format!("{name}={text}").parse::<Budget>();
        }
    }
}
