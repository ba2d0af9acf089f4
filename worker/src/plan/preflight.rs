//! Reads the whole dataset once, without a model, and says what a run would meet.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use millrace_protocol::{
    plan::{Compression, InputFile, Plan, Shard, ShardRange},
    row::{Place, Position, ReadRow},
};
use serde::Serialize;
use tokio::{sync::Semaphore, task::JoinSet};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    PlanError,
    estimate::{DuplicateSample, SampledRow, TokenSample, spread},
    unseen::Unseen,
};
use crate::{
    filter::{Filter, Verdict},
    job::{CheckedJob, Fields},
    order::{self, Order},
    read::{
        self, ReadError,
        view::{Refused, RowView},
    },
    store::Stores,
};

/// Shards read at a time.
const SHARDS_AT_ONCE: usize = 2;
/// Shards without a row that are looked at for a guess at the number of rows.
const SHARDS_LOOKED_AT_MAX: usize = 64;
/// Positions kept of the rows that share a code.
const POSITIONS_MAX: usize = 5;
/// What compressed text grows to, for a first guess at the number of rows.
const GROWTH_GUESS: u64 = 4;

/// Counts the tokens of a text.
pub type TokenCounter = Arc<dyn Fn(&str) -> Counted + Send + Sync>;

/// Tokens of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Those that are computed.
    pub tokens: usize,
    /// Whether a model takes fewer than there are.
    pub is_cut: bool,
}

/// What a run would meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// Rows for the models.
    pub rows: u64,
    /// How many of them are in each class of the job's order, all others last; empty without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<u64>,
    /// Rows that the job's filter leaves out.
    pub skipped: u64,
    /// Fields that expressions name and no row has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unseen_fields: Vec<String>,
    /// Rows that would end as errors, by code.
    pub bad_rows: BTreeMap<&'static str, BadRows>,
    /// Stored bytes of the input files.
    pub input_bytes: u64,
    /// Bytes of all rows, decoded and without line ends; for Parquet, of the texts.
    pub row_bytes: u64,
    /// The longest row that is not too long.
    pub longest_row: Option<LongestRow>,
    /// Tokens of all texts; absent without a tokenizer.
    pub tokens: Option<TokenEstimate>,
    /// Rows whose text an earlier row has too. Absent for a job with dedup, which looks at all that is asked
    /// and not at texts alone: [`super::count_duplicates`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<DuplicateEstimate>,
}

/// Rows that share an error code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BadRows {
    /// How many.
    pub count: u64,
    /// The first few, in input order.
    pub first: Vec<Position>,
}

/// The longest row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LongestRow {
    /// Its bytes, as [`Preflight::row_bytes`] counts them.
    pub bytes: u64,
    /// Where it stands.
    pub position: Position,
}

/// Tokens, estimated from a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenEstimate {
    /// Tokens of all texts, by tokens per byte of the sample.
    pub tokens: u64,
    /// Rows in the sample.
    pub sampled_rows: u64,
    /// Those of them whose texts are longer than a model takes.
    pub cut_rows: u64,
}

/// Duplicates, counted or estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DuplicateEstimate {
    /// Rows whose text an earlier row has too.
    pub rows: u64,
    /// Whether every text was compared; else a sample was.
    pub exact: bool,
}

