//! Which fields the answers of a step can have, as far as that is known before anybody is asked. Pure.

use std::collections::BTreeMap;

use millrace_crds::InferenceService;
use millrace_crds::inference_service::Task;
use serde_json::{Map, Value};

use super::Step;
use crate::expression::Expression;

/// What each label of a classifier has.
const OF_LABELS: [&str; 2] = ["label", "score"];
/// What each entity of a model of tokens has.
const OF_ENTITIES: [&str; 5] = ["entity", "score", "start", "end", "word"];

/// What an answer, or a part of one, is made of.
enum Shape {
    /// Nobody knows.
    Unknown,
    /// Numbers, a text or the like, which have no fields.
    Plain,
    /// A list.
    List(Box<Shape>),
    /// An object of these fields and no others.
    Object(BTreeMap<String, Shape>),
}

/// What is wrong with a condition on the answers of these steps of a service: a field that no answer has.
pub(super) fn unknown_field(
    when: &Expression,
    steps: &[Step],
    service: &InferenceService,
) -> Option<String> {
    when.paths().iter().find_map(|path| {
        let (name, rest) = path.split_first()?;
        let step = steps.iter().find(|step| step.name == *name)?;
        shape(step, service).refuses(name, rest)
    })
}

fn shape(step: &Step, service: &InferenceService) -> Shape {
    if let Some(schema) = step
        .prompt
        .as_ref()
        .and_then(|it| it.output_schema.as_ref())
    {
        return of_schema(schema);
    }
    let models = &service.spec.models;
    let Some(model) = models.iter().find(|model| model.name == step.model) else {
        return Shape::Unknown;
    };
    let object = |fields: &[&str]| {
        let fields = fields.iter().map(|name| ((*name).to_owned(), Shape::Plain));
        Shape::Object(fields.collect())
    };
    let of_each = match model.task {
        Task::SequenceClassification => object(&OF_LABELS),
        Task::TokenClassification => object(&OF_ENTITIES),
        Task::Embedding | Task::TorchScript => Shape::Plain,
    };
    Shape::List(Box::new(of_each))
}

/// What a JSON schema says of a value; nothing where it allows fields that it does not name.
fn of_schema(schema: &Map<String, Value>) -> Shape {
    let of = |value: &Value| value.as_object().map_or(Shape::Unknown, of_schema);
    // Fields by patterns and items by places are names and shapes that stand elsewhere.
    if schema.contains_key("patternProperties") || schema.contains_key("prefixItems") {
        return Shape::Unknown;
    }
    let is_closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    let kind = schema.get("type").and_then(Value::as_str);
    match (kind, schema.get("properties"), schema.get("items")) {
        (Some("object"), Some(Value::Object(fields)), _) if is_closed => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), of(value)));
            Shape::Object(fields.collect())
        }
        (Some("array"), _, Some(items)) => Shape::List(Box::new(of(items))),
        (Some("string" | "number" | "integer" | "boolean"), _, _) => Shape::Plain,
        _ => Shape::Unknown,
    }
}

impl Shape {
    /// Why there is nothing at `path` below `place`.
    fn refuses(&self, place: &str, path: &[String]) -> Option<String> {
        let (next, rest) = path.split_first()?;
        let is_item = next == Expression::ITEM;
        match self {
            Shape::Unknown => None,
            Shape::Plain => Some(format!("{place} has no fields")),
            Shape::List(items) if is_item => items.refuses(&format!("{place}[0]"), rest),
            Shape::List(_) => Some(format!(
                "{place} is a list, so that {place}.{next} is in no answer; write {place}[0]"
            )),
            Shape::Object(fields) => match fields.get(next) {
                Some(shape) => shape.refuses(&format!("{place}.{next}"), rest),
                None => {
                    let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                    let named = if is_item { "[0]" } else { &format!(".{next}") };
                    Some(format!(
                        "{place}{named} is in no answer; {place} has {}",
                        known.join(", ")
                    ))
                }
            },
        }
    }
}
