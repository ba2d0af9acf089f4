//! From numbers to predictions. Pure.

use millrace_crds::inference_service::Activation;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::{Entity, LabelScore, Prediction};

/// Label of tokens that belong to no entity.
const OUTSIDE: &str = "O";

/// What a task makes of a head's numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// The vector itself, scaled to length 1 if asked.
    Embedding {
        /// Whether to scale.
        normalize: bool,
    },
    /// Label scores, best first.
    Labels {
        /// Names, in the order of the logits.
        labels: Vec<String>,
        /// How logits become scores; `None` leaves them as they are.
        activation: Option<Activation>,
    },
    /// Spans of adjacent tokens with the same label.
    Entities {
        /// Names, in the order of the logits.
        labels: Vec<String>,
    },
    /// The numbers as they are.
    Values,
}

/// Makes a prediction of one sequence's numbers: `[width]`, or `[tokens, labels]` for entities,
/// for which `spans` gives each token's characters.
pub fn predict(
    finish: &Finish,
    text: &str,
    spans: &[Option<(u32, u32)>],
    numbers: &[f32],
) -> Result<Prediction, RowError> {
    if !numbers.iter().all(|number| number.is_finite()) {
        let message = "the model answered NaN or infinity";
        return Err(RowError::new(RowErrorCode::NotFinite, message));
    }
    Ok(match finish {
        Finish::Embedding { normalize: true } => Prediction::Embedding(normalized(numbers)),
        Finish::Embedding { normalize: false } => Prediction::Embedding(numbers.to_vec()),
        Finish::Values => Prediction::Values(numbers.to_vec()),
        Finish::Labels { labels, activation } => {
            Prediction::Labels(label_scores(labels, *activation, numbers))
        }
        Finish::Entities { labels } => Prediction::Entities(entities(labels, text, spans, numbers)),
    })
}

/// The vector scaled to length 1; a zero vector stays.
pub fn normalized(vector: &[f32]) -> Vec<f32> {
    // In 64 bits, since the squares of large but finite numbers are infinite in 32.
    let squares: f64 = vector
        .iter()
        .map(|&value| f64::from(value) * f64::from(value))
        .sum();
    let length = squares.sqrt().max(1e-12);
    vector
        .iter()
        .map(|&value| (f64::from(value) / length) as f32)
        .collect()
}

fn label_scores(
    labels: &[String],
    activation: Option<Activation>,
    logits: &[f32],
) -> Vec<LabelScore> {
    let scores = match activation {
        None => logits.to_vec(),
        Some(Activation::Softmax) => softmax(logits),
        Some(Activation::Sigmoid) => logits
            .iter()
            .map(|logit| 1.0 / (1.0 + (-logit).exp()))
            .collect(),
    };
    let scored = labels.iter().zip(scores);
    let mut scored: Vec<_> = scored
        .map(|(label, score)| LabelScore {
            label: label.clone(),
            score,
        })
        .collect();
    // Equal scores keep the order of the labels, so that the answer is one and the same each time.
    scored.sort_by(|one, other| other.score.total_cmp(&one.score));
    scored
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|logit| (logit - highest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

/// A run of tokens with the same label that is being gathered.
struct Span<'a> {
    label: &'a str,
    start: u32,
    end: u32,
    scores: Vec<f32>,
}

/// Groups adjacent tokens of the same label; `B-` begins a new span. Special tokens are passed over.
fn spans<'a>(
    labels: &'a [String],
    token_spans: &[Option<(u32, u32)>],
    logits: &[f32],
) -> Vec<Span<'a>> {
    let mut spans: Vec<Span> = Vec::new();
    let mut open = false;
    for (token, logits) in token_spans
        .iter()
        .zip(logits.chunks_exact(labels.len().max(1)))
    {
        let Some((start, end)) = *token else {
            continue;
        };
        let scores = softmax(logits);
        // Of equal scores the first label's counts, as everywhere.
        let pairs = labels.iter().zip(scores).rev();
        let Some((name, score)) = pairs.max_by(|(_, one), (_, other)| one.total_cmp(other)) else {
            continue;
        };
        if name == OUTSIDE {
            open = false;
            continue;
        }
        let (begins, label) = match name.split_at_checked(2) {
            Some(("B-", label)) => (true, label),
            Some(("I-", label)) => (false, label),
            _ => (false, name.as_str()),
        };
        match spans.last_mut() {
            Some(last) if open && !begins && last.label == label => {
                last.end = end;
                last.scores.push(score);
            }
            _ => spans.push(Span {
                label,
                start,
                end,
                scores: vec![score],
            }),
        }
        open = true;
    }
    spans
}

