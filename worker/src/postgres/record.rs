//! Lines of parts and error files as rows of the table. Pure.

use std::collections::BTreeMap;
use std::error::Error;

use bytes::{BufMut, BytesMut};
use millrace_protocol::plan::RunNumber;
use millrace_protocol::result::{ErrorLine, ResultLine};
use millrace_protocol::row::Position;
use serde_json::value::RawValue;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::json::{acceptable, without_nul};
use super::table::{Column, Kind, Table};
use crate::store::INLINE_ROWS;

/// What all rows of a file have in common.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The output that the file belongs to.
    pub output: &'a str,
    /// The run that wrote it.
    pub run: RunNumber,
    /// Whether it holds errors instead of results.
    pub has_errors: bool,
}

/// A value of a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// None.
    Null,
    /// A text.
    Text(String),
    /// JSON.
    Json(String),
    /// A vector.
    Vector(Vec<f32>),
    /// A number of a run.
    Integer(i32),
}

/// The values of a line, one for each column that `table` is loaded with. What is wrong with a line is
/// said in words.
pub fn values(table: &Table, origin: Origin<'_>, line: &str) -> Result<Vec<Value>, String> {
    let bad = |error: serde_json::Error| error.to_string();
    if origin.has_errors {
        let line: ErrorLine = serde_json::from_str(line).map_err(bad)?;
        let mut error = (line.error.code.to_string(), line.error.message);
        let mut own = Own::new(origin, &line.position, line.id);
        let value = |column: &Column| match column.name.as_str() {
            "error_code" => Value::Text(std::mem::take(&mut error.0)),
            "error_message" => Value::Text(without_nul(std::mem::take(&mut error.1))),
            name => own.value(name),
        };
        return Ok(table.loaded().iter().map(value).collect());
    }
    let line: ResultLine = serde_json::from_str(line).map_err(bad)?;
    let of_steps: BTreeMap<String, &RawValue> =
        serde_json::from_str(line.result.get()).map_err(bad)?;
    let mut own = Own::new(origin, &line.position, line.id);
    let values = table.loaded().iter().map(|Column { name, kind }| {
        if let Some(said) = of_steps.get(name) {
            return match kind {
                Kind::Vector => {
                    let vector = serde_json::from_str(said.get());
                    let vector =
                        vector.map_err(|_| format!("the result of {name:?} is no vector"))?;
                    Ok(Value::Vector(vector))
                }
                _ => Ok(json(said)),
            };
        }
        match (name.as_str(), &line.input) {
            ("input", Some(input)) => Ok(json(input)),
            (name, _) => Ok(own.value(name)),
        }
    });
    values.collect()
}

fn json(raw: &RawValue) -> Value {
    Value::Json(acceptable(raw.get()).into_owned())
}

/// The values that do not depend on how a row ended.
struct Own<'a> {
    origin: Origin<'a>,
    key: String,
    id: Option<String>,
}

impl<'a> Own<'a> {
    fn new(origin: Origin<'a>, position: &Position, id: Option<String>) -> Self {
        // Rows that a manifest holds are told apart by the output, since all such have one name.
        let key = match position.file == INLINE_ROWS {
            true => format!("{}/{position}", origin.output),
            false => position.to_string(),
        };
        Self {
            origin,
            key: without_nul(key),
            id: id.map(without_nul),
        }
    }

    fn value(&mut self, column: &str) -> Value {
        match column {
            "row_key" => Value::Text(std::mem::take(&mut self.key)),
            "id" => self.id.take().map_or(Value::Null, Value::Text),
            "output" => Value::Text(self.origin.output.to_owned()),
            "run" => Value::Integer(self.origin.run as i32),
            _ => Value::Null,
        }
    }
}

impl ToSql for Value {
    fn to_sql(
        &self,
        column: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Text(text) => text.to_sql(column, out),
            Value::Json(json) => {
                // The version of the format of jsonb, and the JSON as text.
                out.put_u8(1);
                out.put_slice(json.as_bytes());
                Ok(IsNull::No)
            }
            Value::Vector(vector) => vector.to_sql(column, out),
            Value::Integer(number) => number.to_sql(column, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        // What a column holds is decided by its kind, on both sides.
        true
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use millrace_crds::SecretKeyRef;

    use super::*;
    use crate::job::{Postgres, StepColumn};

    fn table() -> Table {
        let step = |name: &str, is_vector| StepColumn {
            name: name.to_owned(),
            is_vector,
        };
        Table::new(&Postgres {
            secret: SecretKeyRef {
                name: "db".to_owned(),
                key: None,
            },
            schema: None,
            table: "texts".to_owned(),
            steps: vec![step("mood", false), step("vector", true)],
            has_input: true,
        })
    }

    fn origin(has_errors: bool) -> Origin<'static> {
        Origin {
            output: "s3://b/out",
            run: 2,
            has_errors,
        }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn a_result_and_an_error_fill_the_columns_of_the_table() {
        let line = r#"{"id":"a\u0000","position":{"file":"s3://b/in","offset":7},
            "result":{"mood":{"label":"good"},"vector":[0.5,-1]},"input":{"text":"x\u0000"}}"#;
        let values_of = |line, has_errors| values(&table(), origin(has_errors), line).unwrap();
        assert_eq!(
            values_of(line, false),
            [
                text("s3://b/in@7"),
                text("a\u{fffd}"),
                Value::Json(r#"{"label":"good"}"#.into()),
                Value::Vector(vec![0.5, -1.0]),
                Value::Json(r#"{"text":"x\ufffd"}"#.into()),
                Value::Null,
                Value::Null,
                text("s3://b/out"),
                Value::Integer(2),
            ]
        );
        let line = r#"{"id":null,"position":{"file":"inline:///rows.jsonl","offset":0},
            "error":{"code":"empty_text","message":"m"}}"#;
        assert_eq!(
            values_of(line, true),
            [
                text("s3://b/out/inline:///rows.jsonl@0"),
                Value::Null,
                Value::Null,
                Value::Null,
                Value::Null,
                text("empty_text"),
                text("m"),
                text("s3://b/out"),
                Value::Integer(2),
            ]
        );
    }

    #[test]
    fn a_vector_that_is_none_is_told() {
        let line = r#"{"id":null,"position":{"file":"f","offset":0},"result":{"vector":"x"}}"#;
        let error = values(&table(), origin(false), line).unwrap_err();
        assert!(error.contains("\"vector\""), "{error}");
    }
}
