//! [`Sampling`]: how the next token is chosen.

use super::TextError;
use chacha20::ChaCha8Rng;
use rand::RngExt;
use std::collections::BTreeSet;

/// How the next token is chosen. What each field does is what the logits processor of that name does in `transformers`, and they are
/// applied in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits of tokens that the text already has are divided by it if they are above 0, and multiplied otherwise; 1 changes nothing
    /// (arXiv:1909.05858).
    pub repetition_penalty: f32,
    /// What logits are divided by; 0 always takes the most likely token.
    pub temperature: f32,
    /// How many of the most likely tokens are kept, with those that are as likely as the last of them; 0 keeps all.
    pub top_k: usize,
    /// As few of the most likely tokens are kept as have this probability together; 1 keeps all (arXiv:1904.09751).
    pub top_p: f32,
    /// Tokens are kept that have at least this part of the largest probability; 0 keeps all (arXiv:2407.01082).
    pub min_p: f32,
    /// Decides the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 0.0, top_k: 50, top_p: 1.0, min_p: 0.0, seed: 1 }
    }
}

impl Sampling {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), TextError> {
        let Self { repetition_penalty, temperature, top_p, min_p, .. } = *self;
        let (part, finite) = (0.0..=1.0, 0.0..=f32::MAX);
        let wrong = match () {
            () if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) => {
                ("repetition_penalty", repetition_penalty, "a number above 0")
            }
            () if !finite.contains(&temperature) => ("temperature", temperature, "a number of at least 0"),
            () if !part.contains(&top_p) => ("top_p", top_p, "a number from 0 to 1"),
            () if !part.contains(&min_p) => ("min_p", min_p, "a number from 0 to 1"),
            () => return Ok(()),
        };
        let (name, found, expected) = wrong;
        Err(TextError::Sampling { name, found, expected })
    }

    /// The tokens of which the next one is drawn, with their probabilities, the most likely one first. The text has the tokens of
    /// `earlier`; `logits` are those of all tokens that there are.
    #[must_use]
    pub fn candidates(&self, logits: &[f32], earlier: &[u32]) -> Vec<(u32, f64)> {
        let mut scores: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        let penalty = self.repetition_penalty;
        let penalized = if penalty == 1.0 { &[] } else { earlier };
        for &token in penalized.iter().collect::<BTreeSet<_>>() {
            if let Some((_, score)) = scores.get_mut(token as usize) {
                *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
            }
        }
        let best_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.temperature == 0.0 {
            return scores
                .into_iter()
                .min_by(best_first)
                .map(|(token, _)| (token, 1.0))
                .into_iter()
                .collect();
        }
        if (1..scores.len()).contains(&self.top_k) {
            let (_, &mut (_, last), _) = scores.select_nth_unstable_by(self.top_k - 1, best_first);
            scores.retain(|(_, score)| *score >= last);
        }
        scores.sort_unstable_by(best_first);
        let largest = scores.first().map_or(0.0, |(_, score)| *score);
        let weight =
            |score: f32| ((f64::from(score) - f64::from(largest)) / f64::from(self.temperature)).exp();
        // Of the largest probability, which is therefore 1 here.
        let mut weights: Vec<(u32, f64)> =
            scores.into_iter().map(|(token, score)| (token, weight(score))).collect();
        if self.top_p < 1.0 {
            let mut left = f64::from(self.top_p) * total(&weights);
            keep_while(&mut weights, |weight| {
                let is_needed = left > 0.0;
                left -= weight;
                is_needed
            });
        }
        keep_while(&mut weights, |weight| weight >= f64::from(self.min_p));
        let total = total(&weights);
        weights.into_iter().map(|(token, weight)| (token, weight / total)).collect()
    }

    /// The next token.
    pub(super) fn choose(&self, logits: &[f32], earlier: &[u32], rng: &mut ChaCha8Rng) -> u32 {
        let candidates = self.candidates(logits, earlier);
        let mut left = rng.random::<f64>();
        let drawn = candidates.iter().find(|(_, probability)| {
            left -= probability;
            left <= 0.0
        });
        drawn.or(candidates.first()).map_or(0, |(token, _)| *token)
    }
}

fn total(weights: &[(u32, f64)]) -> f64 {
    weights.iter().map(|(_, weight)| weight).sum()
}

