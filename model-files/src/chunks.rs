//! Cuts long texts into chunks. Pure.
//!
//! A chunk begins and ends with a character that is no white space, and what white space lies between
//! two chunks belongs to none; every other character is in a chunk. A chunk ends before white space, so
//! that its tokens are those that the text has there: words are tokenised each for itself.

use std::cmp::Reverse;

use millrace_protocol::chunk::{Chunk, ChunkLimits};
use millrace_protocol::row::{RowError, RowErrorCode};
use unicode_segmentation::UnicodeSegmentation;

/// Bytes behind what fits into a chunk that are looked at to tell where its last sentence ends.
const LOOKAHEAD_BYTES: usize = 1 << 10;

/// Bytes of five tokens, guessed to have fewer than most: text of Latin letters has about four in each.
const BYTES_OF_5_TOKENS: usize = 13;

/// Counts the tokens of texts.
pub trait Ruler {
    /// Most tokens that it counts in a text, if there is a bound.
    fn tokens_max(&self) -> Option<usize>;

    /// The first tokens of a text, at most `tokens_max`, which is at least
    /// [`ChunkLimits::TOKENS_MIN`] unless the bound is lower.
    fn measure(&self, text: &str, tokens_max: usize) -> Result<Beginning, RowError>;
}

/// The first tokens of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beginning {
    /// The byte that each begins with.
    pub starts: Vec<usize>,
    /// Where they end: the byte behind them, or the length of the text if it has no further token.
    pub end: usize,
}

/// Guesses the tokens of models that nobody here knows by bytes, on the side of too many.
#[derive(Debug, Clone, Copy)]
pub struct Guessed;

impl Guessed {
    fn bytes(tokens: usize) -> usize {
        tokens.saturating_mul(BYTES_OF_5_TOKENS) / 5
    }
}

impl Ruler for Guessed {
    fn tokens_max(&self) -> Option<usize> {
        None
    }

    fn measure(&self, text: &str, tokens_max: usize) -> Result<Beginning, RowError> {
        let end = text.floor_char_boundary(Self::bytes(tokens_max));
        let starts = (0..tokens_max).map(|token| text.floor_char_boundary(Self::bytes(token)));
        let starts = starts.take_while(|start| *start < end).collect();
        Ok(Beginning { starts, end })
    }
}

/// Cuts a text by the tokens of all `rulers`, of which there is at least one. A text of nothing but
/// white space is the row error `empty_text`, and one of too many chunks `too_many_chunks`.
pub fn cut(
    text: &str,
    limits: &ChunkLimits,
    rulers: &[&dyn Ruler],
) -> Result<Vec<Chunk>, RowError> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut done = 0;
    let mut start = behind_space(text, 0);
    while start < text.len() {
        let rest = &text[start..];
        let beginning = measure(rest, limits, rulers)?;
        if beginning.starts.is_empty() {
            // No model sees anything in the rest, so that it makes no chunk longer.
            let last = chunks.last_mut().ok_or_else(no_tokens)?;
            last.end = text.trim_end().len() as u32;
            break;
        }
        let end = start + end_of_chunk(rest, beginning.end, limits);
        if end <= done {
            // What follows the overlap has no room beside it.
            start = behind_space(text, done);
            continue;
        }
        if chunks.len() >= limits.chunks_max as usize {
            return Err(too_many(limits.chunks_max));
        }
        chunks.push(Chunk {
            start: start as u32,
            end: end as u32,
        });
        done = end;
        if behind_space(text, end) == text.len() {
            break;
        }
        let overlap = overlap(&rest[..end - start], &text[end..], &beginning, limits);
        start = behind_space(text, overlap.map_or(end, |overlap| start + overlap));
    }
    match chunks.is_empty() {
        true => Err(RowError::new(RowErrorCode::EmptyText, "the text is empty")),
        false => Ok(chunks),
    }
}

fn no_tokens() -> RowError {
    RowError::new(RowErrorCode::EmptyText, "the text has no tokens")
}

fn too_many(chunks_max: u32) -> RowError {
    let message = format!(
        "the text has more than {chunks_max} chunks; raise input.chunking.maxChunks, or maxTokens"
    );
    RowError::new(RowErrorCode::TooManyChunks, message)
}

