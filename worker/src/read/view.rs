//! A row that borrows from the bytes it was read from, and the checks that every format shares.

use std::borrow::Cow;

use millrace_protocol::row::{Place, ReadRow, Row, RowError, RowErrorCode};
use serde_json::value::RawValue;

use crate::filter::{Filter, Verdict};
use crate::job::Fields;
use crate::normalize::Normalizer;
use crate::order::Order;

/// A row for the models. Borrows where the bytes need no unescaping.
#[derive(Debug)]
pub(crate) struct RowView<'a> {
    /// Value of the id field, if the job names one.
    pub(crate) id: Option<Cow<'a, str>>,
    /// The text, never empty.
    pub(crate) text: Cow<'a, str>,
    /// What else of the row is wanted.
    pub(crate) beside: Beside,
}

impl RowView<'_> {
    /// What a filter makes of the row.
    pub(crate) fn verdict(&self, filter: &Filter) -> Verdict {
        let fields = self.beside.filtered.as_ref().map(|fields| fields.get());
        filter.verdict(Ok(&self.text), fields)
    }

    /// The class of the row.
    pub(crate) fn class(&self, order: &Order) -> u8 {
        let fields = self.beside.filtered.as_ref().map(|fields| fields.get());
        order.class(fields)
    }
}

/// What is wanted of a row beside its text, each as one JSON object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beside {
    /// The joined fields, if the job joins any.
    pub(crate) input: Option<Box<RawValue>>,
    /// The fields that prompts name, if the job has prompts.
    pub(crate) prompted: Option<Box<RawValue>>,
    /// The fields that the filter, the order or routes name, if they name any.
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
        Ok(RowView { id, text, beside }) => {
            let Beside {
                input,
                prompted,
                filtered,
            } = beside;
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
                    beside: Beside {
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
    /// Fields beside the text, each once, whatever they are for.
    pub(crate) join: Vec<JoinedField>,
    /// Which of them go into the result line, in the order in which they are written.
    joined: Vec<usize>,
    /// Which go into prompts. Their order decides what is asked, so it is the prompts' own.
    prompted: Vec<usize>,
    /// Which go to the filter.
    filtered: Vec<usize>,
    /// How the text is written wherever it goes but into the result line.
    normalize: Option<Normalizer>,
}

/// A field for the result line, for prompts or for the filter.
#[derive(Debug, Clone)]
pub(crate) struct JoinedField {
    /// Its name.
    pub(crate) name: String,
    /// Its name as a JSON string with the colon behind it.
    key: String,
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
            normalize,
        } = fields;
        let mut wanted = Self {
            id: id.clone(),
            text: text.clone(),
            join: Vec::new(),
            joined: Vec::new(),
            prompted: Vec::new(),
            filtered: Vec::new(),
            normalize: *normalize,
        };
        wanted.joined = wanted.places(join);
        wanted.prompted = wanted.places(prompted);
        wanted.filtered = wanted.places(filtered);
        wanted
    }

    /// What the field that holds the text is there for.
    pub(crate) fn role_of_text(&self) -> &'static str {
        let is_text = |&place: &usize| self.join[place].name == self.text;
        match self.prompted.iter().any(is_text) {
            true => "a prompt names",
            false => "holds the text",
        }
    }

    /// Where the fields of these names stand, each once; they are added where they are missing.
    fn places(&mut self, names: &[String]) -> Vec<usize> {
        let mut places = Vec::with_capacity(names.len());
        for name in names {
            let place = self.place(name);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    fn place(&mut self, name: &str) -> usize {
        let found = self.join.iter().position(|field| field.name == *name);
        found.unwrap_or_else(|| {
            self.join.push(JoinedField {
                name: name.to_owned(),
                key: format!("{}:", serde_json::Value::from(name)),
            });
            self.join.len() - 1
        })
    }

    /// What is wanted of a row with these `values` of the fields in [`Self::join`]. `text` is its text
    /// where that is another one than stands there.
    pub(crate) fn beside<V: AsRef<str>>(&self, values: &[Option<V>], text: Option<&str>) -> Beside {
        let input = self.object(values, &self.joined);
        let Some(text) = text.filter(|_| self.join.iter().any(|field| field.name == self.text))
        else {
            return Beside {
                input,
                prompted: self.object(values, &self.prompted),
                filtered: self.object(values, &self.filtered),
            };
        };
        let text = serde_json::Value::from(text).to_string();
        let fields = self.join.iter().zip(values);
        let values = fields.map(|(field, value)| match value {
            Some(_) if field.name == self.text => Some(text.as_str()),
            value => value.as_ref().map(V::as_ref),
        });
        let values: Vec<_> = values.collect();
        Beside {
            input,
            prompted: self.object(&values, &self.prompted),
            filtered: self.object(&values, &self.filtered),
        }
    }

    /// What is wanted of a row that is its text alone.
    pub(crate) fn beside_text(&self, text: &str) -> Beside {
        if self.join.is_empty() {
            return Beside::default();
        }
        let value = |field: &JoinedField| {
            let is_text = field.name == self.text;
            is_text.then(|| serde_json::Value::from(text).to_string())
        };
        let values: Vec<_> = self.join.iter().map(value).collect();
        Beside {
            input: None,
            ..self.beside(&values, None)
        }
    }

    /// Checks an id and a text that were found, and writes the text as the job wants it; `beside` gets
    /// the text where that is another one than stands in the row.
    pub(crate) fn row<'a>(
        &self,
        id: Option<Cow<'a, str>>,
        text: Result<Cow<'a, str>, RowError>,
        beside: impl FnOnce(Option<&str>) -> Beside,
    ) -> Result<RowView<'a>, Refused> {
        let Some(normalizer) = &self.normalize else {
            return row(id, text, || beside(None));
        };
        let written = text.and_then(|text| normalizer.apply(text));
        let again = written.as_ref().ok().map(|text| text.to_string());
        row(id, written, || beside(again.as_deref()))
    }

    /// The fields at these places as one JSON object: those that the row has. `None` if there are no
    /// places.
    fn object<V: AsRef<str>>(
        &self,
        values: &[Option<V>],
        places: &[usize],
    ) -> Option<Box<RawValue>> {
        if places.is_empty() {
            return None;
        }
        let mut object = String::from("{");
        for &place in places {
            if let Some(value) = &values[place] {
                if object.len() > 1 {
                    object.push(',');
                }
                object.push_str(&self.join[place].key);
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

fn row<'a>(
    id: Option<Cow<'a, str>>,
    text: Result<Cow<'a, str>, RowError>,
    beside: impl FnOnce() -> Beside,
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
            beside: beside(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_does_not_depend_on_what_is_joined() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let asked = |join: &[&str]| {
            let wanted = Wanted::new(&Fields {
                text: "body".to_owned(),
                join: names(join),
                prompted: names(&["title", "body"]),
                filtered: names(&["stars"]),
                ..Fields::default()
            });
            let value = |field: &JoinedField| Some(format!("\"{}\"", field.name));
            let values: Vec<_> = wanted.join.iter().map(value).collect();
            wanted
                .beside(&values, None)
                .prompted
                .map(|it| it.get().to_owned())
        };
        let expected = Some(r#"{"title":"title","body":"body"}"#.to_owned());
        for join in [&[][..], &["body"], &["other", "body", "title"]] {
            assert_eq!(asked(join), expected, "{join:?}");
        }
    }

    #[test]
    fn prompts_and_filter_get_the_normalized_text_and_the_result_line_what_stands_in_the_input() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let normalize = serde_json::from_str(r#"{"whitespace": "Collapse", "lowercase": true}"#);
        let wanted = Wanted::new(&Fields {
            text: "body".to_owned(),
            join: names(&["body"]),
            prompted: names(&["title", "body"]),
            filtered: names(&["body"]),
            normalize: Some(Normalizer::new(&normalize.unwrap(), 100)),
            ..Fields::default()
        });
        let line = r#"{"title":"The  Mill","body":" It  GRINDS\n"}"#;
        let row = crate::read::jsonl::parse(line.as_bytes(), &wanted).unwrap();
        let get = |fields: &Option<Box<RawValue>>| fields.as_ref().unwrap().get().to_owned();
        assert_eq!(row.text, "it grinds");
        assert_eq!(get(&row.beside.input), r#"{"body":" It  GRINDS\n"}"#);
        let prompted = r#"{"title":"The  Mill","body":"it grinds"}"#;
        assert_eq!(get(&row.beside.prompted), prompted);
        assert_eq!(get(&row.beside.filtered), r#"{"body":"it grinds"}"#);
        let blank = crate::read::jsonl::parse(br#"{"body":"\u00a0"}"#, &wanted);
        assert_eq!(blank.unwrap_err().error.code, RowErrorCode::EmptyText);
    }
}
