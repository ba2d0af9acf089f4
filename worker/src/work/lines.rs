//! Turns answered rows into the lines of a part and of an error file. Pure.

use std::ops::Range;
use std::sync::Arc;

use millrace_protocol::ledger::ContentHash;
use millrace_protocol::result::{DuplicateOf, ErrorLine};
use millrace_protocol::routes::ArmIndex;
use millrace_protocol::row::{Place, Position, ReadRow, RowError};
use millrace_protocol::tally::Rows;
use millrace_protocol::wire::{Prediction, Untagged};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::submit::RowOutcome;
use crate::content::content;
use crate::job::{Arm, Routing, Step};

/// A row on its way: what is left of it while its text is at the server.
#[derive(Debug)]
pub struct PendingRow {
    place: Place,
    id: Option<String>,
    input: Option<Box<RawValue>>,
    content: ContentHash,
    /// The row whose result or error it gets, if it is a duplicate.
    duplicate_of: Option<DuplicateOf>,
    /// Who answers it, if the job has routes.
    arm: Option<Arc<Arm>>,
    /// `None` while the row is at the server.
    outcome: Option<Result<Ending, RowError>>,
}

/// What a row with a result ends as.
#[derive(Debug)]
pub(super) enum Ending {
    /// One prediction per step.
    Answered(Vec<Prediction>),
    /// What was made of the predictions for the chunks of its text, per step; all are finite.
    Joined(Vec<Joined>),
    /// The results of an earlier line, as it has them.
    Carried(Box<RawValue>),
}

/// What a step made of the chunks of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Joined {
    /// One prediction for the text.
    One(Prediction),
    /// One for each chunk.
    List(Vec<ChunkResult>),
}

/// What was said of characters `start..end` of a text.
#[derive(Debug, PartialEq)]
pub(super) struct ChunkResult {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) prediction: Prediction,
}

impl PendingRow {
    /// Splits a read row into what stays and what goes to the server: the text, or the fields that
    /// prompts are made of. A bad row keeps its error and sends nothing.
    pub fn split(row: ReadRow, routing: Option<&Routing>) -> (Self, Option<String>) {
        match row {
            ReadRow::Row(row) => {
                let content = content(&row, routing);
                let prompted = row.prompted.map(|fields| fields.get().to_owned());
                let asked = prompted.unwrap_or(row.text);
                let pending = Self {
                    place: row.place,
                    id: row.id,
                    input: row.input,
                    content,
                    duplicate_of: None,
                    arm: None,
                    outcome: None,
                };
                (pending, Some(asked))
            }
            ReadRow::Bad { place, id, error } => (
                Self {
                    place,
                    id,
                    input: None,
                    content: ContentHash::default(),
                    duplicate_of: None,
                    arm: None,
                    outcome: Some(Err(error)),
                },
                None,
            ),
        }
    }

    /// Gives the row what the server said.
    pub fn answer(&mut self, outcome: RowOutcome) {
        self.outcome = Some(outcome.map(Ending::Answered));
    }

    /// Gives the row what was made of its chunks.
    pub(super) fn end(&mut self, ending: Result<Ending, RowError>) {
        self.outcome = Some(ending);
    }

    /// What decides its answer, hashed.
    pub fn content(&self) -> ContentHash {
        self.content
    }

    /// Gives the row to an arm of a route.
    pub fn offer(&mut self, arm: &Arc<Arm>) {
        self.arm = Some(arm.clone());
    }

    /// The arm that the row was given to last.
    pub fn arm(&self) -> Option<&Arc<Arm>> {
        self.arm.as_ref()
    }

    /// Gives the row what an earlier line says, and names that line's row if this one is its duplicate.
    pub fn carry(
        &mut self,
        outcome: Result<Box<RawValue>, RowError>,
        duplicate_of: Option<DuplicateOf>,
    ) {
        self.outcome = Some(outcome.map(Ending::Carried));
        self.duplicate_of = duplicate_of;
    }

    /// Whether an answer to its own content is what it has: not that of a bad row, nor of one that gets
    /// the answer of a row that is almost the same.
    fn is_answered_itself(&self) -> bool {
        let similarity = self.duplicate_of.as_ref().and_then(|it| it.similarity);
        self.content != ContentHash::default() && similarity.is_none()
    }
}

