//! Which tile of tensor cores is fastest, measured by CubeCL's tuner once for each kind of shape.

use super::Job;
use super::choice::suits;
use super::geometry::Walk;
use super::mma::MmaTile;
use burn_cubecl::CubeTuneId;
use burn_cubecl::cubecl::tune::{LocalTuner, Tunable, TunableSet, local_tuner};
use burn_cubecl::cubecl::{self, AutotuneKey};
use serde::{Deserialize, Serialize};

/// Shapes that are measured together.
#[derive(Hash, Eq, PartialEq, Debug, Clone, Serialize, Deserialize, AutotuneKey)]
struct Key {
    #[autotune(anchor)]
    positions: usize,
    outputs: usize,
    groups: usize,
    /// Blocks of a row of weights.
    blocks: usize,
    bits: u32,
    /// The width of the results, if those are codes.
    codes: u32,
    scaled: bool,
    straight: bool,
}

fn key(job: &Job) -> Key {
    let layout = job.layout();
    Key::new(
        job.positions(),
        layout.outputs(),
        layout.groups(),
        layout.blocks(),
        layout.bits().bits(),
        job.format.codes.map_or(0, |to| to.bits.bits()),
        layout.scale_groups() > 1,
        Walk::of(&job.format.shape).straight,
    )
}

/// Convolves with the fastest of [`MmaTile::ALL`].
pub(super) fn convolve(job: Job) {
    static TUNER: LocalTuner<Key, CubeTuneId> = local_tuner!();
    let (id, client) = (CubeTuneId::new(job.client(), &job.out.device), job.client().clone());
    let tiles = TUNER.init(&id, || {
        let none = TunableSet::new(key, |_: &Key, job: &Job| job.clone());
        MmaTile::ALL.into_iter().fold(none, |set, tile| {
            let run = move |job: Job| {
                if !suits(&tile, job.layout()) {
                    return Err("does not suit the shape");
                }
                job.mma(tile);
                Ok(())
            };
            set.with(Tunable::new(&format!("{tile:?}"), run))
        })
    });
    TUNER.execute(&id, &client, tiles, job);
}
