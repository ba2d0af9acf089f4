//! Prompts over the fields of rows. Pure.
//!
//! Templates come from the job alone; what stands in a row is data, and never becomes a template.
//! A template is bounded in what it may compute and write, and reaches nothing but the row.

use std::collections::BTreeSet;
use std::io;

use millrace_protocol::row::{RowError, RowErrorCode};
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

/// Instructions that one prompt may take: a loop over some thousand items.
const FUEL: u64 = 100_000;

/// Longest prompt of one row in bytes.
const PROMPT_BYTES_MAX: usize = 4 << 20;

/// Deepest nesting of calls in a template.
const RECURSION_MAX: usize = 32;

/// The prompts of a job's steps, ready to be made.
pub struct Prompts {
    environment: Environment<'static>,
    /// The template of each step that has one.
    templates: Vec<Option<String>>,
    text_field: String,
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTemplate {
    /// Index of the step.
    pub step: usize,
    /// What is wrong.
    pub message: String,
}

impl Prompts {
    /// Compiles the templates of the steps. A step without one asks with the row's text alone, which
    /// stands in `text_field`.
    pub fn new<'a>(
        templates: impl IntoIterator<Item = Option<&'a str>>,
        text_field: &str,
    ) -> Result<Self, BadTemplate> {
        let mut environment = bounded();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let mut names = Vec::new();
        for (step, template) in templates.into_iter().enumerate() {
            let name = step.to_string();
            if let Some(template) = template {
                let bad = |error: minijinja::Error| BadTemplate {
                    step,
                    message: explain(&error),
                };
                let added = environment.add_template_owned(name.clone(), template.to_owned());
                added.map_err(bad)?;
                let tried = environment.get_template(&name);
                let tried = tried.and_then(|it| it.render(Serde(&Map::new())));
                if let Err(error) = tried
                    && is_unknown(error.kind())
                {
                    return Err(bad(error));
                }
            }
            names.push(template.map(|_| name));
        }
        Ok(Self {
            environment,
            templates: names,
            text_field: text_field.to_owned(),
        })
    }

    /// The fields that templates name, in the order in which they do; none if there is no template.
    pub fn fields(&self) -> Vec<String> {
        let mut fields: Vec<String> = Vec::new();
        for name in self.templates.iter().flatten() {
            let template = self.template(name);
            let globals: Vec<&str> = self.environment.globals().map(|(name, _)| name).collect();
            let named = template.undeclared_variables(false).into_iter();
            let mut named: Vec<String> = named
                .filter(|name| !globals.contains(&name.as_str()))
                .collect();
            // The set has no order of its own.
            named.sort_by_key(|name| (template.source().find(name.as_str()), name.clone()));
            named.retain(|name| !fields.contains(name));
            fields.extend(named);
        }
        fields
    }

    /// The prompt of a step for one row, which is its text, or the JSON object of the fields that
    /// templates name where there are templates.
    pub fn render(&self, step: usize, row: &str) -> Result<String, RowError> {
        self.rendered(step, row).map_err(|error| row_error(&error))
    }

    /// The field for whose lack there is no prompt of a step for one row.
    pub fn lacking(&self, step: usize, row: &str) -> Option<String> {
        let error = self.rendered(step, row).err()?;
        match error.error.kind() {
            ErrorKind::UndefinedError => error.lacks,
            _ => None,
        }
    }

    fn rendered(&self, step: usize, row: &str) -> Result<String, NotRendered> {
        if self.templates.iter().all(Option::is_none) {
            return Ok(row.to_owned());
        }
        let mut fields: Map<String, Value> =
            serde_json::from_str(row).expect("the reader made it of fields");
        // A field without a value is one that the row lacks, and no text `none`.
        fields.retain(|_, value| !value.is_null());
        let Some(name) = self.templates[step].as_deref() else {
            let text = fields.get(&self.text_field).and_then(Value::as_str);
            return Ok(text.unwrap_or_default().to_owned());
        };
        let template = self.template(name);
        let mut written = Bounded::default();
        let rendered = template.render_captured_to(Serde(&fields), &mut written);
        if let Err(error) = rendered {
            let lacks = match error.kind() {
                ErrorKind::UndefinedError => self.lacked(&template, &fields),
                _ => None,
            };
            return Err(NotRendered { error, lacks });
        }
        Ok(String::from_utf8(written.bytes).expect("templates write text"))
    }

    /// The field for whose lack there is no prompt: there is none either with all others that are lacking, of
    /// which the template may know what to do without them.
    fn lacked(
        &self,
        template: &minijinja::Template<'_, '_>,
        fields: &Map<String, Value>,
    ) -> Option<String> {
        let globals: Vec<&str> = self.environment.globals().map(|(name, _)| name).collect();
        let is_lacking = |name: &String| {
            !fields.contains_key(name.as_str()) && !globals.contains(&name.as_str())
        };
        let named = template.undeclared_variables(false).into_iter();
        let lacking: BTreeSet<String> = named.filter(is_lacking).collect();
        let is_needed = |name: &&String| {
            let others = lacking.iter().filter(|other| other != name);
            let mut with_others = fields.clone();
            with_others.extend(others.map(|other| (other.clone(), Value::from(""))));
            let rendered =
                template.render_captured_to(Serde(&with_others), &mut Bounded::default());
            rendered.is_err_and(|error| error.kind() == ErrorKind::UndefinedError)
        };
        let needed = lacking.iter().find(is_needed);
        needed.or_else(|| lacking.first()).cloned()
    }

