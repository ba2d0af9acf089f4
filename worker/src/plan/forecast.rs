//! What a job that asks an API will take and cost, guessed before its first call from a few of its
//! rows: the prompts are made as they will be, and nobody is asked.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::chunk::ChunkLimits;
use millrace_protocol::cost::Cost;
use millrace_protocol::forecast::Forecast;
use millrace_protocol::plan::{Compression, FIRST_RUN, InputFile, Plan};
use millrace_protocol::row::{ReadRow, Row};
use millrace_protocol::wire::ChunksOfText;
use serde::Serialize;

use super::PlanError;
use super::estimate::share;
use super::preflight::{guess_rows, preflight};
use crate::content::content;
use crate::job::{CheckedJob, Fields, Remote, Routing, Step};
use crate::prompt::Prompts;
use crate::read::{self, ReadError};
use crate::store::Stores;
use crate::work::call::guess::Guess;
use crate::work::chunked::{Document, guessed};
use crate::work::client::remote::{Usage, request_bytes};

/// Shards of which rows are looked at.
const SHARDS_MAX: usize = 8;
/// Rows of a shard that are looked at.
const ROWS_MAX: usize = 64;
/// Bytes of input whose rows are counted where nobody did.
const COUNTED_BYTES_MAX: u64 = 16 << 20;
/// Bytes of rows of a shard that are looked at.
const BYTES_MAX: usize = 256 << 10;

/// What the rows that were looked at take of one API.
#[derive(Debug, Default)]
struct Sample {
    calls: u64,
    least: Usage,
    most: Usage,
}

/// What one API is asked.
struct Asked<'a> {
    remote: &'a Remote,
    steps: &'a [Step],
    /// Rows that it is asked about whatever others answer.
    least: Vec<&'a str>,
    /// Rows that it may be asked about.
    most: Vec<&'a str>,
}

/// Guesses what the job will take; nothing for one that asks no API or has no row to look at, nor for a
/// run that asks for failed rows again. `rows` is the number of rows, where somebody counted them.
pub async fn forecast(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
    rows: Option<u64>,
) -> Result<Option<Forecast>, PlanError> {
    if job.remotes().next().is_none() || job.run != FIRST_RUN {
        return Ok(None);
    }
    let stores = &stores.with_inline_rows(&job.input);
    let Sampled {
        rows: sampled,
        seen,
    } = sampled(stores, job, plan).await?;
    if sampled.is_empty() {
        return Ok(None);
    }
    // What is carried over is not asked. Duplicates are left out of what was compared.
    let fresh = plan.carried.as_ref().map(|it| it.difference.fresh);
    let rows = match fresh.or(rows) {
        Some(rows) => rows,
        None => {
            let copied = plan.dedup.as_ref().map_or(0, |dedup| dedup.duplicates);
            let rows = match counts(plan) {
                true => preflight(stores, job, plan, None).await?.rows,
                false => {
                    let guessed = guess_rows(stores, job, plan).await?.max(seen);
                    share(guessed, sampled.len() as u64, seen)
                }
            };
            rows.saturating_sub(copied)
        }
    };
    let chunks = match &job.input.chunking {
        Some(chunking) => in_chunks(&sampled, &job.input.fields, chunking.limits).await,
        None => Vec::new(),
    };
    let asked = match (&job.routing, &job.input.chunking) {
        (Some(routing), _) => by_service(routing, &sampled),
        (None, Some(_)) => alone(job, chunks.iter().map(String::as_str)),
        (None, None) => alone(job, sampled.iter().map(Row::asked)),
    };
    Ok(Some(scaled(job, &asked, sampled.len() as u64, rows)))
}

/// Rows among those that were looked at for whose lack of a field no prompt can be made of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lacking {
    /// The field.
    pub field: String,
    /// Rows that lack it.
    pub rows: u64,
    /// Rows that were looked at.
    pub sampled_rows: u64,
}

/// Of which sampled rows no prompt can be made, since they lack a field that it names.
pub async fn lacking(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
) -> Result<Vec<Lacking>, ReadError> {
    if job.remotes().next().is_none() {
        return Ok(Vec::new());
    }
    let stores = &stores.with_inline_rows(&job.input);
    let sampled = sampled(stores, job, plan).await?.rows;
    let templates = job.steps.iter().map(Step::template);
    let prompts = Prompts::new(templates, &job.input.fields.text);
    let prompts = prompts.expect("the job was checked");
    let mut rows_by_field: BTreeMap<String, u64> = BTreeMap::new();
    for row in &sampled {
        let lacks = (0..job.steps.len()).filter_map(|step| prompts.lacking(step, row.asked()));
        for field in lacks.collect::<BTreeSet<_>>() {
            *rows_by_field.entry(field).or_default() += 1;
        }
    }
    let sampled_rows = sampled.len() as u64;
    let lacking = rows_by_field.into_iter().map(|(field, rows)| Lacking {
        field,
        rows,
        sampled_rows,
    });
    Ok(lacking.collect())
}