/// What all rulers let through: the beginning by that one which counts the most tokens.
fn measure(text: &str, limits: &ChunkLimits, rulers: &[&dyn Ruler]) -> Result<Beginning, RowError> {
    let mut shortest: Option<Beginning> = None;
    for ruler in rulers {
        let asked = limits.tokens_max.map(|tokens| tokens as usize);
        let tokens_max = asked.into_iter().chain(ruler.tokens_max()).min();
        let measured = ruler.measure(text, tokens_max.unwrap_or(usize::MAX))?;
        let is_shorter = |it: &Beginning| {
            let rank = |it: &Beginning| (it.end, Reverse(it.starts.len()));
            rank(&measured) < rank(it)
        };
        if shortest.as_ref().is_none_or(is_shorter) {
            shortest = Some(measured);
        }
    }
    Ok(shortest.unwrap_or_default())
}

/// Where the chunk ends that begins with `text`, of which the first `fit` bytes fit into it.
fn end_of_chunk(text: &str, fit: usize, limits: &ChunkLimits) -> usize {
    let first = text.chars().next().map_or(0, char::len_utf8);
    let fit = text.floor_char_boundary(fit).max(first);
    let sentences = match limits.by_sentences {
        true => end_of_sentences(text, fit, limits.sentences_max),
        false => None,
    };
    let end = sentences.unwrap_or_else(|| end_of_words(text, fit));
    text[..end].trim_end().len()
}

/// Where the last sentence ends that fits.
fn end_of_sentences(text: &str, fit: usize, sentences_max: Option<u32>) -> Option<usize> {
    let seen = &text[..text.floor_char_boundary(fit.saturating_add(LOOKAHEAD_BYTES))];
    let sentences_max = sentences_max.map_or(usize::MAX, |sentences| sentences as usize);
    let ends = ends_of_sentences(seen).take(sentences_max);
    // White space behind a sentence is no part of it.
    ends.take_while(|end| seen[..*end].trim_end().len() <= fit)
        .last()
}

/// Where each sentence ends, with the white space behind it.
fn ends_of_sentences(text: &str) -> impl Iterator<Item = usize> {
    let sentences = text.split_sentence_bound_indices();
    sentences.map(|(start, sentence)| start + sentence.len())
}

/// Where the last word ends that fits, unless it is longer than half of what fits.
fn end_of_words(text: &str, fit: usize) -> usize {
    if is_end_of_word(&text[fit..]) {
        return fit;
    }
    let space = text[..fit].rfind(char::is_whitespace);
    space.filter(|space| *space >= fit / 2).unwrap_or(fit)
}

/// Whether a word ends before `text`.
fn is_end_of_word(text: &str) -> bool {
    text.chars().next().is_none_or(char::is_whitespace)
}

/// Where in `chunk` the next one begins; `behind` is the text behind it.
fn overlap(
    chunk: &str,
    behind: &str,
    beginning: &Beginning,
    limits: &ChunkLimits,
) -> Option<usize> {
    let tokens = (beginning.starts.iter())
        .take_while(|start| **start < chunk.len())
        .count();
    let overlap = (limits.overlap_tokens as usize).min(tokens / 2);
    if overlap == 0 {
        return None;
    }
    let from = chunk.ceil_char_boundary(beginning.starts[tokens - overlap]);
    if limits.by_sentences {
        let mut starts = ends_of_sentences(chunk);
        return starts.find(|start| (from..chunk.len()).contains(start));
    }
    if chunk[..from].ends_with(char::is_whitespace) {
        return Some(from);
    }
    match chunk[from..].find(char::is_whitespace) {
        Some(space) => Some(from + space),
        // A text without white space has no words to keep whole.
        None => (!is_end_of_word(behind)).then_some(from),
    }
}

