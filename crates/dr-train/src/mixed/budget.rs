//! [`Budget`]: what a plan may take.

use super::search::MAX_COST;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

dr_runtime::named! {
    /// What of a plan is limited.
    BudgetKind, "budget" {
        /// Bits of a weight, on average over the weights of all layers but the first and the last, which stay at the highest
        /// width whatever the plan.
        AverageBits = "avg-bits",
        /// Bytes of the exported model: its packed codes and all its scales, BatchNorm terms and biases.
        Size = "size",
        /// Multiply-accumulates of one image, each times the bits of its weight and of its activation, over all layers.
        BitOps = "bitops",
        /// Nanoseconds of a pass in integers.
        Latency = "latency",
    }
}

impl BudgetKind {
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

/// What a plan may take at most.
///
/// Parses and prints `avg-bits=4`, `size=250KB`, `bitops=1.2G` and `latency=1.5ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    kind: BudgetKind,
    value: f64,
}

impl Budget {
    /// So many bits, bytes, bit operations or nanoseconds; of all but bits a whole number.
    #[must_use]
    pub const fn new(kind: BudgetKind, value: f64) -> Self {
        Self { kind, value }
    }

    /// What it limits.
    #[must_use]
    pub const fn kind(&self) -> BudgetKind {
        self.kind
    }

    /// The limit in bits, bytes, bit operations or nanoseconds.
    #[must_use]
    pub const fn value(&self) -> f64 {
        self.value
    }
}

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let wrong = |expected: &str| BudgetError { text: text.to_owned(), expected: expected.to_owned() };
        let kinds = "avg-bits=N, size=N, bitops=N or latency=N, for example `avg-bits=4` or `size=250KB`";
        let (name, amount) = text.split_once('=').ok_or_else(|| wrong(kinds))?;
        let kind: BudgetKind = name.parse().map_err(|_| wrong(kinds))?;
        let digits = amount.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(amount.len());
        let (number, unit) = amount.split_at(digits);
        let value = || {
            let number: f64 = number.parse().ok()?;
            let (_, unit) = kind.units().iter().find(|(name, _)| *name == unit)?;
            let value = number * unit;
            Some(if kind == BudgetKind::AverageBits { value } else { value.round() })
        };
        let value = value().filter(|value| *value > 0.0 && *value <= MAX_COST as f64);
        value.map(|value| Self { kind, value }).ok_or_else(|| wrong(kind.expected()))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = match self.kind {
            BudgetKind::AverageBits => self.value.to_string(),
            kind => in_units(self.value as u64, kind.units()),
        };
        f.pad(&format!("{}={amount}", self.kind))
    }
}

/// A time as in `latency=1.5ms`.
pub(super) fn time(nanoseconds: u64) -> String {
    in_units(nanoseconds, BudgetKind::Latency.units())
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
            ("avg-bits=4", Budget::new(BudgetKind::AverageBits, 4.0)),
            ("avg-bits=3.75", Budget::new(BudgetKind::AverageBits, 3.75)),
            ("size=1B", Budget::new(BudgetKind::Size, 1.0)),
            ("size=250KB", Budget::new(BudgetKind::Size, 250_000.0)),
            ("size=1.5MB", Budget::new(BudgetKind::Size, 1_500_000.0)),
            ("bitops=1.2G", Budget::new(BudgetKind::BitOps, 1_200_000_000.0)),
            ("bitops=17", Budget::new(BudgetKind::BitOps, 17.0)),
            ("bitops=2T", Budget::new(BudgetKind::BitOps, 2_000_000_000_000.0)),
            ("latency=1.5ms", Budget::new(BudgetKind::Latency, 1_500_000.0)),
            ("latency=20us", Budget::new(BudgetKind::Latency, 20_000.0)),
            ("latency=2s", Budget::new(BudgetKind::Latency, 2_000_000_000.0)),
        ] {
            assert_eq!(text.parse(), Ok(budget));
            assert_eq!(budget.to_string(), text);
        }
        assert_eq!("size=64KiB".parse(), Ok(Budget::new(BudgetKind::Size, 65_536.0)));
        assert_eq!(Budget::new(BudgetKind::Size, 65_536.0).to_string(), "size=65.536KB");
        assert_eq!("size=0.5MiB".parse(), Ok(Budget::new(BudgetKind::Size, 524_288.0)));
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
            for &kind in BudgetKind::ALL {
                let budget = Budget::new(kind, if kind == BudgetKind::AverageBits { bits } else { whole as f64 });
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
