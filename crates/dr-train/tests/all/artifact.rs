//! The artifact's file: what is written is read again, and nothing else is.

use burn::tensor::Device;
use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_train::artifact::{
    Artifact, ArtifactError, ArtifactKind, Described, Description, InputShape, SavedModel, TensorEntry,
};
use dr_train::data::Normalization;
use dr_train::models::RESNET8;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;

fn artifact() -> Artifact {
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let (dataset, model) = ("digits", RESNET8);
    let description = Description {
        kind: ArtifactKind::MultiPrecision,
        normalization: Normalization { mean: vec![0.305], std: vec![0.376], ..Normalization::none(1) },
        seed: u64::MAX,
        ..Description::new(dataset, &model, input, 10, PrecisionSet::default())
    };
    let tensors = BTreeMap::from([
        ("conv1.weight".to_owned(), TensorEntry::i8([2, 3], vec![-128, -1, 0, 1, 2, 127])),
        ("conv1.scale".to_owned(), TensorEntry::f32([2], vec![0.1, f32::MIN_POSITIVE])),
        ("empty".to_owned(), TensorEntry::f32([0], vec![])),
        ("fc.packed".to_owned(), TensorEntry::u32([1, 2], vec![0xdead_beef, 7])),
    ]);
    Artifact { description, tensors }
}

/// Without the checksum, which only the file has.
fn unsealed(mut artifact: Artifact) -> Artifact {
    artifact.description.checksum.clear();
    artifact
}

fn error_of(bytes: &[u8]) -> String {
    Artifact::from_bytes(bytes).expect_err("must not load").to_string()
}

#[test]
fn what_is_saved_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "an older file").unwrap();
    artifact().save(&path).unwrap();
    let loaded = Artifact::load(&path).unwrap();
    assert_eq!(loaded.description.checksum.len(), 64);
    assert_eq!(unsealed(loaded.clone()), artifact());
    assert_eq!(loaded.payload_bytes(), 6 + 8 + 8);
    assert_eq!(loaded.to_bytes().unwrap(), fs::read(&path).unwrap(), "saving is deterministic");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn any_safetensors_reader_can_read_it() {
    let bytes = artifact().to_bytes().unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("conv1.weight").unwrap().shape(), [2, 3]);
}

#[test]
fn tensors_are_asked_for_by_name_type_and_shape() {
    let artifact = artifact();
    assert_eq!(artifact.values::<i8>("conv1.weight", &[2, 3]).unwrap()[5], 127);
    assert_eq!(artifact.f32("conv1.scale", &[2]).unwrap()[0], 0.1);
    assert_eq!(artifact.values::<u32>("fc.packed", &[1, 2]).unwrap()[1], 7);
    let message = |error: ArtifactError| error.to_string();
    assert_eq!(
        message(artifact.values::<i8>("fc.bias", &[2]).unwrap_err()),
        "tensor `fc.bias` is missing: expected by the model that the file describes"
    );
    assert_eq!(
        message(artifact.values::<i8>("conv1.weight", &[3, 2]).unwrap_err()),
        "tensor `conv1.weight` has shape [2, 3]: expected [3, 2]"
    );
    assert_eq!(
        message(artifact.f32("conv1.weight", &[2, 3]).unwrap_err()),
        "tensor `conv1.weight` has type I8: expected F32"
    );
}

#[test]
fn contradictions_are_not_written() {
    let mut wrong = artifact();
    wrong.tensors.insert("short".to_owned(), TensorEntry::f32([3], vec![1.0]));
    assert_eq!(
        wrong.to_bytes().unwrap_err().to_string(),
        "tensor `short` has 1 values: expected as many as its shape [3] holds"
    );
    let mut wrong = artifact();
    wrong.description.normalization.std = vec![0.0];
    assert!(wrong.to_bytes().unwrap_err().to_string().contains("finite numbers above 0"));
    let mut wrong = artifact();
    wrong.description.kind = ArtifactKind::Packed(Precision::uniform(BitWidth::B3));
    assert!(wrong.to_bytes().unwrap_err().to_string().contains("packed at w3a3"));
}

