//! `millrace run --dry-run`: plans and reads the whole input, and writes nothing.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{DecimalBytes, HumanCount, HumanDuration};
use millrace_model_files::folder::default_model_cache;
use millrace_protocol::chunk::ChunkLimits;
use millrace_protocol::forecast::Forecast;
use millrace_protocol::plan::{Difference, FIRST_RUN, Plan};
use millrace_protocol::row::ReadRow;
use millrace_protocol::wire::{ChunksOfText, ChunksRequest, RowsRequest};
use millrace_worker::changed::{self, Changed};
use millrace_worker::commits;
use millrace_worker::job::{self, CheckedJob};
use millrace_worker::manifests::Loaded;
use millrace_worker::plan::{self, Drafted, Lacking, Preflight, TokenCounter, share};
use millrace_worker::read;
use millrace_worker::run;
use millrace_worker::store::Stores;
use millrace_worker::work::client::Client;
use serde::Serialize;

use crate::cluster::show::counted;
use crate::display::OutputMode;
use crate::local_models;
use crate::local_server::{Answering, LocalServer, Origin, absolute_sources};
use crate::report::carried_text;
use crate::{exit, output};

/// Rows that are computed for the estimate of time.
const MEASURED_ROWS_MAX: usize = 256;
/// Bytes of rows that are computed for the estimate of time.
const MEASURED_BYTES_MAX: usize = 256 << 10;
/// Longest wait for a server that loads its models.
const SERVER_PATIENCE: Duration = Duration::from_secs(120);

/// What a dry run found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DryRun {
    files: usize,
    shards: usize,
    plan_seconds: f64,
    preflight_seconds: f64,
    preflight: Preflight,
    /// Rows that are not asked, since an earlier row has the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_rows: Option<u64>,
    /// How the rows differ from those of the earlier output that the job names.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
    /// Rows that are asked: what is neither copied nor carried over.
    asked_rows: u64,
    /// Tokens of these rows, of which there are as many as of all on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_tokens: Option<u64>,
    /// What the calls of an API will take and cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<Forecast>,
    /// Sampled rows of which no prompt can be made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lacking: Vec<Lacking>,
    /// Rate of a few rows through the real server, in this job's steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_seconds: Option<u64>,
}

