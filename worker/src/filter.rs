//! Which rows are asked about at all. Pure.
//!
//! A row that is left out on purpose is *skipped*: counted, and neither a result nor an error.

use std::sync::Arc;

use millrace_crds::batch_job;
use millrace_protocol::row::{ReadRow, Row, RowError, RowErrorCode};
use whatlang::Lang;

use crate::expression::Expression;

/// Most bytes of a text by which its language is told.
const LANGUAGE_BYTES_MAX: usize = 4 << 10;

/// Which rows are asked about; cheap to clone.
#[derive(Debug, Clone)]
pub struct Filter(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    chars_min: Option<usize>,
    languages: Vec<Lang>,
    expression: Option<Expression>,
}

/// Why a filter cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFilter {
    /// Field of the filter.
    pub field: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// What becomes of a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is asked about, or ends as the error that it is.
    Keep,
    /// It is left out.
    Skip,
    /// The filter cannot be told of it.
    Bad(RowError),
}

impl Filter {
    /// The filter of a job.
    pub fn new(spec: &batch_job::Filter) -> Result<Self, BadFilter> {
        let batch_job::Filter {
            min_chars,
            languages,
            expression,
        } = spec;
        let languages = languages.iter().flatten().map(|code| {
            Lang::from_code(code).ok_or_else(|| BadFilter {
                field: "languages",
                message: format!("{code:?} is not known; known are {}", known()),
            })
        });
        Ok(Self(Arc::new(Rules {
            chars_min: min_chars.map(|chars| chars as usize),
            languages: languages.collect::<Result<_, _>>()?,
            expression: (expression.as_deref())
                .map(Expression::new)
                .transpose()
                .map_err(|message| BadFilter {
                    field: "expression",
                    message,
                })?,
        })))
    }

    /// The fields that the expression names.
    pub fn fields(&self) -> &[String] {
        let expression = self.0.expression.as_ref();
        expression.map_or(&[], Expression::fields)
    }

    /// `rows` without those that are skipped, and how many these were. A row of which the filter
    /// cannot be told becomes an error. Computes away from the runtime's threads.
    pub async fn applied(&self, mut rows: Vec<ReadRow>) -> (Vec<ReadRow>, u64) {
        let filter = self.clone();
        let applying = move || {
            let skipped = filter.apply(&mut rows);
            (rows, skipped)
        };
        let applied = tokio::task::spawn_blocking(applying).await;
        applied.expect("a filter does not panic")
    }

    fn apply(&self, rows: &mut Vec<ReadRow>) -> u64 {
        let before = rows.len();
        rows.retain_mut(|row| match self.verdict_on(row) {
            Verdict::Keep => true,
            Verdict::Skip => false,
            Verdict::Bad(error) => {
                if let ReadRow::Row(Row { place, id, .. }) = row {
                    let (place, id) = (*place, id.take());
                    *row = ReadRow::Bad { place, id, error };
                }
                true
            }
        });
        (before - rows.len()) as u64
    }

    fn verdict_on(&self, row: &ReadRow) -> Verdict {
        match row {
            ReadRow::Row(row) => {
                let fields = row.filtered.as_ref().map(|fields| fields.get());
                self.verdict(Ok(&row.text), fields)
            }
            ReadRow::Bad { error, .. } => self.verdict(Err(error), None),
        }
    }

    /// What becomes of a row with this text, or which could not be read for this reason, and with
    /// these fields, a JSON object of those that the expression names.
    pub fn verdict(&self, text: Result<&str, &RowError>, fields: Option<&str>) -> Verdict {
        let text = match text {
            Ok(text) => text,
            Err(error) if error.code == RowErrorCode::EmptyText => "",
            Err(_) => return Verdict::Keep,
        };
        let Rules {
            chars_min,
            languages,
            expression,
        } = &*self.0;
        let is_short = |least| text.trim().chars().take(least).count() < least;
        if chars_min.is_some_and(is_short) {
            return Verdict::Skip;
        }
        if text.is_empty() {
            return Verdict::Keep;
        }
        let beginning = &text[..text.floor_char_boundary(LANGUAGE_BYTES_MAX)];
        if !languages.is_empty()
            && let Some(language) = whatlang::detect(beginning)
            && language.is_reliable()
            && !languages.contains(&language.lang())
        {
            return Verdict::Skip;
        }
        match expression {
            None => Verdict::Keep,
            Some(expression) => match expression.is_true_for(fields.unwrap_or("{}")) {
                Ok(true) => Verdict::Keep,
                Ok(false) => Verdict::Skip,
                Err(untold) => Verdict::Bad(untold.of_row("input.filter.expression")),
            },
        }
    }
}

