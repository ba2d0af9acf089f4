//! Answers piece by piece, as server-sent events in the forms of OpenAI. Pure: says what is sent, not
//! when.

use axum::response::sse::Event;
use serde_json::{Value, json};

use crate::answer::Asked;
use crate::replies::{self, Said};

/// Characters in a piece.
const PIECE_CHARS: usize = 24;

/// The events of a chat completion.
pub fn chat(asked: &Asked, said: &Said) -> Vec<Event> {
    let chunk = |choices: Value, usage: Value| {
        let chunk = json!({
            "id": format!("chatcmpl-{}", said.id),
            "object": "chat.completion.chunk",
            "created": 0,
            "model": asked.model,
            "choices": choices,
            "usage": usage,
        });
        Event::default().data(chunk.to_string())
    };
    let choice = |delta: Value, finish: Value| {
        let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        chunk(choice, Value::Null)
    };
    let mut events = vec![choice(
        json!({"role": "assistant", "content": ""}),
        Value::Null,
    )];
    match &said.content {
        Ok(content) => events
            .extend(pieces(content).map(|piece| choice(json!({"content": piece}), Value::Null))),
        Err(refusal) => events.push(choice(json!({"refusal": refusal}), Value::Null)),
    }
    events.push(choice(json!({}), json!("stop")));
    if asked.is_usage_streamed {
        events.push(chunk(json!([]), replies::chat_usage(asked, said)));
    }
    events.push(Event::default().data("[DONE]"));
    events
}

/// The events of a response.
pub fn response(asked: &Asked, said: &Said) -> Vec<Event> {
    let whole = replies::response(asked, said);
    let mut number = 0;
    let mut event = |kind: &str, mut fields: Value| {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(number);
        number += 1;
        Event::default().event(kind).data(fields.to_string())
    };
    let mut begun = whole.clone();
    begun["status"] = json!("in_progress");
    begun["output"] = json!([]);
    begun["usage"] = Value::Null;
    let place =
        json!({"item_id": format!("msg_{}", said.id), "output_index": 0, "content_index": 0});
    let with = |name: &str, value: Value| {
        let mut fields = place.clone();
        fields[name] = value;
        fields
    };
    let mut item = whole["output"][0].clone();
    item["status"] = json!("in_progress");
    item["content"] = json!([]);
    let empty = json!({"type": "output_text", "text": "", "annotations": []});
    let mut events = vec![
        event("response.created", json!({"response": begun})),
        event(
            "response.output_item.added",
            json!({"output_index": 0, "item": item}),
        ),
        event("response.content_part.added", with("part", empty)),
    ];
    match &said.content {
        Ok(content) => {
            for piece in pieces(content) {
                let mut fields = with("delta", json!(piece));
                fields["logprobs"] = json!([]);
                events.push(event("response.output_text.delta", fields));
            }
            let mut fields = with("text", json!(content));
            fields["logprobs"] = json!([]);
            events.push(event("response.output_text.done", fields));
        }
        Err(refusal) => {
            events.push(event(
                "response.refusal.delta",
                with("delta", json!(refusal)),
            ));
            events.push(event(
                "response.refusal.done",
                with("refusal", json!(refusal)),
            ));
        }
    }
    let part = whole["output"][0]["content"][0].clone();
    events.push(event("response.content_part.done", with("part", part)));
    let item = whole["output"][0].clone();
    let done = json!({"output_index": 0, "item": item});
    events.push(event("response.output_item.done", done));
    events.push(event("response.completed", json!({"response": whole})));
    events
}

fn pieces(content: &str) -> impl Iterator<Item = String> {
    let characters: Vec<char> = content.chars().collect();
    let pieces: Vec<String> = characters
        .chunks(PIECE_CHARS)
        .map(|piece| piece.iter().collect())
        .collect();
    pieces.into_iter()
}
