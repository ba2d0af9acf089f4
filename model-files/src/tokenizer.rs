//! Text to token ids, bounded in characters and time.

mod measure;

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_protocol::row::{RowError, RowErrorCode};
use sha2::{Digest, Sha256};
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::bounded;

/// Characters that are tokenised first for each token that a text may have. Hardly any text has
/// longer tokens, and where one does, twice as much is taken, until the text ends.
const CHARS_PER_TOKEN: usize = 16;

/// Fewest characters that are tokenised first. Tokenisers treat words above a length (100 characters
/// in BERT's family) as unknown: half of this must be longer than that, see [`Cut::InWord`].
const CHARS_FIRST_MIN: usize = 1_024;

/// Largest `tokenizer.json` that is read; those of 250,000 tokens have 17 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Bounds of one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// Most characters; more are refused before tokenising.
    pub text_chars_max: usize,
    /// Longest time that tokenising one text may take.
    pub tokenize_deadline: Duration,
}

/// The token ids of one text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included.
    pub token_ids: Vec<u32>,
    /// For each token its characters `start..end`, `None` for special tokens. Empty unless asked
    /// for.
    pub char_spans: Vec<Option<(u32, u32)>>,
    /// Whether the text had more tokens than the model takes.
    pub truncated: bool,
}

/// Why a tokeniser could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// `tokenizer.json` is not one.
    #[error("{path} is not a tokenizer: {message}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// `tokenizer.json` cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// `tokenizer.json` is far larger than a tokenizer.
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: String,
    },
    /// Special tokens alone fill the model's length.
    #[error("maxLength {max_length} leaves no room for text beside {special} special tokens")]
    NoRoom {
        /// Longest text in tokens.
        max_length: usize,
        /// Special tokens of every text.
        special: usize,
    },
}

impl TokenizerError {
    /// Whether loading the file again cannot help.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, TokenizerError::Read { .. })
    }
}

/// A model's tokeniser.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    /// Tokens of an empty text.
    special: usize,
    with_spans: bool,
    limits: TextLimits,
    fingerprint: [u8; 32],
}

impl TextTokenizer {
    /// Reads `tokenizer.json`. Its own truncation and padding are replaced by ours.
    pub fn load(
        path: &Path,
        max_length: usize,
        with_spans: bool,
        limits: TextLimits,
    ) -> Result<Self, TokenizerError> {
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid {
            path: path.display().to_string(),
            message: error.to_string(),
        };
        let bytes = read(path)?;
        let fingerprint = fingerprint(&bytes, max_length);
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(invalid)?;
        tokenizer.with_padding(None);
        // The file's own may leave no room for special tokens, which the library takes for granted.
        tokenizer.with_truncation(None).map_err(invalid)?;
        let special = tokenizer.encode("", true).map_err(invalid)?.len();
        if special >= max_length {
            return Err(TokenizerError::NoRoom {
                max_length,
                special,
            });
        }
        let truncation = TruncationParams {
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(invalid)?;
        Ok(Self {
            tokenizer,
            max_length,
            special,
            with_spans,
            limits,
            fingerprint,
        })
    }

    /// What decides the tokens of a text, as one hash: the file and where long texts are cut. Of two with
    /// the same one, either may tokenise for both.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Whether encodings say which characters each token stands for.
    pub fn has_spans(&self) -> bool {
        self.with_spans
    }

    /// Every token id is below this number. It is not the count of tokens: ids may have gaps.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1)
    }

    /// Tokenises a text, cut to the model's length.
    ///
    /// Only the beginning of a long text is tokenised: what follows a text that is too long already
    /// cannot change its first tokens, so the work is bounded by what the model takes.
    pub fn encode(&self, text: &str) -> Result<Encoding, RowError> {
        check_chars(text, self.limits.text_chars_max)?;
        let chars = self.max_length.saturating_mul(CHARS_PER_TOKEN);
        let encode = |beginning: &str, cut| self.encode_beginning(beginning, cut);
        let encoding = self.by_beginnings(text, chars, encode)?;
        match encoding.token_ids.len() > self.special {
            true => Ok(encoding),
            false => Err(RowError::new(
                RowErrorCode::EmptyText,
                "the text has no tokens",
            )),
        }
    }

