//! A row that borrows from the bytes it was read from, and the checks that every format shares.

use std::borrow::Cow;

use millrace_protocol::row::{Place, ReadRow, Row, RowError, RowErrorCode};
use serde_json::value::RawValue;

use crate::filter::{Filter, Verdict};
use crate::job::Fields;

/// A row for the models. Borrows where the bytes need no unescaping.
#[derive(Debug)]
pub(crate) struct RowView<'a> {
    /// Value of the id field, if the job names one.
    pub(crate) id: Option<Cow<'a, str>>,
    /// The text, never empty.
    pub(crate) text: Cow<'a, str>,
    /// What else of the row is carried along.
    pub(crate) carried: Carried,
}

impl RowView<'_> {
    /// What is asked about the row: its text, or the fields that prompts are made of.
    pub(crate) fn asked(&self) -> &str {
        let prompted = self.carried.prompted.as_ref();
        prompted.map_or(&self.text, |fields| fields.get())
    }

    /// What a filter makes of the row.
    pub(crate) fn verdict(&self, filter: &Filter) -> Verdict {
        let fields = self.carried.filtered.as_ref().map(|fields| fields.get());
        filter.verdict(Ok(&self.text), fields)
    }
}

/// What is carried of a row beside its text, each as one JSON object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Carried {
    /// The joined fields, if the job joins any.
    pub(crate) input: Option<Box<RawValue>>,
    /// The fields that prompts name, if the job has prompts.
    pub(crate) prompted: Option<Box<RawValue>>,
    /// The fields that the filter names, if it names any.
    pub(crate) filtered: Option<Box<RawValue>>,
}

/// A row that cannot become one for the models.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Value of the id field where it could be read.
    pub(crate) id: Option<String>,
    /// Why. Never holds the row's text.
    pub(crate) error: RowError,
}

impl Refused {
    /// A row without a readable id.
    pub(crate) fn new(code: RowErrorCode, message: impl Into<String>) -> Self {
        Self {
            id: None,
            error: RowError::new(code, message),
        }
    }

    /// A row that is longer than allowed.
    pub(crate) fn too_long(row_bytes_max: usize) -> Self {
        let message = format!(
            "the row is longer than {row_bytes_max} bytes; raise input.maxRowBytes if it is meant to be"
        );
        Self::new(RowErrorCode::RowTooLong, message)
    }
}

/// Owns what a parser borrowed.
pub(crate) fn owned(place: Place, row: Result<RowView<'_>, Refused>) -> ReadRow {
    match row {
        Ok(RowView { id, text, carried }) => {
            let Carried {
                input,
                prompted,
                filtered,
            } = carried;
            ReadRow::Row(Row {
                place,
                id: id.map(Cow::into_owned),
                text: text.into_owned(),
                prompted,
                filtered,
                input,
            })
        }
        Err(Refused { id, error }) => ReadRow::Bad { place, id, error },
    }
}

/// Borrows what a parser owned, with the length of the text.
pub(crate) fn borrowed(row: &ReadRow) -> (u64, Result<RowView<'_>, Refused>) {
    match row {
        ReadRow::Row(Row {
            place: _,
            id,
            text,
            prompted,
            filtered,
            input,
        }) => {
            let id = id.as_deref().map(Cow::Borrowed);
            let text = Cow::Borrowed(text.as_str());
            (
                text.len() as u64,
                Ok(RowView {
                    id,
                    text,
                    carried: Carried {
                        input: input.clone(),
                        prompted: prompted.clone(),
                        filtered: filtered.clone(),
                    },
                }),
            )
        }
        ReadRow::Bad {
            place: _,
            id,
            error,
        } => (
            0,
            Err(Refused {
                id: id.clone(),
                error: error.clone(),
            }),
        ),
    }
}

/// The fields that a job names, ready for comparing and writing.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Field that becomes the id.
    pub(crate) id: Option<String>,
    /// Field that holds the text.
    pub(crate) text: String,
    /// Fields carried along, each once.
    pub(crate) join: Vec<JoinedField>,
}

/// A field carried into the result line, into prompts or to the filter.
#[derive(Debug, Clone)]
pub(crate) struct JoinedField {
    /// Its name.
    pub(crate) name: String,
    /// Its name as a JSON string with the colon behind it.
    key: String,
    is_joined: bool,
    is_prompted: bool,
    is_filtered: bool,
}

impl Wanted {
    /// Prepares a job's fields.
    pub(crate) fn new(fields: &Fields) -> Self {
        let Fields {
            id,
            text,
            join,
            prompted,
            filtered,
        } = fields;
        let mut wanted = Self {
            id: id.clone(),
            text: text.clone(),
            join: Vec::new(),
        };
        for name in join {
            wanted.field(name).is_joined = true;
        }
        for name in prompted {
            wanted.field(name).is_prompted = true;
        }
        for name in filtered {
            wanted.field(name).is_filtered = true;
        }
        wanted
    }

