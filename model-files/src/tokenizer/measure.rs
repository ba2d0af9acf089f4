//! How many tokens of a text fit into a chunk.

use millrace_protocol::row::RowError;

use super::{Cut, TextTokenizer, failed, first_chars};
use crate::chunks::{Beginning, Ruler};

/// Characters that are measured first for each token of a chunk. Fewer than are tokenised for a model,
/// because a second pass costs less than looking at four chunks for one.
const CHARS_PER_TOKEN: usize = 6;

impl Ruler for TextTokenizer {
    /// What the model takes, without special tokens.
    fn tokens_max(&self) -> Option<usize> {
        Some(self.max_length - self.special)
    }

    fn measure(&self, text: &str, tokens_max: usize) -> Result<Beginning, RowError> {
        let text = first_chars(text, self.limits.text_chars_max);
        let tokens_max = tokens_max.min(self.max_length - self.special);
        let chars = tokens_max.saturating_mul(CHARS_PER_TOKEN);
        let measure = |beginning: &str, cut| self.measure_beginning(beginning, cut, tokens_max);
        self.by_beginnings(text, chars, measure)
    }
}

impl TextTokenizer {
    /// The first tokens of the whole text, if its beginning is enough to know them.
    fn measure_beginning(
        &self,
        beginning: &str,
        cut: Cut,
        tokens_max: usize,
    ) -> Result<Option<Beginning>, RowError> {
        let encoded = self.tokenizer.encode(beginning, true).map_err(failed)?;
        // What the model does not take any more says where the last token that it takes ends.
        let behind = encoded.get_overflowing().first();
        let spans = [Some(&encoded), behind].into_iter().flatten();
        let mut spans: Vec<(usize, usize)> = spans.flat_map(text_spans).collect();
        spans.truncate(tokens_max + 1);
        let is_more = spans.len() > tokens_max;
        let known = match cut {
            Cut::Nowhere => true,
            Cut::BetweenWords => is_more,
            Cut::InWord => is_more && spans.iter().all(|&(_, end)| end <= beginning.len() / 2),
        };
        if !known {
            return Ok(None);
        }
        let end = match (is_more, spans.pop_if(|_| is_more), spans.last()) {
            // A character of several tokens belongs to all of them, and is not to be torn apart.
            (true, Some((next, _)), Some(&(_, end))) => end.min(next),
            _ => beginning.len(),
        };
        let starts = spans.into_iter().map(|(start, _)| start);
        let starts = starts.take_while(|start| *start < end).collect();
        Ok(Some(Beginning { starts, end }))
    }
}

/// Where the tokens stand that are not special.
fn text_spans(encoded: &tokenizers::Encoding) -> impl Iterator<Item = (usize, usize)> {
    let spans = encoded
        .get_offsets()
        .iter()
        .zip(encoded.get_special_tokens_mask());
    spans
        .filter(|(_, special)| **special == 0)
        .map(|(span, _)| *span)
}

#[cfg(test)]
mod tests {
    use millrace_protocol::chunk::ChunkLimits;

    use super::*;
    use crate::chunks::cut;
    use crate::tokenizer::tests::{LIMITS, words};

    #[test]
    fn what_is_measured_has_the_tokens_that_the_model_takes() {
        let tokenizer = words(5, LIMITS);
        assert_eq!(tokenizer.tokens_max(), Some(3));
        let measured = |text: &str, tokens_max| tokenizer.measure(text, tokens_max).unwrap();
        let beginning = |starts: &[usize], end| Beginning {
            starts: starts.to_vec(),
            end,
        };
        assert_eq!(measured("mill é race mill", 9), beginning(&[0, 5, 8], 12));
        assert_eq!(measured("mill é race mill", 2), beginning(&[0, 5], 7));
        assert_eq!(measured("mill é ", 2), beginning(&[0, 5], 8));
        let long = "mill race ".repeat(10_000);
        assert_eq!(measured(&long, 3), beginning(&[0, 5, 10], 14));
    }

    #[test]
    fn no_chunk_has_more_tokens_than_the_model_takes() {
        let tokenizer = words(8, LIMITS);
        let text = format!("{} {}", "é mill,race ".repeat(500), "é".repeat(3_000));
        let limits = ChunkLimits {
            by_sentences: false,
            tokens_max: None,
            sentences_max: None,
            overlap_tokens: 2,
            chunks_max: 10_000,
        };
        let chunks = cut(&text, &limits, &[&tokenizer]).unwrap();
        assert!(chunks.len() > 300, "{}", chunks.len());
        for chunk in chunks {
            let encoding = tokenizer.encode(chunk.of(&text)).unwrap();
            assert!(!encoding.truncated, "{:?}", chunk.of(&text));
        }
    }
}
