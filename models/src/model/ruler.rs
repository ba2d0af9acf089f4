//! How many tokens of a text a model takes.

use millrace_protocol::row::RowError;

use super::{Model, Tokens};
use crate::chunks::{Beginning, Ruler};
use crate::tokenizer::first_chars;

impl Ruler for Model {
    fn tokens_max(&self) -> Option<usize> {
        match &self.tokens {
            Tokens::Text(tokenizer) => tokenizer.tokens_max(),
            Tokens::Fake { .. } => Some(self.max_length),
        }
    }

    fn measure(&self, text: &str, tokens_max: usize) -> Result<Beginning, RowError> {
        match &self.tokens {
            Tokens::Text(tokenizer) => tokenizer.measure(text, tokens_max),
            Tokens::Fake {
                options,
                text_chars_max,
            } => {
                let text = first_chars(text, *text_chars_max);
                Ok(options.measure(text, tokens_max.min(self.max_length)))
            }
        }
    }
}
