//! Weight files are hostile: whatever is wrong with one is a typed error that says what, and never
//! a panic or an allocation beyond the file's own size.

mod support;

use std::collections::HashMap;
use std::path::Path;

use millrace_models::torch::TorchLoadError;
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use support::{files, load, reference, spec};

const FOLDER: &str = "bert-sequence-classification";

fn weights() -> Vec<u8> {
    std::fs::read(reference(FOLDER).join("model.safetensors")).expect("reference weights")
}

/// Loads the reference classifier with `bytes` in place of its weights.
fn load_bytes(bytes: &[u8]) -> Result<(), TorchLoadError> {
    let folder = tempfile::tempdir().expect("a folder");
    let config = reference(FOLDER).join("config.json");
    std::fs::copy(config, folder.path().join("config.json")).expect("copied");
    std::fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
    load_from(folder.path())
}

fn load_from(folder: &Path) -> Result<(), TorchLoadError> {
    let spec = spec("SequenceClassification", json!({}));
    load(&files(folder, &["model.safetensors"]), &spec).map(drop)
}

/// A file with this header and `data_bytes` zeros behind it.
fn with_header(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

/// The reference weights with one tensor replaced or, by `None`, left out.
fn with_tensor(changed: &str, to: Option<(Dtype, Vec<usize>)>) -> Vec<u8> {
    let bytes = weights();
    let stored = SafeTensors::deserialize(&bytes).expect("valid weights");
    let mut tensors: HashMap<&str, TensorView> = stored.iter().collect();
    let removed = tensors.remove(changed);
    assert!(removed.is_some(), "{changed} is in the reference");
    let zeros = vec![0; 1 << 20];
    if let Some((dtype, shape)) = to {
        let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let view = TensorView::new(dtype, shape, &zeros[..size]).expect("a valid tensor");
        tensors.insert(changed, view);
    }
    safetensors::serialize(tensors, None).expect("serialised")
}

fn check_refused(bytes: &[u8], expected: &str) {
    let error = load_bytes(bytes).expect_err(expected).to_string();
    assert!(
        error.contains(expected),
        "got {error:?}, expected {expected:?}"
    );
}

#[test]
fn a_broken_header_is_refused() {
    check_refused(b"", "0 bytes are too few for a header");
    check_refused(b"abc", "3 bytes are too few for a header");
    let mut huge = weights();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    check_refused(&huge, "a header of 18446744073709551615 bytes");
    check_refused(&with_header("{", 0), "EOF while parsing");
    check_refused(&with_header("[]", 0), "not a valid safetensors file");
    check_refused(&with_header("{\"a\":", 0), "EOF while parsing");
    check_refused(
        &with_header(&"[".repeat(250_000), 0),
        "not a valid safetensors file",
    );
    check_refused(&weights()[..1000], "a header of");
}

#[test]
fn ranges_that_overlap_leave_the_file_or_overflow_are_refused() {
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    check_refused(&with_header(overlapping, 12), "invalid offset for tensor");
    let backwards = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#;
    check_refused(&with_header(backwards, 8), "invalid offset for tensor");
    let overflow = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#;
    check_refused(&with_header(overflow, 8), "overflow");
    let beyond = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    check_refused(
        &with_header(beyond, 4),
        "describes 8 bytes of data, but 4 follow it",
    );
    let mut longer = weights();
    longer.push(0);
    check_refused(&longer, "bytes of data, but");
    let shorter = weights();
    check_refused(&shorter[..shorter.len() - 1], "bytes of data, but");
}

#[test]
fn pickles_are_refused_before_they_are_read() {
    for pickle in [
        b"PK\x03\x04archive/data.pkl".as_slice(),
        b"\x80\x02}q\x00.",
        b"\x80\x05\x95...",
    ] {
        let refused = load_bytes(pickle);
        assert!(
            matches!(refused, Err(TorchLoadError::Pickle { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn tensors_that_disagree_with_the_configuration_are_named() {
    let words = "bert.embeddings.word_embeddings.weight";
    check_refused(
        &with_tensor(words, Some((Dtype::F32, vec![119, 32]))),
        r#"tensor "bert.embeddings.word_embeddings.weight" has shape [119, 32], but config.json asks for [120, 32]"#,
    );
    check_refused(
        &with_tensor("classifier.bias", Some((Dtype::F32, vec![1, 5]))),
        r#"tensor "classifier.bias" has shape [1, 5], but config.json asks for [5]"#,
    );
    check_refused(
        &with_tensor("bert.encoder.layer.1.attention.self.key.weight", None),
        r#"the weights have no tensor "bert.encoder.layer.1.attention.self.key.weight""#,
    );
    check_refused(
        &with_tensor("classifier.weight", None),
        r#"task is SequenceClassification, but the weights have no tensor "classifier.weight""#,
    );
    check_refused(
        &with_tensor("bert.pooler.dense.bias", Some((Dtype::I32, vec![32]))),
        r#"tensor "bert.pooler.dense.bias" is stored as I32; F32, F16 and BF16 are read"#,
    );
}

#[test]
fn a_configuration_far_larger_than_the_weights_allocates_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = support::read_json(&reference(FOLDER).join("config.json"));
    config["vocab_size"] = 16_777_216.into();
    config["hidden_size"] = 65_536.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    std::fs::write(folder.path().join("model.safetensors"), weights()).expect("written");
    let refused = load_from(folder.path());
    assert!(
        matches!(refused, Err(TorchLoadError::Shape { .. })),
        "{refused:?}"
    );
}

#[test]
fn labels_must_be_as_many_as_the_classes() {
    let folder = reference(FOLDER);
    let spec = spec("SequenceClassification", json!({"labels": ["a", "b"]}));
    let refused = load(&files(&folder, &["model.safetensors"]), &spec).map(drop);
    assert!(matches!(
        refused,
        Err(TorchLoadError::LabelCount {
            named: 2,
            classes: 5
        })
    ));
}

#[test]
fn the_same_tensor_in_two_files_is_refused() {
    let folder = reference(FOLDER);
    let twice = files(&folder, &["model.safetensors", "model.safetensors"]);
    let refused = load(&twice, &spec("SequenceClassification", json!({}))).map(drop);
    assert!(
        matches!(refused, Err(TorchLoadError::DuplicateTensor { .. })),
        "{refused:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_damage_to_a_file_makes_loading_panic(
        at in 0_usize..9_000,
        damage in proptest::collection::vec(any::<u8>(), 1..16),
        cut in proptest::option::of(0_usize..90_000),
    ) {
        let mut bytes = weights();
        bytes[at..at + damage.len()].copy_from_slice(&damage);
        bytes.truncate(cut.unwrap_or(usize::MAX));
        let _ = load_bytes(&bytes);
    }
}
