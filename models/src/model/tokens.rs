//! What makes token ids: a model's own tokenizer, or the stand-in's.

use millrace_protocol::row::{RowError, RowErrorCode};
use sha2::{Digest, Sha256};

use crate::fake::FakeOptions;
use crate::tokenizer::{Encoding, TextTokenizer, check_chars};

/// What makes token ids.
pub(super) enum Tokens {
    Text(Box<TextTokenizer>),
    Fake {
        options: FakeOptions,
        text_chars_max: usize,
    },
}

impl Tokens {
    /// What decides the tokens of a text that is cut to `max_length` tokens.
    pub(super) fn fingerprint(&self, max_length: usize) -> [u8; 32] {
        match self {
            Tokens::Text(tokenizer) => tokenizer.fingerprint(),
            Tokens::Fake { options, .. } => {
                Sha256::digest(format!("{options:?} {max_length}")).into()
            }
        }
    }

    /// Whether encodings say which characters each token stands for.
    pub(super) fn has_spans(&self) -> bool {
        match self {
            Tokens::Text(tokenizer) => tokenizer.has_spans(),
            Tokens::Fake { .. } => true,
        }
    }

    /// Tokenises a text, cut to `max_length` tokens.
    pub(super) fn encode(&self, text: &str, max_length: usize) -> Result<Encoding, RowError> {
        match self {
            Tokens::Text(tokenizer) => tokenizer.encode(text),
            Tokens::Fake {
                options,
                text_chars_max,
            } => {
                check_chars(text, *text_chars_max)?;
                let mut tokens = options.tokenize(text, max_length);
                if tokens.is_empty() {
                    return Err(RowError::new(
                        RowErrorCode::EmptyText,
                        "the text has no tokens",
                    ));
                }
                let truncated = tokens.len() > max_length;
                tokens.truncate(max_length);
                Ok(Encoding {
                    token_ids: tokens.iter().map(|token| token.id).collect(),
                    char_spans: tokens
                        .iter()
                        .map(|token| Some((token.start, token.end)))
                        .collect(),
                    truncated,
                })
            }
        }
    }
}