/// The lines of some rows, and how the rows ended.
#[derive(Debug, Default)]
pub struct Lines {
    /// Lines for the part, in input order.
    pub results: Vec<u8>,
    /// Lines for the error file, in input order.
    pub errors: Vec<u8>,
    /// How the rows ended.
    pub rows: Rows,
    /// The same for each arm, if the job has routes.
    pub arms: Vec<(ArmIndex, Rows)>,
    /// Where the content of each row stands in `results`, without the newline.
    pub answered: Vec<(ContentHash, Range<usize>)>,
    /// The same of `errors`, but for rows that could not be read.
    pub refused: Vec<(ContentHash, Range<usize>)>,
}

impl Lines {
    /// Writes the line of an answered row.
    fn add(&mut self, file: &str, steps: &[Step], row: PendingRow) {
        let is_answered_itself = row.is_answered_itself();
        let PendingRow {
            place,
            id,
            input,
            content,
            duplicate_of,
            arm,
            outcome,
        } = row;
        let (route, arm_name) = names(arm.as_deref());
        let before = self.rows;
        let outcome = outcome.expect("every row of a window is answered");
        match outcome.and_then(|ending| finite(steps, ending)) {
            Ok(ending) => {
                let line = Line {
                    id: id.as_deref(),
                    position: PositionRef { file, place },
                    result: Results {
                        steps,
                        ending: &ending,
                    },
                    route,
                    arm: arm_name,
                    duplicate_of: duplicate_of.as_ref(),
                    input: input.as_deref(),
                };
                let range = push(&mut self.results, &line);
                if is_answered_itself {
                    self.answered.push((content, range));
                }
                self.rows.succeeded += 1;
            }
            Err(error) => {
                let position = Position {
                    file: file.to_owned(),
                    place,
                };
                let range = push(
                    &mut self.errors,
                    &ErrorLine {
                        id,
                        position,
                        route: route.map(str::to_owned),
                        arm: arm_name.map(str::to_owned),
                        error,
                        duplicate_of,
                    },
                );
                if is_answered_itself {
                    self.refused.push((content, range));
                }
                self.rows.failed += 1;
            }
        }
        if let Some(arm) = &arm {
            self.count(arm.index, before);
        }
    }

    /// Counts for an arm how a row ended, before which the rows were `before`.
    fn count(&mut self, arm: ArmIndex, before: Rows) {
        let Rows {
            succeeded,
            failed,
            skipped,
        } = self.rows;
        let row = Rows {
            succeeded: succeeded - before.succeeded,
            failed: failed - before.failed,
            skipped: skipped - before.skipped,
        };
        match self.arms.iter_mut().find(|(index, _)| *index == arm) {
            Some((_, rows)) => *rows += row,
            None => self.arms.push((arm, row)),
        }
    }
}

/// The names of an arm's route and of the arm, as lines have them.
fn names(arm: Option<&Arm>) -> (Option<&str>, Option<&str>) {
    let route = arm.map(|arm| arm.route_name.as_str());
    (route, arm.and_then(|arm| arm.name.as_deref()))
}

/// Writes the lines of `rows`, all of them answered, in the given order, until they are as long as
/// `bytes_min` or the rows end.
pub fn lines(
    file: &str,
    steps: &[Step],
    rows: &mut impl Iterator<Item = PendingRow>,
    bytes_min: usize,
) -> Lines {
    let mut lines = Lines::default();
    while lines.results.len() + lines.errors.len() < bytes_min
        && let Some(row) = rows.next()
    {
        lines.add(file, steps, row);
    }
    lines
}

/// A number without a JSON form must end as a row error whoever sent it, or the line is invalid.
fn finite(steps: &[Step], ending: Ending) -> Result<Ending, RowError> {
    let Ending::Answered(predictions) = &ending else {
        return Ok(ending);
    };
    match predictions
        .iter()
        .position(|prediction| !prediction.is_finite())
    {
        None => Ok(ending),
        Some(index) => Err(RowError {
            step: Some(steps[index].name.clone()),
            ..RowError::not_finite()
        }),
    }
}

/// Adds a line. Returns where it stands, without its newline.
fn push(lines: &mut Vec<u8>, line: &impl Serialize) -> Range<usize> {
    let start = lines.len();
    serde_json::to_writer(&mut *lines, line).expect("a line always serialises into memory");
    let end = lines.len();
    lines.push(b'\n');
    start..end
}