    /// Hands longer and longer beginnings of a text to `take`, from `chars` characters on, until one is
    /// enough.
    fn by_beginnings<T>(
        &self,
        text: &str,
        chars: usize,
        take: impl Fn(&str, Cut) -> Result<Option<T>, RowError>,
    ) -> Result<T, RowError> {
        let started = Instant::now();
        let mut chars = chars.max(CHARS_FIRST_MIN);
        loop {
            let pass_started = Instant::now();
            let (beginning, cut) = beginning(text, chars);
            if let Some(taken) = take(beginning, cut)? {
                return Ok(taken);
            }
            // The next pass takes twice as much text, so it is not begun if it would end too late.
            let next = pass_started.elapsed() * 2;
            if started.elapsed() + next > self.limits.tokenize_deadline {
                return Err(RowError::new(
                    RowErrorCode::TokenizeFailed,
                    "the text could not be tokenised in time; it is pathological or too long",
                ));
            }
            chars = chars.saturating_mul(2);
        }
    }

    /// The tokens of the whole text, if its beginning is enough to know them.
    fn encode_beginning(&self, beginning: &str, cut: Cut) -> Result<Option<Encoding>, RowError> {
        // Offsets cost time, and few texts need them.
        let encoded = match self.with_spans || cut == Cut::InWord {
            true => self.tokenizer.encode_char_offsets(beginning, true),
            false => self.tokenizer.encode_fast(beginning, true),
        };
        let encoded = encoded.map_err(failed)?;
        let truncated = !encoded.get_overflowing().is_empty();
        let known = match cut {
            Cut::Nowhere => true,
            Cut::BetweenWords => truncated,
            Cut::InWord => {
                let half = beginning.chars().count() / 2;
                truncated && encoded.get_offsets().iter().all(|&(_, end)| end <= half)
            }
        };
        Ok(known.then(|| Encoding {
            token_ids: encoded.get_ids().to_vec(),
            char_spans: if self.with_spans {
                char_spans(&encoded)
            } else {
                Vec::new()
            },
            truncated,
        }))
    }
}

fn fingerprint(file: &[u8], max_length: usize) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((max_length as u64).to_le_bytes());
    hash.update(file);
    hash.finalize().into()
}

/// The bytes of `tokenizer.json`.
fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let name = || path.display().to_string();
    let failed = |source| TokenizerError::Read {
        path: name(),
        source,
    };
    let bytes = bounded::read(path, FILE_BYTES_MAX).map_err(failed)?;
    bytes.ok_or_else(|| TokenizerError::TooLarge { path: name() })
}

fn failed(error: tokenizers::Error) -> RowError {
    RowError::new(
        RowErrorCode::TokenizeFailed,
        format!("the tokenizer failed: {error}"),
    )
}

fn char_spans(encoded: &tokenizers::Encoding) -> Vec<Option<(u32, u32)>> {
    let special = encoded.get_special_tokens_mask();
    let spans = encoded.get_offsets().iter().zip(special);
    spans
        .map(|(&(start, end), &special)| (special == 0).then_some((start as u32, end as u32)))
        .collect()
}

/// Refuses a text with more than `chars_max` characters, without counting further than that.
pub fn check_chars(text: &str, chars_max: usize) -> Result<(), RowError> {
    // A character is at least one byte, so most texts are settled by their length.
    if text.len() > chars_max && text.chars().nth(chars_max).is_some() {
        let message = format!("the text has more than {chars_max} characters; shorten it");
        return Err(RowError::new(RowErrorCode::TextTooLong, message));
    }
    Ok(())
}

/// The first characters of a text, as many as one text may have.
pub fn first_chars(text: &str, chars_max: usize) -> &str {
    if text.len() <= chars_max {
        return text;
    }
    let end = text.char_indices().nth(chars_max);
    end.map_or(text, |(end, _)| &text[..end])
}

/// Where the beginning of a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// It is the whole text.
    Nowhere,
    /// Before white space. Words are tokenised each for itself, so its tokens are the text's.
    BetweenWords,
    /// Anywhere, for want of white space. The tokens of the broken word may differ from the text's,
    /// so only those of the first half are believed.
    InWord,
}