/// Plans, reads and reports what the run `next` of the job would meet. `server` is started for a moment, or
/// asked, to measure a few rows.
pub async fn dry_run(
    stores: &Stores,
    loaded: &Loaded,
    next: &CheckedJob,
    mode: OutputMode,
    server: Option<Answering>,
) -> anyhow::Result<ExitCode> {
    let job = &loaded.job;
    let started = Instant::now();
    let plan = match whole(stores, job, next).await? {
        Ok(plan) => plan,
        Err(changed) => {
            eprintln!("error: {changed}: start a new run into another output");
            return Ok(exit::FAILED_SHARDS.into());
        }
    };
    let planned = started.elapsed();
    let rows_per_second = match &server {
        Some(answering) => measured(stores, loaded, &plan, answering, mode).await?,
        None => None,
    };
    let counter = token_counter(loaded, mode);
    let started = Instant::now();
    let preflight = plan::preflight(stores, job, &plan, counter).await?;
    let read = started.elapsed();
    let copied_rows = plan::count_duplicates(stores, job, &plan).await?;
    let difference = plan::count_unchanged(stores, job, &plan).await?;
    let asked_rows = asked_rows(preflight.rows, copied_rows, difference.as_ref());
    let tokens = preflight.tokens.map(|estimate| estimate.tokens);
    let forecast = plan::forecast(stores, job, &plan, Some(asked_rows)).await?;
    let lacking = plan::lacking(stores, job, &plan).await?;
    let found = DryRun {
        files: plan.inputs.len(),
        shards: plan.shards.len(),
        plan_seconds: planned.as_secs_f64(),
        preflight_seconds: read.as_secs_f64(),
        estimated_seconds: rows_per_second.map(|rate| (asked_rows as f64 / rate).ceil() as u64),
        asked_tokens: tokens.map(|tokens| share(tokens, asked_rows, preflight.rows)),
        preflight,
        copied_rows,
        difference,
        asked_rows,
        forecast,
        lacking,
        rows_per_second,
    };
    match mode {
        OutputMode::Json => output::line(&serde_json::to_string(&found)?)?,
        OutputMode::Text => output::line(&summary(job, &found))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The plan of the whole job, whatever of it is done, or what of the input keeps the run `next`, which is
/// begun, from coming to its end.
async fn whole(
    stores: &Stores,
    job: &CheckedJob,
    next: &CheckedJob,
) -> anyhow::Result<Result<Plan, Changed>> {
    match run::look(stores, next).await? {
        Drafted::New(plan) if plan.run == FIRST_RUN => return Ok(Ok(plan)),
        Drafted::New(_) => {}
        Drafted::Standing(plan) => {
            let output = stores.open(&job.output.uri)?;
            let committed = commits::list(&output, plan.run).await?;
            if let Some(changed) = changed::open_shards(stores, job, &plan, &committed).await {
                return Ok(Err(changed));
            }
        }
    }
    Ok(Ok(plan::draft(stores, job).await?))
}

/// How many of the rows are asked. Which rows are both copied and unchanged is not looked at: as many of those
/// that are copied are taken to be unchanged as of all.
fn asked_rows(rows: u64, copied: Option<u64>, difference: Option<&Difference>) -> u64 {
    let first_ones = rows.saturating_sub(copied.unwrap_or(0));
    match difference {
        None => first_ones,
        Some(it) => share(first_ones, it.fresh, it.fresh + it.unchanged),
    }
}

fn token_counter(loaded: &Loaded, mode: OutputMode) -> Option<TokenCounter> {
    // Nobody but the server that the user brings, or the API, knows its models' tokenisers.
    if loaded.job.runtime.is_some() || loaded.job.remotes().next().is_some() {
        return None;
    }
    let job = &loaded.job;
    let service = absolute_sources(&loaded.service, &loaded.base);
    let limits = job.input.chunking.as_ref().map(|chunking| chunking.limits);
    match plan::token_counter(&service, &job.steps, limits, &default_model_cache()) {
        Ok(counter) => Some(counter),
        Err(error) => {
            if mode == OutputMode::Text {
                eprintln!(
                    "tokens are not counted: {}",
                    millrace_telemetry::chain(&error)
                );
            }
            None
        }
    }
}

/// Rows per second of a sample through the real server. A server that cannot run is the run's own failure;
/// `None`, with the reason on standard error, where its rate cannot be measured: an estimate is a service,
/// not a condition.
async fn measured(
    stores: &Stores,
    loaded: &Loaded,
    plan: &Plan,
    answering: &Answering,
    mode: OutputMode,
) -> anyhow::Result<Option<f64>> {
    // Whoever wants to see what a job is about to do does not want to pay for it.
    if matches!(answering.origin, Origin::Remote) {
        return Ok(None);
    }
    let mut service = local_models::fetched(stores, &loaded.service).await?;
    // The second pass asks what the first one did, and is to be computed.
    service.spec.cache.enabled = false;
    let server = LocalServer::start(answering, &service, loaded).await?;
    let rate = match tokio::time::timeout(SERVER_PATIENCE, server.ready()).await {
        Ok(ready) => {
            ready?;
            measure(stores, loaded, plan, &server).await
        }
        Err(_) => Err(anyhow::Error::msg("the server takes long to be ready")),
    };
    server.stop().await;
    Ok(rate.unwrap_or_else(|error| {
        if mode == OutputMode::Text {
            eprintln!("the time is not estimated: {error:#}");
        }
        None
    }))
}

async fn measure(
    stores: &Stores,
    loaded: &Loaded,
    plan: &Plan,
    server: &LocalServer,
) -> anyhow::Result<Option<f64>> {
    let job = &loaded.job;
    // What one of several services does for some rows says nothing of the others.
    let shard = plan.shards.get(plan.shards.len() / 2);
    let (Some(shard), None) = (shard, &job.routing) else {
        return Ok(None);
    };
    let (input, fields) = (plan.input_of(shard), &job.input.fields);
    let with_rows = stores.with_inline_rows(&job.input);
    let mut rows =
        read::open_shard(&with_rows, input, shard, fields, job.input.row_bytes_max).await?;
    let rows = rows
        .next_batch(MEASURED_ROWS_MAX, MEASURED_BYTES_MAX)
        .await?;
    let texts = rows.into_iter().filter_map(|row| match row {
        ReadRow::Row(row) => Some(row.text),
        ReadRow::Bad { .. } => None,
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() {
        return Ok(None);
    }
    let mut request = RowsRequest {
        models: job::models(&job.steps),
        texts,
    };
    let client = Client::new(&server.address(false), job)?;
    let measuring = async {
        client.wait_ready(SERVER_PATIENCE).await?;
        // Only a server that was asked for its models says how much it takes at a time.
        client.models().await?;
        let mut rows = request.texts.len() as f64;
        if let Some(chunking) = &job.input.chunking {
            request.texts = in_chunks(&client, &request, chunking.limits).await?;
        }
        let texts = request.texts.len();
        request
            .texts
            .truncate(client.batch_rows_max().min(MEASURED_ROWS_MAX));
        rows *= request.texts.len() as f64 / texts.max(1) as f64;
        // The first pass finds kernels and fills allocators; the second one is the rate.
        client.infer(&request).await?;
        let started = Instant::now();
        client.infer(&request).await?;
        Ok::<f64, anyhow::Error>(rows / started.elapsed().as_secs_f64())
    };
    let rate = tokio::select! {
        rate = measuring => rate,
        failure = server.failed() => Err(failure),
    };
    rate.map(Some).context("the server could not be measured")
}

/// The chunks of the request's texts, as the server cuts them; none of those that it cannot cut.
async fn in_chunks(
    client: &Client,
    request: &RowsRequest,
    limits: ChunkLimits,
) -> anyhow::Result<Vec<String>> {
    let request = ChunksRequest {
        models: request.models.clone(),
        texts: request.texts.clone(),
        limits,
    };
    let reply = client.chunks(&request).await?;
    let mut pieces = Vec::new();
    for (text, chunks) in request.texts.iter().zip(reply.texts) {
        if let ChunksOfText::Ok(chunks) = chunks {
            pieces.extend(chunks.iter().map(|chunk| chunk.of(text).to_owned()));
        }
    }
    Ok(pieces)
}

fn summary(job: &CheckedJob, found: &DryRun) -> String {
    let mut lines = vec![format!("{} (nothing was written)", job.name)];
    lines.extend(rows_lines(job, found));
    lines.extend(asked_lines(found));
    lines.join("\n")
}

fn line(what: &str, text: String) -> String {
    format!("  {what:<12} {text}")
}

/// What the input holds, and what of it cannot be asked.
fn rows_lines(job: &CheckedJob, found: &DryRun) -> Vec<String> {
    let Preflight {
        rows,
        classes,
        skipped,
        unseen_fields,
        bad_rows,
        input_bytes,
        row_bytes: _,
        longest_row,
        tokens: _,
        duplicates: _,
    } = &found.preflight;
    let (files, bytes) = (found.files, DecimalBytes(*input_bytes));
    let (shards, cut) = (found.shards, found.plan_seconds);
    let (rows, read) = (HumanCount(*rows), found.preflight_seconds);
    let mut lines = vec![
        line(
            "input",
            format!("{}, {bytes}", counted(files as u64, "file")),
        ),
        line("shards", format!("{shards} (cut in {cut:.3} s)")),
        line("rows", format!("{rows} (read in {read:.1} s)")),
    ];
    if !classes.is_empty() {
        let classes = classes.iter().map(|it| HumanCount(*it).to_string());
        let classes = classes.collect::<Vec<_>>().join(", ");
        let text = format!("{classes} rows, one class after the other");
        lines.push(line("order", text));
    }
    if *skipped > 0 {
        lines.push(line("skipped", counted(*skipped, "row")));
    }
    for field in unseen_fields {
        let places = job.named_in(field).join(" and ");
        let text = format!("no row has the field {field:?}, which {places} names");
        lines.push(line("warning", text));
    }
    for (code, bad) in bad_rows {
        let first = bad.first.iter().map(ToString::to_string);
        let first = first.collect::<Vec<_>>().join(", ");
        let text = format!("{}, first at {first}", counted(bad.count, "row"));
        lines.push(line(code, text));
    }
    if let Some(longest) = longest_row {
        let text = format!("{} at {}", DecimalBytes(longest.bytes), longest.position);
        lines.push(line("longest row", text));
    }
    lines
}

/// What is going to be asked, and what that takes.
fn asked_lines(found: &DryRun) -> Vec<String> {
    let preflight = &found.preflight;
    let mut lines = Vec::new();
    let mut add = |what: &str, text: String| lines.push(line(what, text));
    if let Some(tokens) = &preflight.tokens {
        let about = HumanCount(found.asked_tokens.unwrap_or(tokens.tokens));
        let sampled = counted(tokens.sampled_rows, "row");
        add("tokens", format!("about {about} (from {sampled})"));
        if tokens.cut_rows > 0 {
            let cut = HumanCount(tokens.cut_rows);
            let text = format!(
                "{cut} of these {sampled} are longer than a model takes and are cut: spec.input.chunking \
                 asks about all of a text"
            );
            add("warning", text);
        }
    }
    for lacking in &found.lacking {
        let Lacking {
            field,
            rows,
            sampled_rows,
        } = lacking;
        let (rows, sampled) = (HumanCount(*rows), HumanCount(*sampled_rows));
        let text = format!(
            "{rows} of {sampled} sampled rows lack the field {field:?}, which a prompt names: such rows \
             end as errors"
        );
        add("warning", text);
    }
    // Where no prompt can be made there is nothing to guess from.
    let forecast = found.forecast.as_ref().filter(|it| it.tokens.1 > 0);
    if let Some(forecast) = forecast {
        add("guess", forecast.to_string());
        if let Some(warning) = forecast.warning() {
            add("budget", warning);
        }
    }
    if let Some(copied) = found.copied_rows {
        add("copied", counted(copied, "row"));
    }
    if let Some(duplicates) = &preflight.duplicates {
        let about = if duplicates.exact { "" } else { "about " };
        let rows = counted(duplicates.rows, "row");
        add("duplicates", format!("{about}{rows}"));
    }
    if let Some(difference) = &found.difference {
        add("carried", carried_text(difference));
    }
    if found.asked_rows < preflight.rows {
        add("asked", counted(found.asked_rows, "row"));
    }
    if let (Some(rate), Some(seconds)) = (found.rows_per_second, found.estimated_seconds) {
        let time = HumanDuration(Duration::from_secs(seconds));
        let text = format!("about {time}, at {rate:.0} rows/s measured on a sample");
        add("time", text);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_copied_nor_unchanged_rows_are_asked() {
        let difference = Difference {
            from: "file:///earlier".to_owned(),
            unchanged: 90,
            fresh: 10,
            gone: 5,
        };
        assert_eq!(asked_rows(100, None, None), 100);
        assert_eq!(asked_rows(100, Some(40), None), 60);
        assert_eq!(asked_rows(100, None, Some(&difference)), 10);
        assert_eq!(asked_rows(100, Some(40), Some(&difference)), 6);
        assert_eq!(asked_rows(0, Some(0), None), 0);
        let tokens = share(5_000, asked_rows(100, Some(40), None), 100);
        assert_eq!(tokens, 3_000, "of duplicates no token is computed");
        assert_eq!(share(7, 0, 0), 0);
    }
}