/// [`millrace_protocol::result::ResultLine`], borrowed, so that no vector is copied.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    id: Option<&'a str>,
    position: PositionRef<'a>,
    result: Results<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate_of: Option<&'a DuplicateOf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a RawValue>,
}

/// [`Position`], borrowed.
#[derive(Serialize)]
struct PositionRef<'a> {
    file: &'a str,
    #[serde(flatten)]
    place: Place,
}

struct Results<'a> {
    steps: &'a [Step],
    ending: &'a Ending,
}

impl Serialize for Results<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.ending {
            Ending::Carried(results) => results.serialize(serializer),
            Ending::Answered(predictions) => {
                let entries = self.steps.iter().zip(predictions);
                serializer.collect_map(entries.map(|(step, said)| (&step.name, Untagged(said))))
            }
            Ending::Joined(joined) => {
                let entries = self.steps.iter().zip(joined);
                serializer.collect_map(entries.map(|(step, joined)| (&step.name, OfText(joined))))
            }
        }
    }
}

/// What a step made of a text.
struct OfText<'a>(&'a Joined);

impl Serialize for OfText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct OfChunk<'a> {
            start: u32,
            end: u32,
            result: Untagged<'a>,
        }
        match self.0 {
            Joined::One(prediction) => Untagged(prediction).serialize(serializer),
            Joined::List(chunks) => serializer.collect_seq(chunks.iter().map(|chunk| OfChunk {
                start: chunk.start,
                end: chunk.end,
                result: Untagged(&chunk.prediction),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::result::ResultLine;
    use millrace_protocol::row::Row;

    use millrace_protocol::row::RowErrorCode;

    use super::*;

    fn step(name: &str) -> Step {
        Step {
            name: name.to_owned(),
            model: name.to_owned(),
            prompt: None,
        }
    }

    fn all_lines(steps: &[Step], rows: Vec<PendingRow>) -> Lines {
        lines("file:///a", steps, &mut rows.into_iter(), usize::MAX)
    }

    fn pending(offset: u64, outcome: RowOutcome) -> PendingRow {
        let row = Row {
            place: Place::Offset { offset },
            id: Some(format!("row-{offset}")),
            text: "a text".to_owned(),
            prompted: None,
            filtered: None,
            input: None,
        };
        let (mut pending, text) = PendingRow::split(ReadRow::Row(row), None);
        assert_eq!(text.as_deref(), Some("a text"));
        pending.answer(outcome);
        pending
    }

    #[test]
    fn a_result_line_holds_every_step_under_its_name() {
        let steps = [step("embed"), step("again")];
        let vector = |value| Prediction::Embedding(vec![value, 0.5]);
        let lines = all_lines(&steps, vec![pending(7, Ok(vec![vector(1.0), vector(2.0)]))]);
        let text = String::from_utf8(lines.results).unwrap();
        assert_eq!(
            text,
            "{\"id\":\"row-7\",\"position\":{\"file\":\"file:///a\",\"offset\":7},\
             \"result\":{\"embed\":[1.0,0.5],\"again\":[2.0,0.5]}}\n"
        );
        serde_json::from_str::<ResultLine>(&text).unwrap();
    }

    #[test]
    fn nan_ends_as_a_row_error_that_names_its_step() {
        let steps = [step("good"), step("bad")];
        let predictions = vec![
            Prediction::Embedding(vec![1.0]),
            Prediction::Embedding(vec![f32::NAN]),
        ];
        let lines = all_lines(&steps, vec![pending(0, Ok(predictions))]);
        assert!(lines.results.is_empty());
        let error: ErrorLine = serde_json::from_slice(&lines.errors).unwrap();
        assert_eq!(error.error.code, RowErrorCode::NotFinite);
        assert_eq!(error.error.step.as_deref(), Some("bad"));
    }

    #[test]
    fn lines_come_in_slices_and_lose_no_row() {
        let steps = [step("embed")];
        let vector = || Ok(vec![Prediction::Embedding(vec![0.5; 8])]);
        let rows = || -> Vec<_> { (0..10).map(|offset| pending(offset, vector())).collect() };
        let whole = all_lines(&steps, rows()).results;
        let mut rest = rows().into_iter();
        let mut slices = Vec::new();
        while rest.len() > 0 {
            slices.push(lines("file:///a", &steps, &mut rest, 200).results);
        }
        assert!(slices.len() > 2, "{} slices", slices.len());
        assert_eq!(slices.concat(), whole);
    }
}
