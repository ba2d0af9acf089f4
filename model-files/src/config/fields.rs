//! Typed access to the fields of a `config.json`.

use serde_json::{Map, Value};

use super::ConfigError;

/// Typed access to the fields of the file, with errors that name them.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The field's value; null counts as absent.
    pub(super) fn get(&self, field: &'static str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, field: &'static str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ConfigError::WrongType {
                field,
                expected: "a string",
            }),
        }
    }

    pub(super) fn required_text(&self, field: &'static str) -> Result<&'a str, ConfigError> {
        self.text(field)?.ok_or(ConfigError::Missing { field })
    }

    pub(super) fn flag(&self, field: &'static str) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(ConfigError::WrongType {
                field,
                expected: "true or false",
            }),
        }
    }

    /// A whole number from `min` to `max`; `default` where the field is absent.
    pub(super) fn number(
        &self,
        field: &'static str,
        default: Option<u64>,
        min: u64,
        max: u64,
    ) -> Result<usize, ConfigError> {
        let number = match self.get(field) {
            None => {
                return default
                    .map(|n| n as usize)
                    .ok_or(ConfigError::Missing { field });
            }
            Some(Value::Number(number)) => number,
            Some(_) => {
                return Err(ConfigError::WrongType {
                    field,
                    expected: "a whole number",
                });
            }
        };
        match number.as_u64() {
            Some(value) if (min..=max).contains(&value) => Ok(value as usize),
            _ => Err(ConfigError::OutOfRange {
                field,
                got: number.to_string(),
                min,
                max,
            }),
        }
    }

    pub(super) fn epsilon(&self, field: &'static str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        let Some(epsilon) = value.as_f64() else {
            return Err(ConfigError::WrongType {
                field,
                expected: "a number",
            });
        };
        if !(0.0..=1.0).contains(&epsilon) {
            return Err(ConfigError::OutOfRange {
                field,
                got: value.to_string(),
                min: 0,
                max: 1,
            });
        }
        Ok(epsilon)
    }
}
