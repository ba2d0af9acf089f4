//! The files of a model: where they are, whether they are whole, and what their digest is.
//!
//! Model bytes are untrusted: nothing here interprets them, and pickle is refused by name.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use data_encoding::HEXLOWER;
use millrace_crds::inference_service::Task;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::bounded;

/// Largest JSON file of a model that is read whole.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// The files of a model, found and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// Folder that holds them.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// Safetensors files, or one TorchScript file.
    pub weights: Vec<PathBuf>,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// `1_Pooling/config.json`, where there is one.
    pub pooling_config: Option<PathBuf>,
    /// `modules.json`, where there is one.
    pub modules: Option<PathBuf>,
    /// `sha256:` and the digest of every file here that decides what the model answers.
    pub digest: String,
}

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The model is not in the model cache.
    #[error(
        "{uri} is not in the model cache: fetch it with `hf download {} --local-dir {}`",
        uri.trim_start_matches("hf://"),
        folder.display()
    )]
    NotCached {
        /// The URI.
        uri: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The URI has a scheme that is not known.
    #[error("{uri} cannot be opened: use hf://owner/name, file:///path or a path")]
    UnknownScheme {
        /// The URI.
        uri: String,
    },
    /// The folder itself is missing.
    #[error("there is no folder {}; check the model's source.uri", folder.display())]
    NoFolder {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A settings file is far larger than settings.
    #[error("{} is larger than {JSON_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file is missing.
    #[error("{} has no {file}; {hint}", folder.display())]
    Missing {
        /// The model's folder.
        folder: PathBuf,
        /// The file.
        file: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// Only pickled weights are there.
    #[error(
        "{} holds only pickled weights ({file}), which run code when they are read; convert them \
         to model.safetensors",
        folder.display()
    )]
    Pickle {
        /// The model's folder.
        folder: PathBuf,
        /// The pickle.
        file: String,
    },
    /// The index of sharded weights is wrong.
    #[error("{} is not an index of safetensors files: {message}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The files are not the ones that were asked for.
    #[error("{} has the digest {found}, but {expected} was asked for: the files are not that model's", folder.display())]
    Digest {
        /// The model's folder.
        folder: PathBuf,
        /// Digest of the files.
        found: String,
        /// Digest asked for.
        expected: String,
    },
    /// A file could not be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SourceError {
    /// Whether looking again cannot help.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, SourceError::Read { .. })
    }
}

/// The folder that a model's URI names. `hf://owner/name` is looked up in `cache`.
pub fn resolve(uri: &str, cache: &Path) -> Result<PathBuf, SourceError> {
    if let Some(name) = uri.strip_prefix("hf://") {
        let folder = cache.join(name);
        return match is_plain(Path::new(name)) && folder.is_dir() {
            true => Ok(folder),
            false => Err(SourceError::NotCached {
                uri: uri.to_owned(),
                folder,
            }),
        };
    }
    match uri.strip_prefix("file://") {
        Some(path) => Ok(PathBuf::from(path)),
        None if uri.contains("://") => Err(SourceError::UnknownScheme {
            uri: uri.to_owned(),
        }),
        None => Ok(PathBuf::from(uri)),
    }
}

