//! The deterministic fake: a stand-in for a model in the tests of everything else.
//!
//! It needs no files. Its answers mean nothing, but they are pure functions of the text, whatever
//! batch the text is in, so that a test can hold a disturbed run against a calm one. On words that
//! its options name it misbehaves as real models and devices do.

use std::str::FromStr;
use std::time::Duration;

use crate::backend::{Appetite, Backend, BackendError, Head, HeadOutput, PackedBatch};
use crate::chunks::Beginning;

/// Numbers in a pooled vector, where the options name no other.
pub const HIDDEN_SIZE: usize = 8;
/// Most numbers in a pooled vector.
const HIDDEN_SIZE_MAX: usize = 65_536;
/// Longest text in words, where the spec names no other.
pub const MAX_LENGTH: usize = 512;
/// Tokens that the fake likes in a batch.
const BATCH_TOKENS: usize = 4_096;

/// Ids that the named words are mapped to; all other words come after them.
const CRASH_ID: u32 = 1;
const FAIL_ID: u32 = 2;
const NAN_ID: u32 = 3;
const PANIC_ID: u32 = 4;
const DEVICE_LOST_ID: u32 = 5;
const FIRST_WORD_ID: u32 = 16;
const WORD_IDS: u32 = 1 << 20;

/// How the fake behaves, as `key=value` pairs with commas between them: `crash-on=WORD`,
/// `panic-on=WORD`, `tokenizer-panic-on=WORD`, `fail-on=WORD`, `nan-on=WORD`, `device-lost-on=WORD`,
/// `oom-above-tokens=N`, `micros-per-token=N`, `hidden-size=N`. Empty is well-behaved. A word is what stands between white space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakeOptions {
    /// A text with this word aborts the process.
    pub crash_on: Option<String>,
    /// A batch with this word panics.
    pub panic_on: Option<String>,
    /// A tokeniser panics on a text with this word, and quotes it as the standard library does.
    pub tokenizer_panic_on: Option<String>,
    /// A batch with this word fails.
    pub fail_on: Option<String>,
    /// A text with this word is answered NaN.
    pub nan_on: Option<String>,
    /// A batch with this word loses the device.
    pub device_lost_on: Option<String>,
    /// A batch with more tokens is out of memory.
    pub oom_above_tokens: Option<usize>,
    /// Time that a token takes.
    pub time_per_token: Duration,
    /// Numbers in a pooled vector, by default [`HIDDEN_SIZE`].
    pub hidden_size: Option<usize>,
}

/// Why options could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no option of the fake backend; known are crash-on=WORD, panic-on=WORD, tokenizer-panic-on=WORD, \
     fail-on=WORD, nan-on=WORD, device-lost-on=WORD, oom-above-tokens=N, micros-per-token=N and hidden-size=N up \
     to 65536, with commas between them"
)]
pub struct FakeOptionsError(String);

impl FromStr for FakeOptions {
    type Err = FakeOptionsError;

    fn from_str(text: &str) -> Result<Self, FakeOptionsError> {
        let mut options = Self::default();
        for pair in text
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let unknown = || FakeOptionsError(pair.to_owned());
            let (key, value) = pair.split_once('=').ok_or_else(unknown)?;
            match key {
                "crash-on" => options.crash_on = Some(value.to_owned()),
                "panic-on" => options.panic_on = Some(value.to_owned()),
                "tokenizer-panic-on" => options.tokenizer_panic_on = Some(value.to_owned()),
                "fail-on" => options.fail_on = Some(value.to_owned()),
                "nan-on" => options.nan_on = Some(value.to_owned()),
                "device-lost-on" => options.device_lost_on = Some(value.to_owned()),
                "oom-above-tokens" => {
                    options.oom_above_tokens = Some(value.parse().map_err(|_| unknown())?);
                }
                "micros-per-token" => {
                    let micros = value.parse().map_err(|_| unknown())?;
                    options.time_per_token = Duration::from_micros(micros);
                }
                "hidden-size" => {
                    let size: Option<usize> = value.parse().ok();
                    let size = size.filter(|size| (1..=HIDDEN_SIZE_MAX).contains(size));
                    options.hidden_size = Some(size.ok_or_else(unknown)?);
                }
                _ => return Err(unknown()),
            }
        }
        Ok(options)
    }
}

