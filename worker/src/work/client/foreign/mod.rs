//! A foreign server: one that the user brings by `spec.runtime`, asked over HTTP in one of the
//! protocols that such servers speak.
//!
//! Keeps the same contract as this project's own server: rows in, for each row and model a
//! prediction or the reason why not. Such a server answers or refuses a request whole, so what it
//! refuses is told to the caller, who halves it until the row is found that is to blame.

mod answer;
mod http;
mod oip;
mod openai;
mod tei;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use millrace_crds::inference_service::{Protocol, Runtime, RuntimeModel};
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::{ModelReply, Prediction, RowsReply, RowsRequest};
use tokio::sync::OnceCell;

use self::answer::{Answered, Unreadable};
use self::http::{Answer, Http};
pub use self::http::{ServerUrl, ServerUrlError};
use super::{ClientError, ModelInfo, retry_after, words};
use crate::job::{self, Step};

/// Pause between two looks at a server that is starting, which may write a line for each.
const READY_POLL: Duration = Duration::from_millis(100);

/// Wait where a server that is full does not say how long.
const RETRY_SOON: Duration = Duration::from_millis(200);

/// The text by which a server shows that it does what the service says of it.
const PROBE: &str = "millrace";

/// Characters of what a server says of its model that are kept.
const ID_CHARS_MAX: usize = 256;

/// A cheap handle on a foreign server.
#[derive(Debug, Clone)]
pub struct Foreign {
    server: Arc<Server>,
}

#[derive(Debug)]
struct Server {
    http: Http,
    runtime: Runtime,
    /// The models that the job's steps name.
    models: Vec<Model>,
}

#[derive(Debug)]
struct Model {
    spec: RuntimeModel,
    /// Asked once.
    about: OnceCell<About>,
}

/// What a server says of a model.
#[derive(Debug, Default)]
struct About {
    /// What tells it from others.
    id: Option<String>,
    /// Most texts in one request.
    batch_rows_max: Option<usize>,
    /// Where texts and numbers travel, in the Open Inference Protocol.
    tensors: Option<oip::Tensors>,
}

impl Foreign {
    /// A client of the server at `url` for the models that `steps` name.
    pub fn new(url: &ServerUrl, runtime: &Runtime, steps: &[Step]) -> Self {
        let named = job::models(steps);
        let models = runtime.models.iter();
        let models = models.filter(|model| named.contains(&model.name));
        let models = models.map(|model| Model {
            spec: model.clone(),
            about: OnceCell::new(),
        });
        let server = Server {
            http: Http::new(url),
            models: models.collect(),
            runtime: runtime.clone(),
        };
        Self {
            server: Arc::new(server),
        }
    }

    /// Runs texts through models, one model after the other.
    pub async fn infer(&self, request: &RowsRequest) -> Result<RowsReply, ClientError> {
        let RowsRequest { models, texts } = request;
        let mut tokens = 0;
        let mut rows: Vec<Vec<ModelReply>> = texts.iter().map(|_| Vec::new()).collect();
        for name in models {
            let replies: Vec<ModelReply> = match self.ask(self.model(name), texts).await {
                Ok(answered) => {
                    tokens += answered.tokens;
                    answered.predictions.into_iter().map(finite).collect()
                }
                // Alone, the row is to blame, and no other model need say so.
                Err(ClientError::Rejected { error, words: _ }) if texts.len() == 1 => {
                    vec![ModelReply::Err(error)]
                }
                Err(error) => return Err(error),
            };
            for (row, reply) in rows.iter_mut().zip(replies) {
                row.push(reply);
            }
        }
        Ok(RowsReply { rows, tokens })
    }

    /// Most texts that the server takes in one request, as far as it is known.
    pub fn batch_rows_max(&self) -> usize {
        let said = self.server.models.iter();
        let said = said.filter_map(|model| model.about.get()?.batch_rows_max);
        let set = self.server.runtime.max_batch_size;
        let max = set.map(|rows| rows as usize).or(said.min());
        max.unwrap_or(usize::MAX)
    }