/// Finds the files of a model for `task` and checks their digest.
pub fn open(
    folder: &Path,
    task: Task,
    expected_digest: Option<&str>,
) -> Result<ModelFiles, SourceError> {
    let required = |file: &'static str, hint: &'static str| {
        let path = folder.join(file);
        let missing = || SourceError::Missing {
            folder: folder.to_owned(),
            file,
            hint,
        };
        path.is_file().then_some(path).ok_or_else(missing)
    };
    let optional = |file: &str| Some(folder.join(file)).filter(|path| path.is_file());
    if !folder.is_dir() {
        return Err(SourceError::NoFolder {
            folder: folder.to_owned(),
        });
    }
    let config = required("config.json", "it is not a model in Hugging Face layout")?;
    let weights = match task {
        Task::TorchScript => {
            vec![required(
                "model.pt",
                "save the traced module under that name",
            )?]
        }
        Task::Embedding | Task::SequenceClassification | Task::TokenClassification => {
            safetensors(folder)?
        }
    };
    let tokenizer = required(
        "tokenizer.json",
        "save the model's fast tokenizer, which writes that file, into the folder",
    )?;
    let mut files = ModelFiles {
        folder: folder.to_owned(),
        config,
        weights,
        tokenizer,
        pooling_config: optional("1_Pooling/config.json"),
        modules: optional("modules.json"),
        digest: String::new(),
    };
    files.digest = digest(&files)?;
    match expected_digest {
        Some(expected) if expected != files.digest => Err(SourceError::Digest {
            folder: folder.to_owned(),
            found: files.digest,
            expected: expected.to_owned(),
        }),
        _ => Ok(files),
    }
}

