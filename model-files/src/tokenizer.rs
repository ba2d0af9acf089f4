//! Text to token ids, bounded in characters and time.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_protocol::row::{RowError, RowErrorCode};
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

/// Characters that are tokenised first for each token that a text may have. Hardly any text has
/// longer tokens, and where one does, twice as much is taken, until the text ends.
const CHARS_PER_TOKEN: usize = 16;

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
    /// Special tokens alone fill the model's length.
    #[error("maxLength {max_length} leaves no room for text beside {special} special tokens")]
    NoRoom {
        /// Longest text in tokens.
        max_length: usize,
        /// Special tokens of every text.
        special: usize,
    },
}

/// A model's tokeniser.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    with_spans: bool,
    limits: TextLimits,
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
        let mut tokenizer = Tokenizer::from_file(path).map_err(invalid)?;
        tokenizer.with_padding(None);
        let special = tokenizer.encode("", true).map_err(invalid)?.len();
        if special >= max_length {
            return Err(TokenizerError::NoRoom { max_length, special });
        }
        let truncation = TruncationParams {
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(invalid)?;
        Ok(Self { tokenizer, max_length, with_spans, limits })
    }

    /// Token ids are below this number.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Tokenises a text, cut to the model's length.
    ///
    /// Only the beginning of a long text is tokenised: what follows a text that is too long already
    /// cannot change its first tokens, so the work is bounded by what the model takes.
    pub fn encode(&self, text: &str) -> Result<Encoding, RowError> {
        check_chars(text, self.limits.text_chars_max)?;
        let started = Instant::now();
        let mut chars = self.max_length.saturating_mul(CHARS_PER_TOKEN);
        loop {
            let beginning = beginning(text, chars);
            let encoding = self.encode_whole(beginning)?;
            if encoding.truncated || beginning.len() == text.len() {
                return Ok(encoding);
            }
            if started.elapsed() > self.limits.tokenize_deadline {
                return Err(RowError::new(
                    RowErrorCode::TokenizeFailed,
                    "the text could not be tokenised in time; it is pathological or too long",
                ));
            }
            chars = chars.saturating_mul(2);
        }
    }

    fn encode_whole(&self, text: &str) -> Result<Encoding, RowError> {
        let encoded = match self.with_spans {
            true => self.tokenizer.encode_char_offsets(text, true),
            false => self.tokenizer.encode_fast(text, true),
        };
        let encoded = encoded.map_err(|error| {
            RowError::new(RowErrorCode::TokenizeFailed, format!("the tokenizer failed: {error}"))
        })?;
        let char_spans = match self.with_spans {
            true => char_spans(&encoded),
            false => Vec::new(),
        };
        Ok(Encoding {
            truncated: !encoded.get_overflowing().is_empty(),
            token_ids: encoded.get_ids().to_vec(),
            char_spans,
        })
    }
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

/// The first `chars` characters of `text`, cut back to white space where there is any in their
/// second half, so that no word is broken.
fn beginning(text: &str, chars: usize) -> &str {
    if text.len() <= chars {
        return text;
    }
    let Some((end, _)) = text.char_indices().nth(chars) else {
        return text;
    };
    let cut = &text[..end];
    match cut.rfind(char::is_whitespace) {
        Some(space) if space >= end / 2 => &cut[..space],
        _ => cut,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::models::wordlevel::WordLevel;
    use tokenizers::pre_tokenizers::whitespace::Whitespace;
    use tokenizers::processors::template::TemplateProcessing;

    use super::*;

    const LIMITS: TextLimits =
        TextLimits { text_chars_max: 100_000, tokenize_deadline: Duration::from_secs(60) };

    /// A tokenizer of whole words with the special tokens of BERT.
    fn words(max_length: usize, limits: TextLimits) -> TextTokenizer {
        let vocabulary = ["[UNK]", "[CLS]", "[SEP]", "mill", "race", "é"];
        let vocabulary = vocabulary.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), id));
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
        assert_eq!((encoding.token_ids, encoding.truncated), (vec![1, 3, 4, 2], true));
        let encoding = tokenizer.encode("mill race").unwrap();
        assert_eq!((encoding.token_ids, encoding.truncated), (vec![1, 3, 4, 2], false));
    }

    #[test]
    fn spans_count_characters_and_special_tokens_have_none() {
        let encoding = words(16, LIMITS).encode("é mill").unwrap();
        assert_eq!(encoding.char_spans, [None, Some((0, 1)), Some((2, 6)), None]);
    }

    #[test]
    fn a_text_over_the_character_cap_is_refused_before_it_is_tokenised() {
        let tokenizer = words(16, TextLimits { text_chars_max: 10, ..LIMITS });
        let error = tokenizer.encode(&".".repeat(1_000_000)).unwrap_err();
        assert_eq!(error.code, RowErrorCode::TextTooLong);
        assert!(tokenizer.encode("éééééééééé").is_ok(), "ten characters, twenty bytes");
    }

    #[test]
    fn a_text_that_takes_too_long_is_given_up() {
        let limits = TextLimits { tokenize_deadline: Duration::ZERO, ..LIMITS };
        // One endless word is one token however much of it is read, so reading goes on.
        let error = words(16, limits).encode(&"x".repeat(90_000)).unwrap_err();
        assert_eq!(error.code, RowErrorCode::TokenizeFailed);
    }

    #[test]
    fn a_length_without_room_for_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(
            TextTokenizer::load(&path, 8, false, LIMITS),
            Err(TokenizerError::Invalid { .. })
        ));
    }

    proptest! {
        #[test]
        fn tokenising_only_the_beginning_changes_nothing(
            words_in in proptest::collection::vec("(mill|race|é|x{1,40}|\u{4e00}{1,9})", 0..200),
            gap in "[ \n\t]{1,60}",
        ) {
            let tokenizer = words(8, LIMITS);
            let text = words_in.join(&gap);
            prop_assert_eq!(tokenizer.encode(&text), tokenizer.encode_whole(&text));
        }
    }
}
