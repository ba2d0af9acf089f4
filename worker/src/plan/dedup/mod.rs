//! Plans which rows are not asked because an earlier row of the job has the answer.
//!
//! The rows of the input are spread by content over temporary files, which are then read one by one:
//! memory holds the contents of one file. Of rows with equal contents the first one is asked, and the
//! others are its duplicates. What is almost the same is found before that ([`near`]): a content for
//! which there is an earlier one has all its rows among the duplicates.

mod exact;
mod minhash;
mod near;
mod quantised;
mod vectors;

use std::io;

use millrace_protocol::layout;
use millrace_protocol::ledger::{ContentHash, DuplicateRow};
use millrace_protocol::plan::{Dedup, Duplicates, Plan, Shard};
use millrace_protocol::row::Row;

use self::exact::{NEAR_BYTES, ROW_BYTES, duplicates, row_bytes};
use self::minhash::{HASHES, MinHash, Words, hashes_per_band};
use self::near::{NearOptions, NearRows};
pub use self::vectors::VectorsError;
use self::vectors::{RowTexts, Vectors, VectorsOf};
use super::PlanError;
use super::compare::rows::{Contents, RowReader};
use super::compare::spill::Spill;
use super::compare::{file_of, files_for, lists};
use super::preflight::guess_rows;
use crate::content::text_content;
use crate::job::{CheckedJob, Dedup as Wanted, Near};
use crate::store::Stores;

/// What tells which rows are almost the same.
enum Comparable {
    /// Nothing does.
    Nothing,
    /// Their words.
    ByWords(NearRows<MinHash>),
    /// Vectors that an earlier job made of their texts.
    ByVectors {
        /// URI of its output.
        from: String,
        vectors: Vectors,
        texts: RowTexts,
        threshold: f64,
    },
}

/// The duplicates among the rows of a plan.
struct Found {
    /// Each in its shard, the rows of a file in the plan's order.
    rows: Spill<ROW_BYTES>,
    count: u64,
}

/// Lists the duplicates among the rows of `plan` below the job's output. Shards leave out theirs, and one
/// shard for each such, after all others, is of these alone.
pub(super) async fn leave_out(
    stores: &Stores,
    job: &CheckedJob,
    wanted: &Wanted,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let Found { rows, count } = find(stores, job, wanted, plan).await?;
    let planner = format!("{:016x}", rand::random::<u64>());
    let output = stores.open(&job.output.uri)?;
    let list = |shard| layout::duplicates(plan.run, &planner, shard);
    for (shard, _) in lists::write(&output, rows, list).await? {
        let range = &mut plan.shards[shard as usize];
        range.duplicates = Some(Duplicates::Without(shard));
        let of_duplicates = Shard {
            duplicates: Some(Duplicates::Only(shard)),
            ..*range
        };
        plan.shards.push(of_duplicates);
    }
    plan.dedup = Some(Dedup {
        duplicates: count,
        planner,
    });
    Ok(())
}

/// How many rows of `plan` are duplicates; `None` where the job does not ask for it. Writes nothing.
pub async fn count(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
) -> Result<Option<u64>, PlanError> {
    let Some(wanted) = &job.dedup else {
        return Ok(None);
    };
    let Found { rows: _, count } = find(stores, job, wanted, plan).await?;
    Ok(Some(count))
}

async fn find(
    stores: &Stores,
    job: &CheckedJob,
    wanted: &Wanted,
    plan: &Plan,
) -> Result<Found, PlanError> {
    let Wanted { near } = wanted;
    let with_inline = stores.with_inline_rows(&job.input);
    let files = files_for(guess_rows(&with_inline, job, plan).await?);
    let reading = Reading {
        stores,
        job,
        plan,
        files,
    };
    let (rows, comparable) = match near {
        None => {
            let rows = reading.read(|_| (), |_, ()| Ok(())).await?;
            (rows, Comparable::Nothing)
        }
        Some(Near::MinHash { threshold }) => reading.by_words(*threshold).await?,
        Some(Near::Embedding {
            from,
            step,
            threshold,
        }) => {
            let of = VectorsOf { from, step };
            reading.by_vectors(of, *threshold).await?
        }
    };
    let finding = move || find_among(rows, comparable.resolve(files)?, files);
    let found = tokio::task::spawn_blocking(finding).await;
    found.expect("comparing does not panic")
}

