//! What the tests of the torch backend share: reference folders, specifications, comparisons.

use std::path::{Path, PathBuf};

use millrace_crds::inference_service::ModelSpec;
use millrace_models::backend::Backend;
use millrace_models::config::ModelConfig;
use millrace_models::source::ModelFiles;
use millrace_models::torch::{self, Device, TorchLoadError, TorchOptions};
use serde_json::{Value, json};

/// A folder that generate.py wrote.
pub fn reference(name: &str) -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .join("tests/reference")
        .join(name)
}

/// A specification for `task` with `extra` fields.
pub fn spec(task: &str, extra: Value) -> ModelSpec {
    let mut value = json!({"name": "m", "task": task, "source": {"uri": "/m"}, "dtype": "Float32"});
    let fields = value.as_object_mut().expect("an object");
    fields.extend(extra.as_object().expect("an object").clone());
    serde_json::from_value(value).expect("a valid specification")
}

/// The model files in `folder`, with its weights in `weights`.
pub fn files(folder: &Path, weights: &[&str]) -> ModelFiles {
    let there = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
    ModelFiles {
        folder: folder.to_owned(),
        config: folder.join("config.json"),
        weights: weights.iter().map(|name| folder.join(name)).collect(),
        tokenizer: folder.join("tokenizer.json"),
        pooling_config: there("1_Pooling/config.json"),
        modules: there("modules.json"),
        digest: String::new(),
    }
}

/// Loads the model in `files` on two threads of the CPU.
pub fn load(files: &ModelFiles, spec: &ModelSpec) -> Result<Box<dyn Backend>, TorchLoadError> {
    let config = ModelConfig::read(&files.config).expect("a valid config.json");
    let options = TorchOptions {
        threads: 2,
        allow_torchscript: false,
        device: Device::Cpu,
    };
    torch::load(files, &config, spec, &options)
}

/// Reads a JSON file of a reference folder.
pub fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
