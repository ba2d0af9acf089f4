//! Joins what was said of the chunks of a text. Pure.

use millrace_crds::batch_job::ChunkJoin;
use millrace_protocol::chunk::Chunk;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::{LabelScore, Prediction};

use crate::job::Step;
use crate::work::lines::{ChunkResult, Ending, Joined};
use crate::work::submit::RowOutcome;

/// How far from 1 the length of a vector may be that was scaled to it, in the coarsest format.
const LENGTH_TOLERANCE: f32 = 0.01;

/// Where a chunk stands: characters `start..end` of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

/// Where chunks stand in `text`, in characters. They come in its order.
pub fn spans(text: &str, chunks: &[Chunk]) -> Vec<Span> {
    let mut starts = Characters::of(text);
    let mut ends = Characters::of(text);
    let span = |chunk: &Chunk| Span {
        start: starts.before(chunk.start),
        end: ends.before(chunk.end),
    };
    chunks.iter().map(span).collect()
}

/// Counts the characters before bytes that only go forward.
struct Characters<'a> {
    text: &'a str,
    bytes: usize,
    characters: u32,
}

impl<'a> Characters<'a> {
    fn of(text: &'a str) -> Self {
        Self {
            text,
            bytes: 0,
            characters: 0,
        }
    }

    fn before(&mut self, byte: u32) -> u32 {
        let passed = &self.text[self.bytes..byte as usize];
        self.characters += passed.chars().count() as u32;
        self.bytes = byte as usize;
        self.characters
    }
}

/// What the row ends as whose chunks ended so, in their order; the first that failed is the row's error.
/// `joins` says for each step what becomes of its results.
pub fn joined(
    steps: &[Step],
    spans: &[Span],
    outcomes: Vec<RowOutcome>,
    joins: &[ChunkJoin],
) -> Result<Ending, RowError> {
    let mut of_steps: Vec<Vec<Prediction>> = steps.iter().map(|_| Vec::new()).collect();
    for (index, (span, outcome)) in spans.iter().zip(outcomes).enumerate() {
        let outcome = outcome.and_then(|predictions| finite(steps, predictions));
        let of_chunk = |error: RowError| RowError {
            message: format!(
                "chunk {} of {} (characters {} to {}): {}",
                index + 1,
                spans.len(),
                span.start,
                span.end,
                error.message
            ),
            ..error
        };
        for (of_step, said) in of_steps.iter_mut().zip(outcome.map_err(of_chunk)?) {
            of_step.push(moved(said, span.start));
        }
    }
    let steps = steps.iter().zip(of_steps).zip(joins);
    let joined = steps.map(|((step, predictions), join)| {
        if *join == ChunkJoin::List {
            return Ok(Joined::List(listed(spans, predictions)));
        }
        let one = one(predictions, *join).map(Joined::One);
        one.ok_or_else(|| RowError {
            step: Some(step.name.clone()),
            ..RowError::new(
                RowErrorCode::AnswerInvalid,
                "the chunks were answered in ways that cannot be joined",
            )
        })
    });
    Ok(Ending::Joined(joined.collect::<Result<_, _>>()?))
}

fn listed(spans: &[Span], predictions: Vec<Prediction>) -> Vec<ChunkResult> {
    let listed = spans.iter().zip(predictions);
    let listed = listed.map(|(span, prediction)| ChunkResult {
        start: span.start,
        end: span.end,
        prediction,
    });
    listed.collect()
}

/// A number without a JSON form is told of the chunk that it belongs to.
fn finite(steps: &[Step], predictions: Vec<Prediction>) -> RowOutcome {
    let bad = predictions
        .iter()
        .position(|prediction| !prediction.is_finite());
    match bad {
        None => Ok(predictions),
        Some(step) => Err(RowError {
            step: Some(steps[step].name.clone()),
            ..RowError::not_finite()
        }),
    }
}

/// The same where it counts characters, counted in the whole text.
fn moved(prediction: Prediction, by: u32) -> Prediction {
    match prediction {
        Prediction::Entities(mut entities) => {
            for entity in &mut entities {
                entity.start += by;
                entity.end += by;
            }
            Prediction::Entities(entities)
        }
        other => other,
    }
}

