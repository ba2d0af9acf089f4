//! The vectors that an earlier job made of the rows' texts, by the hash of the text.
//!
//! Its parts are read one after the other, by way of their ledgers, and each vector is kept quantised in a
//! temporary file. Rows find theirs by a join over further files: memory holds the hashes of one file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use futures::TryStreamExt;
use millrace_protocol::ledger::{CarriedRow, ContentHash, LedgerEntry};
use millrace_protocol::plan::Answers;
use millrace_protocol::row::Place;
use serde_json::value::RawValue;

use super::exact::NEAR_BYTES;
use super::near::{NearOptions, NearRows, Signature};
use super::quantised::{NUMBERS_MAX, Planes, Quantised};
use crate::finish::{self, FinishError};
use crate::plan::PlanError;
use crate::plan::compare::spill::Spill;
use crate::plan::compare::{file_of, files_for};
use crate::plan::incremental::of_last_models;
use crate::records::{self, RecordsError};
use crate::store::{Location, Stores};
use crate::work::carried::{CarriedError, Earlier, EarlierRow};

/// Lines of the earlier output that are read at a time: each has a vector.
const LINES_AT_ONCE: usize = 512;
/// A text and the number of its vector.
const NUMBERED_BYTES: usize = 16 + 8;
/// A text, the content of its row and the number of the row.
const ROW_BYTES: usize = 16 + 16 + 8;
/// The number of a row, that of its vector, and the row's content.
const PAIRED_BYTES: usize = 8 + 8 + 16;

/// Why there are no vectors to compare rows by.
#[derive(Debug, thiserror::Error)]
pub enum VectorsError {
    /// The output is none of a finished job.
    #[error("{0} has no manifest.json: it is no output of a finished BatchJob")]
    NotFinished(String),
    /// The output cannot be read.
    #[error("{from} cannot be read")]
    Manifest {
        /// URI of the output.
        from: String,
        /// What is wrong.
        source: Box<FinishError>,
    },
    /// A file of the output is gone.
    #[error("{0} is missing: the output was changed by hand")]
    Gone(String),
    /// A part of the output cannot be read.
    #[error("a part of {from} cannot be read")]
    Part {
        /// URI of the output.
        from: String,
        /// What is wrong.
        source: CarriedError,
    },
    /// A result is no vector.
    #[error(
        "the result of step {step:?} for the row at {position} is no vector of at most {NUMBERS_MAX} \
         numbers: name an embedding step, and where its job cuts texts into chunks, join them by Mean"
    )]
    NoVector {
        /// The step.
        step: String,
        /// Where the row stands in that job's input.
        position: String,
    },
    /// Vectors are of different lengths.
    #[error(
        "the vector for the row at {position} has {found} numbers, and those before it have {expected}: \
         they cannot be compared"
    )]
    Lengths {
        /// Where the row stands in that job's input.
        position: String,
        /// Length of its vector.
        found: usize,
        /// Length of the first one.
        expected: usize,
    },
    /// The output is of other rows.
    #[error(
        "no row of this job has a vector in {from}: that job must ask about the same texts, normalized \
         alike"
    )]
    OtherRows {
        /// URI of the output.
        from: String,
    },
}

/// Where vectors stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct VectorsOf<'a> {
    /// URI of the output.
    pub(super) from: &'a str,
    /// The step that made them.
    pub(super) step: &'a str,
}

/// The vectors of an output, quantised.
pub(super) struct Vectors {
    /// Of each vector its bytes, by its number.
    quantised: BufWriter<File>,
    count: u64,
    /// How many numbers each has; 0 while there is none.
    numbers: usize,
    /// The texts that have one.
    texts: Spill<NUMBERED_BYTES>,
    files: usize,
}

/// The texts of a plan's rows.
pub(super) struct RowTexts {
    rows: Spill<ROW_BYTES>,
    count: u64,
    files: usize,
}

