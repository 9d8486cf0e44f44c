//! A network of one's own, trained for four precisions at once, and then run in integers and switched: what `dr-train` does with
//! its networks, from Rust.
//!
//! ```text
//! cargo run --release -p dr-train --example joint -- FOLDER
//! ```
//!
//! Checkpoints go into the folder. On the embedded digits it takes some seconds.

use burn::module::{Module, ParamId};
use burn::tensor::{Device, Int, Tensor, activation::relu};
use burn::train::Interrupter;
use dr_precision::{Precision, PrecisionSet};
use dr_train::config::DatasetKind;
use dr_train::data::{self, Augmentation, DataSource, ImageLoader, TrainingLoader};
use dr_train::experiment::calibration_batches;
use dr_train::models::{NamedLayer, Network};
use dr_train::nn::{
    IntLinear, IntegerError, Layer, Pass, PrecisionNorm, QuantConfig, QuantLinear, QuantLinearConfig,
};
use dr_train::report::{NumberFormat, TrainPhase};
use dr_train::training::{Objective, Phase, evaluate, run_phase, score};
use rand::SeedableRng;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// Two linear layers. What is quantized is made of the layers of `dr_train::nn`; the rest can be any Burn module.
#[derive(Module, Debug)]
struct Mlp {
    hidden: QuantLinear,
    output: QuantLinear,
}

impl Network for Mlp {
    type Input = Tensor<4>;
    type Target = Tensor<1, Int>;

    fn forward(&self, images: Tensor<4>, pass: &Pass) -> Tensor<2> {
        let hidden = relu(self.hidden.forward(images.flatten(1, 3), pass));
        self.output.forward(hidden, pass)
    }

    fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        // Neither is pinned: both have the precision of the pass.
        let named = |name: &str, layer, after_relu| NamedLayer {
            name: name.to_owned(),
            layer,
            pinned: false,
            after_relu,
        };
        vec![
            named("hidden", Layer::Linear(&mut self.hidden), false),
            named("output", Layer::Linear(&mut self.output), true),
        ]
    }

    fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        vec![]
    }
}

/// The same in integer arithmetic.
#[derive(Clone)]
struct IntMlp {
    hidden: IntLinear,
    output: IntLinear,
}

impl IntMlp {
    fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>, IntegerError> {
        self.output.forward(relu(self.hidden.forward(images.flatten(1, 3))?))
    }

    fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        self.hidden.as_conv2d_mut().switch(precision)?;
        self.output.as_conv2d_mut().switch(precision)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: joint FOLDER")?);
    let device = Device::flex();
    let data = data::load(&DataSource::new(DatasetKind::Digits, None, 1), None)?;
    let normalization = &data.normalization;
    let training = |epochs_from: u64| {
        let (augmentation, device) = (Augmentation::usual(DatasetKind::Digits), device.clone().autodiff());
        ImageLoader::training(data.train.clone(), normalization.clone(), 32, 1, augmentation, device)
            .starting_at(epochs_from)
    };
    let evaluation = |images| ImageLoader::evaluation(images, normalization.clone(), 256, device.clone());

    // In floats first.
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(1);
    let tracked = device.clone().autodiff();
    let model = Mlp {
        hidden: QuantLinearConfig::new([64, 128]).init(rng, &tracked),
        output: QuantLinearConfig::new([128, 10]).init(rng, &tracked),
    };
    let phase = Phase::new("float", TrainPhase::Float, folder.join("float"), 10, 0.1);
    let objective = Objective::new(vec![NumberFormat::Float]);
    let stop = Interrupter::new();
    let float =
        run_phase(&phase, model, objective, training(0), Arc::new(evaluation(data.valid.clone())), &stop)?;

    // Then at all precisions at once, from scales that fit the weights and what goes into the layers.
    let precisions: PrecisionSet = "8,6,4,2".parse()?;
    let batches = calibration_batches(&data.train, normalization, &device)?;
    let model = float.model.quantize(&QuantConfig::new(precisions.clone()), batches);
    let phase = Phase::new("joint", TrainPhase::Joint, folder.join("joint"), 10, 0.02);
    let mut objective = Objective::new(precisions.iter().map(NumberFormat::from).collect());
    objective.scale_rate = 0.01;
    let model = model.fork(&tracked).train();
    let joint =
        run_phase(&phase, model, objective, training(10), Arc::new(evaluation(data.valid.clone())), &stop)?;

    // One model, four precisions; and the same in integers, switched in place.
    let passes: Vec<Pass> = precisions.iter().map(Pass::at).collect();
    let fake = evaluate(&joint.model, &evaluation(data.test.clone()), &passes)?;
    let highest = precisions.highest();
    let mut network = IntMlp {
        hidden: joint.model.hidden.to_integer(highest)?,
        output: joint.model.output.to_integer(highest)?,
    };
    println!("precision  top-1 (%)  in integers");
    for (precision, fake) in precisions.iter().zip(fake) {
        network.switch(precision)?;
        let networks = [network.clone()];
        let integers = score(&evaluation(data.test.clone()), &networks, |network, images| {
            Ok::<_, Box<dyn Error>>(network.forward(images)?)
        })?;
        println!("{precision:<9}  {:>9.2}  {:>11.2}", fake.top1, integers[0].top1);
    }
    Ok(())
}