/// The first `chars` characters of `text`, cut back to white space where there is any in their
/// second half.
fn beginning(text: &str, chars: usize) -> (&str, Cut) {
    if text.len() <= chars {
        return (text, Cut::Nowhere);
    }
    let Some((end, _)) = text.char_indices().nth(chars) else {
        return (text, Cut::Nowhere);
    };
    let cut = &text[..end];
    match cut.rfind(char::is_whitespace) {
        // White space in a row can be one token, so none of it may be cut off from the rest.
        Some(space) if space >= end / 2 => (cut[..space].trim_end(), Cut::BetweenWords),
        _ => (cut, Cut::InWord),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokenizers::models::wordlevel::WordLevel;
    use tokenizers::pre_tokenizers::whitespace::Whitespace;
    use tokenizers::processors::template::TemplateProcessing;

    use super::*;

    pub const LIMITS: TextLimits = TextLimits {
        text_chars_max: 100_000,
        tokenize_deadline: Duration::from_secs(60),
    };

    /// A tokenizer of whole words with the special tokens of BERT.
    pub fn words(max_length: usize, limits: TextLimits) -> TextTokenizer {
        let vocabulary = ["[UNK]", "[CLS]", "[SEP]", "mill", "race", "é"];
        let vocabulary = vocabulary
            .iter()
            .zip(0..)
            .map(|(word, id)| ((*word).to_owned(), id));
        let model = WordLevel::builder()
            .vocab(vocabulary.collect())
            .unk_token("[UNK]".to_owned())
            .build()
            .unwrap();
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(Whitespace));
        let template = TemplateProcessing::builder()
            .try_single("[CLS] $A [SEP]")
            .unwrap()
            .special_tokens(vec![("[CLS]", 1), ("[SEP]", 2)])
            .build()
            .unwrap();
        tokenizer.with_post_processor(Some(template));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        tokenizer.save(&path, false).unwrap();
        TextTokenizer::load(&path, max_length, true, limits).unwrap()
    }

    #[test]
    fn a_long_text_is_cut_to_the_models_length_and_says_so() {
        let tokenizer = words(4, LIMITS);
        let encoding = tokenizer.encode("mill race mill race").unwrap();
        assert_eq!(
            (encoding.token_ids, encoding.truncated),
            (vec![1, 3, 4, 2], true)
        );
        let encoding = tokenizer.encode("mill race").unwrap();
        assert_eq!(
            (encoding.token_ids, encoding.truncated),
            (vec![1, 3, 4, 2], false)
        );
    }

    #[test]
    fn spans_count_characters_and_special_tokens_have_none() {
        let encoding = words(16, LIMITS).encode("é mill").unwrap();
        assert_eq!(
            encoding.char_spans,
            [None, Some((0, 1)), Some((2, 6)), None]
        );
    }

    #[test]
    fn a_text_over_the_character_cap_is_refused_before_it_is_tokenised() {
        let tokenizer = words(
            16,
            TextLimits {
                text_chars_max: 10,
                ..LIMITS
            },
        );
        let error = tokenizer.encode(&".".repeat(1_000_000)).unwrap_err();
        assert_eq!(error.code, RowErrorCode::TextTooLong);
        assert!(
            tokenizer.encode("éééééééééé").is_ok(),
            "ten characters, twenty bytes"
        );
    }

    #[test]
    fn a_text_that_takes_too_long_is_given_up() {
        let limits = TextLimits {
            tokenize_deadline: Duration::ZERO,
            ..LIMITS
        };
        // One endless word is one token however much of it is read, so reading goes on.
        let error = words(16, limits).encode(&"x".repeat(90_000)).unwrap_err();
        assert_eq!(error.code, RowErrorCode::TokenizeFailed);
    }

    #[test]
    fn a_text_of_nothing_but_white_space_is_empty() {
        for text in ["", " \n\t "] {
            let error = words(16, LIMITS).encode(text).unwrap_err();
            assert_eq!(error.code, RowErrorCode::EmptyText);
        }
    }

    #[test]
    fn a_beginning_breaks_no_word_and_no_run_of_white_space() {
        assert_eq!(beginning("mill race", 9), ("mill race", Cut::Nowhere));
        assert_eq!(beginning("mill  race", 8), ("mill", Cut::BetweenWords));
        assert_eq!(beginning("a millrace", 8), ("a millra", Cut::InWord));
        assert_eq!(beginning("ééé é", 4), ("ééé", Cut::BetweenWords));
    }
}
