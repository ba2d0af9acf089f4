//! Finds rows that are almost the same as an earlier one, in memory that does not grow with the data.
//!
//! Signatures lie in a temporary file by the number of their row. Rows with a band in common are brought
//! together by way of further files, and compared: a pair counts if their signatures say so. The pairs
//! are then gone through in the order of the later row, so that of each earlier one it is known by then
//! whether it stands for itself. A row that does not has another one that stands for it, which is what
//! later rows are compared with: rows that are similar in a chain do not drift.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;

use millrace_protocol::ledger::ContentHash;

use super::exact::{NEAR_BYTES, NearContent};
use crate::plan::compare::spill::{Records, Spill};

/// Bytes of a row's content, which stands before its signature.
const CONTENT_BYTES: usize = 16;
/// Two numbers: a band and a row, or a later and an earlier row.
const PAIR_BYTES: usize = 16;
/// Bands of the rows of a file of contents that a file of pairs holds: some sixty megabytes.
const BANDS_PER_FILE: usize = 8;
/// Most files of pairs, all of them open.
const PAIR_FILES_MAX: usize = 256;
/// Rows with one band in common that later ones are compared with: of more that are not alike, the others
/// are only asked.
const LEADERS_MAX: usize = 64;

/// Number of a row among those with a signature, in the plan's order.
type RowNumber = u64;

/// What says of two rows how similar they are.
pub(super) trait Signature: Sized {
    /// What bands are made by.
    type Banding;

    /// A number for each band: rows with one in common may be similar.
    fn bands(&self, by: &Self::Banding) -> Vec<u64>;

    /// How similar both rows are; 1 where nothing tells them apart.
    fn similarity(&self, other: &Self) -> f64;

    /// As it is stored. All signatures of a plan have one length.
    fn to_bytes(&self) -> Vec<u8>;

    /// Reads a signature.
    fn from_bytes(bytes: &[u8]) -> Self;
}

/// How rows are compared.
pub(super) struct NearOptions<S: Signature> {
    /// What bands are made by.
    pub(super) banding: S::Banding,
    /// How many bands a signature has.
    pub(super) bands: usize,
    /// Length of a signature.
    pub(super) signature_bytes: usize,
    /// How similar two rows must be at least.
    pub(super) threshold: f64,
    /// Files that contents are handed to.
    pub(super) files: usize,
}

impl<S: Signature> NearOptions<S> {
    /// Temporary files of bands, and of pairs, of which a row may have as many: each is sorted in memory.
    fn pair_files(&self) -> usize {
        (self.files * self.bands.div_ceil(BANDS_PER_FILE)).min(PAIR_FILES_MAX)
    }
}

/// The rows of a plan that can be compared.
pub(super) struct NearRows<S: Signature> {
    options: NearOptions<S>,
    signed: BufWriter<File>,
    rows: RowNumber,
    bands: Spill<PAIR_BYTES>,
}

/// A row's content and its signature.
struct Signed<S> {
    content: ContentHash,
    signature: S,
}

impl<S: Signature> NearRows<S> {
    /// No rows yet.
    pub(super) fn new(options: NearOptions<S>) -> io::Result<Self> {
        Ok(Self {
            signed: BufWriter::new(tempfile::tempfile()?),
            rows: 0,
            bands: Spill::new(options.pair_files())?,
            options,
        })
    }

