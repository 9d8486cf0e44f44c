//! Changes to training images, and what is learned of mixtures.

use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_train::config::Changes;
use dr_train::data::{
    Augmentation, Batch, Classes, ImageLoader, ImageShape, Images, Input, Normalization, Operation, Target,
    TrainingLoader,
};
use proptest::{collection::vec, prelude::*};
use rand::{SeedableRng, rngs::StdRng};
use std::sync::Arc;

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(&hexadecimal[at..at + 2], 16).unwrap();
    (0..hexadecimal.len()).step_by(2).map(pair).collect()
}

#[test]
fn operations_are_those_of_the_python_imaging_library() {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("../fixtures/operations.json")).unwrap();
    let size = |name: &str| fixture[name].as_u64().unwrap() as usize;
    let shape = ImageShape { channels: 3, height: size("height"), width: size("width") };
    let image = bytes(fixture["image"].as_str().unwrap());
    for case in fixture["cases"].as_array().unwrap() {
        let operation: Operation = case["operation"].as_str().unwrap().parse().unwrap();
        let strength = case["strength"].as_f64().unwrap();
        let mut found = image.clone();
        operation.apply(strength, &mut found, shape);
        let expected = bytes(case["image"].as_str().unwrap());
        let other = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert_eq!(other, 0, "{operation} {strength}: so many of {} pixels", found.len());
        assert!(found != image, "{operation} {strength} changes something");
    }
}

proptest! {
    #[test]
    fn without_strength_images_stay(pixels in vec(any::<u8>(), 3 * 5 * 4)) {
        let shape = ImageShape { channels: 3, height: 5, width: 4 };
        for &operation in Operation::ALL {
            if !matches!(operation, Operation::AutoContrast | Operation::Equalize) {
                let mut image = pixels.clone();
                operation.apply(0.0, &mut image, shape);
                prop_assert_eq!(&image, &pixels, "{}", operation);
            }
        }
    }

    #[test]
    fn any_image_can_be_changed(
        height in 1..6usize, width in 1..6usize, channels in 1..5usize, strength in -1.0..=1.0f64, seed: u64,
    ) {
        let shape = ImageShape { channels, height, width };
        let image: Vec<u8> = (0..shape.bytes()).map(|i| (i * 77 + seed as usize % 101) as u8).collect();
        for &operation in Operation::ALL {
            operation.apply(strength, &mut image.clone(), shape);
        }
        let changes = "crop,flip,colour,rand:30".parse::<Changes>().unwrap();
        let augmentation = Augmentation::default().with_changes(changes, shape);
        let [mut once, mut again] = [vec![0; shape.bytes()], vec![1; shape.bytes()]];
        augmentation.apply(&image, shape, &mut StdRng::seed_from_u64(seed), &mut once);
        augmentation.apply(&image, shape, &mut StdRng::seed_from_u64(seed), &mut again);
        prop_assert_eq!(once, again);
    }

    #[test]
    fn lists_of_changes_are_read_as_they_are_written(crop: bool, flip: bool, colour: bool, rand in proptest::option::of(0..=30u8)) {
        let changes = Changes { crop, flip, colour, rand };
        prop_assert_eq!(changes.to_string().parse::<Changes>().unwrap(), changes);
    }
}

#[test]
fn lists_of_changes() {
    assert_eq!("rand".parse::<Changes>().unwrap().to_string(), "rand:9");
    assert_eq!("none".parse::<Changes>().unwrap(), Changes::default());
    for wrong in ["", "all", "crop,crop", "rand,rand:3", "rand:31", "rand:-1", "crop:2", "none,crop"] {
        let error = wrong.parse::<Changes>().unwrap_err().to_string();
        assert!(error.contains("expected `none`, or a list of crop"), "{error}");
    }
}

/// Image `i` has pixels of the value `i`, and the class `i`.
fn loader(augmentation: Augmentation, orders: u32) -> ImageLoader {
    let shape = ImageShape { channels: 1, height: 2, width: 2 };
    let pixels = (0..40).flat_map(|i| [i as u8; 4]).collect();
    let images = Arc::new(Images::new(pixels, (0..40).collect(), shape, 40).unwrap());
    let plain = Normalization { std: vec![1.0 / 255.0], ..Normalization::none(1) };
    ImageLoader::training(images, plain, 16, 5, augmentation, Device::flex()).with_orders(orders)
}

type Values = (Vec<f32>, Vec<i64>, Option<(Vec<i64>, Vec<f32>)>);

fn values(Batch { input, labels }: Batch<Tensor<4>, Classes>) -> Values {
    let classes = |of: Tensor<1, Int>| of.into_data().convert::<i64>().try_into_vec::<i64>().unwrap();
    let mixed =
        labels.mixed.map(|(others, parts)| (classes(others), parts.into_data().try_into_vec().unwrap()));
    (input.into_data().try_into_vec().unwrap(), classes(labels.classes), mixed)
}

