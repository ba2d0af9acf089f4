//! Reads request bodies: refused by their announced length before a byte is read, cut at the bound
//! while reading, and given up at a deadline.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, header::CONTENT_LENGTH};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::http::{app::HttpLimits, error::ApiError};

/// The whole body.
pub async fn read(
    request: Request<Body>,
    bytes_max: usize,
    deadline: Duration,
) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > bytes_max as u64) {
        return Err(ApiError::PayloadTooLarge { bytes_max });
    }
    let collected = Limited::new(request.into_body(), bytes_max).collect();
    match tokio::time::timeout(deadline, collected).await {
        Err(_elapsed) => Err(ApiError::BodyTooSlow { deadline }),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::PayloadTooLarge { bytes_max })
        }
        Ok(Err(error)) => Err(ApiError::Malformed(format!("the body broke off: {error}"))),
    }
}

/// The JSON of an online request, within the bounds of one.
pub async fn online<T: DeserializeOwned>(
    request: Request<Body>,
    limits: &HttpLimits,
) -> Result<T, ApiError> {
    json(&read(request, limits.payload_bytes_max, limits.body_deadline).await?)
}

/// A JSON body: 400 where it is not JSON, 422 where it says something else than asked.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => ApiError::Invalid(error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => {
            ApiError::Malformed(format!("the body is not valid JSON: {error}"))
        }
    })
}