/// One prediction of those of all chunks, if they are of a kind that can be joined so.
fn one(mut predictions: Vec<Prediction>, join: ChunkJoin) -> Option<Prediction> {
    if predictions.len() == 1 {
        return predictions.pop();
    }
    let vectors = predictions.iter().map(|prediction| match prediction {
        Prediction::Embedding(vector) => Some(vector.as_slice()),
        _ => None,
    });
    if let Some(vectors) = vectors.collect::<Option<Vec<_>>>() {
        return (join == ChunkJoin::Mean).then(|| mean(&vectors))?;
    }
    let labels = predictions.iter().map(|prediction| match prediction {
        Prediction::Labels(labels) => Some(labels.as_slice()),
        _ => None,
    });
    let labels = labels.collect::<Option<Vec<_>>>()?;
    Some(Prediction::Labels(scores(&labels, join)))
}

/// The mean of vectors of one dimension, of length 1 if theirs is 1.
fn mean(vectors: &[&[f32]]) -> Option<Prediction> {
    let dimension = vectors.first()?.len();
    if vectors.iter().any(|vector| vector.len() != dimension) {
        return None;
    }
    let mut sum = vec![0.0_f32; dimension];
    for vector in vectors {
        for (sum, value) in sum.iter_mut().zip(*vector) {
            *sum += value;
        }
    }
    let is_unit = |vector: &&[f32]| (length(vector) - 1.0).abs() <= LENGTH_TOLERANCE;
    let by = match vectors.iter().all(is_unit) {
        // Vectors that cancel each other out have no direction.
        true => Some(length(&sum)).filter(|length| *length > f32::EPSILON),
        false => None,
    };
    let by = by.unwrap_or(vectors.len() as f32);
    Some(Prediction::Embedding(
        sum.into_iter().map(|value| value / by).collect(),
    ))
}

fn length(vector: &[f32]) -> f32 {
    let squares = vector.iter().map(|value| f64::from(*value).powi(2));
    squares.sum::<f64>().sqrt() as f32
}

/// The score of each label over all chunks, best first; a chunk that does not name a label has 0.
fn scores(chunks: &[&[LabelScore]], join: ChunkJoin) -> Vec<LabelScore> {
    let mut joined: Vec<LabelScore> = Vec::new();
    for LabelScore { label, score } in chunks.iter().copied().flatten() {
        match joined.iter_mut().find(|known| known.label == *label) {
            None => joined.push(LabelScore {
                label: label.clone(),
                score: *score,
            }),
            Some(known) if join == ChunkJoin::Max => known.score = known.score.max(*score),
            Some(known) => known.score += score,
        }
    }
    if join == ChunkJoin::Mean {
        for known in &mut joined {
            known.score /= chunks.len() as f32;
        }
    }
    joined.sort_by(|a, b| b.score.total_cmp(&a.score));
    joined
}

#[cfg(test)]
mod tests {
    use millrace_protocol::wire::Entity;

    use super::*;

    fn steps() -> Vec<Step> {
        let step = |name: &str| Step {
            name: name.to_owned(),
            model: name.to_owned(),
            prompt: None,
        };
        vec![step("a")]
    }

    fn join_all(outcomes: Vec<RowOutcome>, join: ChunkJoin) -> Result<Ending, RowError> {
        let span = |index: u32| Span {
            start: index * 10,
            end: index * 10 + 9,
        };
        let spans: Vec<Span> = (0..outcomes.len() as u32).map(span).collect();
        joined(&steps(), &spans, outcomes, &[join])
    }