/// Keeps the first ones, and at least one.
fn keep_while(weights: &mut Vec<(u32, f64)>, mut is_kept: impl FnMut(f64) -> bool) {
    let kept = weights.iter().take_while(|(_, weight)| is_kept(*weight)).count();
    weights.truncate(kept.max(1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    fn tokens(candidates: &[(u32, f64)]) -> Vec<u32> {
        candidates.iter().map(|(token, _)| *token).collect()
    }

    const WARM: Sampling =
        Sampling { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 };

    #[test]
    fn the_most_likely_token_or_one_of_the_best() {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let logits = [0.0, 3.0, 1.0, 3.0, -1.0];
        assert_eq!(Sampling::default().choose(&logits, &[], rng), 1, "of equal ones the first");
        let warm = Sampling { top_k: 3, ..WARM };
        let mut counts = [0usize; 5];
        (0..4000).for_each(|_| counts[warm.choose(&logits, &[], rng) as usize] += 1);
        assert_eq!((counts[0], counts[4]), (0, 0));
        // e^3 of 2 e^3 + e.
        assert!(counts[1].abs_diff(1873) < 150 && counts[3].abs_diff(1873) < 150, "{counts:?}");
        assert_eq!(tokens(&Sampling { top_k: 1, ..warm }.candidates(&logits, &[])), [1, 3], "as likely");
    }

    #[test]
    fn each_step_by_hand() {
        // Probabilities of 1/2, 1/4, 1/8 and 1/8.
        let logits = [8.0f32, 4.0, 2.0, 2.0].map(f32::ln);
        let kept = |sampling: Sampling| tokens(&sampling.candidates(&logits, &[]));
        assert_eq!(kept(Sampling { top_p: 0.7, ..WARM }), [0, 1]);
        assert_eq!(kept(Sampling { top_p: 0.8, ..WARM }), [0, 1, 2]);
        assert_eq!(kept(Sampling { top_p: 0.0, ..WARM }), [0]);
        // Of the two that are left the first has two thirds.
        assert_eq!(kept(Sampling { top_k: 2, top_p: 0.6, ..WARM }), [0]);
        assert_eq!(kept(Sampling { min_p: 0.4, ..WARM }), [0, 1]);
        // The temperature is before: 1/16 is a quarter of a quarter.
        assert_eq!(kept(Sampling { min_p: 0.4, temperature: 0.5, ..WARM }), [0]);
        assert!((WARM.candidates(&logits, &[])[1].1 - 0.25).abs() < 1e-6);
        let penalized = Sampling { repetition_penalty: 4.0, temperature: 0.0, ..WARM };
        assert_eq!(tokens(&penalized.candidates(&[8.0, 4.0, -1.0], &[0, 0])), [1], "once: 8 becomes 2");
        assert_eq!(tokens(&penalized.candidates(&[-2.0, -1.0], &[1, 9])), [0], "-1 becomes -4");
    }

    #[test]
    fn numbers_that_make_no_sense() {
        for (wrong, message) in [
            (Sampling { temperature: -1.0, ..WARM }, "temperature is -1: expected a number of at least 0"),
            (Sampling { temperature: f32::INFINITY, ..WARM }, "temperature is inf"),
            (Sampling { top_p: 1.5, ..WARM }, "top_p is 1.5: expected a number from 0 to 1"),
            (Sampling { min_p: f32::NAN, ..WARM }, "min_p is NaN"),
            (
                Sampling { repetition_penalty: 0.0, ..WARM },
                "repetition_penalty is 0: expected a number above 0",
            ),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    proptest! {
        #[test]
        fn the_kept_tokens(
            logits in prop::collection::vec(-9.0f32..9.0, 1..40), earlier in prop::collection::vec(0u32..40, 0..9),
            temperature in 0.1f32..3.0, top_k in 0usize..45, top_p in 0.0f32..=1.0, min_p in 0.0f32..=1.0,
        ) {
            let all = Sampling { temperature, ..WARM };
            let whole = all.candidates(&logits, &earlier);
            // What is neutral changes nothing.
            prop_assert_eq!(whole.len(), logits.len());
            prop_assert_eq!(&whole, &all.candidates(&logits, &[]));
            prop_assert!(whole.is_sorted_by(|a, b| a.1 >= b.1));
            prop_assert!((total(&whole) - 1.0).abs() < 1e-9);
            // Each keeps the most likely ones.
            let first = |sampling: Sampling| {
                let kept = sampling.candidates(&logits, &[]);
                assert_eq!(tokens(&kept), tokens(&whole)[..kept.len()]);
                assert!((total(&kept) - 1.0).abs() < 1e-9);
                kept.len()
            };
            let best = first(Sampling { top_k, ..all });
            let least = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
            prop_assert!(best >= least);
            let nucleus = first(Sampling { top_p, ..all });
            prop_assert!(total(&whole[..nucleus]) >= f64::from(top_p) - 1e-9);
            prop_assert!(nucleus == 1 || total(&whole[..nucleus - 1]) < f64::from(top_p) + 1e-9);
            let likely = first(Sampling { min_p, ..all });
            let least = f64::from(min_p) * whole[0].1;
            prop_assert!(whole[..likely].iter().all(|(_, p)| *p >= least - 1e-9));
            prop_assert!(whole[likely..].iter().all(|(_, p)| *p <= least + 1e-9));
        }
    }
}