fn epoch(loader: &ImageLoader) -> Vec<Values> {
    loader.iter().map(|batch| values(batch.unwrap())).collect()
}

#[test]
fn mixtures_are_of_images_of_a_batch_and_their_classes() {
    let mixing = Augmentation { mixup: 1.0, ..Augmentation::default() };
    let (plain, mixed) = (epoch(&loader(Augmentation::default(), 2)), epoch(&loader(mixing, 2)));
    assert!(plain.iter().all(|(.., mixed)| mixed.is_none()));
    let mut parts = vec![];
    for ((_, classes, _), (pixels, first, mixed)) in plain.iter().zip(&mixed) {
        assert_eq!(classes, first);
        let (others, part) = mixed.as_ref().unwrap();
        // Each of the two orders is mixed on its own.
        for half in [0..first.len() / 2, first.len() / 2..first.len()] {
            let [mut first, mut others] = [first, others].map(|classes| classes[half.clone()].to_vec());
            first.sort_unstable();
            others.sort_unstable();
            assert_eq!(first, others);
            assert!(part[half.clone()].iter().all(|of| (0.0..=1.0).contains(of) && *of == part[half.start]));
            parts.push(part[half.start]);
        }
        for (at, image) in pixels.chunks(4).enumerate() {
            let expected = part[at] * first[at] as f32 + (1.0 - part[at]) * others[at] as f32;
            assert!(image.iter().all(|pixel| (pixel - expected).abs() < 1e-4), "{image:?} {expected}");
        }
    }
    assert!(parts.windows(2).all(|pair| pair[0] != pair[1]), "{parts:?}");
    // The seed and the epoch decide alone.
    let again = loader(mixing, 2);
    let epochs = [epoch(&again), epoch(&again)];
    assert_eq!(epochs[0], mixed);
    assert_eq!(epochs[1], epoch(&loader(mixing, 2).starting_at(1)));
    assert_ne!(epochs[0], epochs[1]);
}

fn labels(classes: &[i64]) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(classes.to_vec(), [classes.len()]), &Device::flex())
}

fn logits() -> Tensor<2> {
    Tensor::from_data([[1.0f32, -0.5, 2.0], [0.25, 0.0, -3.0]], &Device::flex())
}

/// The cross entropies with the three classes, of both rows.
fn entropies() -> [[f64; 3]; 2] {
    [[1.0f64, -0.5, 2.0], [0.25, 0.0, -3.0]].map(|row| {
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        row.map(|logit| sum.ln() - logit)
    })
}

fn loss(classes: &Classes) -> f64 {
    f64::from(classes.loss(logits()).into_scalar::<f32>())
}

#[test]
fn losses_of_mixtures_and_of_smoothed_labels() {
    let [first, second] = entropies();
    let plain = Classes::from(labels(&[2, 1]));
    assert!((loss(&plain) - (first[2] + second[1]) / 2.0).abs() < 1e-6);

    let smooth = Classes { smoothing: 0.1, ..plain.clone() };
    let mean = |row: [f64; 3]| row.iter().sum::<f64>() / 3.0;
    let expected = 0.9 * (first[2] + second[1]) / 2.0 + 0.1 * (mean(first) + mean(second)) / 2.0;
    assert!((loss(&smooth) - expected).abs() < 1e-6, "{} {expected}", loss(&smooth));

    let part = |part: f32| Tensor::<1>::from_data([part, part], &Device::flex());
    let mixed = |of: f32| Classes { mixed: Some((labels(&[1, 2]), part(of))), ..plain.clone() };
    let expected = 0.3 * (first[2] + second[1]) / 2.0 + 0.7 * (first[1] + second[2]) / 2.0;
    assert!((loss(&mixed(0.3)) - expected).abs() < 1e-6);
    // With the whole of the first image a mixture is that image.
    assert!((loss(&mixed(1.0)) - loss(&plain)).abs() < 1e-6);
    let (right, count) = mixed(0.3).right(logits());
    // The first guess is the first class of its mixture; the second is neither.
    assert!((right.into_scalar::<f32>() - 0.3).abs() < 1e-6);
    assert_eq!(count, 2);
    let both = Classes { smoothing: 0.2, ..mixed(0.25) };
    let [a, b]: [Classes; 2] = both.clone().split(1).try_into().unwrap();
    let of = |classes: Classes, row: usize| {
        classes.loss(logits().slice([row..row + 1, 0..3])).into_scalar::<f32>()
    };
    assert!((f64::from(of(a, 0) + of(b, 1)) / 2.0 - loss(&both)).abs() < 1e-6);
}