/// What `text` says in the spans of its tokens.
fn entities(
    labels: &[String],
    text: &str,
    token_spans: &[Option<(u32, u32)>],
    logits: &[f32],
) -> Vec<Entity> {
    let spans = spans(labels, token_spans, logits);
    if spans.is_empty() {
        return Vec::new();
    }
    let offsets: Vec<usize> = text.char_indices().map(|(offset, _)| offset).collect();
    let byte = |character: u32| {
        offsets
            .get(character as usize)
            .copied()
            .unwrap_or(text.len())
    };
    let entity = |Span {
                      label,
                      start,
                      end,
                      scores,
                  }: Span| {
        // Offsets come of the model's own tokenizer, so nothing is taken for granted of them.
        let word = text.get(byte(start)..byte(end)).unwrap_or_default();
        Entity {
            entity: label.to_owned(),
            score: scores.iter().sum::<f32>() / scores.len() as f32,
            start,
            end,
            word: word.to_owned(),
        }
    };
    spans.into_iter().map(entity).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|label| (*label).to_owned()).collect()
    }

    /// Entities of `text` whose words have the given labels, one token a word.
    fn tagged(text: &str, tags: &[&str]) -> Vec<(String, String)> {
        let labels = names(&["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]);
        let mut spans = vec![None];
        let mut at = 0;
        for word in text.split(' ') {
            let length = word.chars().count() as u32;
            spans.push(Some((at, at + length)));
            at += length + 1;
        }
        spans.push(None);
        let logits = |tag: &str| {
            labels
                .iter()
                .map(|l| if l == tag { 9.0 } else { 0.0 })
                .collect()
        };
        let rows = ["O"].iter().chain(tags).chain(["O"].iter());
        let numbers: Vec<f32> = rows.flat_map(|tag| -> Vec<f32> { logits(tag) }).collect();
        let found = entities(&labels, text, &spans, &numbers);
        found
            .into_iter()
            .map(|entity| (entity.entity, entity.word))
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn adjacent_tokens_of_one_label_are_one_entity() {
        let found = tagged("José Müller in Köln", &["B-PER", "I-PER", "O", "B-LOC"]);
        assert_eq!(found, pairs(&[("PER", "José Müller"), ("LOC", "Köln")]));
    }

    #[test]
    fn a_beginning_and_a_gap_each_start_a_new_entity() {
        let found = tagged("Ann Bob x Cy", &["B-PER", "B-PER", "O", "I-PER"]);
        assert_eq!(
            found,
            pairs(&[("PER", "Ann"), ("PER", "Bob"), ("PER", "Cy")])
        );
    }

    #[test]
    fn labels_come_best_first() {
        let labels = names(&["low", "high"]);
        let scores = label_scores(&labels, Some(Activation::Softmax), &[0.0, 1.0]);
        assert_eq!(scores[0].label, "high");
        assert!((scores[0].score - 0.731_058_6).abs() < 1e-6);
        let alone = label_scores(&labels, Some(Activation::Sigmoid), &[0.0, 0.0]);
        assert_eq!((alone[0].label.as_str(), alone[0].score), ("low", 0.5));
    }

    #[test]
    fn of_equal_logits_the_first_label_counts() {
        let found = entities(&names(&["B-PER", "O"]), "Ann", &[Some((0, 3))], &[1.0, 1.0]);
        assert_eq!((found[0].entity.as_str(), found[0].score), ("PER", 0.5));
    }

    #[test]
    fn labels_without_prefix_group_and_the_score_is_the_mean() {
        let labels = names(&["O", "PER"]);
        let spans = [Some((0, 2)), Some((2, 3))];
        let found = entities(&labels, "Ann", &spans, &[-80.0, 80.0, 0.0, 2f32.ln()]);
        assert_eq!((found.len(), found[0].word.as_str()), (1, "Ann"));
        assert!((found[0].score - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-6);
    }

    #[test]
    fn tokens_of_one_character_and_offsets_past_the_text_are_no_trouble() {
        let labels = names(&["O", "B-A", "I-B"]);
        let spans = [Some((0, 1)), Some((0, 1)), Some((7, 9)), Some((3, 2))];
        let row = |best: usize| (0..3).map(move |l| if l == best { 9.0 } else { 0.0 });
        let numbers: Vec<f32> = [1, 1, 2, 1].into_iter().flat_map(row).collect();
        let found = entities(&labels, "é", &spans, &numbers);
        let words: Vec<_> = found.iter().map(|entity| entity.word.as_str()).collect();
        assert_eq!(words, ["é", "é", "", ""]);
    }

    #[test]
    fn large_finite_numbers_are_normalised_not_lost() {
        // Powers of two, so that the quotients are exact; their squares are infinite in 32 bits.
        let large = 2f32.powi(100);
        assert_eq!(normalized(&[3.0 * large, 4.0 * large]), [0.6, 0.8]);
        assert_eq!(normalized(&[0.0, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn nan_and_infinity_are_row_errors() {
        for number in [f32::NAN, f32::INFINITY] {
            let predicted = predict(&Finish::Values, "", &[], &[1.0, number]);
            assert_eq!(predicted.unwrap_err().code, RowErrorCode::NotFinite);
        }
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution(logits in proptest::collection::vec(-80f32..80.0, 1..40)) {
            let scores = softmax(&logits);
            prop_assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
            prop_assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }

        #[test]
        fn a_normalised_vector_has_length_one(vector in proptest::collection::vec(-9f32..9.0, 1..64)) {
            prop_assume!(vector.iter().any(|value| value.abs() > 1e-3));
            let length = normalized(&vector).iter().map(|value| value * value).sum::<f32>().sqrt();
            prop_assert!((length - 1.0).abs() < 1e-4);
        }

        #[test]
        fn entities_are_ordered_and_do_not_overlap(tags in proptest::collection::vec(0usize..5, 1..20)) {
            let labels = names(&["O", "B-A", "I-A", "B-B", "I-B"]);
            let text = "w ".repeat(tags.len());
            let spans: Vec<_> = (0..tags.len() as u32).map(|i| Some((i * 2, i * 2 + 1))).collect();
            let numbers: Vec<f32> =
                tags.iter().flat_map(|&tag| (0..5).map(move |l| if l == tag { 5.0 } else { 0.0 })).collect();
            let found = entities(&labels, &text, &spans, &numbers);
            prop_assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
            let covered = |at: u32| found.iter().any(|entity| entity.start <= at && at < entity.end);
            for (i, &tag) in tags.iter().enumerate() {
                prop_assert!(tag == 0 || covered(i as u32 * 2));
            }
        }
    }
}
