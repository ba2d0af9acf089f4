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

use std::time::Duration;

use millrace_crds::inference_service::{self, RemoteApi};
use millrace_protocol::row::RowError;
use millrace_protocol::wire::Prediction;

pub use self::access::{Access, KEY};
use self::answer::Reader;
pub use self::hints::Hints;
use self::http::Http;
use crate::job::Step;
use crate::secrets::Secret;
use crate::store::LinkLocal;
use crate::work::client::ClientError;

/// A handle on an API.
pub struct Api {
    http: Http,
    spec: inference_service::Remote,
    steps: Vec<Asked>,
}

/// What a step asks.
struct Asked {
    prompt: request::Prompt,
    reader: Reader,
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

impl Usage {
    /// Of both.
    pub fn total(self) -> u64 {
        self.input + self.output
    }
}

/// What was said to a call.
#[derive(Debug, PartialEq)]
pub struct Said {
    /// For each row its answer; `None` where the answer of the call cannot be told apart by rows, or
    /// is not what was asked for.
    pub rows: Vec<Option<Prediction>>,
    /// Tokens, as far as the API says.
    pub usage: Option<Usage>,
}

/// Why a call has no answer.
#[derive(Debug)]
pub enum CallError {
    /// The API is asked too much, or has too much to do: the same call may be made later.
    TooMuch {
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The API was not reached.
    Away(String),
    /// The call failed; another try may succeed. What its rows end with if none does.
    Failed(RowError),
    /// A row is to blame. What a row ends with that was asked alone.
    Rejected(RowError),
    /// No row is to blame, and no other call would be answered either.
    Refused(ClientError),
}

impl Api {
    /// A handle on the API for these steps.
    pub fn new(
        spec: &inference_service::Remote,
        steps: &[Step],
        key: Option<Secret>,
        link_local: LinkLocal,
    ) -> Result<Self, ClientError> {
        let asked = steps.iter().map(|step| {
            let prompt = request::Prompt::new(step.prompt.as_ref());
            let reader = Reader::new(spec.api, prompt.schema());
            Asked { prompt, reader }
        });
        Ok(Self {
            http: Http::new(spec, key, link_local)?,
            steps: asked.collect(),
            spec: spec.clone(),
        })
    }

    /// What tells the results of this model from those of another.
    pub fn identity(&self) -> String {
        format!("{}#{}", self.spec.base_url, self.spec.model)
    }

    /// The call that asks these prompts of a step.
    pub fn call(&self, step: usize, prompts: &[&str]) -> Call {
        let prompt = &self.steps[step].prompt;
        let body = match self.spec.api {
            RemoteApi::Chat => request::chat(&self.spec.model, prompt, prompts),
            RemoteApi::Responses => request::responses(&self.spec.model, prompt, prompts),
            RemoteApi::Embeddings => request::embeddings(&self.spec.model, prompts),
        };
        let body = serde_json::to_vec(&body).expect("a request is plain data");
        Call {
            body: body.into(),
            step,
            rows: prompts.len(),
        }
    }

    /// Makes the call. What the API says of its limits is told whatever it answers.
    pub async fn make(&self, call: &Call) -> (Result<Said, CallError>, Hints) {
        let answer = match self.http.post(call.body.clone()).await {
            Ok(answer) => answer,
            Err(error) => return (Err(error), Hints::default()),
        };
        let hints = Hints::of(&answer.headers);
        let said = fault::accepted(&answer).and_then(|()| {
            let reader = &self.steps[call.step].reader;
            reader.read(&answer.body, call.rows)
        });
        (said, hints)
    }
}

impl Call {
    /// Bytes that are sent.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}
