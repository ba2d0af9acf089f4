//! An API elsewhere, named by `spec.remote`: prompts in, for each of them an answer or the reason why
//! there is none.
//!
//! Makes one call and never a second one: when and how often is asked, and what a failure means for
//! rows, is decided elsewhere. No key and no prompt ever stands in an error.

mod access;
mod answer;
mod fault;
mod hints;
mod http;
mod request;
mod sse;

use std::ops::AddAssign;

use millrace_crds::batch_job::Prompt;
use millrace_crds::inference_service::{self, RemoteApi};
use millrace_protocol::row::RowError;
use millrace_protocol::wire::Prediction;
use sha2::{Digest, Sha256};

pub use self::access::{Access, Credentials};
use self::answer::AnswerReader;
pub use self::hints::Hints;
use self::http::{Answer, Http};
use crate::job::{Step, decisive};
use crate::store::LinkLocal;

/// Begins what a fingerprint is made of. What decides answers in another way takes another word.
const FINGERPRINT: &str = "remote 1";

/// A handle on an API.
pub struct Api {
    http: Http,
    spec: inference_service::Remote,
    steps: Vec<Asked>,
}

/// What a step asks.
struct Asked {
    prompt: request::Prompt,
    reader: AnswerReader,
    fingerprint: [u8; 32],
}

/// A request that is ready to be sent, as often as it takes.
pub struct Call {
    body: bytes::Bytes,
    step: usize,
    rows: usize,
}

/// Tokens that a call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompts.
    pub input: u64,
    /// Of the answers.
    pub output: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input += other.input;
        self.output += other.output;
    }
}

impl Usage {
    /// Of both.
    pub fn total(self) -> u64 {
        self.input + self.output
    }
}

/// What was said to each row of a call; `None` where the answer of the call cannot be told apart by
/// rows, or is not what was asked for.
pub type Said = Vec<Option<Prediction>>;

/// What a call took, whatever was said to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Nothing: it was not answered, and is not paid for.
    Nothing,
    /// These tokens, as the API says.
    Known(Usage),
    /// The API does not say, or nobody heard it.
    Unknown,
}

impl Taken {
    /// Tokens, as far as the API says.
    pub fn usage(self) -> Option<Usage> {
        match self {
            Taken::Known(usage) => Some(usage),
            Taken::Nothing | Taken::Unknown => None,
        }
    }
}

/// What came of a call.
#[derive(Debug)]
pub struct Made {
    /// What was said, or why nothing was.
    pub said: Result<Said, CallError>,
    /// What it took.
    pub taken: Taken,
    /// What the API says of its limits.
    pub hints: Hints,
}

/// Why a call has no answer.
#[derive(Debug)]
pub enum CallError {
    /// The API is asked too much, or has too much to do: the same call may be made later.
    TooMuch,
    /// The API was not reached.
    Away(String),
    /// The call failed; another try may succeed. What its rows end with if none does.
    Failed(RowError),
    /// A row is to blame. What a row ends with that was asked alone.
    Rejected(RowError),
    /// No row is to blame, and no other call would be answered either.
    Refused(String),
}

/// Why an API cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// What the service says of it does not do.
    #[error("spec.remote cannot be used: {0}")]
    Unusable(String),
    /// It was not reached for as long as anybody waits.
    #[error("{url} was not reached ({words}); see to spec.remote.baseUrl")]
    Away {
        /// Where it should be.
        url: String,
        /// What went wrong.
        words: String,
    },
    /// It answers nobody.
    #[error("every call is refused: {0}")]
    Refused(String),
}

impl Api {
    /// A handle on the API for these steps.
    pub fn new(
        spec: &inference_service::Remote,
        steps: &[Step],
        credentials: Credentials,
        link_local: LinkLocal,
    ) -> Result<Self, ApiError> {
        let asked = steps.iter().map(|step| {
            let prompt = request::Prompt::new(step.prompt.as_ref());
            let reader = AnswerReader::new(spec.api, prompt.schema());
            Asked {
                prompt,
                reader,
                fingerprint: fingerprint(spec, step.prompt.as_ref()),
            }
        });
        Ok(Self {
            http: Http::new(spec, credentials, link_local)?,
            steps: asked.collect(),
            spec: spec.clone(),
        })
    }

    /// What tells the results of this model from those of another.
    pub fn identity(&self) -> String {
        format!("{}#{}", self.spec.base_url, self.spec.model)
    }

    /// What stands for everything that decides the answer to a prompt of a step but the prompt.
    pub fn fingerprint(&self, step: usize) -> [u8; 32] {
        self.steps[step].fingerprint
    }