impl Vectors {
    /// Reads the vectors of an output, from its parts by the models that worked on it last, to be compared
    /// with rows that want so many temporary files of a kind.
    pub(super) async fn read(
        stores: &Stores,
        of: VectorsOf<'_>,
        files_of_rows: usize,
    ) -> Result<Self, PlanError> {
        let VectorsOf { from, step } = of;
        let earlier = stores.open(from)?;
        let manifest = finish::read_manifest(&earlier).await;
        let manifest = manifest.map_err(|source| VectorsError::Manifest {
            from: from.to_owned(),
            source: Box::new(source),
        })?;
        let manifest = manifest.ok_or_else(|| VectorsError::NotFinished(from.to_owned()))?;
        let files = files_for(manifest.totals.rows.succeeded).max(files_of_rows);
        let mut vectors = Self::none(files).map_err(PlanError::Spill)?;
        let (_, parts) = of_last_models(&manifest);
        for part in parts {
            if let (Some(path), Some(ledger)) = (&part.commit.part, &part.commit.ledger) {
                let of = VectorsOf { from, step };
                vectors.read_part(&earlier, of, path, ledger).await?;
            }
        }
        Ok(vectors)
    }

    fn none(files: usize) -> io::Result<Self> {
        Ok(Self {
            quantised: BufWriter::new(tempfile::tempfile()?),
            count: 0,
            numbers: 0,
            texts: Spill::new(files)?,
            files,
        })
    }