/// Whether the rows are few enough to be counted for a guess, so that it is the one of a dry run.
fn counts(plan: &Plan) -> bool {
    let is_plain = |input: &InputFile| input.compression == Compression::None;
    let bytes: u64 = plan.inputs.iter().map(|input| input.size_bytes).sum();
    bytes <= COUNTED_BYTES_MAX && plan.inputs.iter().all(is_plain)
}

/// Rows that were looked at.
#[derive(Default)]
struct Sampled {
    /// Those that a run asks about.
    rows: Vec<Row>,
    /// How many were looked at, with bad ones and those that the filter leaves out.
    seen: u64,
}

/// The first rows of some shards that lie evenly over the plan.
async fn sampled(stores: &Stores, job: &CheckedJob, plan: &Plan) -> Result<Sampled, ReadError> {
    let shards = plan.shards.iter();
    let asked = shards.filter(|shard| shard.is_first_of_range());
    let stride = asked.clone().count().div_ceil(SHARDS_MAX).max(1);
    let (fields, row_bytes_max) = (&job.input.fields, job.input.row_bytes_max);
    let mut sampled = Sampled::default();
    for shard in asked.step_by(stride) {
        let input = plan.input_of(shard);
        let mut rows = read::open_shard(stores, input, shard, fields, row_bytes_max).await?;
        let rows = rows.next_batch(ROWS_MAX, BYTES_MAX).await?;
        sampled.seen += rows.len() as u64;
        let rows = match &job.input.filter {
            Some(filter) => filter.applied(rows).await.0,
            None => rows,
        };
        sampled
            .rows
            .extend(rows.into_iter().filter_map(|row| match row {
                ReadRow::Row(row) => Some(row),
                ReadRow::Bad { .. } => None,
            }));
    }
    Ok(sampled)
}

/// What the one API of a job is asked.
fn alone<'a>(job: &'a CheckedJob, texts: impl Iterator<Item = &'a str>) -> Vec<Asked<'a>> {
    let texts: Vec<&str> = texts.collect();
    let asked = |remote| Asked {
        remote,
        steps: &job.steps,
        least: texts.clone(),
        most: texts.clone(),
    };
    job.remote.iter().map(asked).collect()
}

/// What each API of a job with routes is asked: at least the rows that come to it first, and at most all
/// that others may send on.
fn by_service<'a>(routing: &'a Routing, rows: &'a [Row]) -> Vec<Asked<'a>> {
    let services = routing.services();
    let mut least: Vec<Vec<&str>> = vec![Vec::new(); services.len()];
    let mut most = least.clone();
    for row in rows {
        let content = content(row, Some(routing));
        let fields = row.filtered.as_ref().map_or("{}", |fields| fields.get());
        // A row of which a condition cannot be told is asked about nowhere.
        let Ok(first) = routing.first(fields, content) else {
            continue;
        };
        least[first.service].push(row.asked());
        let mut next = Some(first);
        while let Some(arm) = next {
            most[arm.service].push(row.asked());
            next = routing.after(arm, content);
        }
    }
    let asked = services.iter().zip(least).zip(most);
    let asked = asked.filter_map(|((service, least), most)| {
        Some(Asked {
            remote: service.remote.as_ref()?,
            steps: &service.steps,
            least,
            most,
        })
    });
    asked.collect()
}

/// What is asked about rows in their chunks.
async fn in_chunks(rows: &[Row], fields: &Fields, limits: ChunkLimits) -> Vec<String> {
    let documents = rows.iter().map(|row| Document::new(row.asked(), fields));
    let documents: Vec<Document> = documents.collect();
    let texts = documents.iter().map(|it| it.text().to_owned());
    let cut = guessed(&texts.collect::<Vec<_>>(), limits).await;
    let mut pieces = Vec::new();
    for (document, cut) in documents.iter().zip(cut) {
        if let ChunksOfText::Ok(chunks) = cut {
            pieces.extend(chunks.iter().map(|chunk| document.piece(chunk)));
        }
    }
    pieces
}

/// What these rows take in calls of as many rows as the service says.
fn sample(remote: &Remote, steps: &[Step], text_field: &str, texts: &[&str]) -> Sample {
    let prompts = Prompts::new(steps.iter().map(Step::template), text_field);
    let prompts = prompts.expect("the job was checked");
    let mut sample = Sample::default();
    for (index, step) in steps.iter().enumerate() {
        let guess = Guess::new(std::slice::from_ref(step));
        let rendered = texts
            .iter()
            .filter_map(|text| prompts.render(index, text).ok());
        let rendered: Vec<String> = rendered.collect();
        for call in rendered.chunks(remote.spec.rows_per_call() as usize) {
            let prompts: Vec<&str> = call.iter().map(String::as_str).collect();
            let bytes = request_bytes(&remote.spec, step, &prompts);
            let writes = remote.writes();
            sample.calls += 1;
            sample.least += Guess::least(bytes, call.len(), writes);
            sample.most += guess.usage(bytes, call.len(), writes);
        }
    }
    sample
}

