//! `/v1/embeddings` in OpenAI's shapes.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use millrace_crds::inference_service::Task;
use millrace_protocol::wire::Prediction;
use serde::{Deserialize, Serialize};

use crate::http::{
    app::{App, pick_model},
    body,
    error::ApiError,
    online::{Asked, Texts, ask},
};

/// Path of the endpoint.
pub const EMBEDDINGS: &str = "/v1/embeddings";

#[derive(Debug, Deserialize)]
struct EmbeddingsBody {
    input: Texts,
    model: Option<String>,
    #[serde(default)]
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    /// Little-endian 32-bit floats; what OpenAI's Python client asks for unless told otherwise.
    Base64,
}

#[derive(Serialize)]
struct EmbeddingsReply {
    object: &'static str,
    data: Vec<EmbeddingEntry>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct EmbeddingEntry {
    object: &'static str,
    embedding: Encoded,
    index: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Encoded {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// `{"input": text or [text, …], "model"}` → `{"data": [{"embedding", "index"}], "usage", …}`.
pub async fn embeddings(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    match answer(&app, request).await {
        Ok(reply) => Json(reply).into_response(),
        Err(error) => error.into_openai(),
    }
}

async fn answer(app: &App, request: Request<Body>) -> Result<EmbeddingsReply, ApiError> {
    let inference = app.inference()?;
    let _slot = app.online_slot()?;
    let EmbeddingsBody {
        input,
        model,
        encoding_format,
        dimensions,
    } = body::online(request, &app.limits).await?;
    if dimensions.is_some() {
        return Err(ApiError::Invalid(
            "`dimensions` is not supported; remove it".into(),
        ));
    }
    let model = pick_model(inference.models(), model.as_deref(), &[Task::Embedding])?;
    let asked = Asked {
        models: vec![model],
        texts: input.into_vec(),
        truncate: None,
    };
    let answered = ask(app, &inference, asked).await?;
    let data = answered
        .predictions
        .into_iter()
        .enumerate()
        .map(|(index, prediction)| {
            let values = match prediction {
                Prediction::Embedding(values) | Prediction::Values(values) => values,
                Prediction::Labels(_) | Prediction::Entities(_) | Prediction::Answer(_) => {
                    Vec::new()
                }
            };
            EmbeddingEntry {
                object: "embedding",
                embedding: encoding_format.encode(values),
                index,
            }
        });
    Ok(EmbeddingsReply {
        object: "list",
        data: data.collect(),
        model: inference.models()[model].name().to_owned(),
        usage: Usage {
            prompt_tokens: answered.tokens,
            total_tokens: answered.tokens,
        },
    })
}

impl EncodingFormat {
    fn encode(self, values: Vec<f32>) -> Encoded {
        match self {
            EncodingFormat::Float => Encoded::Float(values),
            EncodingFormat::Base64 => {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                Encoded::Base64(STANDARD.encode(bytes.collect::<Vec<_>>()))
            }
        }
    }
}
