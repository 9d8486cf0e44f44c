//! Random numbers that are the same on every machine and in every version of this program.

use chacha20::ChaCha8Rng;
use rand::SeedableRng;

/// The stream of seeded numbers that chooses validation images.
const SPLIT: u64 = u64::MAX;

/// What shuffles and augments in an epoch, for one of the orders that the images are taken in side by side.
pub(crate) fn of_epoch(seed: u64, epoch: u64, order: u32) -> ChaCha8Rng {
    of_stream(seed, (u64::from(order) << 32) + epoch)
}

/// What chooses validation or test images.
pub(crate) fn of_split(seed: u64) -> ChaCha8Rng {
    of_stream(seed, SPLIT)
}

fn of_stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