/// A word's id and where it stands: characters `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FakeToken {
    /// Token id.
    pub id: u32,
    /// First character.
    pub start: u32,
    /// One past the last character.
    pub end: u32,
}

impl FakeOptions {
    /// One token per word, at most `max_length` + 1 of them, so that a longer text shows.
    pub fn tokenize(&self, text: &str, max_length: usize) -> Vec<FakeToken> {
        let mut tokens = Vec::new();
        let mut word = String::new();
        let mut start = 0;
        for (index, character) in text.chars().chain([' ']).enumerate() {
            if !character.is_whitespace() {
                if word.is_empty() {
                    start = index as u32;
                }
                word.push(character);
            } else if !word.is_empty() {
                if Some(&word) == self.tokenizer_panic_on.as_ref() {
                    // A slice beyond the end, whose panic quotes the text.
                    let _ = &text[..text.len() + 1];
                }
                tokens.push(FakeToken {
                    id: self.id(&word),
                    start,
                    end: index as u32,
                });
                word.clear();
                if tokens.len() > max_length {
                    break;
                }
            }
        }
        tokens
    }

    /// The first words of a text, at most `tokens_max`.
    pub fn measure(&self, text: &str, tokens_max: usize) -> Beginning {
        let words = self.tokenize(text, tokens_max);
        let mut bytes = text.char_indices().map(|(byte, _)| byte).zip(0_u32..);
        let mut byte_of = |character: u32| {
            let found = bytes.find(|(_, index)| *index == character);
            found.map_or(text.len(), |(byte, _)| byte)
        };
        let (mut starts, mut end) = (Vec::new(), 0);
        for word in words.iter().take(tokens_max) {
            starts.push(byte_of(word.start));
            end = byte_of(word.end);
        }
        if words.len() <= tokens_max {
            end = text.len();
        }
        Beginning { starts, end }
    }

    fn id(&self, word: &str) -> u32 {
        match Some(word) {
            word if word == self.crash_on.as_deref() => CRASH_ID,
            word if word == self.panic_on.as_deref() => PANIC_ID,
            word if word == self.fail_on.as_deref() => FAIL_ID,
            word if word == self.nan_on.as_deref() => NAN_ID,
            word if word == self.device_lost_on.as_deref() => DEVICE_LOST_ID,
            _ => FIRST_WORD_ID + fold(word.bytes().map(u64::from)) as u32 % WORD_IDS,
        }
    }
}

/// The fake backend.
#[derive(Debug, Clone)]
pub struct FakeBackend {
    options: FakeOptions,
    labels: usize,
}

impl FakeBackend {
    /// A fake whose classifiers have `labels` labels.
    pub fn new(options: FakeOptions, labels: usize) -> Self {
        Self { options, labels }
    }
}

impl Backend for FakeBackend {
    fn appetite(&self) -> Appetite {
        Appetite {
            batch_tokens: BATCH_TOKENS,
            callers: 1,
        }
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        heads: &[Head],
    ) -> Result<Vec<HeadOutput>, BackendError> {
        let (sequences, tokens) = (batch.sequences(), batch.tokens());
        if self
            .options
            .oom_above_tokens
            .is_some_and(|max| tokens > max)
        {
            return Err(BackendError::OutOfMemory { sequences, tokens });
        }
        if batch.token_ids.contains(&CRASH_ID) {
            std::process::abort();
        }
        assert!(
            !batch.token_ids.contains(&PANIC_ID),
            "a word that it was told to panic on"
        );
        if batch.token_ids.contains(&DEVICE_LOST_ID) {
            return Err(BackendError::DeviceLost(
                "a word that it was told to lose the device on".to_owned(),
            ));
        }
        if batch.token_ids.contains(&FAIL_ID) {
            return Err(BackendError::Failed(
                "a word that it was told to fail on".to_owned(),
            ));
        }
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let time = self.options.time_per_token.saturating_mul(tokens);
        if !time.is_zero() {
            std::thread::sleep(time);
        }
        Ok(heads.iter().map(|&head| self.output(batch, head)).collect())
    }
}