/// The first byte from `from` on that is no white space, or the end.
fn behind_space(text: &str, from: usize) -> usize {
    text.len() - text[from..].trim_start().len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Counts every character that is no white space as a token.
    struct Letters;

    impl Ruler for Letters {
        fn tokens_max(&self) -> Option<usize> {
            None
        }

        fn measure(&self, text: &str, tokens_max: usize) -> Result<Beginning, RowError> {
            let letters = text.char_indices().filter(|(_, c)| !c.is_whitespace());
            let mut starts: Vec<usize> = letters.map(|(start, _)| start).collect();
            let end = starts.get(tokens_max).copied().unwrap_or(text.len());
            starts.truncate(tokens_max);
            let end = match starts.last() {
                Some(last) if end < text.len() => text.ceil_char_boundary(last + 1),
                _ => end,
            };
            Ok(Beginning { starts, end })
        }
    }

    const LIMITS: ChunkLimits = ChunkLimits {
        by_sentences: false,
        tokens_max: Some(16),
        sentences_max: None,
        overlap_tokens: 0,
        chunks_max: 10_000,
    };

    fn pieces<'a>(text: &'a str, limits: &ChunkLimits) -> Vec<&'a str> {
        let chunks = cut(text, limits, &[&Letters]).unwrap();
        chunks.iter().map(|chunk| chunk.of(text)).collect()
    }

    fn letters(text: &str) -> usize {
        text.chars().filter(|c| !c.is_whitespace()).count()
    }

    #[test]
    fn chunks_end_between_words_and_white_space_between_them_is_left_out() {
        let text = "  the mill stands\n\n by the river  and grinds ";
        let expected = ["the mill stands\n\n by", "the river  and", "grinds"];
        assert_eq!(pieces(text, &LIMITS), expected);
    }

    #[test]
    fn sentences_stay_whole_and_as_many_as_fit_are_together() {
        let text = "It rains. A mill? Yes!\nThe wheel turns and turns on. End.";
        let by_sentences = ChunkLimits {
            by_sentences: true,
            ..LIMITS
        };
        let expected = [
            "It rains. A mill?",
            "Yes!",
            "The wheel turns and",
            "turns on. End.",
        ];
        let limits = ChunkLimits {
            tokens_max: Some(16),
            ..by_sentences
        };
        assert_eq!(pieces(text, &limits), expected);
        let one = ChunkLimits {
            tokens_max: Some(100),
            sentences_max: Some(1),
            ..by_sentences
        };
        let expected = [
            "It rains.",
            "A mill?",
            "Yes!",
            "The wheel turns and turns on.",
            "End.",
        ];
        assert_eq!(pieces(text, &one), expected);
    }

    #[test]
    fn a_chunk_begins_with_the_last_words_of_the_one_before_it() {
        let limits = ChunkLimits {
            overlap_tokens: 7,
            ..LIMITS
        };
        let text = "one two three four five six seven eight";
        let expected = ["one two three four", "four five six seven", "seven eight"];
        assert_eq!(pieces(text, &limits), expected);
        let limits = ChunkLimits {
            by_sentences: true,
            overlap_tokens: 8,
            ..LIMITS
        };
        let text = "Aaa bbb. Cc. Dd. Ee. Ff.";
        let expected = ["Aaa bbb. Cc. Dd. Ee.", "Dd. Ee. Ff."];
        assert_eq!(pieces(text, &limits), expected);
    }

    #[test]
    fn a_text_without_spaces_is_cut_between_characters() {
        let text = "水車は川のほとりに立ち、粉を挽き、そして夜になると止まる。";
        let limits = ChunkLimits {
            overlap_tokens: 4,
            ..LIMITS
        };
        let found = pieces(text, &limits);
        assert_eq!(found[0].chars().count(), 16);
        let tail: String = found[0].chars().skip(12).collect();
        assert!(found[1].starts_with(&tail), "{found:?}");
    }

    #[test]
    fn a_text_of_too_many_chunks_is_a_row_error_that_says_what_to_do() {
        let limits = ChunkLimits {
            chunks_max: 3,
            ..LIMITS
        };
        let error = cut(&"word ".repeat(100), &limits, &[&Letters]).unwrap_err();
        assert_eq!(error.code, RowErrorCode::TooManyChunks);
        assert!(error.message.contains("maxChunks"), "{error}");
        assert_eq!(
            cut(&"word ".repeat(12), &limits, &[&Letters])
                .unwrap()
                .len(),
            3
        );
        let empty = cut(" \n ", &LIMITS, &[&Letters]).unwrap_err();
        assert_eq!(empty.code, RowErrorCode::EmptyText);
    }

    #[test]
    fn what_no_model_sees_is_no_chunk_of_its_own() {
        /// Sees letters of the alphabet alone.
        struct Alphabet;

        impl Ruler for Alphabet {
            fn tokens_max(&self) -> Option<usize> {
                Some(16)
            }

            fn measure(&self, text: &str, tokens_max: usize) -> Result<Beginning, RowError> {
                let seen = text.char_indices().filter(|(_, c)| c.is_alphabetic());
                let starts: Vec<usize> = seen.map(|(start, _)| start).take(tokens_max).collect();
                let is_more =
                    text[starts.last().map_or(0, |last| last + 1)..].contains(char::is_alphabetic);
                let end = match (is_more, starts.last()) {
                    (true, Some(last)) => last + 1,
                    _ => text.len(),
                };
                Ok(Beginning { starts, end })
            }
        }

        let limits = ChunkLimits {
            by_sentences: true,
            tokens_max: None,
            sentences_max: Some(1),
            ..LIMITS
        };
        let text = "abc! def! ~~ ";
        let found = cut(text, &limits, &[&Alphabet]).unwrap();
        let found: Vec<&str> = found.iter().map(|chunk| chunk.of(text)).collect();
        assert_eq!(found, ["abc!", "def! ~~"]);
        let nothing = cut(" -- ~~ ", &limits, &[&Alphabet]).unwrap_err();
        assert_eq!(nothing.code, RowErrorCode::EmptyText);
    }

    #[test]
    fn the_model_with_the_most_tokens_decides() {
        let text = "word ".repeat(40);
        let limits = ChunkLimits {
            tokens_max: Some(40),
            ..LIMITS
        };
        let alone = cut(&text, &limits, &[&Guessed]).unwrap();
        let both = cut(&text, &limits, &[&Guessed, &Letters]).unwrap();
        assert!(both.len() > alone.len());
        assert_eq!(both, cut(&text, &limits, &[&Letters]).unwrap());
    }

    fn texts() -> impl Strategy<Value = String> {
        let piece = proptest::sample::select(vec![
            "a",
            "mill",
            "é",
            "日本",
            "👩‍🌾",
            " ",
            "  ",
            "\n",
            ". ",
            "! ",
            "。",
            "averyveryverylongword",
            "\u{a0}",
            "e\u{301}",
        ]);
        proptest::collection::vec(piece, 0..80).prop_map(|pieces| pieces.concat())
    }

    fn limits() -> impl Strategy<Value = ChunkLimits> {
        let sentences = proptest::option::of(1_u32..4);
        (any::<bool>(), 16_u32..40, sentences, 0_u32..20).prop_map(
            |(by_sentences, tokens, sentences, overlap)| ChunkLimits {
                by_sentences,
                tokens_max: Some(tokens),
                sentences_max: sentences.filter(|_| by_sentences),
                overlap_tokens: overlap.min(tokens / 2),
                chunks_max: 10_000,
            },
        )
    }

    proptest! {
        #[test]
        fn every_character_is_in_a_chunk_and_no_chunk_is_too_long(
            text in texts(),
            limits in limits(),
            guessed in any::<bool>(),
        ) {
            prop_assume!(letters(&text) > 0);
            let ruler: &dyn Ruler = if guessed { &Guessed } else { &Letters };
            let tokens = |text: &str| match guessed {
                true => text.len() * 5 / BYTES_OF_5_TOKENS,
                false => letters(text),
            };
            let chunks = cut(&text, &limits, &[ruler]).unwrap();
            let (mut done, mut last) = (0, 0);
            for chunk in &chunks {
                // Slicing panics inside a character.
                let piece = chunk.of(&text);
                prop_assert!(!piece.is_empty() && piece.trim() == piece, "{piece:?}");
                prop_assert!(tokens(piece) <= limits.tokens_max.unwrap() as usize, "{piece:?}");
                let (start, end) = (chunk.start as usize, chunk.end as usize);
                if start >= done {
                    prop_assert!(text[done..start].trim().is_empty());
                } else {
                    let shared = tokens(&text[start..done]);
                    // A guessed token may begin within a character.
                    let most = limits.overlap_tokens as usize + usize::from(guessed);
                    prop_assert!(shared <= most, "{shared}");
                    prop_assert!(start > last);
                }
                prop_assert!(end > done);
                (done, last) = (end, start);
            }
            prop_assert!(text[done..].trim().is_empty());
        }
    }
}