/// Reads every row of the plan once, in memory that does not grow with the data.
pub async fn preflight(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
    token_counter: Option<TokenCounter>,
) -> Result<Preflight, PlanError> {
    let stores = &stores.with_inline_rows(&job.input);
    // Joined fields are not needed to know what becomes of a row.
    let fields = Fields {
        join: Vec::new(),
        prompted: Vec::new(),
        ..order::fields(job.input.order.as_ref(), &job.input.fields)
    };
    let reader = Arc::new(ShardReader {
        stores: stores.clone(),
        unseen: Unseen::new(&fields.filtered),
        fields,
        filter: job.input.filter.clone(),
        order: job.input.order.clone(),
        row_bytes_max: job.input.row_bytes_max,
        zstd: Semaphore::new(1),
        samples: Samples::new(guess_rows(stores, job, plan).await?, token_counter),
    });
    let mut found = Found::default();
    let mut running = JoinSet::new();
    let ranges = plan.shards.iter().filter(|it| it.is_first_of_range());
    let mut shards = ranges.zip(0_u64..);
    loop {
        while running.len() < SHARDS_AT_ONCE {
            let Some((shard, index)) = shards.next() else {
                break;
            };
            let (reader, shard, input) =
                (Arc::clone(&reader), *shard, plan.input_of(shard).clone());
            running.spawn(async move { reader.read(shard, index, input).await });
        }
        match running.join_next().await {
            None => break,
            Some(Ok(shard)) => found.add(shard?),
            Some(Err(failed)) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
    let mut preflight = found.summary(plan, &reader);
    if job.dedup.is_some() {
        preflight.duplicates = None;
    }
    Ok(preflight)
}

/// About how many rows the plan has: from the first rows of the first shard that has any. A row may be
/// longer than shards are, so some of them may have none.
pub(super) async fn guess_rows(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
) -> Result<u64, ReadError> {
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    for input in &plan.inputs {
        bytes = bytes.saturating_add(match input.compression {
            Compression::None => input.size_bytes,
            Compression::Gzip | Compression::Zstd => input.size_bytes.saturating_mul(GROWTH_GUESS),
        });
    }
    let mut looked_at = 0;
    for shard in plan.shards.iter().filter(|it| it.is_first_of_range()) {
        match shard.range {
            ShardRange::Rows { start, end, .. } => rows = rows.saturating_add(end - start),
            ShardRange::Bytes { start, end } => {
                let input = plan.input_of(shard);
                let (fields, row_bytes_max) = (&job.input.fields, job.input.row_bytes_max);
                let mut stream =
                    read::open_shard(stores, input, shard, fields, row_bytes_max).await?;
                let mut first = stream.next_batch(256, 64 << 10).await?;
                if first.len() == 1 {
                    // It was too long for others to come along.
                    first.extend(stream.next_batch(1, 1).await?);
                }
                let offset = |row: &ReadRow| match row.place() {
                    Place::Offset { offset } => offset,
                    Place::Group { .. } => 0,
                };
                let row_bytes = match (first.first(), first.last()) {
                    (Some(low), Some(high)) if first.len() > 1 => {
                        (offset(high) - offset(low)) / (first.len() as u64 - 1)
                    }
                    // It ends beyond the shard if it is longer than that.
                    (Some(row), _) => {
                        let text = match row {
                            ReadRow::Row(row) => row.text.len() as u64,
                            ReadRow::Bad { .. } => 0,
                        };
                        text.max(end.min(bytes) - start.min(bytes))
                    }
                    _ if looked_at < SHARDS_LOOKED_AT_MAX => {
                        looked_at += 1;
                        continue;
                    }
                    // Nothing is known but that rows are longer than these shards together.
                    _ => end.min(bytes),
                };
                return Ok((bytes / row_bytes.max(1)).max(1));
            }
        }
    }
    Ok(rows)
}

/// What all shards share.
struct ShardReader {
    stores: Stores,
    fields: Fields,
    unseen: Unseen,
    filter: Option<Filter>,
    order: Option<Order>,
    row_bytes_max: usize,
    /// Decoding one zstd file may take 128 MiB, so it is done for one at a time.
    zstd: Semaphore,
    samples: Samples,
}

impl ShardReader {
    async fn read(
        &self,
        shard: Shard,
        shard_index: u64,
        input: InputFile,
    ) -> Result<ShardFound, ReadError> {
        let _permit = match input.compression {
            Compression::Zstd => self.zstd.acquire().await.ok(),
            Compression::None | Compression::Gzip => None,
        };
        let (fields, row_bytes_max) = (&self.fields, self.row_bytes_max);
        let stream = read::open_shard(&self.stores, &input, &shard, fields, row_bytes_max).await?;
        let mut found = ShardFound {
            input: shard.input,
            classes: vec![0; self.order.as_ref().map_or(0, Order::classes).into()],
            ..ShardFound::default()
        };
        let salt = spread(shard_index);
        stream
            .visit(|place, bytes, row| {
                found.row_bytes += bytes;
                if let Ok(row) = &row {
                    self.unseen.look(row.beside.filtered.as_deref());
                }
                let row = match (self.verdict(&row), row) {
                    (Verdict::Skip, _) => {
                        found.skipped += 1;
                        return;
                    }
                    (Verdict::Bad(error), _) => Err(error),
                    (Verdict::Keep, row) => row.map_err(|refused| refused.error),
                };
                match row {
                    Ok(row) => {
                        found.rows += 1;
                        if let Some(order) = &self.order {
                            found.classes[usize::from(row.class(order))] += 1;
                        }
                        found.text_bytes += row.text.len() as u64;
                        if found.longest.is_none_or(|(longest, _)| bytes > longest) {
                            found.longest = Some((bytes, place));
                        }
                        self.samples.take(&row.text, salt ^ number(place));
                    }
                    Err(error) => {
                        let bad = found.bad.entry(error.code.as_str()).or_default();
                        bad.count += 1;
                        if bad.first.len() < POSITIONS_MAX {
                            bad.first.push((shard.input, place));
                        }
                    }
                }
            })
            .await?;
        Ok(found)
    }

    fn verdict(&self, row: &Result<RowView<'_>, Refused>) -> Verdict {
        match (&self.filter, row) {
            (None, _) => Verdict::Keep,
            (Some(filter), Ok(row)) => row.verdict(filter),
            (Some(filter), Err(refused)) => filter.verdict(Err(&refused.error), None),
        }
    }
}

/// A number that no other row of the shard has.
fn number(place: Place) -> u64 {
    match place {
        Place::Offset { offset } => offset,
        Place::Group { row_group, row } => (u64::from(row_group) << 40) ^ row,
    }
}

/// The samples, with their thresholds readable without a lock: few rows pass them.
struct Samples {
    duplicates: Mutex<DuplicateSample>,
    level: AtomicU32,
    tokens: Mutex<TokenSample>,
    threshold: AtomicU64,
    token_counter: Option<TokenCounter>,
}

impl Samples {
    fn new(rows: u64, token_counter: Option<TokenCounter>) -> Self {
        let tokens = TokenSample::new(rows);
        Self {
            duplicates: Mutex::default(),
            level: AtomicU32::new(0),
            threshold: AtomicU64::new(tokens.threshold()),
            tokens: Mutex::new(tokens),
            token_counter,
        }
    }

    fn take(&self, text: &str, number: u64) {
        let hash = xxh3_64(text.as_bytes());
        if hash.leading_zeros() >= self.level.load(Ordering::Relaxed) {
            let mut duplicates = lock(&self.duplicates);
            duplicates.insert(hash);
            self.level.store(duplicates.level(), Ordering::Relaxed);
        }
        let Some(count) = &self.token_counter else {
            return;
        };
        let hash = spread(number);
        if hash <= self.threshold.load(Ordering::Relaxed) {
            let Counted { tokens, is_cut } = count(text);
            let row = SampledRow {
                hash,
                tokens: tokens as u64,
                text_bytes: text.len() as u64,
                is_cut,
            };
            let mut tokens = lock(&self.tokens);
            tokens.insert(row);
            self.threshold.store(tokens.threshold(), Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one shard held. Places are kept with the index of their file.
#[derive(Debug, Default)]
struct ShardFound {
    input: u32,
    rows: u64,
    /// By class.
    classes: Vec<u64>,
    skipped: u64,
    row_bytes: u64,
    text_bytes: u64,
    longest: Option<(u64, Place)>,
    bad: BTreeMap<&'static str, BadPlaces>,
}

#[derive(Debug, Default)]
struct BadPlaces {
    count: u64,
    first: Vec<(u32, Place)>,
}

/// What the shards held together.
#[derive(Debug, Default)]
struct Found {
    rows: u64,
    classes: Vec<u64>,
    skipped: u64,
    row_bytes: u64,
    text_bytes: u64,
    longest: Option<(u64, (u32, Place))>,
    bad: BTreeMap<&'static str, BadPlaces>,
}

impl Found {
    /// Adds a shard; the order of shards makes no difference.
    fn add(&mut self, shard: ShardFound) {
        let ShardFound {
            input,
            rows,
            classes,
            skipped,
            row_bytes,
            text_bytes,
            longest,
            bad,
        } = shard;
        self.rows += rows;
        self.classes.resize(classes.len(), 0);
        for (all, rows) in self.classes.iter_mut().zip(classes) {
            *all += rows;
        }
        self.skipped += skipped;
        self.row_bytes += row_bytes;
        self.text_bytes += text_bytes;
        if let Some((bytes, place)) = longest {
            let place = (input, place);
            let is_longer = self
                .longest
                .is_none_or(|(most, at)| bytes > most || (bytes == most && place < at));
            if is_longer {
                self.longest = Some((bytes, place));
            }
        }
        for (code, places) in bad {
            let all = self.bad.entry(code).or_default();
            all.count += places.count;
            all.first.extend(places.first);
            all.first.sort_unstable();
            all.first.truncate(POSITIONS_MAX);
        }
    }

    fn summary(self, plan: &Plan, reader: &ShardReader) -> Preflight {
        let samples = &reader.samples;
        let position = |(input, place): (u32, Place)| Position {
            file: plan.inputs[input as usize].uri.clone(),
            place,
        };
        let bad_rows = self
            .bad
            .into_iter()
            .map(|(code, BadPlaces { count, first })| {
                (
                    code,
                    BadRows {
                        count,
                        first: first.into_iter().map(position).collect(),
                    },
                )
            });
        let duplicates = lock(&samples.duplicates);
        let tokens = lock(&samples.tokens);
        Preflight {
            rows: self.rows,
            classes: self.classes,
            skipped: self.skipped,
            // Of an empty input nothing is known.
            unseen_fields: match self.rows + self.skipped {
                0 => Vec::new(),
                _ => reader.unseen.fields(),
            },
            bad_rows: bad_rows.collect(),
            input_bytes: plan.inputs.iter().map(|input| input.size_bytes).sum(),
            row_bytes: self.row_bytes,
            longest_row: self.longest.map(|(bytes, place)| LongestRow {
                bytes,
                position: position(place),
            }),
            tokens: samples.token_counter.as_ref().map(|_| TokenEstimate {
                tokens: tokens.tokens(self.text_bytes),
                sampled_rows: tokens.rows(),
                cut_rows: tokens.cut_rows(),
            }),
            duplicates: Some(DuplicateEstimate {
                rows: duplicates.duplicates(),
                exact: duplicates.is_exact(),
            }),
        }
    }
}