    /// Returns once the server says that it is ready.
    pub async fn until_ready(&self) {
        let (http, runtime) = (&self.server.http, &self.server.runtime);
        loop {
            let answer = http.get_path(runtime.ready_path()).await;
            if answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
                return;
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// What the job's models are, once each has answered a text: what a server cannot do at all must
    /// not be charged to the rows.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        let mut infos = Vec::new();
        for model in &self.server.models {
            let about = self.about(model).await?;
            let probed = self.ask(model, &[PROBE.to_owned()]).await;
            probed.map_err(|error| match error {
                ClientError::Rejected { error, words } => ClientError::Unsuited {
                    model: model.spec.name.clone(),
                    message: format!("asked for {PROBE:?}, {} {words}", error.message),
                },
                error => error,
            })?;
            infos.push(ModelInfo {
                name: model.spec.name.clone(),
                digest: identity(&self.server.runtime.image, about.id.as_deref()),
            });
        }
        Ok(infos)
    }

    /// Asks one model.
    async fn ask(&self, model: &Model, texts: &[String]) -> Result<Answered, ClientError> {
        let (http, runtime) = (&self.server.http, &self.server.runtime);
        let (spec, asked) = (&model.spec, texts.len());
        let read = match runtime.protocol {
            Protocol::OpenAi => {
                let body = openai::body(spec, texts);
                let answer = accepted(http.post(&openai::PATH, &body).await?)?;
                openai::read(&answer, asked)
            }
            Protocol::Tei => {
                let body = tei::body(spec, texts);
                let answer = accepted(http.post(tei::path(spec), &body).await?)?;
                tei::read(spec, &answer, asked)
            }
            Protocol::Oip => {
                let tensors = self.about(model).await?.tensors.as_ref();
                let tensors = tensors.expect("the metadata of this protocol names them");
                let body = oip::body(tensors, texts);
                let answer = accepted(http.post(&oip::path(spec), &body).await?)?;
                oip::read(spec, tensors, &answer, asked)
            }
        };
        read.map_err(|unreadable: Unreadable| ClientError::Rejected {
            error: unreadable.into(),
            words: String::new(),
        })
    }

    async fn about<'a>(&self, model: &'a Model) -> Result<&'a About, ClientError> {
        let (http, runtime) = (&self.server.http, &self.server.runtime);
        let asking = || async {
            match runtime.protocol {
                Protocol::OpenAi => openai::about(http, &model.spec).await,
                Protocol::Tei => tei::about(http).await,
                Protocol::Oip => oip::about(http, &model.spec).await,
            }
        };
        model.about.get_or_try_init(asking).await
    }

    fn model(&self, name: &str) -> &Model {
        let mut models = self.server.models.iter();
        models
            .find(|model| model.spec.name == name)
            .expect("a job asks for the models of its steps")
    }
}

/// An answer of a server about itself, if it has one; one that cannot answer now is asked again.
fn told(answer: Answer) -> Result<Option<Answer>, ClientError> {
    match accepted(answer) {
        Ok(answer) => Ok(Some(answer)),
        Err(busy @ (ClientError::Busy { .. } | ClientError::Unavailable { .. })) => Err(busy),
        Err(_) => Ok(None),
    }
}

/// The answer, if the server did not refuse.
fn accepted(answer: Answer) -> Result<Answer, ClientError> {
    let soon = || retry_after(&answer.headers, RETRY_SOON);
    let status = answer.status;
    let (code, message) = match status {
        StatusCode::OK => return Ok(answer),
        StatusCode::TOO_MANY_REQUESTS => {
            let retry_after = soon();
            return Err(ClientError::Busy { retry_after });
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            let retry_after = soon();
            return Err(ClientError::Unavailable { retry_after });
        }
        StatusCode::PAYLOAD_TOO_LARGE => (RowErrorCode::TextTooLong, "finds the row too large"),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
            (RowErrorCode::Refused, "refuses the row")
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => {
            (RowErrorCode::Timeout, "did not answer the row in time")
        }
        status if status.is_server_error() || status == StatusCode::FAILED_DEPENDENCY => {
            (RowErrorCode::ModelFailed, "fails on the row")
        }
        // Another path, name or right: no row is to blame, and none may be quoted.
        status => {
            return Err(ClientError::Refused {
                status: status.as_u16(),
                message: "the server's log may say why".to_owned(),
            });
        }
    };
    let message = format!("the server {message} (status {})", status.as_u16());
    Err(ClientError::Rejected {
        error: RowError::new(code, message),
        words: words(&answer.body),
    })
}

fn finite(prediction: Prediction) -> ModelReply {
    match prediction.is_finite() {
        true => ModelReply::Ok(prediction),
        false => ModelReply::Err(Unreadable::NotFinite.into()),
    }
}

/// What tells the results of one model from those of another, where nobody knows a digest of its
/// files: the image that the manifest names, and what the server says of the model.
fn identity(image: &str, id: Option<&str>) -> String {
    let id = id.map(|id| format!("#{}", id.chars().take(ID_CHARS_MAX).collect::<String>()));
    format!("{image}{}", id.unwrap_or_default())
}
