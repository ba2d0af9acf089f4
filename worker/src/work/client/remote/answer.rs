//! Reads answers and splits them into rows. Pure.
//!
//! What is not what was asked for is no answer: it is told as missing, and the caller asks those rows
//! again.

use jsonschema::Validator;
use millrace_crds::inference_service::RemoteApi;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::Prediction;
use serde::Deserialize;
use serde_json::Value;

use super::{CallError, Said, Usage};

/// Reads the answers to one step.
pub struct AnswerReader {
    api: RemoteApi,
    /// What the answer to a row must be; without one it is text.
    schema: Option<Validator>,
}

/// What an answer is made of.
enum Answer {
    Vectors(Vec<Entry>),
    Written(Written),
}

/// What a model wrote.
enum Written {
    Text(String),
    /// It refused.
    Refusal,
    /// It was cut.
    Cut,
    /// Nothing that can be read.
    Nothing,
}

#[derive(Deserialize)]
struct Chat {
    choices: Vec<Choice>,
    usage: Option<ChatUsage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct ChatUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

#[derive(Deserialize)]
struct Response {
    output: Vec<Item>,
    incomplete_details: Option<Incomplete>,
    usage: Option<ResponseUsage>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    content: Option<Vec<Part>>,
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct ResponseUsage {
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
}

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Entry>,
    usage: Option<ChatUsage>,
}

#[derive(Deserialize)]
struct Entry {
    /// Which input it answers; by default the one in its place.
    index: Option<usize>,
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct Several {
    answers: Vec<OneOf>,
}

#[derive(Deserialize)]
struct OneOf {
    index: usize,
    answer: Value,
}

impl AnswerReader {
    pub fn new(api: RemoteApi, schema: Option<&Value>) -> Self {
        let validator = |schema| jsonschema::validator_for(schema).expect("the job was checked");
        Self {
            api,
            schema: schema.map(validator),
        }
    }

    /// Reads what was said to `asked` rows, and the tokens that it took, as far as the API says: they
    /// are paid for whatever the answer is worth.
    pub fn read(&self, body: &[u8], asked: usize) -> (Result<Said, CallError>, Option<Usage>) {
        match self.written(body) {
            Err(_) => {
                let error = RowError::new(
                    RowErrorCode::AnswerInvalid,
                    "the API's answer is not the JSON of its endpoint",
                );
                (Err(CallError::Failed(error)), None)
            }
            Ok((Answer::Vectors(data), usage)) => (Ok(vectors(data, asked)), usage),
            Ok((Answer::Written(written), usage)) => (self.said(written, asked), usage),
        }
    }

    /// What the body of an answer holds.
    fn written(&self, body: &[u8]) -> serde_json::Result<(Answer, Option<Usage>)> {
        Ok(match self.api {
            RemoteApi::Embeddings => {
                let Embeddings { data, usage } = serde_json::from_slice(body)?;
                (Answer::Vectors(data), usage.map(Usage::from))
            }
            RemoteApi::Chat => {
                let Chat { choices, usage } = serde_json::from_slice(body)?;
                (Answer::Written(of_chat(choices)), usage.map(Usage::from))
            }
            RemoteApi::Responses => {
                let response: Response = serde_json::from_slice(body)?;
                let usage = response.usage.as_ref().map(|usage| Usage {
                    input: usage.input_tokens,
                    output: usage.output_tokens,
                });
                (Answer::Written(of_response(response)), usage)
            }
        })
    }

    /// What a text says to each row.
    fn said(&self, written: Written, asked: usize) -> Result<Said, CallError> {
        let rejected = |code, message| Err(CallError::Rejected(RowError::new(code, message)));
        match written {
            Written::Text(text) => Ok(self.split(text, asked)),
            Written::Nothing => Ok(vec![None; asked]),
            Written::Refusal => rejected(RowErrorCode::Refused, "the model refuses the row"),
            Written::Cut => rejected(
                RowErrorCode::AnswerInvalid,
                "the answer was cut; raise spec.steps[].prompt.maxOutputTokens",
            ),
        }
    }

    /// The answer of each row.
    fn split(&self, text: String, asked: usize) -> Vec<Option<Prediction>> {
        if asked == 1 {
            let answer = match &self.schema {
                None => Some(Value::String(text)),
                Some(_) => serde_json::from_str(&text).ok(),
            };
            return vec![answer.and_then(|answer| self.fitting(answer))];
        }
        let mut rows = vec![None; asked];
        let Ok(Several { answers }) = serde_json::from_str(&text) else {
            return rows;
        };
        let mut seen = vec![false; asked];
        for OneOf { index, answer } in answers {
            let Some(is_seen) = seen.get_mut(index) else {
                continue;
            };
            // Two answers for one row: nobody knows which is its own.
            rows[index] = match std::mem::replace(is_seen, true) {
                true => None,
                false => self.fitting(answer),
            };
        }
        rows
    }

