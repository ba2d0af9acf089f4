//! `/embed` and `/predict`: bodies as text-embeddings-inference has them.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use millrace_crds::inference_service::Task;
use millrace_models::prediction::normalized;
use millrace_protocol::wire::{Prediction, Untagged};
use serde::Deserialize;

use crate::{
    batcher::Priority,
    http::{
        app::{App, pick_model},
        body,
        error::ApiError,
    },
    inference::{Inference, Question},
};

const EMBED_TASKS: &[Task] = &[Task::Embedding];
const PREDICT_TASKS: &[Task] = &[
    Task::SequenceClassification,
    Task::TokenClassification,
    Task::TorchScript,
];

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Texts {
    /// One text.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    /// As a list.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

#[derive(Debug, Deserialize)]
struct EmbedBody {
    inputs: Texts,
    model: Option<String>,
    truncate: Option<bool>,
    truncation_direction: Option<String>,
    prompt_name: Option<String>,
    dimensions: Option<usize>,
    normalize: Option<bool>,
}

/// `{"inputs": text or [text, …]}` → `[[number, …], …]`.
pub async fn embed(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let inference = app.inference()?;
    let _slot = app.online_slot()?;
    let EmbedBody {
        inputs,
        model,
        truncate,
        truncation_direction,
        prompt_name,
        dimensions,
        normalize,
    } = body::online(request, &app.limits).await?;
    refuse_unless_right(truncation_direction.as_deref())?;
    if prompt_name.is_some() || dimensions.is_some() {
        let message = "`prompt_name` and `dimensions` are not supported; remove them";
        return Err(ApiError::Invalid(message.into()));
    }
    let model = pick_model(inference.models(), model.as_deref(), EMBED_TASKS)?;
    let normalizes = inference.models()[model].normalizes();
    if normalizes && normalize == Some(false) {
        let message = "this model's embeddings are normalised by the service; \
                       set `normalize: false` in its spec";
        return Err(ApiError::Invalid(message.into()));
    }
    let asked = Asked {
        models: vec![model],
        texts: inputs.into_vec(),
        truncate,
    };
    let mut answers = ask(&app, &inference, asked).await?.predictions;
    if !normalizes && normalize == Some(true) {
        answers.iter_mut().for_each(scale);
    }
    Ok(Json(answers.iter().map(Untagged).collect::<Vec<_>>()).into_response())
}

/// Scales an embedding to length 1, as the service would.
fn scale(answer: &mut Prediction) {
    if let Prediction::Embedding(values) = answer {
        *values = normalized(values);
    }
}

/// Texts are `"a"` or `[["a"], ["b"]]`; `["a", "b"]` is a pair, which no model here takes.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string or a list of one-string lists [[text], …]"
)]
enum PredictTexts {
    One(String),
    Pair(Vec<String>),
    Many(Vec<Vec<String>>),
}

#[derive(Debug, Deserialize)]
struct PredictBody {
    inputs: PredictTexts,
    model: Option<String>,
    truncate: Option<bool>,
    truncation_direction: Option<String>,
    #[serde(default)]
    raw_scores: bool,
}

/// `{"inputs": text}` → `[{"label", "score"}, …]`, best first; `{"inputs": [[text], …]}` → a list
/// of those. Token classifiers answer their entities instead.
pub async fn predict(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let inference = app.inference()?;
    let _slot = app.online_slot()?;
    let PredictBody {
        inputs,
        model,
        truncate,
        truncation_direction,
        raw_scores,
    } = body::online(request, &app.limits).await?;
    refuse_unless_right(truncation_direction.as_deref())?;
    if raw_scores {
        return Err(ApiError::Invalid(
            "`raw_scores` is not supported; remove it".into(),
        ));
    }
    let (texts, single) = predict_texts(inputs)?;
    let model = pick_model(inference.models(), model.as_deref(), PREDICT_TASKS)?;
    let answers = ask(
        &app,
        &inference,
        Asked {
            models: vec![model],
            texts,
            truncate,
        },
    )
    .await?
    .predictions;
    Ok(match answers.as_slice() {
        [answer] if single => Json(Untagged(answer)).into_response(),
        answers => Json(answers.iter().map(Untagged).collect::<Vec<_>>()).into_response(),
    })
}

fn predict_texts(inputs: PredictTexts) -> Result<(Vec<String>, bool), ApiError> {
    let pair = "text pairs are not supported; send several texts as [[text], [text]]";
    match inputs {
        PredictTexts::One(text) => Ok((vec![text], true)),
        PredictTexts::Pair(texts) if texts.len() < 2 => Ok((texts, true)),
        PredictTexts::Pair(_) => Err(ApiError::Invalid(pair.into())),
        PredictTexts::Many(texts) => {
            let mut singles = Vec::with_capacity(texts.len());
            for text in texts {
                let [text] =
                    <[String; 1]>::try_from(text).map_err(|_| ApiError::Invalid(pair.into()))?;
                singles.push(text);
            }
            Ok((singles, false))
        }
    }
}

fn refuse_unless_right(truncation_direction: Option<&str>) -> Result<(), ApiError> {
    match truncation_direction {
        None | Some("Right" | "right") => Ok(()),
        Some(_) => Err(ApiError::Invalid(
            "texts are only ever cut on the right".into(),
        )),
    }
}

/// What an online request asks.
pub struct Asked {
    /// Indices of the models.
    pub models: Vec<usize>,
    /// The texts.
    pub texts: Vec<String>,
    /// Whether long texts are cut; the server's own setting where the request does not say.
    pub truncate: Option<bool>,
}

impl Asked {
    /// The question to the models, with priority *online*, unless there are too many texts or none.
    pub fn question(self, app: &App, items_max: usize) -> Result<Question, ApiError> {
        let Self {
            models,
            texts,
            truncate,
        } = self;
        match texts.len() {
            0 => Err(ApiError::Empty),
            items if items > items_max => Err(ApiError::TooManyItems { items, items_max }),
            _ => Ok(Question {
                texts,
                models,
                priority: Priority::Online,
                truncate: truncate.unwrap_or(app.limits.auto_truncate),
                deadline: Instant::now() + app.limits.request_deadline,
            }),
        }
    }
}

/// One prediction per text.
pub struct Answered {
    /// In the order of the texts.
    pub predictions: Vec<Prediction>,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// Asks one model with priority *online*; the first text that fails fails the request.
pub async fn ask(
    app: &App,
    inference: &Arc<Inference>,
    asked: Asked,
) -> Result<Answered, ApiError> {
    let question = asked.question(app, app.limits.client_batch_items_max)?;
    let answers = inference.ask(question).await?;
    let tokens = answers.iter().map(|answer| answer.tokens).sum();
    let predictions = answers
        .into_iter()
        .map(|answer| answer.result)
        .collect::<Result<_, _>>()?;
    Ok(Answered {
        predictions,
        tokens,
    })
}
