//! Several devices train one network. A CPU is one device: here it is taken twice.

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use burn::train::Interrupter;
use dr_train::config::{DeviceKind, Devices};
use dr_train::data::{
    self, Augmentation, DataSource, DatasetKind, Digits, ImageLoader, Splits, TrainingLoader,
};
use dr_train::device::{DeviceError, open_several};
use dr_train::models::{ConvNetConfig, RESNET8};
use dr_train::nn::Model;
use dr_train::report::{NumberFormat, TrainPhase};
use dr_train::training::{Objective, Phase, run_phase};
use std::sync::Arc;

fn digits() -> Splits {
    data::load(&DataSource::new(&Digits, None, 1), Some(512)).unwrap()
}

fn loader(data: &Splits, batch: usize, orders: u32, augmentation: Augmentation) -> ImageLoader {
    let device = Device::flex().autodiff();
    let normalization = data.normalization.clone();
    ImageLoader::training(data.train.clone(), normalization, batch, 1, augmentation, device)
        .with_orders(orders)
}

#[test]
fn two_devices_learn_as_one_does() {
    let data = digits();
    let train = |devices: usize, ema: f64, mixup: f64| {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::flex().autodiff();
        let model = ConvNetConfig::new(RESNET8, 1, 10).init(1, &device);
        let model = Model::trace(&model).unwrap();
        let mut phase = Phase::new("float", TrainPhase::Float, folder.path().to_owned(), 4, 0.1);
        phase.devices = vec![device; devices];
        let valid =
            ImageLoader::evaluation(data.valid.clone(), data.normalization.clone(), 256, Device::flex());
        let mut objective = Objective::new(vec![NumberFormat::Float]);
        objective.ema = ema;
        let batch = 32 / devices;
        let augmentation = Augmentation { mixup, ..Digits.augmentation() };
        let outcome = run_phase(
            &phase,
            model,
            objective,
            loader(&data, batch, 1, augmentation),
            Arc::new(valid),
            &Interrupter::new(),
        )
        .unwrap();
        outcome
            .history
            .epochs
            .iter()
            .map(|epoch| epoch.curves[&NumberFormat::Float].valid_top1)
            .fold(0.0, f64::max)
    };
    let (one, two) = (train(1, 0.0, 0.0), train(2, 0.0, 0.0));
    assert!(one > 80.0 && two > 80.0, "{one} % on one device, {two} % on two");
    let averaged = train(2, 0.5, 0.1);
    assert!(averaged > 70.0, "{averaged} % of an average, from mixtures");
}

#[test]
fn parts_of_an_epoch_have_all_images_once_and_others_in_the_next() {
    let data = digits();
    let labels = |loader: &dyn DataLoader<dr_train::data::ImageBatch>| -> Vec<i64> {
        let batches = loader.iter().map(|batch| batch.unwrap().labels.classes.into_data().convert::<i64>());
        batches.flat_map(|labels| labels.try_into_vec::<i64>().unwrap()).collect()
    };
    let sorted = |mut labels: Vec<i64>| {
        labels.sort_unstable();
        labels
    };
    for orders in [1, 4] {
        let whole = loader(&data, 16, orders, Digits.augmentation());
        let half = whole.num_items() / 2;
        let parts = [whole.slice(0, half), whole.slice(half, whole.num_items())];
        let [first, second] = parts.each_ref().map(|part| labels(&**part));
        let all = [first.clone(), second].concat();
        assert_eq!(sorted(all), sorted(labels(&whole)), "{orders} orders");
        let next = labels(&*parts[0]);
        assert_eq!(next.len(), first.len());
        assert_ne!(sorted(next), sorted(first), "the same images in the next epoch");
    }
}

#[test]
fn numbers_of_devices_are_checked() {
    assert_eq!("all".parse(), Ok(Devices::All));
    assert_eq!("1,0".parse(), Ok(Devices::Numbers(vec![1, 0])));
    let workers = "remote:gpu1:3000, remote:[::1]:3000".parse::<Devices>().unwrap();
    assert_eq!(workers.to_string(), "remote:gpu1:3000,remote:[::1]:3000");
    let wrong = [
        "remote:a",
        "remote:a:0",
        "remote::1",
        "remote:a b:1",
        "remote:a/b:1",
        "remote:a:1,remote:a:1",
        "remote:a:1,0",
    ];
    for text in ["", "a", "0,0", "0,,1", "-1", "0;1"].into_iter().chain(wrong) {
        let message = text.parse::<Devices>().unwrap_err().to_string();
        assert!(message.contains("expected `all`"), "{message}");
    }
    let (devices, kind) = open_several(DeviceKind::Flex, &Devices::All).unwrap();
    assert_eq!((devices.len(), kind), (1, DeviceKind::Flex));
    let error = open_several(DeviceKind::Flex, &Devices::Numbers(vec![0, 2])).unwrap_err();
    assert!(matches!(error, DeviceError::NoSuch { .. }));
    assert_eq!(error.to_string(), "device 2 of `flex`: this machine has 1; expected 0 to 0");
}