    /// The answer, if it is what was asked for.
    fn fitting(&self, answer: Value) -> Option<Prediction> {
        let fits = match &self.schema {
            None => answer.is_string(),
            Some(schema) => schema.is_valid(&answer),
        };
        fits.then_some(Prediction::Answer(answer))
    }
}

impl From<ChatUsage> for Usage {
    fn from(usage: ChatUsage) -> Self {
        Self {
            input: usage.prompt_tokens,
            output: usage.completion_tokens,
        }
    }
}

fn of_chat(choices: Vec<Choice>) -> Written {
    let Some(Choice {
        message,
        finish_reason,
    }) = choices.into_iter().next()
    else {
        return Written::Nothing;
    };
    let Message { content, refusal } = message;
    match finish_reason.as_deref() {
        Some("content_filter") => Written::Refusal,
        Some("length") => Written::Cut,
        _ if refusal.is_some() => Written::Refusal,
        _ => content.map_or(Written::Nothing, Written::Text),
    }
}

fn of_response(response: Response) -> Written {
    let reason = response.incomplete_details.and_then(|it| it.reason);
    match reason.as_deref() {
        Some("content_filter") => return Written::Refusal,
        Some(_) => return Written::Cut,
        None => {}
    }
    let parts = response.output.into_iter().filter_map(|item| item.content);
    let mut whole: Option<String> = None;
    for Part { text, refusal } in parts.flatten() {
        if refusal.is_some() {
            return Written::Refusal;
        }
        if let Some(text) = text {
            whole.get_or_insert_default().push_str(&text);
        }
    }
    whole.map_or(Written::Nothing, Written::Text)
}

/// The vector of each input.
fn vectors(entries: Vec<Entry>, asked: usize) -> Vec<Option<Prediction>> {
    let length = entries.first().map_or(0, |entry| entry.embedding.len());
    let mut rows = vec![None; asked];
    for (place, Entry { index, embedding }) in entries.into_iter().enumerate() {
        let is_whole = !embedding.is_empty() && embedding.len() == length;
        if let Some(row) = rows.get_mut(index.unwrap_or(place)).filter(|_| is_whole) {
            *row = Some(Prediction::Embedding(embedding));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: Option<Value>, content: &str, asked: usize) -> Vec<Option<Prediction>> {
        let body = json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]});
        let reader = AnswerReader::new(RemoteApi::Chat, schema.as_ref());
        reader.read(body.to_string().as_bytes(), asked).0.unwrap()
    }

    fn text(text: &str) -> Option<Prediction> {
        Some(Prediction::Answer(json!(text)))
    }

    #[test]
    fn one_answer_is_the_rows_own() {
        assert_eq!(said(None, "{not json}", 1), [text("{not json}")]);
        let schema = json!({"type": "object", "required": ["mood"]});
        let good = said(Some(schema.clone()), r#"{"mood": "good"}"#, 1);
        assert_eq!(good, [Some(Prediction::Answer(json!({"mood": "good"})))]);
        for bad in ["{}", "{\"mood\": ", "[]"] {
            assert_eq!(said(Some(schema.clone()), bad, 1), [None], "{bad}");
        }
    }

    #[test]
    fn several_answers_go_by_their_index_and_what_is_missing_is_told() {
        let content = r#"{"answers": [{"index": 2, "answer": "c"}, {"index": 0, "answer": "a"}]}"#;
        assert_eq!(said(None, content, 3), [text("a"), None, text("c")]);
        let twice = r#"{"answers": [{"index": 0, "answer": "a"}, {"index": 0, "answer": "b"},
                        {"index": 7, "answer": "x"}]}"#;
        assert_eq!(said(None, twice, 2), [None, None]);
        assert_eq!(said(None, "no JSON", 2), [None, None]);
    }

    #[test]
    fn a_refusal_and_a_cut_answer_are_told_apart() {
        let read = |body: Value| {
            let reader = AnswerReader::new(RemoteApi::Chat, None);
            let (said, usage) = reader.read(body.to_string().as_bytes(), 1);
            assert_eq!(usage.unwrap().total(), 5, "it is paid for all the same");
            said.unwrap_err()
        };
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 2});
        let refusal =
            json!({"choices": [{"message": {"content": null, "refusal": "no"}}], "usage": usage});
        let cut = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "length"}], "usage": usage});
        for (body, code) in [
            (refusal, RowErrorCode::Refused),
            (cut, RowErrorCode::AnswerInvalid),
        ] {
            let CallError::Rejected(error) = read(body) else {
                panic!("the row is to blame");
            };
            assert_eq!(error.code, code);
        }
    }

    #[test]
    fn responses_are_read_from_their_messages() {
        let body = json!({"output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
        ], "usage": {"input_tokens": 3, "output_tokens": 4}});
        let reader = AnswerReader::new(RemoteApi::Responses, None);
        let (said, usage) = reader.read(body.to_string().as_bytes(), 1);
        let tokens = usage.unwrap().total();
        assert_eq!((said.unwrap(), tokens), (vec![text("Hello")], 7));
    }

    #[test]
    fn a_vector_that_is_missing_is_told() {
        let body = json!({"data": [{"index": 1, "embedding": [1.0, 2.0]}]});
        let reader = AnswerReader::new(RemoteApi::Embeddings, None);
        let (said, _) = reader.read(body.to_string().as_bytes(), 2);
        assert_eq!(
            said.unwrap(),
            [None, Some(Prediction::Embedding(vec![1.0, 2.0]))]
        );
    }
}
