//! The torch backend agrees with the libraries that its models come from. The references are
//! committed; `reference/generate.py` wrote them.

mod support;

use std::path::{Path, PathBuf};

use millrace_models::backend::{Backend, BackendError, Head, PackedBatch};
use millrace_models::config::ModelConfig;
use millrace_models::torch::{self, Device, TorchLoadError, TorchOptions};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use support::{files, load, read_json, reference, spec};

/// Largest difference of any number in 32 bits.
const TOLERANCE: f32 = 1e-4;

fn check(family: &str, task: &str, extra: Value, head: Head, output: &str) {
    let folder = match head {
        Head::Pooled => reference(&format!("{family}-embedding")),
        Head::SequenceLogits => reference(&format!("{family}-sequence-classification")),
        Head::TokenLogits => reference(&format!("{family}-token-classification")),
    };
    let backend = load(&files(&folder, &["model.safetensors"]), &spec(task, extra)).expect("loads");
    check_outputs(&*backend, &folder, head, output);
}

/// Compares a packed batch of all sequences, and each sequence in a batch of its own.
fn check_outputs(backend: &dyn Backend, folder: &Path, head: Head, output: &str) {
    let expected = read_json(&folder.join("expected.json"));
    let (sequences, expected) = (sequences(&expected), rows(&expected, output));
    let what = format!("{} {output}", folder.display());
    check_close(&run(backend, &sequences, head), &expected, TOLERANCE, &what);
    let alone: Vec<_> = sequences
        .iter()
        .flat_map(|one| run(backend, std::slice::from_ref(one), head))
        .collect();
    check_close(&alone, &expected, TOLERANCE, &format!("{what}, alone"));
}

fn check_family(family: &str) {
    check(family, "Embedding", json!({}), Head::Pooled, "mean");
    check(
        family,
        "Embedding",
        json!({"pooling": "Cls"}),
        Head::Pooled,
        "cls",
    );
    check(
        family,
        "SequenceClassification",
        json!({}),
        Head::SequenceLogits,
        "logits",
    );
    check(
        family,
        "TokenClassification",
        json!({}),
        Head::TokenLogits,
        "logits",
    );
}

#[test]
fn bert_agrees_with_its_reference() {
    check_family("bert");
}

#[test]
fn roberta_agrees_with_its_reference() {
    check_family("roberta");
}

#[test]
fn xlm_roberta_stored_in_bfloat16_agrees_with_its_reference() {
    check_family("xlm-roberta");
}

#[test]
fn distilbert_agrees_with_its_reference() {
    check_family("distilbert");
}

#[test]
fn mpnet_stored_in_float16_agrees_with_its_reference() {
    check_family("mpnet");
}

#[test]
fn prefixes_and_old_names_are_understood() {
    let folder = reference("bert-embedding");
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("reference weights");
    let stored = SafeTensors::deserialize(&bytes).expect("valid weights");
    let renamed: Vec<(String, TensorView)> = stored
        .iter()
        .map(|(name, view)| {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            (format!("bert.{name}"), view)
        })
        .collect();
    let copy = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "expected.json"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).expect("copied");
    }
    // In two files, as large models are stored.
    let (first, second) = renamed.split_at(renamed.len() / 2);
    for (name, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        let part = part.iter().map(|(name, view)| (name, view));
        safetensors::serialize_to_file(part, None, &copy.path().join(name)).expect("written");
    }
    let files = files(copy.path(), &["a.safetensors", "b.safetensors"]);
    let backend = load(&files, &spec("Embedding", json!({}))).expect("loads");
    check_outputs(&*backend, copy.path(), Head::Pooled, "mean");
}

#[test]
fn torchscript_runs_only_where_it_is_allowed() {
    let folder = reference("torchscript");
    let files = files(&folder, &["model.pt"]);
    let mut task = spec("TorchScript", json!({}));
    let refused = load(&files, &task).map(|_| ());
    assert!(
        matches!(refused, Err(TorchLoadError::TorchScriptNotAllowed)),
        "{refused:?}"
    );

    let config = ModelConfig::read(&files.config).expect("valid");
    let options = TorchOptions {
        threads: 1,
        allow_torchscript: true,
        device: Device::Cpu,
    };
    let backend = torch::load(&files, &config, &task, &options).expect("loads");
    check_outputs(&*backend, &folder, Head::SequenceLogits, "logits");

    task.dtype = millrace_crds::inference_service::Dtype::BFloat16;
    let refused = torch::load(&files, &config, &task, &options).map(|_| ());
    assert!(
        matches!(refused, Err(TorchLoadError::TorchScriptDtype(_))),
        "{refused:?}"
    );
}