    fn one_of(predictions: Vec<Prediction>, join: ChunkJoin) -> Prediction {
        let outcomes = predictions.into_iter().map(|said| Ok(vec![said])).collect();
        match join_all(outcomes, join).unwrap() {
            Ending::Joined(mut joined) => match joined.remove(0) {
                Joined::One(prediction) => prediction,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn vector(values: &[f32]) -> Prediction {
        Prediction::Embedding(values.to_vec())
    }

    fn labels(scores: &[(&str, f32)]) -> Prediction {
        let scores = scores.iter().map(|(label, score)| LabelScore {
            label: (*label).to_owned(),
            score: *score,
        });
        Prediction::Labels(scores.collect())
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        let text = "é mill 日本 end";
        let chunks = [(0, 7), (3, 14), (15, 18)];
        let chunks = chunks.map(|(start, end)| Chunk { start, end });
        let found = spans(text, &chunks);
        let pieces = found.iter().map(|span| {
            let characters = text.chars().skip(span.start as usize);
            characters
                .take((span.end - span.start) as usize)
                .collect::<String>()
        });
        let expected: Vec<&str> = chunks.iter().map(|chunk| chunk.of(text)).collect();
        assert_eq!(pieces.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_mean_of_unit_vectors_is_one_and_of_others_is_not_scaled() {
        let mean = |vectors: &[&[f32]]| {
            let vectors = vectors.iter().map(|values| vector(values)).collect();
            one_of(vectors, ChunkJoin::Mean)
        };
        assert_eq!(mean(&[&[1.0, 0.0], &[1.0, 0.0]]), vector(&[1.0, 0.0]));
        let Prediction::Embedding(unit) = mean(&[&[1.0, 0.0], &[0.0, 1.0]]) else {
            panic!("no vector");
        };
        assert!((length(&unit) - 1.0).abs() < 1e-6 && unit[0] == unit[1]);
        assert_eq!(mean(&[&[2.0, 0.0], &[0.0, 4.0]]), vector(&[1.0, 2.0]));
        assert_eq!(mean(&[&[1.0, 0.0], &[-1.0, 0.0]]), vector(&[0.0, 0.0]));
        assert_eq!(mean(&[&[0.6, 0.8]]), vector(&[0.6, 0.8]));
    }

    #[test]
    fn scores_are_joined_label_by_label_and_the_best_is_first() {
        let said = || {
            vec![
                labels(&[("good", 0.75), ("bad", 0.25)]),
                labels(&[("bad", 1.0), ("good", 0.0)]),
            ]
        };
        let mean = labels(&[("bad", 0.625), ("good", 0.375)]);
        assert_eq!(one_of(said(), ChunkJoin::Mean), mean);
        let max = labels(&[("bad", 1.0), ("good", 0.75)]);
        assert_eq!(one_of(said(), ChunkJoin::Max), max);
    }

    #[test]
    fn spans_of_entities_are_counted_in_the_whole_text() {
        let entity = |start| Entity {
            entity: "PER".to_owned(),
            score: 0.9,
            start,
            end: start + 3,
            word: "Ada".to_owned(),
        };
        let said = |start| Ok(vec![Prediction::Entities(vec![entity(start)])]);
        let ending = join_all(vec![said(2), said(4)], ChunkJoin::List).unwrap();
        let Ending::Joined(joined) = ending else {
            panic!("{ending:?}");
        };
        let chunk = |start, entity| ChunkResult {
            start,
            end: start + 9,
            prediction: Prediction::Entities(vec![entity]),
        };
        let expected = vec![chunk(0, entity(2)), chunk(10, entity(14))];
        assert_eq!(joined, [Joined::List(expected)]);
    }

    #[test]
    fn a_chunk_that_failed_is_named_and_keeps_its_code_and_step() {
        let fine = || Ok(vec![vector(&[1.0])]);
        let failed = RowError {
            step: Some("a".to_owned()),
            ..RowError::new(RowErrorCode::Timeout, "too late")
        };
        for join in [ChunkJoin::List, ChunkJoin::Mean] {
            let outcomes = vec![fine(), Err(failed.clone()), fine()];
            let error = join_all(outcomes, join).unwrap_err();
            assert_eq!(
                (error.code, error.step.as_deref()),
                (failed.code, Some("a"))
            );
            let expected = "chunk 2 of 3 (characters 10 to 19): too late";
            assert_eq!(error.message, expected);
            let nan = vec![fine(), fine(), Ok(vec![vector(&[f32::NAN])])];
            let error = join_all(nan, join).unwrap_err();
            assert_eq!(error.code, RowErrorCode::NotFinite);
            assert!(error.message.starts_with("chunk 3 of 3"), "{error}");
        }
    }

    #[test]
    fn vectors_of_different_dimensions_are_a_row_error() {
        let outcomes = vec![Ok(vec![vector(&[1.0])]), Ok(vec![vector(&[1.0, 0.0])])];
        let error = join_all(outcomes, ChunkJoin::Mean).unwrap_err();
        assert_eq!(error.code, RowErrorCode::AnswerInvalid);
    }
}
