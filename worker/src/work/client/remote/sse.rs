//! Puts an answer together that came piece by piece, as server-sent events. Pure.
//!
//! What comes of it is the answer that the API would have given whole, so that one reader reads both.

use millrace_crds::inference_service::RemoteApi;
use serde::Deserialize;
use serde_json::{Value, json};

/// Why a stream is no answer. What it said before is worth nothing: half of a text is not what was asked
/// for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// It ended before its answer did.
    Cut,
    /// The API says that it failed.
    Failed,
    /// It is not what its endpoint streams.
    Unreadable,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    response: Option<Value>,
}

/// The whole answer that these events make.
pub fn whole(api: RemoteApi, events: &[u8]) -> Result<Value, Broken> {
    let events = std::str::from_utf8(events).map_err(|_| Broken::Unreadable)?;
    match api {
        RemoteApi::Chat => chat(events),
        RemoteApi::Responses => response(events),
        // Nobody asks for vectors piece by piece.
        RemoteApi::Embeddings => Err(Broken::Unreadable),
    }
}

/// Deltas of the first choice, and the usage that comes last.
fn chat(events: &str) -> Result<Value, Broken> {
    let (mut content, mut refusal) = (None::<String>, None::<String>);
    let (mut finish, mut usage, mut is_done) = (None, None, false);
    for data in data_of(events) {
        if data == "[DONE]" {
            is_done = true;
            break;
        }
        let Chunk {
            choices,
            usage: counted,
            error,
        } = serde_json::from_str(&data).map_err(|_| Broken::Unreadable)?;
        if error.is_some() {
            return Err(Broken::Failed);
        }
        usage = counted.or(usage);
        for Choice {
            index,
            delta:
                Delta {
                    content: said,
                    refusal: refused,
                },
            finish_reason,
        } in choices
        {
            if index != 0 {
                continue;
            }
            for (whole, piece) in [(&mut content, said), (&mut refusal, refused)] {
                if let Some(piece) = piece {
                    whole.get_or_insert_default().push_str(&piece);
                }
            }
            finish = finish_reason.or(finish);
        }
    }
    // Some end without a word once the model has finished.
    if !is_done && finish.is_none() {
        return Err(Broken::Cut);
    }
    let message = json!({"content": content, "refusal": refusal});
    let choice = json!({"message": message, "finish_reason": finish});
    Ok(json!({"choices": [choice], "usage": usage}))
}

/// The response that the last event holds.
fn response(events: &str) -> Result<Value, Broken> {
    for data in data_of(events) {
        if data == "[DONE]" {
            break;
        }
        let Event { r#type, response } =
            serde_json::from_str(&data).map_err(|_| Broken::Unreadable)?;
        match r#type.as_str() {
            "response.completed" | "response.incomplete" => {
                return response.ok_or(Broken::Unreadable);
            }
            "response.failed" | "error" => return Err(Broken::Failed),
            _ => {}
        }
    }
    Err(Broken::Cut)
}

/// What each event carries. One that is not ended by an empty line was cut, and is left out.
fn data_of(events: &str) -> impl Iterator<Item = String> {
    let mut lines = events.lines();
    std::iter::from_fn(move || {
        let mut data: Option<String> = None;
        loop {
            let line = lines.next()?;
            if line.is_empty() {
                match data.take() {
                    Some(data) => return Some(data),
                    None => continue,
                }
            }
            // Names of events stand in their data too; comments keep a connection open.
            if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "\
        : a comment\n\n\
        data: {\"choices\": [{\"index\": 0, \"delta\": {\"role\": \"assistant\", \"content\": \"\"}}]}\n\n\
        data: {\"choices\": [{\"index\": 0, \"delta\": {\"content\": \"Good \"}}], \"usage\": null}\n\n\
        data: {\"choices\": [{\"index\": 1, \"delta\": {\"content\": \"another\"}}]}\r\n\r\n\
        data: {\"choices\": [{\"index\": 0,\ndata: \"delta\": {\"content\": \"day\"}}]}\n\n\
        data: {\"choices\": [{\"index\": 0, \"delta\": {}, \"finish_reason\": \"stop\"}]}\n\n\
        data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 3, \"completion_tokens\": 2}}\n\n\
        data: [DONE]\n\n";

    fn chat(events: &str) -> Result<Value, Broken> {
        whole(RemoteApi::Chat, events.as_bytes())
    }

    fn responses(events: &str) -> Result<Value, Broken> {
        whole(RemoteApi::Responses, events.as_bytes())
    }

    #[test]
    fn deltas_make_the_answer_that_would_have_come_whole() {
        let expected = json!({
            "choices": [{
                "message": {"content": "Good day", "refusal": null}, "finish_reason": "stop",
            }],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        });
        assert_eq!(chat(CHAT), Ok(expected));
        let refused =
            "data: {\"choices\": [{\"delta\": {\"refusal\": \"no\"}}]}\n\ndata: [DONE]\n\n";
        let refused = chat(refused).unwrap();
        assert_eq!(refused["choices"][0]["message"]["refusal"], "no");
    }

    #[test]
    fn a_stream_is_an_answer_only_once_the_model_has_finished() {
        let finished = CHAT.find("\"finish_reason\"").unwrap();
        let finished = finished + CHAT[finished..].find("\n\n").unwrap() + 2;
        for end in (0..CHAT.len()).filter(|&end| CHAT.is_char_boundary(end)) {
            let is_whole = chat(&CHAT[..end]).is_ok();
            assert_eq!(is_whole, end >= finished, "{}", &CHAT[..end]);
        }
        let unpaid = chat(&CHAT[..finished]).unwrap();
        assert_eq!(unpaid["usage"], Value::Null, "nobody knows what it took");
    }

    #[test]
    fn a_response_is_what_its_last_event_holds() {
        let begun =
            "event: response.created\ndata: {\"type\": \"response.created\", \"response\": {}}\n\n";
        let done = "data: {\"type\": \"response.completed\", \"response\": {\"output\": []}}\n\n";
        let cut = "data: {\"type\": \"response.incomplete\", \"response\": {\"output\": [1]}}\n\n";
        assert_eq!(responses(begun), Err(Broken::Cut));
        assert_eq!(
            responses(&format!("{begun}{done}")),
            Ok(json!({"output": []}))
        );
        assert_eq!(responses(cut), Ok(json!({"output": [1]})));
        for failed in ["error", "response.failed"] {
            let event = format!("{begun}data: {{\"type\": \"{failed}\"}}\n\n");
            assert_eq!(responses(&event), Err(Broken::Failed));
        }
    }

    #[test]
    fn what_is_no_stream_of_its_endpoint_is_told() {
        assert_eq!(chat("data: <html>\n\n"), Err(Broken::Unreadable));
        assert_eq!(
            chat("data: {\"error\": {\"code\": \"x\"}}\n\n"),
            Err(Broken::Failed)
        );
        assert_eq!(responses("data: {}\n\n"), Err(Broken::Unreadable));
        assert_eq!(whole(RemoteApi::Chat, &[0xff]), Err(Broken::Unreadable));
    }
}
