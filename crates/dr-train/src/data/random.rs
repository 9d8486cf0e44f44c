//! Random numbers that are the same on every machine and in every version of this program.

use chacha20::ChaCha8Rng;
use rand::SeedableRng;

/// The stream of seeded numbers that chooses validation images; epochs have those from 0.
const SPLIT: u64 = u64::MAX;

/// What shuffles and augments in an epoch.
pub(super) fn of_epoch(seed: u64, epoch: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    rng
}

/// What chooses validation or test images.
pub(super) fn of_split(seed: u64) -> ChaCha8Rng {
    of_epoch(seed, SPLIT)
}