impl FakeBackend {
    fn output(&self, batch: &PackedBatch, head: Head) -> HeadOutput {
        let sequences = (0..batch.sequences()).map(|index| batch.sequence(index));
        let hidden_size = self.options.hidden_size.unwrap_or(HIDDEN_SIZE);
        match head {
            Head::Pooled => HeadOutput {
                width: hidden_size,
                values: sequences
                    .flat_map(|ids| numbers(ids, hidden_size))
                    .collect(),
            },
            Head::SequenceLogits => HeadOutput {
                width: self.labels,
                values: sequences
                    .flat_map(|ids| numbers(ids, self.labels))
                    .collect(),
            },
            Head::TokenLogits => HeadOutput {
                width: self.labels,
                values: batch
                    .token_ids
                    .iter()
                    .flat_map(|id| numbers(&[*id], self.labels))
                    .collect(),
            },
        }
    }
}

/// `width` numbers between -1 and 1 that follow from the ids alone.
fn numbers(ids: &[u32], width: usize) -> impl Iterator<Item = f32> + use<> {
    let seed = fold(ids.iter().map(|&id| u64::from(id)));
    let nan = ids.contains(&NAN_ID);
    (0..width as u64).map(move |dimension| match nan {
        true => f32::NAN,
        false => (fold([seed, dimension].into_iter()) >> 40) as f32 / (1 << 23) as f32 - 1.0,
    })
}

/// FNV-1a over numbers, with a final mix so that close inputs give far outputs.
fn fold(numbers: impl Iterator<Item = u64>) -> u64 {
    let folded = numbers.fold(0xcbf2_9ce4_8422_2325_u64, |hash, number| {
        (hash ^ number).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (folded ^ (folded >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(options: &FakeOptions, text: &str) -> Vec<u32> {
        options
            .tokenize(text, MAX_LENGTH)
            .into_iter()
            .map(|token| token.id)
            .collect()
    }

    fn pooled(backend: &FakeBackend, texts: &[&str]) -> Result<HeadOutput, BackendError> {
        let ids: Vec<_> = texts
            .iter()
            .map(|text| ids(&backend.options, text))
            .collect();
        let batch = PackedBatch::pack(ids.iter().map(Vec::as_slice));
        Ok(backend.forward(&batch, &[Head::Pooled])?.remove(0))
    }

    #[test]
    fn an_answer_does_not_depend_on_the_batch() {
        let backend = FakeBackend::new(FakeOptions::default(), 2);
        let alone = pooled(&backend, &["the mill race"]).unwrap();
        let together = pooled(&backend, &["other words", "the mill race"]).unwrap();
        assert_eq!(alone.row(0), together.row(1));
        assert_ne!(together.row(0), together.row(1));
    }

    #[test]
    fn named_words_misbehave_and_no_others() {
        let options: FakeOptions = "fail-on=bad, nan-on=odd,oom-above-tokens=3"
            .parse()
            .unwrap();
        let backend = FakeBackend::new(options, 2);
        assert!(matches!(
            pooled(&backend, &["a bad one"]),
            Err(BackendError::Failed(_))
        ));
        assert!(matches!(
            pooled(&backend, &["a b c d"]),
            Err(BackendError::OutOfMemory { .. })
        ));
        let odd = pooled(&backend, &["odd", "even"]).unwrap();
        assert!(odd.row(0).iter().all(|value| value.is_nan()));
        assert!(odd.row(1).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn every_head_has_the_width_that_was_asked_for() {
        let backend = FakeBackend::new("hidden-size=3".parse().unwrap(), 5);
        let batch = PackedBatch::pack([&[20u32, 21][..], &[22u32][..]]);
        let heads = [Head::Pooled, Head::SequenceLogits, Head::TokenLogits];
        let outputs = backend.forward(&batch, &heads).unwrap();
        let shapes: Vec<_> = outputs
            .iter()
            .map(|out| (out.width, out.values.len()))
            .collect();
        assert_eq!(shapes, [(3, 2 * 3), (5, 2 * 5), (5, 3 * 5)]);
    }

    #[test]
    fn an_unknown_option_is_named() {
        for text in ["crash=on", "oom-above-tokens=many", "hidden-size=0", "word"] {
            let error = text.parse::<FakeOptions>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn tokens_know_where_their_words_stand() {
        let tokens = FakeOptions::default().tokenize(" é bc ", MAX_LENGTH);
        let spans: Vec<_> = tokens
            .iter()
            .map(|token| (token.start, token.end))
            .collect();
        assert_eq!(spans, [(1, 2), (3, 5)]);
    }
}