    /// The field of this name, which is added where it is missing.
    fn field(&mut self, name: &str) -> &mut JoinedField {
        let found = self.join.iter().position(|field| field.name == *name);
        let index = found.unwrap_or_else(|| {
            self.join.push(JoinedField {
                name: name.to_owned(),
                key: format!("{}:", serde_json::Value::from(name)),
                is_joined: false,
                is_prompted: false,
                is_filtered: false,
            });
            self.join.len() - 1
        });
        &mut self.join[index]
    }

    /// What is carried of a row with these `values` of the fields in [`Self::join`].
    pub(crate) fn carried<V: AsRef<str>>(&self, values: &[Option<V>]) -> Carried {
        Carried {
            input: self.object(values, |field| field.is_joined),
            prompted: self.object(values, |field| field.is_prompted),
            filtered: self.object(values, |field| field.is_filtered),
        }
    }

    /// What is carried of a row that is its text alone.
    pub(crate) fn carried_of_text(&self, text: &str) -> Carried {
        if self.join.is_empty() {
            return Carried::default();
        }
        let value = |field: &JoinedField| {
            let is_asked_for = field.is_prompted || field.is_filtered;
            let is_text = field.name == self.text && is_asked_for;
            is_text.then(|| serde_json::Value::from(text).to_string())
        };
        let values: Vec<_> = self.join.iter().map(value).collect();
        Carried {
            input: None,
            ..self.carried(&values)
        }
    }

    /// Some of the fields as one JSON object: those that the row has, in the job's order. `None` if
    /// the job wants none of them.
    fn object<V: AsRef<str>>(
        &self,
        values: &[Option<V>],
        is_in: impl Fn(&JoinedField) -> bool,
    ) -> Option<Box<RawValue>> {
        if !self.join.iter().any(&is_in) {
            return None;
        }
        let mut object = String::from("{");
        for (field, value) in self.join.iter().zip(values) {
            if let Some(value) = value.as_ref().filter(|_| is_in(field)) {
                if object.len() > 1 {
                    object.push(',');
                }
                object.push_str(&field.key);
                object.push_str(value.as_ref());
            }
        }
        object.push('}');
        Some(RawValue::from_string(object).expect("every value is JSON"))
    }
}

/// The bytes of a row as text.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, Refused> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let message = format!("byte {} of the row is not valid UTF-8", error.valid_up_to());
        Refused::new(RowErrorCode::InvalidUtf8, message)
    })?;
    // A NUL is valid UTF-8, but a text file with NULs is a binary one, or UTF-16.
    match memchr::memchr(0, bytes) {
        None => Ok(text),
        Some(at) => {
            let message =
                format!("byte {at} of the row is NUL; text in another encoding than UTF-8?");
            Err(Refused::new(RowErrorCode::InvalidUtf8, message))
        }
    }
}

/// Checks a text and an id that were found.
pub(crate) fn row<'a>(
    id: Option<Cow<'a, str>>,
    text: Result<Cow<'a, str>, RowError>,
    carried: impl FnOnce() -> Carried,
) -> Result<RowView<'a>, Refused> {
    let checked = text.and_then(|text| {
        if text.chars().all(char::is_whitespace) {
            return Err(RowError::new(RowErrorCode::EmptyText, "the text is empty"));
        }
        if memchr::memchr(0, text.as_bytes()).is_some() {
            let message = "the text has a NUL character; remove it";
            return Err(RowError::new(RowErrorCode::InvalidField, message));
        }
        Ok(text)
    });
    match checked {
        Ok(text) => Ok(RowView {
            id,
            text,
            carried: carried(),
        }),
        Err(error) => Err(Refused {
            id: id.map(Cow::into_owned),
            error,
        }),
    }
}

/// The id that a JSON value stands for: a string's characters, a number or boolean as written.
pub(crate) fn id_of_json<'a>(field: &str, json: Option<&'a str>) -> Result<Cow<'a, str>, RowError> {
    let missing = || {
        let message = format!("the row has no field {field:?}, which the job names as its id");
        RowError::new(RowErrorCode::MissingField, message)
    };
    let json = json.ok_or_else(missing)?;
    match json.as_bytes().first() {
        Some(b'"') => {
            let id: Cow<'a, str> = if memchr::memchr(b'\\', json.as_bytes()).is_none() {
                Cow::Borrowed(&json[1..json.len() - 1])
            } else {
                let id: String = serde_json::from_str(json).map_err(|_| {
                    let message = format!("field {field:?} is not a valid JSON string");
                    RowError::new(RowErrorCode::InvalidJson, message)
                })?;
                Cow::Owned(id)
            };
            Ok(id)
        }
        Some(b'n') | None => Err(missing()),
        Some(b'{' | b'[') => {
            let message = format!("field {field:?} is no string, number or boolean");
            Err(RowError::new(RowErrorCode::InvalidField, message))
        }
        Some(_) => Ok(Cow::Borrowed(json)),
    }
}
