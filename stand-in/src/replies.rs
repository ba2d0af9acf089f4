//! Answers and errors in the JSON of OpenAI. Pure.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::answer::Asked;

/// What was said to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Name of the call.
    pub id: String,
    /// What the model says; `Err` is why it refuses.
    pub content: Result<String, String>,
    /// Tokens of it.
    pub tokens: u64,
}

/// A chat completion.
pub fn chat(asked: &Asked, said: &Said) -> Value {
    let (content, refusal) = parts(said);
    json!({
        "id": format!("chatcmpl-{}", said.id),
        "object": "chat.completion",
        "created": 0,
        "model": asked.model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": content, "refusal": refusal},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": chat_usage(asked, said),
    })
}

/// The usage of a chat completion.
pub fn chat_usage(asked: &Asked, said: &Said) -> Value {
    json!({
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": said.tokens,
        "total_tokens": asked.prompt_tokens + said.tokens,
    })
}

/// A response.
pub fn response(asked: &Asked, said: &Said) -> Value {
    let content = match &said.content {
        Ok(text) => json!({"type": "output_text", "text": text, "annotations": []}),
        Err(refusal) => json!({"type": "refusal", "refusal": refusal}),
    };
    json!({
        "id": format!("resp_{}", said.id),
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "metadata": {},
        "model": asked.model,
        "output": [{
            "id": format!("msg_{}", said.id),
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [content],
        }],
        "parallel_tool_calls": true,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": asked.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked.prompt_tokens + said.tokens,
        },
    })
}

/// A list of embeddings.
pub fn embeddings(asked: &Asked, vectors: Vec<Vec<f32>>) -> Value {
    let entry = |(index, vector): (usize, Vec<f32>)| {
        let embedding = match asked.is_base64 {
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|it| it.to_le_bytes()).collect();
                json!(BASE64_STANDARD.encode(bytes))
            }
            false => json!(vector),
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    json!({
        "object": "list",
        "data": vectors.into_iter().enumerate().map(entry).collect::<Vec<_>>(),
        "model": asked.model,
        "usage": {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens},
    })
}

/// An error.
pub fn error(kind: &str, code: &str, message: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

fn parts(said: &Said) -> (Option<&str>, Option<&str>) {
    match &said.content {
        Ok(content) => (Some(content), None),
        Err(refusal) => (None, Some(refusal)),
    }
}
