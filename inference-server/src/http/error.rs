//! What a request is refused with: `{"error", "error_type"}` as text-embeddings-inference has it.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{
    HeaderValue, StatusCode,
    header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE},
};
use millrace_crds::inference_service::Task;
use millrace_protocol::row::{RowError, RowErrorCode};
use serde::Serialize;

use crate::queue::DoorError;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the request has no texts")]
    Empty,
    #[error("the request has {items} texts, at most {items_max} are allowed")]
    TooManyItems { items: usize, items_max: usize },
    #[error("the body is larger than {bytes_max} bytes")]
    PayloadTooLarge { bytes_max: usize },
    #[error("the body did not arrive within {deadline:?}")]
    BodyTooSlow { deadline: Duration },
    #[error("{0}")]
    Malformed(String),
    #[error("{0}")]
    Invalid(String),
    #[error("no model is named {name:?}; there are: {known}")]
    UnknownModel { name: String, known: String },
    #[error(
        "model {model:?} is for task {task:?}; this endpoint serves {}",
        names(tasks)
    )]
    WrongTask {
        model: String,
        task: Task,
        tasks: &'static [Task],
    },
    #[error(
        "this server has no model for this endpoint, which serves {}",
        names(tasks)
    )]
    NoModelForTask { tasks: &'static [Task] },
    #[error("bring an API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`")]
    Unauthorized,
    #[error("this API key has sent its requests for now; try again in {retry_after_seconds} s")]
    RateLimited { retry_after_seconds: u64 },
    #[error("too many requests at a time; try again")]
    TooManyRequests,
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("the models are not loaded")]
    NotReady,
    #[error("{}", .0.message)]
    Row(#[from] RowError),
    #[error("there is no such endpoint")]
    NoSuchEndpoint,
    #[error("this endpoint does not take this method")]
    MethodNotAllowed,
}

fn names(tasks: &[Task]) -> String {
    tasks
        .iter()
        .map(|task| format!("{task:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// What an endpoint answers in the place of what it cannot.
#[derive(Serialize)]
pub struct ErrorBody {
    error: String,
    error_type: &'static str,
}

impl From<RowError> for ErrorBody {
    fn from(error: RowError) -> Self {
        Self {
            error_type: row_status_and_type(error.code).1,
            error: error.message,
        }
    }
}

#[derive(Serialize)]
struct OpenAiErrorBody {
    error: OpenAiError,
}

/// OpenAI's clients look for these fields.
#[derive(Serialize)]
struct OpenAiError {
    message: String,
    r#type: &'static str,
    param: Option<()>,
    code: u16,
}

impl ApiError {
    fn status_and_type(&self) -> (StatusCode, &'static str) {
        match self {
            ApiError::Empty => (StatusCode::BAD_REQUEST, "Empty"),
            ApiError::TooManyItems { .. }
            | ApiError::PayloadTooLarge { .. }
            | ApiError::Door(DoorError::NeverFits { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "Validation")
            }
            ApiError::BodyTooSlow { .. } => (StatusCode::REQUEST_TIMEOUT, "Validation"),
            ApiError::Malformed(_) => (StatusCode::BAD_REQUEST, "Validation"),
            ApiError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Validation"),
            ApiError::UnknownModel { .. } | ApiError::NoSuchEndpoint => {
                (StatusCode::NOT_FOUND, "Validation")
            }
            ApiError::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Validation"),
            ApiError::WrongTask { .. } | ApiError::NoModelForTask { .. } => {
                (StatusCode::FAILED_DEPENDENCY, "Backend")
            }
            ApiError::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            ApiError::TooManyRequests
            | ApiError::RateLimited { .. }
            | ApiError::Door(DoorError::Full { .. }) => {
                (StatusCode::TOO_MANY_REQUESTS, "Overloaded")
            }
            ApiError::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "Unhealthy"),
            ApiError::Row(error) => row_status_and_type(error.code),
        }
    }

    /// The same refusal in the shape that OpenAI's clients read.
    pub fn into_openai(self) -> Response {
        let (status, error_type) = self.status_and_type();
        let message = self.to_string();
        let error = OpenAiError {
            message,
            r#type: error_type,
            param: None,
            code: status.as_u16(),
        };
        with_headers(
            &self,
            (status, Json(OpenAiErrorBody { error })).into_response(),
        )
    }
}

fn row_status_and_type(code: RowErrorCode) -> (StatusCode, &'static str) {
    match code {
        RowErrorCode::EmptyText => (StatusCode::BAD_REQUEST, "Empty"),
        RowErrorCode::TextTooLong | RowErrorCode::RowTooLong | RowErrorCode::TooManyChunks => {
            (StatusCode::PAYLOAD_TOO_LARGE, "Validation")
        }
        RowErrorCode::TokenizeFailed => (StatusCode::UNPROCESSABLE_ENTITY, "Tokenizer"),
        RowErrorCode::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Backend"),
        RowErrorCode::NotFinite
        | RowErrorCode::OutOfMemory
        | RowErrorCode::ModelFailed
        | RowErrorCode::AnswerInvalid
        | RowErrorCode::Refused
        | RowErrorCode::ServerCrashed => (StatusCode::FAILED_DEPENDENCY, "Backend"),
        RowErrorCode::InvalidUtf8
        | RowErrorCode::InvalidJson
        | RowErrorCode::InvalidCsv
        | RowErrorCode::MissingField
        | RowErrorCode::InvalidField => (StatusCode::UNPROCESSABLE_ENTITY, "Validation"),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error_type) = self.status_and_type();
        let body = ErrorBody {
            error: self.to_string(),
            error_type,
        };
        with_headers(&self, (status, Json(body)).into_response())
    }
}

fn with_headers(error: &ApiError, mut response: Response) -> Response {
    let headers = response.headers_mut();
    let status = error.status_and_type().0;
    if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = match error {
            ApiError::RateLimited {
                retry_after_seconds,
            } => *retry_after_seconds,
            _ => 1,
        };
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    // What is left of such a body is not worth reading to keep the connection.
    if matches!(
        error,
        ApiError::PayloadTooLarge { .. } | ApiError::BodyTooSlow { .. }
    ) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