#[derive(Deserialize)]
struct WeightIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// One file, or the files that an index names.
fn safetensors(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.is_file() {
        return Err(no_weights(folder));
    }
    let invalid = |message: String| SourceError::Index {
        path: index_path.clone(),
        message,
    };
    let index: WeightIndex = serde_json::from_slice(&read_json(&index_path)?)
        .map_err(|error| invalid(error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let files = names.into_iter().map(|name| {
        // An index comes with the model: it must not lead out of the model's folder.
        if !is_plain(Path::new(&name)) || !name.ends_with(".safetensors") {
            return Err(invalid(format!("{name:?} is not a file of this folder")));
        }
        let path = folder.join(&name);
        path.is_file()
            .then_some(path)
            .ok_or_else(|| invalid(format!("{name} is missing")))
    });
    files.collect()
}

fn no_weights(folder: &Path) -> SourceError {
    let entries = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut pickles = names.filter(|name| {
        [".bin", ".pkl", ".pickle", ".ckpt"]
            .iter()
            .any(|end| name.ends_with(end))
    });
    match pickles.next() {
        Some(file) => SourceError::Pickle {
            folder: folder.to_owned(),
            file,
        },
        None => SourceError::Missing {
            folder: folder.to_owned(),
            file: "model.safetensors",
            hint: "it is not a model in Hugging Face layout",
        },
    }
}

/// Whether a path from elsewhere stays below the folder it is joined to.
fn is_plain(path: &Path) -> bool {
    path.components()
        .all(|component| matches!(component, Component::Normal(_)))
}

/// Bytes of a small file of the model.
pub(crate) fn read_json(path: &Path) -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = bounded::read(path, JSON_BYTES_MAX).map_err(failed)?;
    bytes.ok_or_else(|| SourceError::TooLarge {
        path: path.to_owned(),
    })
}

/// SHA-256 over sorted lines of each file's SHA-256 and name.
fn digest(files: &ModelFiles) -> Result<String, SourceError> {
    let ModelFiles {
        folder,
        config,
        weights,
        tokenizer,
        pooling_config,
        modules,
        digest: _,
    } = files;
    let mut paths = vec![config, tokenizer];
    paths.extend(weights);
    paths.extend(pooling_config);
    paths.extend(modules);
    let lengths = folder.join("sentence_bert_config.json");
    let bounds = folder.join("tokenizer_config.json");
    paths.extend(
        [&lengths, &bounds]
            .into_iter()
            .filter(|path| path.is_file()),
    );
    let mut lines = Vec::new();
    for path in paths {
        let name = path.strip_prefix(folder).unwrap_or(path);
        lines.push(format!("{}  {}\n", file_sha256(path)?, name.display()));
    }
    lines.sort();
    Ok(format!(
        "sha256:{}",
        HEXLOWER.encode(&Sha256::digest(lines.concat()))
    ))
}

fn file_sha256(path: &Path) -> Result<String, SourceError> {
    let failed = |source| SourceError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(HEXLOWER.encode(&sha256.finalize())),
            read => sha256.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    const WHOLE: [(&str, &str); 3] = [
        ("config.json", "{}"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "{}"),
    ];

    fn refused(files: &[(&str, &str)]) -> String {
        let folder = folder(files);
        open(folder.path(), Task::Embedding, None)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_digest_follows_every_file_that_decides_an_answer() {
        let digest = |files: &[(&str, &str)]| {
            let folder = folder(files);
            open(folder.path(), Task::Embedding, None).unwrap().digest
        };
        let whole = digest(&WHOLE);
        assert!(whole.starts_with("sha256:") && whole.len() == 71, "{whole}");
        assert_eq!(whole, digest(&WHOLE));
        let with = |name, content| digest(&[&WHOLE[..], &[(name, content)]].concat());
        assert_eq!(whole, with("README.md", "words"));
        assert_ne!(whole, with("sentence_bert_config.json", "{}"));
        assert_ne!(whole, with("modules.json", "[]"));
    }

    #[test]
    fn another_digest_is_refused_naming_both() {
        let folder = folder(&WHOLE);
        let asked = format!("sha256:{}", "0".repeat(64));
        let error = open(folder.path(), Task::Embedding, Some(&asked))
            .unwrap_err()
            .to_string();
        let found = open(folder.path(), Task::Embedding, None).unwrap().digest;
        assert!(error.contains(&asked) && error.contains(&found), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        assert!(refused(&WHOLE[1..]).contains("config.json"));
        assert!(refused(&WHOLE[..2]).contains("tokenizer.json"));
        assert!(refused(&[WHOLE[0], WHOLE[2]]).contains("model.safetensors"));
    }

    #[test]
    fn a_missing_folder_is_not_mistaken_for_a_missing_file() {
        let error = open(Path::new("/nowhere/model"), Task::Embedding, None).unwrap_err();
        assert!(matches!(error, SourceError::NoFolder { .. }), "{error}");
    }

    #[test]
    fn weights_in_several_files_are_found_by_their_index() {
        let index = r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}}"#;
        let index = ("model.safetensors.index.json", index);
        let shards = [("1.safetensors", "one"), ("2.safetensors", "two")];
        let whole = folder(&[&[WHOLE[0], WHOLE[2], index][..], &shards[..]].concat());
        let found = open(whole.path(), Task::Embedding, None).unwrap().weights;
        assert_eq!(found, shards.map(|(name, _)| whole.path().join(name)));
        let error = refused(&[WHOLE[0], WHOLE[2], index, shards[0]]);
        assert!(error.contains("2.safetensors is missing"), "{error}");
    }

    #[test]
    fn pickled_weights_are_refused() {
        let error = refused(&[WHOLE[0], WHOLE[2], ("pytorch_model.bin", "")]);
        assert!(
            error.contains("pytorch_model.bin") && error.contains("safetensors"),
            "{error}"
        );
    }

    #[test]
    fn an_index_cannot_lead_out_of_the_models_folder() {
        for name in ["../x.safetensors", "/etc/x.safetensors", "weights.bin"] {
            let index = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
            let error = refused(&[WHOLE[0], WHOLE[2], ("model.safetensors.index.json", &index)]);
            assert!(error.contains("not a file of this folder"), "{error}");
        }
    }

    #[test]
    fn a_model_that_is_not_cached_says_where_it_was_looked_for() {
        let cache = Path::new("/cache");
        let error = resolve("hf://owner/name", cache).unwrap_err().to_string();
        let fetch = "`hf download owner/name --local-dir /cache/owner/name`";
        assert!(error.contains(fetch), "{error}");
        assert!(resolve("hf://../cache", Path::new("/tmp")).is_err());
        assert!(resolve("s3://bucket/model", cache).is_err());
        assert_eq!(resolve("file:///a/b", cache).unwrap(), Path::new("/a/b"));
    }
}
