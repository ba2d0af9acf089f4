//! What is asked in a request of any of the three endpoints, and what is said to it. Pure.

use serde_json::{Value, json};

use crate::schema;

/// A request, as far as an answer depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The model that is named.
    pub model: String,
    /// The texts of its rows: one prompt, the items of a prompt that is a JSON array or holds one, or
    /// the inputs of an embedding.
    pub rows: Vec<String>,
    /// Tokens of all that is asked.
    pub prompt_tokens: u64,
    /// The schema of the answer, if one is asked for.
    pub schema: Option<Value>,
    /// Whether the answer is streamed.
    pub is_streamed: bool,
    /// Whether the stream of a chat completion says the usage.
    pub is_usage_streamed: bool,
    /// Whether embeddings travel as base64.
    pub is_base64: bool,
}

/// About four bytes of text are a token.
pub fn tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

/// What `/v1/chat/completions` was asked.
pub fn chat(body: &Value) -> Result<Asked, &'static str> {
    let messages = body["messages"].as_array();
    let messages = messages.filter(|it| !it.is_empty());
    let messages = messages.ok_or("messages must be an array with at least one message")?;
    let format = &body["response_format"];
    let schema = match format["type"].as_str() {
        Some("json_schema") => Some(format["json_schema"]["schema"].clone()),
        _ => None,
    };
    asked(body, messages, schema)
}

/// What `/v1/responses` was asked.
pub fn responses(body: &Value) -> Result<Asked, &'static str> {
    let mut messages = Vec::new();
    if let Some(instructions) = body["instructions"].as_str() {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match &body["input"] {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) if !items.is_empty() => messages.extend(items.iter().cloned()),
        _ => return Err("input must be a string or an array with at least one item"),
    }
    let format = &body["text"]["format"];
    let schema = match format["type"].as_str() {
        Some("json_schema") => Some(format["schema"].clone()),
        _ => None,
    };
    asked(body, &messages, schema)
}

/// What `/v1/embeddings` was asked.
pub fn embeddings(body: &Value) -> Result<Asked, &'static str> {
    let rows: Vec<String> = match &body["input"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(texts) => {
            let texts: Option<Vec<String>> = texts
                .iter()
                .map(|text| text.as_str().map(str::to_owned))
                .collect();
            texts.ok_or("input must hold strings")?
        }
        _ => return Err("input must be a string or an array of strings"),
    };
    match rows.len() {
        1..=2048 => {}
        _ => return Err("input must hold 1 to 2048 texts"),
    }
    Ok(Asked {
        model: model(body)?,
        prompt_tokens: rows.iter().map(|row| tokens(row)).sum(),
        rows,
        schema: None,
        is_streamed: false,
        is_usage_streamed: false,
        is_base64: body["encoding_format"] == "base64",
    })
}

fn asked(body: &Value, messages: &[Value], schema: Option<Value>) -> Result<Asked, &'static str> {
    let texts: Vec<String> = messages.iter().map(text).collect();
    let mut user = messages.iter().zip(&texts);
    let user = user.rfind(|(message, _)| message["role"] == "user");
    let (_, prompt) = user.ok_or("one message must be the user's")?;
    let format = schema
        .as_ref()
        .map_or(0, |schema| tokens(&schema.to_string()));
    Ok(Asked {
        model: model(body)?,
        rows: rows(prompt),
        prompt_tokens: texts.iter().map(|text| 3 + tokens(text)).sum::<u64>() + format,
        schema,
        is_streamed: body["stream"] == true,
        is_usage_streamed: body["stream_options"]["include_usage"] == true,
        is_base64: false,
    })
}

fn model(body: &Value) -> Result<String, &'static str> {
    let model = body["model"].as_str().filter(|model| !model.is_empty());
    Ok(model
        .ok_or("you must provide a model parameter")?
        .to_owned())
}

/// The text of a message, whose content is a string or a list of parts.
fn text(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect(),
        _ => String::new(),
    }
}

/// The rows that a prompt holds: the items of a JSON array, or of an array in a JSON object.
fn rows(prompt: &str) -> Vec<String> {
    let items = match serde_json::from_str(prompt) {
        Ok(Value::Array(items)) => Some(items),
        Ok(Value::Object(fields)) => fields.into_iter().find_map(|(_, value)| match value {
            Value::Array(items) => Some(items),
            _ => None,
        }),
        _ => None,
    };
    let of_item = |item: Value| match item {
        Value::String(text) => text,
        Value::Object(mut fields) => match fields.remove("prompt") {
            Some(Value::String(text)) => text,
            _ => Value::Object(fields).to_string(),
        },
        item => item.to_string(),
    };
    match items.filter(|items| !items.is_empty()) {
        Some(items) => items.into_iter().map(of_item).collect(),
        None => vec![prompt.to_owned()],
    }
}

impl Asked {
    /// What a model says.
    pub fn content(&self) -> String {
        match &self.schema {
            Some(schema) => schema::value(schema, &self.rows).to_string(),
            None => schema::words(&self.rows.join(" ")),
        }
    }

    /// A vector for each row.
    pub fn vectors(&self, dimensions: usize) -> Vec<Vec<f32>> {
        let vector = |row: &String| {
            let of = |place| schema::hash(&format!("{place} {row}")) % 1_000;
            (0..dimensions)
                .map(|place| of(place) as f32 / 1_000.0)
                .collect()
        };
        self.rows.iter().map(vector).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(content: &str) -> Asked {
        let body = json!({"model": "m", "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
        ]});
        chat(&body).unwrap()
    }

    #[test]
    fn a_prompt_is_one_row_unless_it_holds_an_array() {
        assert_eq!(prompt("Say {\"a\": 1}.").rows.len(), 1);
        let several =
            prompt(r#"{"rows": [{"index": 0, "prompt": "one"}, {"index": 1, "prompt": "two"}]}"#);
        assert_eq!(several.rows, ["one", "two"]);
    }

    #[test]
    fn chat_and_responses_ask_the_same() {
        let body = json!({"model": "m", "instructions": "Be brief.", "input": "Hello"});
        let asked = responses(&body).unwrap();
        assert_eq!(asked.rows, ["Hello"]);
        assert_eq!(asked.prompt_tokens, prompt("Hello").prompt_tokens);
    }

    #[test]
    fn what_no_request_can_lack_is_named() {
        assert!(chat(&json!({"model": "m"})).is_err());
        assert!(responses(&json!({"input": "a"})).is_err());
        assert!(embeddings(&json!({"model": "m", "input": []})).is_err());
    }
}
