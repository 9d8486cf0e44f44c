//! A network of one's own, trained for four precisions at once, saved, and run in integers and switched: what `dr-train` does with
//! its networks, from Rust. The network is written once, and the program knows its file:
//!
//! ```text
//! cargo run --release -p dr-train --example joint -- FOLDER
//! cargo run --release -p dr-train -- eval FOLDER/model.safetensors
//! cargo run --release -p dr-train -- export FOLDER/model.safetensors --precision 4 --out four.onnx
//! cargo run --release -p dr-train -- latency FOLDER/model.safetensors
//! ```
//!
//! Checkpoints go into the folder, too. On the embedded digits it takes some seconds.

mod branches;

use branches::BranchesKind;
use burn::module::Module;
use burn::tensor::Device;
use burn::train::Interrupter;
use dr_precision::PrecisionSet;
use dr_train::artifact::{Artifact, ArtifactKind, Described, Description, SavedModel};
use dr_train::config::Engine;
use dr_train::data::{self, DataSource, DatasetKind, Digits, ImageLoader, TrainingLoader};
use dr_train::evaluation::{formats, measure};
use dr_train::experiment::calibration_batches;
use dr_train::models::ModelKind;
use dr_train::nn::QuantConfig;
use dr_train::report::{NumberFormat, TrainPhase};
use dr_train::training::{Objective, Phase, run_phase};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: joint FOLDER")?);
    let device = Device::flex();
    let data = data::load(&DataSource::new(&Digits, None, 1), None)?;
    let normalization = &data.normalization;
    let training = |epochs_from: u64| {
        let (augmentation, device) = (Digits.augmentation(), device.clone().autodiff());
        ImageLoader::training(data.train.clone(), normalization.clone(), 32, 1, augmentation, device)
            .starting_at(epochs_from)
    };
    let evaluation = |images| ImageLoader::evaluation(images, normalization.clone(), 256, device.clone());

    // What the file is to say of it.
    let precisions: PrecisionSet = "8,6,4,2".parse()?;
    let (input, classes) = (data.train.shape().into(), data.train.classes());
    let description = Description {
        kind: ArtifactKind::MultiPrecision,
        normalization: normalization.clone(),
        ..Description::new("digits", &BranchesKind, input, classes, precisions.clone())
    };

    // In floats first.
    let tracked = device.clone().autodiff();
    let model = BranchesKind.init(&description.sizes(), description.seed, &tracked)?;
    let phase = Phase::new("float", TrainPhase::Float, folder.join("float"), 10, 0.1);
    let objective = Objective::new(vec![NumberFormat::Float]);
    let stop = Interrupter::new();
    let float =
        run_phase(&phase, model, objective, training(0), Arc::new(evaluation(data.valid.clone())), &stop)?;

    // Then at all precisions at once, from scales that fit the weights and what goes into the layers.
    let batches = calibration_batches(&data.train, normalization, &device)?;
    let model = float.model.quantize(&QuantConfig::new(precisions.clone()), batches);
    let phase = Phase::new("joint", TrainPhase::Joint, folder.join("joint"), 10, 0.02);
    let mut objective = Objective::new(precisions.iter().map(NumberFormat::from).collect());
    objective.scale_rate = 0.01;
    let model = model.fork(&tracked).train();
    let joint =
        run_phase(&phase, model, objective, training(10), Arc::new(evaluation(data.valid.clone())), &stop)?;

    // One file, four precisions. It says what the network computes: nothing else has to know it.
    let path = folder.join("model.safetensors");
    Artifact::of(&joint.model, description)?.save(&path)?;
    let artifact = Artifact::open(&path)?;
    let formats = formats(&artifact);
    let [fake, integers] = [Engine::Fake, Engine::Integer]
        .map(|engine| measure(&artifact, &formats, &data.test, engine, None, &device));
    println!("precision  top-1 (%)  in integers");
    for ((format, fake), integers) in formats.iter().zip(fake?).zip(integers?) {
        println!("{format:<9}  {:>9.2}  {:>11.2}", fake.top1, integers.top1);
    }
    println!("wrote {}", path.display());
    Ok(())
}