    async fn read_part(
        &mut self,
        earlier: &Location,
        of: VectorsOf<'_>,
        path: &str,
        ledger: &str,
    ) -> Result<(), PlanError> {
        let answers = Answers {
            planner: String::new(),
            parts: vec![path.to_owned()],
        };
        let part = Earlier::new(earlier.clone(), &answers);
        let ledger = records::read::<{ LedgerEntry::BYTES }>(earlier, ledger).await;
        let mut ledger = ledger.map_err(|error| match error {
            RecordsError::NotFound(path) => VectorsError::Gone(path).into(),
            RecordsError::Store(error) => PlanError::from(error),
        })?;
        while let Some(entries) = ledger.try_next().await? {
            for entries in entries.chunks(LINES_AT_ONCE) {
                let entries: Vec<_> = entries.iter().map(LedgerEntry::from_bytes).collect();
                let lines = entries.iter().map(|entry| CarriedRow {
                    place: Place::Offset { offset: 0 },
                    part: 0,
                    line: entry.line,
                });
                let lines: Vec<_> = lines.enumerate().collect();
                let read = part.answers(&lines).await;
                let mut read = read.map_err(|source| VectorsError::Part {
                    from: of.from.to_owned(),
                    source,
                })?;
                read.sort_unstable_by_key(|(index, _)| *index);
                for (index, line) in read {
                    self.put(&entries[index].content, &line, of.step)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the vector of a line; one without a direction counts for none.
    fn put(&mut self, text: &ContentHash, line: &EarlierRow, step: &str) -> Result<(), PlanError> {
        let Ok(result) = &line.outcome else {
            return Ok(());
        };
        let position = || line.position.to_string();
        let vector = vector(result, step).ok_or_else(|| VectorsError::NoVector {
            step: step.to_owned(),
            position: position(),
        })?;
        if self.count == 0 {
            self.numbers = vector.len();
        }
        if vector.len() != self.numbers {
            let error = VectorsError::Lengths {
                position: position(),
                found: vector.len(),
                expected: self.numbers,
            };
            return Err(error.into());
        }
        match Quantised::of(&vector) {
            Some(quantised) => self.keep(text, &quantised).map_err(PlanError::Spill),
            None => Ok(()),
        }
    }

    fn keep(&mut self, text: &ContentHash, vector: &Quantised) -> io::Result<()> {
        self.quantised.write_all(&vector.to_bytes())?;
        let mut record = [0; NUMBERED_BYTES];
        record[..16].copy_from_slice(text);
        record[16..].copy_from_slice(&self.count.to_le_bytes());
        self.texts.put(file_of(text, self.files), &record)?;
        self.count += 1;
        Ok(())
    }

    /// How many temporary files of a kind there are.
    pub(super) fn files(&self) -> usize {
        self.files
    }

    /// Hands the contents whose vectors are almost those of an earlier row to so many files, in no order;
    /// `None` where no row has a vector.
    pub(super) fn resolve(
        self,
        rows: RowTexts,
        threshold: f64,
        files_of_contents: usize,
    ) -> io::Result<Option<Spill<NEAR_BYTES>>> {
        let Self {
            quantised,
            count: _,
            numbers,
            texts,
            files,
        } = self;
        let quantised = quantised
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        let paired = pair(texts, rows, files)?;
        let planes = Planes::new(numbers, threshold);
        let mut near = NearRows::new(NearOptions {
            bands: planes.bands(),
            banding: planes,
            signature_bytes: numbers,
            threshold,
            files: files_of_contents,
        })?;
        let mut bytes = vec![0; numbers];
        let mut has_any = false;
        for file in paired.into_files()? {
            let mut rows = file.collect::<io::Result<Vec<_>>>()?;
            rows.sort_unstable_by_key(|row| u64_at(row, 0));
            for row in rows {
                has_any = true;
                quantised.read_exact_at(&mut bytes, u64_at(&row, 8) * numbers as u64)?;
                let content = row.last_chunk().expect("it is longer than that");
                near.put(content, &Quantised::from_bytes(&bytes))?;
            }
        }
        let file_of = |content: &ContentHash| file_of(content, files_of_contents);
        has_any.then(|| near.resolve(file_of)).transpose()
    }
}

impl RowTexts {
    /// No rows yet; temporary files of a kind are as many as those of the vectors.
    pub(super) fn new(files: usize) -> io::Result<Self> {
        Ok(Self {
            rows: Spill::new(files)?,
            count: 0,
            files,
        })
    }

    /// Takes the next row.
    pub(super) fn put(&mut self, content: &ContentHash, text: &ContentHash) -> io::Result<()> {
        let mut record = [0; ROW_BYTES];
        record[..16].copy_from_slice(text);
        record[16..32].copy_from_slice(content);
        record[32..].copy_from_slice(&self.count.to_le_bytes());
        self.count += 1;
        self.rows.put(file_of(text, self.files), &record)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The vector that a step has in a result.
fn vector(result: &RawValue, step: &str) -> Option<Vec<f32>> {
    let steps: HashMap<String, &RawValue> = serde_json::from_str(result.get()).ok()?;
    let vector: Vec<f32> = serde_json::from_str(steps.get(step)?.get()).ok()?;
    (1..=NUMBERS_MAX).contains(&vector.len()).then_some(vector)
}

/// The rows with a vector, in files that follow each other by the number of the row. Of several vectors of
/// one text the first counts.
fn pair(
    texts: Spill<NUMBERED_BYTES>,
    rows: RowTexts,
    files: usize,
) -> io::Result<Spill<PAIRED_BYTES>> {
    let RowTexts { rows, count, .. } = rows;
    let mut paired = Spill::new(files)?;
    for (texts, rows) in texts.into_files()?.into_iter().zip(rows.into_files()?) {
        let mut known: HashMap<[u8; 16], u64> = HashMap::new();
        for text in texts {
            let text = text?;
            known.entry(text_of(&text)).or_insert(u64_at(&text, 16));
        }
        for row in rows {
            let row = row?;
            let Some(vector) = known.get(&text_of(&row)) else {
                continue;
            };
            let number = u64_at(&row, 32);
            let mut record = [0; PAIRED_BYTES];
            record[..8].copy_from_slice(&number.to_le_bytes());
            record[8..16].copy_from_slice(&vector.to_le_bytes());
            record[16..].copy_from_slice(&row[16..32]);
            let file = u128::from(number) * files as u128 / u128::from(count);
            paired.put(file as usize, &record)?;
        }
    }
    Ok(paired)
}

fn text_of(record: &[u8]) -> ContentHash {
    *record.first_chunk().expect("it is longer than that")
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    let bytes = record[at..at + 8].try_into();
    u64::from_le_bytes(bytes.expect("eight bytes are eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::exact::NearContent;
    use super::super::quantised::tests::{near, vector};
    use super::*;

    const NUMBERS: usize = 64;

    /// The hash of a text or the content of its row: two numbers that have nothing to do with each other.
    fn hash(of: usize, salt: u8) -> ContentHash {
        let mut hash = [salt; 16];
        hash[0] = (of * 37 % 256) as u8;
        hash[1..9].copy_from_slice(&of.to_le_bytes());
        hash
    }

    /// What rows with these vectors are almost the same as. The earlier output has them in another order.
    fn found(
        rows: &[Option<Vec<f32>>],
        threshold: f64,
        files: usize,
    ) -> Option<Vec<(usize, usize, f32)>> {
        let mut vectors = Vectors::none(files).unwrap();
        for row in (0..rows.len()).rev() {
            if let Some(vector) = &rows[row] {
                vectors.numbers = vector.len();
                let quantised = Quantised::of(vector).unwrap();
                vectors.keep(&hash(row, 1), &quantised).unwrap();
            }
        }
        let mut texts = RowTexts::new(files).unwrap();
        for row in 0..rows.len() {
            texts.put(&hash(row, 2), &hash(row, 1)).unwrap();
        }
        let row = |content: ContentHash| (0..rows.len()).find(|row| hash(*row, 2) == content);
        let near = vectors.resolve(texts, threshold, files);
        let mut found = Vec::new();
        for near in near.unwrap()?.into_files().unwrap().into_iter().flatten() {
            let NearContent {
                content,
                like,
                similarity,
            } = NearContent::from_bytes(&near.unwrap());
            found.push((row(content).unwrap(), row(like).unwrap(), similarity));
        }
        found.sort_unstable_by_key(|(row, ..)| *row);
        Some(found)
    }

    #[test]
    fn each_row_of_a_cluster_is_like_its_first_row_whatever_files_they_meet_in() {
        // Eight clusters of four, and rows that no other is like, some of them without a vector.
        let rows = (0..48).map(|row: u64| match row {
            0..8 => Some(vector(row, NUMBERS)),
            8..32 => Some(near(row % 8, 100 + row, 0.97, NUMBERS)),
            _ => (!row.is_multiple_of(3)).then(|| vector(row, NUMBERS)),
        });
        let rows: Vec<_> = rows.collect();
        let one = found(&rows, 0.85, 1).unwrap();
        let pairs: Vec<_> = one.iter().map(|(row, like, _)| (*row, *like)).collect();
        let expected: Vec<_> = (8..32).map(|row| (row, row % 8)).collect();
        assert_eq!(pairs, expected);
        assert!(one.iter().all(|it| (0.85..1.0).contains(&it.2)), "{one:?}");
        for files in [3, 16] {
            assert_eq!(found(&rows, 0.85, files).unwrap(), one, "{files} files");
        }
        assert_eq!(found(&rows, 1.0, 2), Some(vec![]));
        assert_eq!(found(&[None, None], 0.9, 2), None);
    }

    #[test]
    fn vectors_that_are_similar_in_a_chain_do_not_drift() {
        // Each is 20 degrees from the one before.
        let at = |row: usize| {
            let angle = (20.0 * row as f32).to_radians();
            Some(vec![angle.cos(), angle.sin()])
        };
        let rows: Vec<_> = (0..5).map(at).collect();
        let found = found(&rows, 0.9, 2).unwrap();
        let pairs: Vec<_> = found.iter().map(|(row, like, _)| (*row, *like)).collect();
        assert_eq!(pairs, [(1, 0), (3, 2)]);
        for (_, _, similarity) in found {
            assert!((similarity - 20_f32.to_radians().cos()).abs() < 0.01);
        }
    }

    #[test]
    fn a_result_is_a_vector_or_is_refused() {
        let of = |result: &str| vector_of(result, "e");
        fn vector_of(result: &str, step: &str) -> Option<Vec<f32>> {
            let result = RawValue::from_string(result.to_owned()).unwrap();
            super::vector(&result, step)
        }
        assert_eq!(of(r#"{"a":"b","e":[0.5,-1]}"#), Some(vec![0.5, -1.0]));
        for other in [
            r#"{"a":[1.0]}"#,
            r#"{"e":[]}"#,
            r#"{"e":[{"start":0,"end":1,"result":[1.0]}]}"#,
            r#"{"e":[null]}"#,
            r#""e""#,
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