    /// Takes the next row.
    pub(super) fn put(&mut self, content: &ContentHash, signature: &S) -> io::Result<()> {
        let files = self.options.pair_files();
        self.signed.write_all(content)?;
        self.signed.write_all(&signature.to_bytes())?;
        for band in signature.bands(&self.options.banding) {
            let file = (u128::from(band) * files as u128) >> 64;
            self.bands.put(file as usize, &pair(band, self.rows))?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Hands the contents that are almost the same as an earlier one to files, in no order.
    pub(super) fn resolve(
        self,
        file_of: impl Fn(&ContentHash) -> usize,
    ) -> io::Result<Spill<NEAR_BYTES>> {
        let Self {
            options,
            signed,
            rows,
            bands,
        } = self;
        let pair_files = options.pair_files();
        let NearOptions {
            banding: _,
            bands: _,
            signature_bytes,
            threshold,
            files,
        } = options;
        let signed: SignedFile<S> = SignedFile {
            file: signed
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?,
            record_bytes: CONTENT_BYTES + signature_bytes,
            of: PhantomData,
        };
        let mut similar = Spill::new(pair_files)?;
        for bands in bands.into_files()? {
            for of_band in sorted(bands)?.chunk_by(|(one, _), (other, _)| one == other) {
                pairs(&signed, threshold, of_band, |later, earlier| {
                    let file = u128::from(later) * pair_files as u128 / u128::from(rows);
                    similar.put(file as usize, &pair(later, earlier))
                })?;
            }
        }
        let standing = Standing::new(rows)?;
        let mut near = Spill::new(files)?;
        for similar in similar.into_files()? {
            for of_row in sorted(similar)?.chunk_by(|(one, _), (other, _)| one == other) {
                if let Some(found) = standing.decide(&signed, threshold, of_row)? {
                    near.put(file_of(&found.content), &found.to_bytes())?;
                }
            }
        }
        Ok(near)
    }
}

/// The pairs of a file in their order.
fn sorted(pairs: Records<PAIR_BYTES>) -> io::Result<Vec<(u64, u64)>> {
    let pairs = pairs.map(|pair| Ok(unpaired(&pair?)));
    let mut pairs = pairs.collect::<io::Result<Vec<_>>>()?;
    pairs.sort_unstable();
    Ok(pairs)
}

/// Hands out pairs of similar rows, the later one first, among rows with a band in common: for each row
/// the first one that it is like.
fn pairs<S: Signature>(
    signed: &SignedFile<S>,
    threshold: f64,
    of_band: &[(u64, RowNumber)],
    mut found: impl FnMut(RowNumber, RowNumber) -> io::Result<()>,
) -> io::Result<()> {
    if of_band.len() < 2 {
        return Ok(());
    }
    let mut leaders: Vec<(RowNumber, Signed<S>)> = Vec::new();
    for &(_, row) in of_band {
        let this = signed.read(row)?;
        let like = leaders.iter().find(|(_, leader)| {
            leader.content == this.content
                || leader.signature.similarity(&this.signature) >= threshold
        });
        match like {
            // Equal rows are no business of this.
            Some((_, leader)) if leader.content == this.content => {}
            Some((leader, _)) => found(row, *leader)?,
            None if leaders.len() < LEADERS_MAX => leaders.push((row, this)),
            None => {}
        }
    }
    Ok(())
}

/// The signatures by the number of their row.
struct SignedFile<S> {
    file: File,
    record_bytes: usize,
    of: PhantomData<S>,
}

impl<S: Signature> SignedFile<S> {
    fn read(&self, row: RowNumber) -> io::Result<Signed<S>> {
        let mut bytes = vec![0; self.record_bytes];
        self.file
            .read_exact_at(&mut bytes, row * self.record_bytes as u64)?;
        let (content, signature) = bytes.split_first_chunk().expect("it is longer than that");
        Ok(Signed {
            content: *content,
            signature: S::from_bytes(signature),
        })
    }
}

/// Which row stands for each row, in a temporary file by the number of the row: that row's number and
/// one, or 0 for a row that stands for itself.
struct Standing {
    file: File,
}

impl Standing {
    fn new(rows: RowNumber) -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(rows * 8)?;
        Ok(Self { file })
    }

    /// The row that stands for `row`.
    fn of(&self, row: RowNumber) -> io::Result<RowNumber> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, row * 8)?;
        Ok(u64::from_le_bytes(bytes).checked_sub(1).unwrap_or(row))
    }

    /// Decides about a row from the earlier ones that it is like, all of which are decided about: the
    /// first of those that stand for them stands for this row as well, if it is like it.
    fn decide<S: Signature>(
        &self,
        signed: &SignedFile<S>,
        threshold: f64,
        of_row: &[(RowNumber, RowNumber)],
    ) -> io::Result<Option<NearContent>> {
        let row = of_row[0].0;
        let standing = of_row.iter().map(|(_, earlier)| self.of(*earlier));
        let mut standing = standing.collect::<io::Result<Vec<_>>>()?;
        standing.sort_unstable();
        standing.dedup();
        let this = signed.read(row)?;
        for first in standing {
            let Signed { content, signature } = signed.read(first)?;
            let similarity = signature.similarity(&this.signature);
            if similarity < threshold {
                continue;
            }
            self.file
                .write_all_at(&(first + 1).to_le_bytes(), row * 8)?;
            let is_equal = content == this.content;
            return Ok((!is_equal).then_some(NearContent {
                content: this.content,
                like: content,
                similarity: similarity as f32,
            }));
        }
        Ok(None)
    }
}