#[test]
fn what_is_no_network_takes_no_memory() {
    let mut huge = artifact();
    huge.description.width = 1 << 16;
    let message = huge.with_graph().unwrap_err().to_string();
    assert!(
        message.starts_with("not a network of this program: its tensors have 22 bytes: expected"),
        "{message}"
    );
    let mut other = artifact();
    other.tensors.insert("padding".to_owned(), TensorEntry::f32([1 << 16], vec![0.0; 1 << 16]));
    let message = other.with_graph().unwrap().network(&Device::flex()).unwrap_err().to_string();
    assert_eq!(message, "tensor `stem.weight` is missing: expected by the model that the file describes");
}

#[test]
fn foreign_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Artifact::open(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("not a file: expected a .safetensors file"), "{error}");
    let missing = folder.path().join("no.safetensors");
    let error = Artifact::open(&missing).unwrap_err().to_string();
    assert!(error.starts_with(&format!("`{}`: cannot be read", missing.display())), "{error}");

    let picture = folder.path().join("picture.png");
    fs::write(&picture, b"\x89PNG\r\n\x1a\n and so on").unwrap();
    assert!(Artifact::open(&picture).unwrap_err().to_string().contains("not a safetensors file"));
    for short in [&b""[..], b"1234567", &[0; 8], &[0xff; 64]] {
        assert!(error_of(short).starts_with("not a safetensors file"));
    }

    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F64, vec![1], &[0; 8]).unwrap();
    let foreign = safetensors::serialize([("theirs", view)], None).unwrap();
    assert!(error_of(&foreign).contains("expected metadata under the key `dr-train`"));
}

#[test]
fn later_versions_are_named_even_with_unknown_fields() {
    let text = String::from_utf8_lossy(&artifact().to_bytes().unwrap()).into_owned();
    assert!(text.contains(r#"{\"format_version\":4,"#));
    // Of the same length, so that the header stays whole.
    let bytes =
        replaced(&artifact().to_bytes().unwrap(), br#"\"format_version\":4,"#, br#"\"format_version\":5,"#);
    assert_eq!(error_of(&bytes), "format version 5: expected 1 to 4, those that this program reads");
    let bytes = replaced(&artifact().to_bytes().unwrap(), br#"\"classes\""#, br#"\"clasess\""#);
    assert!(error_of(&bytes).contains("unknown field `clasess`"));
    let bytes = replaced(&artifact().to_bytes().unwrap(), br#"\"classes\":10"#, br#"\"classes\":11"#);
    assert!(error_of(&bytes).starts_with("damaged: its checksum is"));
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    let mut bytes = bytes.to_vec();
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[test]
fn every_flipped_bit_is_found() {
    let good = artifact().to_bytes().unwrap();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            let error = error_of(&bytes);
            assert!(!error.contains('\n'), "{error}");
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let good = artifact().to_bytes().unwrap();
    for length in 0..good.len() {
        error_of(&good[..length]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn corruptions_never_load(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
        extra in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let good = artifact().to_bytes().unwrap();
        let mut bytes = good.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(extra);
        prop_assert_eq!(Artifact::from_bytes(&bytes).is_ok(), bytes == good);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Artifact::from_bytes(&bytes).is_err());
    }

    #[test]
    fn any_header_never_panics(header in "[ -~]{2,200}", payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(payload);
        prop_assert!(Artifact::from_bytes(&bytes).is_err());
    }

    #[test]
    fn floats_survive_bit_for_bit(bits in prop::collection::vec(any::<u32>(), 0..40)) {
        let mut given = artifact();
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        given.tensors.insert("x".to_owned(), TensorEntry::f32([bits.len()], values));
        let loaded = Artifact::from_bytes(&given.to_bytes().unwrap()).unwrap();
        let found: Vec<u32> = loaded.f32("x", &[bits.len()]).unwrap().iter().map(|x| x.to_bits()).collect();
        prop_assert_eq!(found, bits);
    }
}