/// Reads the rows of a plan, to be compared.
struct Reading<'a> {
    stores: &'a Stores,
    job: &'a CheckedJob,
    plan: &'a Plan,
    files: usize,
}

impl Reading<'_> {
    /// Reads every row. `near` is given each row's content, and what was made of the row.
    async fn read<T: Send + 'static>(
        &self,
        make: impl Fn(&Row) -> T + Send + Sync + 'static,
        mut near: impl FnMut(&ContentHash, T) -> io::Result<()>,
    ) -> Result<Spill<ROW_BYTES>, PlanError> {
        let mut rows = Spill::new(self.files).map_err(PlanError::Spill)?;
        let take = |shard, contents: Contents<T>| {
            for (content, place, made) in contents {
                let row = DuplicateRow {
                    place,
                    content,
                    similarity: None,
                };
                rows.put(file_of(&content, self.files), &row_bytes(shard, row))?;
                near(&content, made)?;
            }
            Ok(())
        };
        let reader = RowReader::new(self.stores, self.job, make)?;
        reader.read(self.plan, take).await?;
        Ok(rows)
    }

    async fn by_words(&self, threshold: f64) -> Result<(Spill<ROW_BYTES>, Comparable), PlanError> {
        let hashes_per_band = hashes_per_band(threshold);
        let near = NearRows::new(NearOptions {
            bands: HASHES / hashes_per_band,
            banding: hashes_per_band,
            signature_bytes: MinHash::BYTES,
            threshold,
            files: self.files,
        });
        let mut near = near.map_err(PlanError::Spill)?;
        let words = match self.job.input.fields.prompted.is_empty() {
            true => Words::OfText,
            false => Words::OfFields,
        };
        let sign = move |row: &Row| MinHash::of(row.asked(), words);
        let put = |content: &ContentHash, signature: Option<MinHash>| match signature {
            Some(signature) => near.put(content, &signature),
            None => Ok(()),
        };
        let rows = self.read(sign, put).await?;
        Ok((rows, Comparable::ByWords(near)))
    }

    async fn by_vectors(
        &self,
        of: VectorsOf<'_>,
        threshold: f64,
    ) -> Result<(Spill<ROW_BYTES>, Comparable), PlanError> {
        let vectors = Vectors::read(self.stores, of, self.files).await?;
        let mut texts = RowTexts::new(vectors.files()).map_err(PlanError::Spill)?;
        let put = |content: &ContentHash, text: ContentHash| texts.put(content, &text);
        let rows = self.read(text_content, put).await?;
        let comparable = Comparable::ByVectors {
            from: of.from.to_owned(),
            vectors,
            texts,
            threshold,
        };
        Ok((rows, comparable))
    }
}

impl Comparable {
    /// The contents that are almost the same as an earlier one, by file.
    fn resolve(self, files: usize) -> Result<Spill<NEAR_BYTES>, PlanError> {
        let file_of = |content: &ContentHash| file_of(content, files);
        let near = match self {
            Self::Nothing => Spill::new(files),
            Self::ByWords(rows) => rows.resolve(file_of),
            Self::ByVectors { texts, .. } if texts.is_empty() => Spill::new(files),
            Self::ByVectors {
                from,
                vectors,
                texts,
                threshold,
            } => {
                let near = vectors.resolve(texts, threshold, files);
                let near = near.map_err(PlanError::Spill)?;
                return near.ok_or_else(|| VectorsError::OtherRows { from }.into());
            }
        };
        near.map_err(PlanError::Spill)
    }
}

fn find_among(
    rows: Spill<ROW_BYTES>,
    near: Spill<NEAR_BYTES>,
    files: usize,
) -> Result<Found, PlanError> {
    let finding = || {
        let mut found = Spill::new(files)?;
        let mut count = 0;
        let both = near.into_files()?.into_iter().zip(rows.into_files()?);
        for (file, (near, rows)) in both.enumerate() {
            count += duplicates(near, rows, |row| found.put(file, &row))?;
        }
        Ok(Found { rows: found, count })
    };
    finding().map_err(PlanError::Spill)
}
