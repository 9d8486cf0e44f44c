//! Phases of training: their averages.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use burn::train::Interrupter;
use dr_train::data::{self, Augmentation, DataSource, Digits, ImageLoader, Splits};
use dr_train::models::{ConvNetConfig, RESNET8};
use dr_train::nn::Model;
use dr_train::report::{NumberFormat, TrainPhase};
use dr_train::training::{Objective, Phase, run_phase};
use std::sync::Arc;

/// All values of a network: weights, BatchNorms and their running statistics.
#[derive(Default)]
struct Values(Vec<f32>);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.extend(param.val().into_data().try_into_vec::<f32>().unwrap());
    }
}

fn values(model: &Model) -> Vec<f32> {
    let mut values = Values::default();
    model.visit(&mut values);
    values.0
}

fn start() -> Model {
    let model = ConvNetConfig::new(RESNET8, 1, 10).init(1, &Device::flex().autodiff());
    Model::trace(&model).unwrap()
}

/// The values of the network after so many of three steps, an epoch each, with a moving average or without. There is nothing to choose an epoch by, so that it is
/// the last one.
fn trained(data: &Splits, steps: usize, ema: f64) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let phase = Phase {
        warmup_epochs: 0.0,
        anneal_epochs: 3,
        ..Phase::new("float", TrainPhase::Float, folder.path().to_owned(), steps, 0.1)
    };
    let normalization = data.normalization.clone();
    let device = Device::flex().autodiff();
    let still = Augmentation::default();
    let train = ImageLoader::training(data.train.clone(), normalization.clone(), 256, 1, still, device);
    let nothing = ImageLoader::evaluation(data.valid.range(0..0), normalization, 256, Device::flex());
    let mut objective = Objective::new(vec![NumberFormat::Float]);
    objective.ema = ema;
    let outcome = run_phase(&phase, start(), objective, train, Arc::new(nothing), &Interrupter::new());
    values(&outcome.unwrap().model)
}

#[test]
fn an_average_is_that_of_the_networks_of_all_steps() {
    let data = data::load(&DataSource::new(&Digits, None, 1), Some(256)).unwrap();
    let decay = 0.75;
    let mut expected: Vec<f64> = values(&start().valid()).into_iter().map(f64::from).collect();
    for steps in 1..=3 {
        let network = trained(&data, steps, 0.0);
        assert_eq!(network.len(), expected.len());
        for (average, value) in expected.iter_mut().zip(network) {
            *average = decay * *average + (1.0 - decay) * f64::from(value);
        }
        let found = trained(&data, steps, decay);
        let difference = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
        let largest = difference.fold(0.0, f64::max);
        assert!(largest < 1e-5, "{steps} steps: {largest}");
    }
}
