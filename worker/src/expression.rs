//! Expressions over the fields of rows and of answers. Pure.
//!
//! An expression comes from the job alone, is bounded in what it may compute, and reaches nothing but
//! the fields.

use millrace_protocol::row::{RowError, RowErrorCode};
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::prompt::{bounded, is_unknown};

/// Name of the expression among the templates.
const NAME: &str = "expression";

/// What is written where it is true.
const TRUE: &str = "true";

/// A Jinja expression, ready to be told.
#[derive(Debug, Clone)]
pub struct Expression {
    /// Holds the expression as a template.
    environment: Environment<'static>,
    /// The fields that it names, sorted.
    fields: Vec<String>,
    /// What it looks at in them.
    paths: Vec<Vec<String>>,
}

/// An expression cannot be told of these fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untold(ErrorKind);

impl Untold {
    /// What a row ends with whose fields they are. Says nothing of what stands in them.
    pub fn of_row(self, expression: &str) -> RowError {
        let message = format!("{expression} cannot be told of this row: {}", self.0);
        RowError::new(RowErrorCode::InvalidField, message)
    }
}

impl Expression {
    /// How any item of a list stands in a path.
    pub const ITEM: &str = "__item";

    /// Compiles an expression. What is wrong with one that cannot be used is said in a sentence.
    pub fn new(expression: &str) -> Result<Self, String> {
        let bad = |error: minijinja::Error| match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        };
        let mut environment = bounded();
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        // Alone first, so that it is one expression and nothing more.
        let compiled = environment.compile_expression(expression).map_err(bad)?;
        let fields = compiled.undeclared_variables(false);
        drop(compiled);
        let globals: Vec<&str> = environment.globals().map(|(name, _)| name).collect();
        let mut fields: Vec<String> = fields
            .into_iter()
            .filter(|name| !globals.contains(&name.as_str()))
            .collect();
        fields.sort();
        // The library follows attributes alone.
        let attributes = items_as_attributes(expression);
        let paths = match environment.compile_expression(&attributes) {
            Ok(compiled) => compiled.undeclared_variables(true),
            Err(_) => Default::default(),
        };
        let path = |path: String| path.split('.').map(str::to_owned).collect::<Vec<_>>();
        let mut paths: Vec<Vec<String>> = paths.into_iter().map(path).collect();
        paths.sort();
        let template = format!("{{% if {expression} %}}{TRUE}{{% endif %}}");
        environment
            .add_template_owned(NAME, template)
            .map_err(bad)?;
        let expression = Self {
            environment,
            fields,
            paths,
        };
        match expression.render(&Map::new()) {
            Err(error) if is_unknown(error.kind()) => Err(bad(error)),
            Ok(_) | Err(_) => Ok(expression),
        }
    }

    /// The fields that it names, sorted.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// What it looks at, as far as that can be told: a field and what follows it, such as `mood`,
    /// [`Expression::ITEM`], `score` for `mood[0].score`. Sorted.
    pub fn paths(&self) -> &[Vec<String>] {
        &self.paths
    }

    /// Whether it is true for a JSON object of the fields that it names. It is not where one of them is
    /// missing or null.
    pub fn is_true_for(&self, fields: &str) -> Result<bool, Untold> {
        let fields: Map<String, Value> =
            serde_json::from_str(fields).expect("the reader made it of fields");
        // Else what is absent would be less than any number, and another than any text.
        let is_there = |name: &String| fields.get(name).is_some_and(|value| !value.is_null());
        if !self.fields.iter().all(is_there) {
            return Ok(false);
        }
        self.is_true(&fields)
    }

    /// Whether it is true for these fields, where what is absent is less than any number.
    pub fn is_true(&self, fields: &Map<String, Value>) -> Result<bool, Untold> {
        let said = self.render(fields).map_err(|error| Untold(error.kind()))?;
        Ok(said == TRUE)
    }

    fn render(&self, fields: &Map<String, Value>) -> Result<String, minijinja::Error> {
        let template = self.environment.get_template(NAME);
        template.expect("it was added").render(Serde(fields))
    }
}

/// The expression with each number in brackets, outside of strings, as an attribute.
fn items_as_attributes(expression: &str) -> String {
    let mut written = String::new();
    let mut quote: Option<char> = None;
    let mut rest = expression;
    while let Some(next) = rest.chars().next() {
        let inside = rest.strip_prefix('[').and_then(|it| it.split_once(']'));
        let is_item = |inside: &str| {
            let digits = inside.trim().trim_start_matches('-');
            !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
        };
        // Behind a name or an item it picks one; elsewhere it is a list of its own.
        let follows = written.ends_with(|c: char| c.is_alphanumeric() || "_])".contains(c));
        match inside {
            Some((inside, after)) if quote.is_none() && follows && is_item(inside) => {
                written.push('.');
                written.push_str(Expression::ITEM);
                rest = after;
                continue;
            }
            _ => {}
        }
        match quote {
            Some(open) if open == next => quote = None,
            None if next == '"' || next == '\'' => quote = Some(next),
            Some(_) | None => {}
        }
        written.push(next);
        rest = &rest[next.len_utf8()..];
    }
    written
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_answer_lacks_is_less_than_any_number() {
        let expression = Expression::new("mood.score < 0.5 or labels[0].score < 0.5").unwrap();
        assert_eq!(expression.fields(), ["labels", "mood"]);
        for (mood, expected) in [
            (json!({"score": 0.7}), false),
            (json!({"score": 0.2}), true),
            (json!({}), true),
            (json!("unsure"), true),
        ] {
            let answer = json!({"mood": mood, "labels": [{"label": "a", "score": 0.9}]});
            let told = expression.is_true(answer.as_object().unwrap());
            assert_eq!(told, Ok(expected), "{answer}");
        }
    }

    #[test]
    fn what_is_looked_at_is_told_with_the_items_of_lists() {
        let expression =
            "mood[0].score < 0.5 or a.b.c == 'x[0].y' or 1 in [1] or all[-1]|length > 2";
        let expression = Expression::new(expression).unwrap();
        let paths: Vec<String> = expression.paths().iter().map(|it| it.join(".")).collect();
        assert_eq!(paths, ["a.b.c", "all.__item", "mood.__item.score"]);
    }

    #[test]
    fn a_text_is_measured_in_characters() {
        let expression = Expression::new("text|length < 4").unwrap();
        assert_eq!(expression.is_true_for(r#"{"text": "äöü"}"#), Ok(true));
        assert_eq!(expression.is_true_for(r#"{"text": "äöüß"}"#), Ok(false));
        assert_eq!(expression.is_true_for("{}"), Ok(false));
    }
}