fn scaled(job: &CheckedJob, asked: &[Asked<'_>], sampled_rows: u64, rows: u64) -> Forecast {
    let scale = |count: u64| share(count, rows, sampled_rows);
    let mut tokens = (0, 0);
    let mut cost: Option<(Cost, Cost)> = None;
    for Asked {
        remote,
        steps,
        least,
        most,
    } in asked
    {
        let sample = |texts: &[&str]| sample(remote, steps, &job.input.fields.text, texts);
        let (least, most) = (sample(least), sample(most));
        tokens.0 += scale(least.least.total());
        tokens.1 += scale(most.most.total());
        if let Some(pricing) = &remote.spec.pricing {
            let prices = pricing.prices();
            let price = |calls, Usage { input, output }: Usage| {
                prices.of(scale(calls), scale(input), scale(output))
            };
            let sum = cost.get_or_insert_default();
            sum.0 += price(least.calls, least.least);
            sum.1 += price(most.calls, most.most);
        }
    }
    Forecast {
        rows,
        sampled_rows,
        tokens,
        cost,
        currency: job.pricing().map(|pricing| pricing.currency.clone()),
        max_cost: job.cost_max,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::StoreOptions;
    use crate::work::testing::remote_job;

    #[tokio::test]
    async fn a_forecast_grows_with_rows_and_knows_the_price_and_the_budget() {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<String> = (0..100).map(|row| format!("row number {row}")).collect();
        let text: Vec<String> = rows
            .iter()
            .map(|row| json!({"text": row}).to_string())
            .collect();
        std::fs::write(folder.path().join("rows.jsonl"), text.join("\n")).unwrap();
        let pricing = json!({"inputPerMillionTokens": "1", "outputPerMillionTokens": "10"});
        let more = json!({
            "budget": {"maxCost": "0.005"},
            "steps": [{"name": "a", "model": "m", "prompt": {"maxOutputTokens": 10}}],
        });
        let job = remote_job(folder.path(), json!({"pricing": pricing}), more);
        let stores = Stores::new(StoreOptions::default());
        let plan = crate::plan::draft(&stores, &job).await.unwrap();
        let found = |rows| forecast(&stores, &job, &plan, rows);
        let (hundred, thousand) = (
            found(Some(100)).await.unwrap(),
            found(Some(1_000)).await.unwrap(),
        );
        let (hundred, thousand) = (hundred.unwrap(), thousand.unwrap());
        assert_eq!(hundred.sampled_rows, 64);
        assert!(thousand.tokens.1 >= hundred.tokens.1 * 9, "{thousand:?}");
        // Ten tokens of answer for each row at most, and a price of ten for a million.
        let (least, most) = hundred.cost.unwrap();
        assert!(
            least < most && most > "0.01".parse().unwrap(),
            "{hundred:?}"
        );
        assert!(hundred.warning().unwrap().contains("may"), "{hundred:?}");
        let counted = found(None).await.unwrap().unwrap();
        assert_eq!(counted, hundred, "a run says what its dry run does");
    }

    #[tokio::test]
    async fn sampled_rows_without_a_field_that_a_prompt_names_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let row = |row| match row {
            0..3 => json!({"text": "a row", "title": "on mills"}),
            _ => json!({"text": "a row"}),
        };
        let text: Vec<String> = (0..10).map(|it| row(it).to_string()).collect();
        std::fs::write(folder.path().join("rows.jsonl"), text.join("\n")).unwrap();
        let prompt = json!({"template": "{{ title }}: {{ text }} {{ note | default('-') }}"});
        let more = json!({"steps": [{"name": "a", "model": "m", "prompt": prompt}]});
        let job = remote_job(folder.path(), json!({}), more);
        let stores = Stores::new(StoreOptions::default());
        let plan = crate::plan::draft(&stores, &job).await.unwrap();
        let found = lacking(&stores, &job, &plan).await.unwrap();
        let expected = Lacking {
            field: "title".to_owned(),
            rows: 7,
            sampled_rows: 10,
        };
        assert_eq!(found, [expected]);
    }

    #[tokio::test]
    async fn a_guess_without_a_count_leaves_out_what_the_filter_does() {
        let folder = tempfile::tempdir().unwrap();
        let rows = (0..100).map(|row| json!({"text": "a row", "stars": row % 4}).to_string());
        let text: Vec<String> = rows.collect();
        std::fs::write(folder.path().join("rows.jsonl"), text.join("\n")).unwrap();
        let input = json!({"uris": ["rows.jsonl"], "filter": {"expression": "stars == 0"}});
        let more = json!({
            "input": input,
            "steps": [{"name": "a", "model": "m", "prompt": {"maxOutputTokens": 10}}],
        });
        let job = remote_job(folder.path(), json!({}), more);
        let stores = Stores::new(StoreOptions::default());
        let plan = crate::plan::draft(&stores, &job).await.unwrap();
        let guessed = forecast(&stores, &job, &plan, None).await.unwrap().unwrap();
        assert_eq!(guessed.rows, 25);
        // Input of which nobody knows how long it is without reading it.
        let mut plan = plan;
        plan.inputs[0].compression = Compression::Gzip;
        assert!(!counts(&plan));
        plan.inputs[0].compression = Compression::None;
        plan.inputs[0].size_bytes = COUNTED_BYTES_MAX + 1;
        assert!(!counts(&plan));
    }
}