    fn template(&self, name: &str) -> minijinja::Template<'_, '_> {
        let template = self.environment.get_template(name);
        template.expect("it was added")
    }
}

/// Why there is no prompt for a row.
struct NotRendered {
    error: minijinja::Error,
    /// A field that the template names and the row has not.
    lacks: Option<String>,
}

/// Whether a template names a filter, a test or a function that there is for no row.
pub fn is_unknown(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction
    )
}

/// Where templates are bounded in what they compute.
pub fn bounded() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    environment
}

/// What is wrong with a row for a template. Says nothing of what stands in the row.
fn row_error(error: &NotRendered) -> RowError {
    let NotRendered { error, lacks } = error;
    let line = error.line().unwrap_or_default();
    match (error.kind(), lacks) {
        (ErrorKind::UndefinedError, Some(field)) => RowError::new(
            RowErrorCode::MissingField,
            format!("the row has no field {field:?}, which the prompt names"),
        ),
        (ErrorKind::WriteFailure, _) => RowError::new(
            RowErrorCode::TextTooLong,
            format!("the prompt is longer than {PROMPT_BYTES_MAX} bytes"),
        ),
        (ErrorKind::OutOfFuel, _) => RowError::new(
            RowErrorCode::InvalidField,
            format!("the prompt takes more than {FUEL} instructions (line {line})"),
        ),
        (kind, _) => RowError::new(
            RowErrorCode::InvalidField,
            format!("the prompt cannot be made of this row (line {line}): {kind}"),
        ),
    }
}

fn explain(error: &minijinja::Error) -> String {
    let line = error.line().unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("line {line}: {}: {detail}", error.kind()),
        None => format!("line {line}: {}", error.kind()),
    }
}

/// A buffer that takes no more than a prompt may have.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > PROMPT_BYTES_MAX {
            return Err(io::Error::other("the prompt is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(template: &str) -> Prompts {
        Prompts::new([Some(template)], "text").unwrap()
    }

    fn code(template: &str, row: &str) -> RowErrorCode {
        prompts(template).render(0, row).unwrap_err().code
    }

    #[test]
    fn fields_stand_where_the_template_names_them() {
        let prompts = prompts("{{ title }} by {{ author.name }}: {{ title|upper }}");
        assert_eq!(prompts.fields(), ["title", "author"]);
        let row = r#"{"title": "on mills", "author": {"name": "Ada"}}"#;
        let rendered = prompts.render(0, row).unwrap();
        assert_eq!(rendered, "on mills by Ada: ON MILLS");
    }

    #[test]
    fn what_stands_in_a_row_is_never_a_template() {
        let row = r#"{"text": "{{ 7 * 7 }}{% for x in y %}"}"#;
        let rendered = prompts("<{{ text }}>").render(0, row).unwrap();
        assert_eq!(rendered, "<{{ 7 * 7 }}{% for x in y %}>");
    }

    #[test]
    fn a_row_that_does_not_fit_ends_as_an_error_that_says_nothing_of_it() {
        let missing = prompts("{{ title }}").render(0, r#"{"text": "secret"}"#);
        let missing = missing.unwrap_err();
        assert_eq!(missing.code, RowErrorCode::MissingField);
        assert!(missing.message.contains("\"title\""), "{missing}");
        assert!(!missing.message.contains("secret"), "{missing}");
        let template = "{{ note | default('-') }}{{ title }}";
        let lacking = prompts(template).lacking(0, r#"{"text": "secret"}"#);
        assert_eq!(lacking.as_deref(), Some("title"));
        let whole = prompts("{{ title }}").lacking(0, r#"{"title": 1}"#);
        assert_eq!(whole, None);
    }

    #[test]
    fn a_template_is_bounded_in_what_it_computes_and_writes() {
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert_eq!(code(endless, "{}"), RowErrorCode::InvalidField);
        let row = format!(r#"{{"text": "{}"}}"#, "x".repeat(1 << 20));
        let long = "{{ text }}{{ text }}{{ text }}{{ text }}{{ text }}";
        assert_eq!(code(long, &row), RowErrorCode::TextTooLong);
    }

    #[test]
    fn a_template_that_cannot_be_read_names_its_step_and_line() {
        let bad = Prompts::new([None, Some("a\n{{ b")], "text").err().unwrap();
        assert_eq!(bad.step, 1);
        assert!(bad.message.starts_with("line 2"), "{}", bad.message);
    }

    #[test]
    fn a_template_with_an_unknown_filter_is_refused_before_any_row() {
        let bad = Prompts::new([Some("{{ title | nope }}")], "text");
        let bad = bad.err().expect("there is no such filter");
        assert!(bad.message.contains("nope"), "{}", bad.message);
    }

    #[test]
    fn a_field_that_is_null_is_one_that_the_row_lacks() {
        assert_eq!(
            code("{{ a }}", r#"{"a": null}"#),
            RowErrorCode::MissingField
        );
        let rendered = prompts("{{ a | default('-') }}").render(0, r#"{"a": null}"#);
        assert_eq!(rendered.unwrap(), "-");
    }

    #[test]
    fn without_a_template_the_text_is_the_prompt() {
        let plain = Prompts::new([None], "text").unwrap();
        assert_eq!(plain.render(0, "a {{ text }}").unwrap(), "a {{ text }}");
        let mixed = Prompts::new([None, Some("{{ n }}")], "text").unwrap();
        let row = r#"{"text": "a", "n": 1}"#;
        assert_eq!(mixed.render(0, row).unwrap(), "a");
        assert_eq!(mixed.render(1, row).unwrap(), "1");
    }
}
