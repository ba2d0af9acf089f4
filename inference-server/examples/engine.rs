//! How fast this machine can tokenise and compute texts when nothing stands in between: no queue,
//! no socket, no shards. `cargo xtask bench` holds whole jobs against it.
//!
//! usage: engine SERVICE.yaml TEXTS.jsonl COPIES; prints one line of JSON.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use millrace_crds::inference_service::InferenceServiceSpec;
use millrace_inference_server::service_file;
use millrace_models::backend::PackedBatch;
use millrace_models::folder::default_model_cache;
use millrace_models::model::{BackendChoice, Encoding, LoadOptions, Model};
use serde::Deserialize;

/// Texts that are tokenised by one thread at a time.
const CHUNK_TEXTS: usize = 256;

#[derive(Deserialize)]
struct Line {
    text: String,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [service, texts, copies] = arguments.as_slice() else {
        bail!("usage: engine SERVICE.yaml TEXTS.jsonl COPIES");
    };
    let started = Instant::now();
    let spec = service_file::read(Path::new(service))?;
    let model = load(&spec)?;
    let batch_tokens_max = match spec.batching.max_batch_tokens {
        Some(tokens) => tokens as usize,
        None => model.backend().appetite().batch_tokens,
    };
    let load_seconds = started.elapsed().as_secs_f64();
    let once = read(Path::new(texts))?;
    let all: Vec<&str> = (0..copies.parse()?)
        .flat_map(|_: usize| once.iter().map(String::as_str))
        .collect();

    // The first pass finds kernels and fills allocators.
    pass(&model, &all[..once.len()], batch_tokens_max)?;
    let started = Instant::now();
    let tokens = pass(&model, &all, batch_tokens_max)?;
    let found = serde_json::json!({
        "texts": all.len(),
        "tokens": tokens,
        "seconds": started.elapsed().as_secs_f64(),
        "loadSeconds": load_seconds,
        "dtype": model.dtype(),
        "callers": model.backend().appetite().callers,
    });
    println!("{found}");
    Ok(())
}

fn load(spec: &InferenceServiceSpec) -> anyhow::Result<Model> {
    let [model] = spec.models.as_slice() else {
        bail!("the service must have one model")
    };
    let options = LoadOptions {
        model_cache: default_model_cache(),
        threads: threads(),
        allow_torchscript: false,
        text_chars_max: 1 << 20,
        tokenize_deadline: Duration::from_secs(5),
        backend: BackendChoice::Torch,
    };
    Ok(Model::load(model, &options)?)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn read(file: &Path) -> anyhow::Result<Vec<String>> {
    let lines = std::fs::read_to_string(file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    lines
        .lines()
        .map(|line| Ok(serde_json::from_str::<Line>(line)?.text))
        .collect()
}

/// From texts to predictions; returns the tokens computed.
fn pass(model: &Model, texts: &[&str], batch_tokens_max: usize) -> anyhow::Result<usize> {
    let encodings = tokenised(model, texts)?;
    let mut by_length: Vec<usize> = (0..texts.len()).collect();
    by_length.sort_by_key(|&index| encodings[index].token_ids.len());
    let batches = batches(&by_length, &encodings, batch_tokens_max);
    on_threads(model.backend().appetite().callers, batches.len(), |at| {
        let batch = &batches[at];
        let packed = PackedBatch::pack(
            batch
                .iter()
                .map(|&index| encodings[index].token_ids.as_slice()),
        );
        let outputs = model.backend().forward(&packed, &[model.head()])?;
        for (row, &index) in batch.iter().enumerate() {
            model
                .predict(texts[index], &encodings[index], outputs[0].row(row))
                .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        }
        Ok(())
    })?;
    Ok(encodings
        .iter()
        .map(|encoding| encoding.token_ids.len())
        .sum())
}

fn tokenised(model: &Model, texts: &[&str]) -> anyhow::Result<Vec<Encoding>> {
    let chunks: Vec<&[&str]> = texts.chunks(CHUNK_TEXTS).collect();
    let encoded = on_threads(threads(), chunks.len(), |at| {
        let encoded = chunks[at].iter().map(|text| model.encode(text));
        encoded
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| anyhow::anyhow!("{error:?}"))
    })?;
    Ok(encoded.into_iter().flatten().collect())
}

/// Cuts texts in the given order into batches of at most `tokens_max` tokens, or one text.
fn batches(order: &[usize], encodings: &[Encoding], tokens_max: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = usize::MAX;
    for &index in order {
        let length = encodings[index].token_ids.len();
        tokens = tokens.saturating_add(length);
        if tokens > tokens_max {
            batches.push(Vec::new());
            tokens = length;
        }
        batches
            .last_mut()
            .expect("the first text opens a batch")
            .push(index);
    }
    batches
}

/// Calls `work` for 0 to `count`, on so many threads, and returns what it gave in that order.
fn on_threads<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return Ok(done);
            }
            done.push((at, work(at)?));
        }
    };
    let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(take)).collect();
        let ended = running
            .into_iter()
            .map(|thread| thread.join().expect("a thread panicked"));
        ended.collect::<anyhow::Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}
