//! Online requests over loopback, by other people's load generators: single texts that the server knows
//! already, the same where nothing is kept, and many texts in a request.
//!
//! The models are those of the examples, trained here and grown to the size named.

mod load;
mod peak;
mod server;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use self::load::{Load, RATE};
use self::peak::Shape;
use self::server::Server;
use super::Bench;
use crate::corpus;
use crate::process::heading;
use crate::setup::{self, BERT_BASE, MINILM, Size};

/// Clients that ask about single texts at the same time.
const CLIENTS: usize = 32;
/// Clients that send many texts at the same time: one waits while the other's texts are computed.
const BATCH_CLIENTS: usize = 2;
/// Texts in a request that has many, the most that there may be.
const BATCH_TEXTS: usize = 100;

/// A classifier that single texts are sent to.
struct Subject {
    size: Size,
    example: &'static str,
    model: &'static str,
    /// Some twenty words.
    text: &'static str,
    /// Requests a second that the system it replaces should have come to, of known texts and of new ones.
    wanted: [f64; 2],
}

const SUBJECTS: [Subject; 2] = [
    Subject {
        size: MINILM,
        example: "analysis",
        model: "sentiment",
        text: "The parcel came two days late and the box was open, but the lamp inside is wonderful \
               and works as it should.",
        wanted: [200.0, 100.0],
    },
    Subject {
        size: BERT_BASE,
        example: "symptoms",
        model: "symptoms",
        text: "My son has had a dry cough for three days, at night it gets worse, and since this \
               morning he has a sore throat.",
        wanted: [100.0, 100.0],
    },
];

/// Milliseconds in which a known text should be answered.
const KNOWN_MS: f64 = 5.0;
/// Milliseconds in which a new text should be answered where nobody else asks.
const NEW_MS: f64 = 100.0;
/// Texts a minute that requests with many texts should come to.
const BATCH_PER_MINUTE: f64 = 10_000.0;

/// Measures and prints; each load takes `seconds`.
pub fn measure(bench: &Bench, seconds: u64) -> Result<()> {
    for subject in &SUBJECTS {
        singles(bench, subject, seconds)?;
    }
    batches(bench, seconds)
}

fn singles(bench: &Bench, subject: &Subject, seconds: u64) -> Result<()> {
    let Subject {
        size,
        example,
        model,
        text,
        wanted,
    } = subject;
    heading(&format!(
        "single texts online, a classifier of {}'s size, {CLIENTS} clients",
        size.name
    ));
    let folder = grown(bench, *size, &[model])?;
    let body = folder.join("body.json");
    fs::write(&body, serde_json::json!({"texts": [text]}).to_string())?;
    let models = [(*model, format!("{example}/models/{model}"))];
    let path = format!("/{model}/batch");

    let server = Server::start(bench, &service(&folder, &models, true)?)?;
    let url = server.url(&path);
    let cached = load::closed(bench, &url, &body, CLIENTS, seconds)?;
    let before = server.answered()?;
    let at_a_rate = load::open(bench, &url, &body, seconds)?;
    let soon = server.answered()?.soon_since(before);
    drop(server);
    let server = Server::start(bench, &service(&folder, &models, false)?)?;
    let reply = server.ask(&path, &fs::read_to_string(&body)?)?;
    let tokens = reply["totals"]["tokens"].as_u64();
    let tokens = tokens.context("the server told no tokens")? as usize;
    let url = server.url(&path);
    let uncached = load::closed(bench, &url, &body, CLIENTS, seconds)?;
    let alone = load::closed(bench, &url, &body, 1, seconds)?;
    drop(server);

    for (what, load, wanted) in [
        ("cached", &cached, wanted[0]),
        ("uncached", &uncached, wanted[1]),
    ] {
        println!("    {what:<9} {load}, beside {wanted:.0} requests/s");
    }
    println!(
        "    cached, {RATE} requests/s that wait for none: {at_a_rate}, beside {KNOWN_MS:.0} ms; \
         {:.2} % in 2 ms at the server itself",
        soon * 100.0
    );
    println!(
        "    uncached, one client: {alone}, beside {NEW_MS:.0} ms\n    a known answer costs 1/{:.1} of a computed one",
        cached.per_second / uncached.per_second
    );
    let shape = Shape {
        layers: size.layers,
        hidden: size.hidden,
        tokens,
    };
    let peak = peak::measure(bench, shape, CLIENTS)?;
    let used = uncached.per_second * shape.flop() / 1e9;
    println!(
        "    {tokens} tokens, {:.2} GFLOP a text: {used:.0} of {peak:.0} GFLOP/s that matmuls of \
         these shapes reach alone: {:.2}",
        shape.flop() / 1e9,
        used / peak
    );
    Ok(())
}

/// Many texts in a request, each by two models in one pass.
fn batches(bench: &Bench, seconds: u64) -> Result<()> {
    heading(&format!(
        "{BATCH_TEXTS} texts in a request, by two classifiers of {}'s size, {BATCH_CLIENTS} clients",
        MINILM.name
    ));
    let names = ["sentiment", "toxicity"];
    let folder = grown(bench, MINILM, &names)?;
    let texts = corpus::thinned(&corpus::short()?, BATCH_TEXTS);
    let texts: Vec<&str> = texts.iter().map(|text| text.text.as_str()).collect();
    let body = folder.join("body.json");
    fs::write(&body, serde_json::json!({"texts": texts}).to_string())?;
    let models = names.map(|name| (name, format!("analysis/models/{name}")));
    for (what, cached) in [("cached", true), ("uncached", false)] {
        let server = Server::start(bench, &service(&folder, &models, cached)?)?;
        let url = server.url("/analyze/batch");
        let load = load::closed(bench, &url, &body, BATCH_CLIENTS, seconds)?;
        println!(
            "    {what:<9} {:>9.0} texts/min, beside {BATCH_PER_MINUTE:.0}; {load}",
            per_minute(&load)
        );
    }
    Ok(())
}

fn per_minute(load: &Load) -> f64 {
    load.per_second * BATCH_TEXTS as f64 * 60.0
}

/// The classifiers of these names in that size, below the folder that is returned.
fn grown(bench: &Bench, size: Size, names: &[&str]) -> Result<std::path::PathBuf> {
    let folder = bench.folder.join(format!("online-{}", size.name));
    setup::grow(&bench.python, &bench.classifiers, size, names, &folder)?;
    Ok(folder)
}

/// Writes a service of these models, each with its folder, and returns its file.
fn service(folder: &Path, models: &[(&str, String)], cached: bool) -> Result<std::path::PathBuf> {
    let models: Vec<_> = models
        .iter()
        .map(|(name, place)| {
            serde_json::json!({
                "name": name, "task": "SequenceClassification", "source": {"uri": place}
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "online"},
        "spec": {"models": models, "cache": {"enabled": cached}},
    });
    // JSON is YAML.
    let file = folder.join("service.yaml");
    fs::write(&file, manifest.to_string())?;
    Ok(file)
}
