//! Estimates over any number of rows in a fixed amount of memory. Pure.
//!
//! Both samples keep what hashes below a threshold and lower the threshold when they are full, so
//! that what they hold is a fair sample at every moment.

use std::collections::HashMap;

/// Distinct texts that are followed.
pub(super) const TEXTS_MAX: usize = 1 << 16;
/// Rows whose tokens are counted.
pub(super) const SAMPLE_ROWS_MAX: usize = 10_000;

/// How often sampled texts repeat. A text that is followed is followed from its first row on, so
/// its count is exact, and a dataset without duplicates is estimated to have none.
#[derive(Debug, Default)]
pub(super) struct DuplicateSample {
    /// Texts are followed whose hash has this many leading zeros.
    level: u32,
    counts: HashMap<u64, u32>,
}

impl DuplicateSample {
    /// Takes the hash of a row's text.
    pub(super) fn insert(&mut self, hash: u64) {
        if hash.leading_zeros() < self.level {
            return;
        }
        let count = self.counts.entry(hash).or_default();
        *count = count.saturating_add(1);
        while self.counts.len() > TEXTS_MAX && self.level < u64::BITS {
            self.level += 1;
            self.counts
                .retain(|hash, _| hash.leading_zeros() >= self.level);
        }
    }

    /// Texts are followed whose hash has this many leading zeros.
    pub(super) fn level(&self) -> u32 {
        self.level
    }

    /// Rows whose text an earlier row has too.
    pub(super) fn duplicates(&self) -> u64 {
        let followed: u64 = self
            .counts
            .values()
            .map(|count| u64::from(*count) - 1)
            .sum();
        followed.saturating_mul(1_u64.checked_shl(self.level).unwrap_or(u64::MAX))
    }

    /// Whether every text was followed.
    pub(super) fn is_exact(&self) -> bool {
        self.level == 0
    }
}

/// Tokens of a fair sample of rows.
#[derive(Debug)]
pub(super) struct TokenSample {
    threshold: u64,
    rows: Vec<SampledRow>,
}

/// A row whose tokens are counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct SampledRow {
    /// Hash of its position.
    pub(super) hash: u64,
    /// Its tokens.
    pub(super) tokens: u64,
    /// Bytes of its text.
    pub(super) text_bytes: u64,
    /// Whether a model takes fewer tokens than it has.
    pub(super) is_cut: bool,
}

impl TokenSample {
    /// A sample for about `rows` rows. A bad guess costs tokenising or precision, not fairness.
    pub(super) fn new(rows: u64) -> Self {
        // Aims below the limit, so that chance alone does not fill the sample.
        let aim = SAMPLE_ROWS_MAX as u64 * 4 / 5;
        let threshold = if rows <= aim {
            u64::MAX
        } else {
            u64::MAX / rows * aim
        };
        Self {
            threshold,
            rows: Vec::new(),
        }
    }

    /// Rows are sampled whose hash is at most this.
    pub(super) fn threshold(&self) -> u64 {
        self.threshold
    }

    /// Takes a row, if it is one of the sample.
    pub(super) fn insert(&mut self, row: SampledRow) {
        if row.hash > self.threshold {
            return;
        }
        self.rows.push(row);
        while self.rows.len() > SAMPLE_ROWS_MAX && self.threshold > 0 {
            self.threshold /= 2;
            self.rows.retain(|row| row.hash <= self.threshold);
        }
    }

    /// Rows that were sampled.
    pub(super) fn rows(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Rows among them of which a model does not take all.
    pub(super) fn cut_rows(&self) -> u64 {
        self.rows.iter().filter(|row| row.is_cut).count() as u64
    }

    /// Tokens of all rows, whose texts have `text_bytes` bytes together.
    pub(super) fn tokens(&self, text_bytes: u64) -> u64 {
        let sum = |of: fn(&SampledRow) -> u64| self.rows.iter().map(of).sum::<u64>();
        let (tokens, sampled_bytes) = (sum(|row| row.tokens), sum(|row| row.text_bytes));
        share(tokens, text_bytes, sampled_bytes)
    }
}

/// The share of `whole` that `part` of `all` stands for.
pub fn share(whole: u64, part: u64, all: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Spreads a number over all of `u64` (the finaliser of SplitMix64).
pub(in crate::plan) fn spread(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_of_a_small_dataset_are_exact() {
        let mut sample = DuplicateSample::default();
        [1, 2, 2, 3, 3, 3]
            .map(spread)
            .into_iter()
            .for_each(|hash| sample.insert(hash));
        assert_eq!((sample.duplicates(), sample.is_exact()), (3, true));
    }

    #[test]
    fn duplicates_of_a_large_dataset_are_close() {
        let mut sample = DuplicateSample::default();
        let distinct = 20 * TEXTS_MAX as u64;
        (0..distinct).for_each(|text| sample.insert(spread(text)));
        assert_eq!(sample.duplicates(), 0, "no text repeats");
        (0..distinct / 10).for_each(|text| sample.insert(spread(text)));
        let error = sample.duplicates() as f64 / (distinct / 10) as f64 - 1.0;
        assert!(error.abs() < 0.1, "{error}");
        assert!(sample.counts.len() <= TEXTS_MAX && !sample.is_exact());
    }

    #[test]
    fn tokens_are_scaled_by_bytes_whatever_the_guess() {
        for guess in [0, 1_000, 1_000_000, u64::MAX] {
            let mut sample = TokenSample::new(guess);
            let mut bytes = 0;
            for row in 0..200_000_u64 {
                let tokens = 1 + row % 10;
                bytes += tokens * 5;
                sample.insert(SampledRow {
                    hash: spread(row),
                    tokens,
                    text_bytes: tokens * 5,
                    is_cut: tokens == 10,
                });
            }
            assert!(sample.rows() <= SAMPLE_ROWS_MAX as u64);
            let expected = if guess == u64::MAX { 0 } else { bytes / 5 };
            assert_eq!(sample.tokens(bytes), expected, "guess {guess}");
            let of_ten = sample.cut_rows() * 10;
            assert!(
                of_ten.abs_diff(sample.rows()) <= sample.rows() / 5,
                "{of_ten}"
            );
        }
    }
}