    /// The call that asks these prompts of a step.
    pub fn call(&self, step: usize, prompts: &[&str]) -> Call {
        let body = body(&self.spec, &self.steps[step].prompt, prompts);
        Call {
            body: body.into(),
            step,
            rows: prompts.len(),
        }
    }

    /// Makes the call. What it took and what the API says of its limits is told whatever it answers.
    pub async fn make(&self, call: &Call) -> Made {
        let answer = match self.http.post(call.body.clone()).await {
            Ok(answer) => answer,
            Err(error) => {
                let taken = match error {
                    CallError::TooMuch | CallError::Away(_) | CallError::Refused(_) => {
                        Taken::Nothing
                    }
                    CallError::Failed(_) | CallError::Rejected(_) => Taken::Unknown,
                };
                let (said, hints) = (Err(error), Hints::default());
                return Made { said, taken, hints };
            }
        };
        let hints = Hints::of(&answer.headers);
        let (said, taken) = match fault::accepted(&answer, || self.http.key_advice()) {
            Err(error) => (Err(error), Taken::Nothing),
            Ok(()) => {
                let (said, usage) = self.read(&answer, call);
                (said, usage.map_or(Taken::Unknown, Taken::Known))
            }
        };
        Made { said, taken, hints }
    }

    /// Reads an answer, whole or in pieces.
    fn read(&self, answer: &Answer, call: &Call) -> (Result<Said, CallError>, Option<Usage>) {
        let reader = &self.steps[call.step].reader;
        if !answer.is_streamed() {
            return reader.read(&answer.body, call.rows);
        }
        match sse::whole(self.spec.api, &answer.body) {
            Ok(whole) => reader.read(whole.to_string().as_bytes(), call.rows),
            Err(broken) => (Err(fault::broken(broken)), None),
        }
    }
}

/// Hashes what decides the answer to a prompt, but for the prompt. How it travels does not.
fn fingerprint(spec: &inference_service::Remote, prompt: Option<&Prompt>) -> [u8; 32] {
    let asked = prompt.map(|prompt| {
        let Prompt {
            system,
            // The prompt is what it makes of a row.
            template: _,
            output_schema,
            max_output_tokens,
            temperature,
        } = prompt;
        (system, output_schema, max_output_tokens, temperature)
    });
    let decisive = (FINGERPRINT, decisive(spec), asked);
    let decisive = serde_json::to_vec(&decisive).expect("a spec serialises");
    Sha256::digest(&decisive).into()
}

/// The body of the request that asks these prompts.
fn body(spec: &inference_service::Remote, prompt: &request::Prompt, prompts: &[&str]) -> Vec<u8> {
    let body = match spec.api {
        RemoteApi::Chat => request::chat(&spec.model, prompt, prompts),
        RemoteApi::Responses => request::responses(&spec.model, prompt, prompts),
        RemoteApi::Embeddings => request::embeddings(&spec.model, prompts),
    };
    let body = match spec.stream {
        true => request::streamed(spec.api, body),
        false => body,
    };
    serde_json::to_vec(&body).expect("a request is plain data")
}

/// Bytes that would be sent to ask these prompts of a step.
pub fn request_bytes(spec: &inference_service::Remote, step: &Step, prompts: &[&str]) -> usize {
    let prompt = request::Prompt::new(step.prompt.as_ref());
    body(spec, &prompt, prompts).len()
}

impl Call {
    /// Bytes that are sent.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn another_question_has_another_fingerprint_and_another_way_to_ask_it_has_not() {
        let of = |remote: Value, prompt: Value| {
            let mut api = json!({"baseUrl": "https://a/v1", "api": "Chat", "model": "m"});
            for (field, value) in remote.as_object().unwrap() {
                api[field] = value.clone();
            }
            let spec = serde_json::from_value(api).unwrap();
            fingerprint(&spec, Some(&serde_json::from_value(prompt).unwrap()))
        };
        let plain = of(json!({}), json!({"system": "a"}));
        for (remote, prompt) in [
            (json!({"baseUrl": "https://b/v1"}), json!({"system": "a"})),
            (json!({"api": "Responses"}), json!({"system": "a"})),
            (json!({"model": "n"}), json!({"system": "a"})),
            (json!({}), json!({"system": "b"})),
            (json!({}), json!({"system": "a", "maxOutputTokens": 7})),
            (json!({}), json!({"system": "a", "temperature": 0.5})),
            (
                json!({}),
                json!({"system": "a", "outputSchema": {"type": "object"}}),
            ),
        ] {
            assert_ne!(
                of(remote.clone(), prompt.clone()),
                plain,
                "{remote} {prompt}"
            );
        }
        let same = json!({"rowsPerCall": 9, "limits": {"concurrency": 2}, "stream": true});
        let prompt = json!({"system": "a", "template": "{{ text }}"});
        assert_eq!(of(same, prompt), plain);
    }
}
