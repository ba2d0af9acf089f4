//! What all protocols share in reading an answer. Pure.

use memchr::memmem;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::{LabelScore, Prediction};
use serde::Deserialize;

/// A number of an answer; `null` is how some servers write NaN.
pub type Number = Option<f32>;

/// What a model said of a request's texts, in their order.
#[derive(Debug, PartialEq)]
pub struct Answered {
    /// One prediction per text.
    pub predictions: Vec<Prediction>,
    /// Tokens that went through the model, as far as the server says.
    pub tokens: u64,
}

/// Why an answer cannot be used. Repeats nothing that the server said, since it ends in error lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not JSON, or says something else.
    #[error("the server's answer is not the JSON of its protocol (line {line}, column {column})")]
    NotJson {
        /// Where it stops to be.
        line: usize,
        /// Where in the line.
        column: usize,
    },
    /// It holds numbers that have no JSON form.
    #[error("the model answered NaN or infinity")]
    NotFinite,
    /// It answers another number of texts.
    #[error("the server answered {answered} rows where {asked} were asked")]
    Count {
        /// Rows answered.
        answered: usize,
        /// Rows asked.
        asked: usize,
    },
    /// Its numbers are not in the form that was expected.
    #[error("the server's answer {0}")]
    Shape(&'static str),
}

impl From<Unreadable> for RowError {
    fn from(unreadable: Unreadable) -> Self {
        let code = match unreadable {
            Unreadable::NotFinite => RowErrorCode::NotFinite,
            Unreadable::NotJson { .. } | Unreadable::Count { .. } | Unreadable::Shape(_) => {
                RowErrorCode::ModelFailed
            }
        };
        RowError::new(code, unreadable.to_string())
    }
}

/// The JSON of an answer.
pub fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(body).map_err(|error| {
        // Servers in Python write these bare, which makes the whole answer no JSON.
        let holds = |word: &str| memmem::find(body, word.as_bytes()).is_some();
        match error.is_syntax() && (holds("NaN") || holds("Infinity")) {
            true => Unreadable::NotFinite,
            false => Unreadable::NotJson {
                line: error.line(),
                column: error.column(),
            },
        }
    })
}

/// Whether as many rows were answered as asked.
pub fn counted(answered: usize, asked: usize) -> Result<(), Unreadable> {
    match answered == asked {
        true => Ok(()),
        false => Err(Unreadable::Count { answered, asked }),
    }
}

/// Vectors of one length.
pub fn embeddings(vectors: Vec<Vec<Number>>, asked: usize) -> Result<Vec<Prediction>, Unreadable> {
    counted(vectors.len(), asked)?;
    let length = vectors.first().map_or(0, Vec::len);
    if length == 0 || vectors.iter().any(|vector| vector.len() != length) {
        return Err(Unreadable::Shape("holds vectors that differ in length"));
    }
    Ok(vectors.into_iter().map(embedding).collect())
}

fn embedding(vector: Vec<Number>) -> Prediction {
    Prediction::Embedding(vector.into_iter().map(number).collect())
}

/// The number, or NaN.
pub fn number(number: Number) -> f32 {
    number.unwrap_or(f32::NAN)
}

/// Labels, best first.
pub fn labels(mut labels: Vec<LabelScore>) -> Prediction {
    labels.sort_by(|a, b| b.score.total_cmp(&a.score));
    Prediction::Labels(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_nan_is_told_from_what_is_no_json_at_all() {
        let read = |text: &'static str| json::<Vec<Vec<Number>>>(text.as_bytes()).unwrap_err();
        assert_eq!(read("[[1.0, NaN]]"), Unreadable::NotFinite);
        assert_eq!(read("[[-Infinity]]"), Unreadable::NotFinite);
        for text in ["<html>", "[[1.0]", "{\"error\": \"NaN\"}", ""] {
            let unreadable = read(text);
            assert!(matches!(unreadable, Unreadable::NotJson { .. }), "{text}");
        }
    }

    #[test]
    fn a_null_is_no_number() {
        let vectors = json(b"[[1.0, null]]").unwrap();
        let read = embeddings(vectors, 1).unwrap();
        assert!(!read[0].is_finite());
    }

    #[test]
    fn vectors_that_differ_in_length_are_refused() {
        for vectors in [vec![vec![Some(1.0)], vec![]], vec![vec![]]] {
            let asked = vectors.len();
            let read = embeddings(vectors, asked);
            assert!(matches!(read, Err(Unreadable::Shape(_))));
        }
    }
}
