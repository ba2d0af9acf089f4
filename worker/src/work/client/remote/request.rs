//! What is sent: one prompt as it is, several as a JSON object, with the instruction to answer each in
//! its place. Pure.

use millrace_crds::batch_job;
use millrace_crds::inference_service::RemoteApi;
use serde_json::{Map, Value, json};

/// What the model is told about several rows.
const SEVERAL: &str = "You get a JSON object with a list of rows. Answer each row's prompt by itself, as \
                       if you had got it alone. Reply with a JSON object with the list \"answers\", which \
                       has one entry for each row: its \"index\", and under \"answer\" what you say to it.";

/// What a step says beside the rows.
pub struct Prompt {
    system: Option<String>,
    schema: Option<Value>,
    output_tokens_max: Option<u64>,
    temperature: Option<f64>,
}

impl Prompt {
    pub fn new(prompt: Option<&batch_job::Prompt>) -> Self {
        let prompt = prompt.cloned();
        Self {
            system: prompt.as_ref().and_then(|it| it.system.clone()),
            schema: prompt
                .as_ref()
                .and_then(|it| it.output_schema.clone())
                .map(Value::Object),
            output_tokens_max: (prompt.as_ref())
                .and_then(|it| it.max_output_tokens)
                .map(u64::from),
            temperature: prompt.as_ref().and_then(|it| it.temperature),
        }
    }

    /// The schema of the answer to one row, if there is one.
    pub fn schema(&self) -> Option<&Value> {
        self.schema.as_ref()
    }

    fn system(&self, rows: usize) -> Option<String> {
        match (&self.system, rows) {
            (system, 1) => system.clone(),
            (None, _) => Some(SEVERAL.to_owned()),
            (Some(system), _) => Some(format!("{system}\n\n{SEVERAL}")),
        }
    }

    /// Name and schema of the whole answer, if it is to be JSON.
    fn format(&self, rows: usize) -> Option<(&'static str, Value)> {
        match rows {
            1 => Some(("answer", self.schema.clone()?)),
            _ => Some(("answers", several(self.schema.as_ref()))),
        }
    }

    fn output_tokens_max(&self, rows: usize) -> Option<u64> {
        self.output_tokens_max.map(|max| max * rows as u64)
    }
}

/// The schema of the answers to several rows.
fn several(schema: Option<&Value>) -> Value {
    let mut answer = schema.cloned().unwrap_or(json!({"type": "string"}));
    let mut whole = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["answers"],
    });
    // What references point at is looked for at the top.
    for definitions in ["$defs", "definitions"] {
        if let Some(found) = answer.as_object_mut().and_then(|it| it.remove(definitions)) {
            whole[definitions] = found;
        }
    }
    whole["properties"] = json!({"answers": {"type": "array", "items": {
        "type": "object",
        "properties": {"index": {"type": "integer"}, "answer": answer},
        "required": ["index", "answer"],
        "additionalProperties": false,
    }}});
    whole
}

/// Whether an API that holds a model to its schema takes this one.
fn is_strict(schema: &Value) -> bool {
    schema["additionalProperties"] == false
}

fn user(prompts: &[&str]) -> String {
    if let [prompt] = prompts {
        return (*prompt).to_owned();
    }
    let row = |(index, prompt): (usize, &&str)| json!({"index": index, "prompt": prompt});
    let rows: Vec<Value> = prompts.iter().enumerate().map(row).collect();
    json!({"rows": rows}).to_string()
}

fn put(body: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}

/// The body for `/chat/completions`.
pub fn chat(model: &str, prompt: &Prompt, prompts: &[&str]) -> Value {
    let system = prompt.system(prompts.len());
    let mut messages: Vec<Value> = system
        .map(|system| json!({"role": "system", "content": system}))
        .into_iter()
        .collect();
    messages.push(json!({"role": "user", "content": user(prompts)}));
    let mut body = Map::new();
    put(&mut body, "model", Some(model));
    put(&mut body, "messages", Some(messages));
    let format = prompt.format(prompts.len()).map(|(name, schema)| {
        let strict = is_strict(&schema);
        json!({"type": "json_schema", "json_schema": {"name": name, "strict": strict, "schema": schema}})
    });
    put(&mut body, "response_format", format);
    put(
        &mut body,
        "max_completion_tokens",
        prompt.output_tokens_max(prompts.len()),
    );
    put(&mut body, "temperature", prompt.temperature);
    Value::Object(body)
}

/// The body for `/responses`. Nothing is kept at the API.
pub fn responses(model: &str, prompt: &Prompt, prompts: &[&str]) -> Value {
    let mut body = Map::new();
    put(&mut body, "model", Some(model));
    put(&mut body, "instructions", prompt.system(prompts.len()));
    put(&mut body, "input", Some(user(prompts)));
    put(&mut body, "store", Some(false));
    let format = prompt.format(prompts.len()).map(|(name, schema)| {
        let strict = is_strict(&schema);
        json!({"format": {"type": "json_schema", "name": name, "strict": strict, "schema": schema}})
    });
    put(&mut body, "text", format);
    put(
        &mut body,
        "max_output_tokens",
        prompt.output_tokens_max(prompts.len()),
    );
    put(&mut body, "temperature", prompt.temperature);
    Value::Object(body)
}

/// The body for `/embeddings`.
pub fn embeddings(model: &str, prompts: &[&str]) -> Value {
    json!({"model": model, "input": prompts, "encoding_format": "float"})
}

/// The same request for an answer piece by piece, which says in the end what it took.
pub fn streamed(api: RemoteApi, mut body: Value) -> Value {
    body["stream"] = json!(true);
    if api == RemoteApi::Chat {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(spec: Value) -> Prompt {
        Prompt::new(Some(&serde_json::from_value(spec).unwrap()))
    }

    #[test]
    fn one_prompt_travels_as_it_is() {
        let plain = prompt(json!({"system": "Be brief.", "maxOutputTokens": 9}));
        let body = chat("m", &plain, &["Hello"]);
        let expected = json!({"model": "m", "max_completion_tokens": 9, "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ]});
        assert_eq!(body, expected);
    }

    #[test]
    fn an_answer_in_pieces_is_asked_for_with_what_it_took() {
        let body = |api| streamed(api, json!({"model": "m"}));
        let asked = json!({"model": "m", "stream": true});
        assert_eq!(body(RemoteApi::Responses), asked);
        let chat = body(RemoteApi::Chat);
        assert_eq!(chat["stream_options"], json!({"include_usage": true}));
    }

    #[test]
    fn several_prompts_are_asked_for_one_answer_each() {
        let schema = json!({"type": "object", "$defs": {"mood": {"type": "string"}}});
        let mood = prompt(json!({"outputSchema": schema, "maxOutputTokens": 9}));
        let body = responses("m", &mood, &["one", "two"]);
        assert_eq!(body["max_output_tokens"], 18);
        let user: Value = serde_json::from_str(body["input"].as_str().unwrap()).unwrap();
        assert_eq!(user["rows"][1], json!({"index": 1, "prompt": "two"}));
        let asked = &body["text"]["format"]["schema"];
        let items = &asked["properties"]["answers"]["items"]["properties"];
        assert_eq!(items["answer"], json!({"type": "object"}));
        assert_eq!(asked["$defs"], json!({"mood": {"type": "string"}}));
    }
}