fn known() -> String {
    let mut codes: Vec<&str> = Lang::all().iter().map(|lang| lang.code()).collect();
    codes.sort_unstable();
    codes.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn filter(spec: Value) -> Result<Filter, BadFilter> {
        Filter::new(&serde_json::from_value(spec).unwrap())
    }

    fn verdict(spec: Value, text: &str, fields: Value) -> Verdict {
        let fields = fields.to_string();
        filter(spec).unwrap().verdict(Ok(text), Some(&fields))
    }

    #[test]
    fn short_and_empty_texts_are_skipped_where_a_length_is_asked_for() {
        let spec = || json!({"minChars": 3});
        assert_eq!(verdict(spec(), " ab ", json!({})), Verdict::Skip);
        assert_eq!(verdict(spec(), "äöü", json!({})), Verdict::Keep);
        let empty = RowError::new(RowErrorCode::EmptyText, "the text is empty");
        let other = RowError::new(RowErrorCode::InvalidUtf8, "no text");
        let short = filter(spec()).unwrap();
        assert_eq!(short.verdict(Err(&empty), None), Verdict::Skip);
        assert_eq!(short.verdict(Err(&other), None), Verdict::Keep);
        let any = filter(json!({"languages": ["eng"]})).unwrap();
        assert_eq!(any.verdict(Err(&empty), None), Verdict::Keep);
    }

    #[test]
    fn a_text_in_another_language_is_skipped_and_one_that_cannot_be_told_is_kept() {
        let german = "Der Müller mahlt das Korn am Fluss, und das Wasser treibt die Mühle an.";
        let english = "The miller grinds the grain by the river, and the water drives the mill.";
        for (languages, text, expected) in [
            (json!(["eng"]), german, Verdict::Skip),
            (json!(["deu", "eng"]), german, Verdict::Keep),
            (json!(["eng"]), english, Verdict::Keep),
            (json!(["eng"]), "ok", Verdict::Keep),
        ] {
            let spec = json!({"languages": languages});
            assert_eq!(verdict(spec, text, json!({})), expected, "{text}");
        }
        let unknown = filter(json!({"languages": ["english"]})).unwrap_err();
        assert_eq!(unknown.field, "languages");
        assert!(unknown.message.contains("deu"), "{}", unknown.message);
    }

    #[test]
    fn an_expression_is_told_of_the_fields_that_it_names() {
        let spec = || json!({"expression": "stars > 3 and project.name == 'mill'"});
        assert_eq!(filter(spec()).unwrap().fields(), ["project", "stars"]);
        let row = |stars: Value, name: &str| json!({"stars": stars, "project": {"name": name}});
        assert_eq!(verdict(spec(), "a", row(json!(4), "mill")), Verdict::Keep);
        assert_eq!(verdict(spec(), "a", row(json!(3), "mill")), Verdict::Skip);
    }

    #[test]
    fn a_row_that_lacks_a_field_of_the_expression_is_skipped() {
        let spec = || json!({"expression": "stars <= 3 and project != 'test'"});
        for (row, expected) in [
            (json!({"stars": 2, "project": "mill"}), Verdict::Keep),
            (json!({"stars": 2}), Verdict::Skip),
            (json!({"stars": null, "project": "mill"}), Verdict::Skip),
            (json!({}), Verdict::Skip),
        ] {
            assert_eq!(verdict(spec(), "a", row.clone()), expected, "{row}");
        }
    }

    #[test]
    fn an_expression_is_one_expression_and_bounded() {
        for bad in [
            "a ==",
            "true %}{{ 1 }}{% if true",
            "{{ a }}",
            "stars|integer > 3",
            "len(text) > 3",
            "stars is positive",
        ] {
            let refused = filter(json!({"expression": bad})).unwrap_err();
            assert_eq!(refused.field, "expression", "{bad}");
        }
        let endless = json!({"expression": "range(9999)|map('upper')|list|length > 3"});
        let said = verdict(endless, "a", json!({}));
        assert!(!matches!(said, Verdict::Skip), "{said:?}");
        let wrong = json!({"expression": "a|int > 3"});
        let said = verdict(wrong, "a", json!({"a": "secret"}));
        let Verdict::Bad(error) = said else {
            panic!("{said:?}");
        };
        assert!(!error.message.contains("secret"), "{error}");
    }
}