fn pair(one: u64, two: u64) -> [u8; PAIR_BYTES] {
    let mut bytes = [0; PAIR_BYTES];
    bytes[..8].copy_from_slice(&one.to_le_bytes());
    bytes[8..].copy_from_slice(&two.to_le_bytes());
    bytes
}

fn unpaired(bytes: &[u8; PAIR_BYTES]) -> (u64, u64) {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    (number(&bytes[..8]), number(&bytes[8..]))
}

#[cfg(test)]
mod tests {
    use super::super::minhash::{HASHES, MinHash, Words, hashes_per_band};
    use sha2::{Digest, Sha256};

    use super::*;

    fn content(text: &str) -> ContentHash {
        let hash: [u8; 32] = Sha256::digest(text).into();
        *hash.first_chunk().unwrap()
    }

    /// What the rows of these texts are almost the same as, by the numbers of the first rows of both.
    fn found(texts: &[String], threshold: f64, files: usize) -> Vec<(usize, usize)> {
        let mut rows = NearRows::new(NearOptions {
            bands: HASHES / hashes_per_band(threshold),
            banding: hashes_per_band(threshold),
            signature_bytes: MinHash::BYTES,
            threshold,
            files,
        })
        .unwrap();
        for text in texts {
            let signature = MinHash::of(text, Words::OfText).unwrap();
            rows.put(&content(text), &signature).unwrap();
        }
        let file_of = |content: &ContentHash| usize::from(content[0]) % files;
        let number = |wanted: ContentHash| {
            let is_wanted = |text: &String| content(text) == wanted;
            texts.iter().position(is_wanted).unwrap()
        };
        let mut found = Vec::new();
        for file in rows.resolve(file_of).unwrap().into_files().unwrap() {
            for near in file {
                let NearContent {
                    content,
                    like,
                    similarity,
                } = NearContent::from_bytes(&near.unwrap());
                assert!(f64::from(similarity) >= threshold);
                found.push((number(content), number(like)));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// A text of numbered words.
    fn text(words: std::ops::Range<usize>) -> String {
        let words = words.map(|word| format!("w{word}"));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rows_that_are_similar_in_a_chain_do_not_drift() {
        // Each is like its neighbours by 0.70, and like the next but one by 0.48.
        let texts: Vec<String> = (0..5).map(|at| text(at * 44..at * 44 + 254)).collect();
        assert_eq!(found(&texts, 0.6, 1), [(1, 0), (3, 2)]);
    }

    #[test]
    fn the_first_row_stands_for_the_others_whatever_files_they_meet_in() {
        // Twenty texts, each with others that are like it, and equal ones among all of these.
        let texts = (0..200).map(|row: usize| {
            let (of, more) = (row * 7 % 20 * 1_000, row / 40 * 3);
            format!("{} and {}", text(of..of + 150), text(0..more))
        });
        let texts: Vec<String> = texts.collect();
        let one = found(&texts, 0.8, 1);
        for files in [2, 7, 64] {
            assert_eq!(found(&texts, 0.8, files), one, "{files} files");
        }
        assert!(one.iter().all(|(row, like)| *like == row % 20), "{one:?}");
        assert_eq!(one.len(), 80, "each text and four others like it");
    }

    #[test]
    fn rows_that_share_a_band_and_little_else_are_compared_with_some_alone() {
        let same = "the same words as everywhere in all of these rows";
        let texts = (0..1_000).map(|row| format!("{same} {}", text(row * 9..row * 9 + 9)));
        let texts: Vec<String> = texts.collect();
        assert_eq!(found(&texts, 0.9, 4), []);
    }
}