#[test]
fn many_callers_get_what_one_gets() {
    let folder = reference("bert-embedding");
    let backend = load(
        &files(&folder, &["model.safetensors"]),
        &spec("Embedding", json!({})),
    );
    let backend = backend.expect("loads");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| check_outputs(&*backend, &folder, Head::Pooled, "mean"));
        }
    });
}

#[test]
fn a_batch_that_does_not_fit_the_model_is_an_error_and_the_next_one_passes() {
    let folder = reference("bert-embedding");
    let backend = load(
        &files(&folder, &["model.safetensors"]),
        &spec("Embedding", json!({})),
    );
    let backend = backend.expect("loads");
    let failed = |sequence: Vec<u32>| match backend.forward(&pack(&[sequence]), &[Head::Pooled]) {
        Err(BackendError::Failed(reason)) => reason,
        other => panic!("expected a failure, got {other:?}"),
    };
    assert_eq!(
        failed(vec![1, 120]),
        "token id 120 is outside the vocabulary of 120"
    );
    assert_eq!(
        failed(vec![1; 151]),
        "a sequence of 151 tokens is longer than the model's 150"
    );
    let other = backend.forward(&pack(&[vec![1]]), &[Head::TokenLogits]);
    assert!(matches!(
        other,
        Err(BackendError::NoSuchHead(Head::TokenLogits))
    ));
    let empty = backend
        .forward(&pack(&[]), &[Head::Pooled])
        .expect("nothing to do");
    assert_eq!((empty[0].width, empty[0].values.len()), (32, 0));
    check_outputs(&*backend, &folder, Head::Pooled, "mean");
}

/// Where `cargo xtask` puts all-MiniLM-L6-v2.
fn minilm_folder() -> PathBuf {
    let cache = std::env::var_os("MILLRACE_MODEL_CACHE").map_or_else(
        || {
            let home = std::env::var_os("HOME").expect("HOME is set");
            PathBuf::from(home).join(".cache/millrace/models")
        },
        PathBuf::from,
    );
    let folder = cache.join("sentence-transformers/all-MiniLM-L6-v2");
    assert!(
        folder.join("model.safetensors").exists(),
        "all-MiniLM-L6-v2 is not in {}; `cargo xtask` fetches it, and MILLRACE_MODEL_CACHE names \
         another model cache",
        folder.display()
    );
    folder
}

/// Compares the first `count` sentences by the cosine to the vectors of sentence-transformers.
fn check_minilm(dtype: &str, count: usize, cosine_min: f32) {
    let folder = minilm_folder();
    let spec = spec("Embedding", json!({"dtype": dtype}));
    let backend = load(&files(&folder, &["model.safetensors"]), &spec).expect("loads");
    let expected = read_json(&reference("minilm.json"));
    let (sequences, vectors) = (sequences(&expected), rows(&expected, "vectors"));
    let got = run(&*backend, &sequences[..count], Head::Pooled);
    for (index, (got, expected)) in got.iter().zip(&vectors).enumerate() {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let cosine = dot(got, expected) / (dot(got, got) * dot(expected, expected)).sqrt();
        assert!(
            cosine >= cosine_min,
            "{dtype}: sentence {index} has cosine {cosine}"
        );
    }
}

#[test]
fn minilm_in_float32_agrees_with_sentence_transformers() {
    check_minilm("Float32", 16, 0.9999);
}

#[test]
fn minilm_in_bfloat16_agrees_with_sentence_transformers() {
    check_minilm("BFloat16", 14, 0.999);
}

#[test]
fn minilm_in_float16_agrees_with_sentence_transformers() {
    check_minilm("Float16", 4, 0.999);
}

/// The token ids in a reference.
fn sequences(reference: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(reference["sequences"].clone()).expect("token ids")
}

/// Rows of numbers in a reference.
fn rows(reference: &Value, name: &str) -> Vec<Vec<f32>> {
    serde_json::from_value(reference[name].clone()).expect("rows of numbers")
}

/// Packs sequences in order.
fn pack(sequences: &[Vec<u32>]) -> PackedBatch {
    PackedBatch::pack(sequences.iter().map(Vec::as_slice))
}

/// Runs `head` and returns its rows.
fn run(backend: &dyn Backend, sequences: &[Vec<u32>], head: Head) -> Vec<Vec<f32>> {
    let mut outputs = backend
        .forward(&pack(sequences), &[head])
        .expect("the batch is computed");
    assert_eq!(outputs.len(), 1, "one output per head");
    let output = outputs.remove(0);
    output
        .values
        .chunks(output.width)
        .map(<[f32]>::to_vec)
        .collect()
}

/// Fails unless every number is within `tolerance` of the expected one.
fn check_close(got: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: rows");
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}: width of row {row}");
        for (got, expected) in got.iter().zip(expected) {
            let apart = (got - expected).abs();
            assert!(
                apart <= tolerance,
                "{what}: row {row}: {got}, expected {expected}"
            );
        }
    }
}
