//! What the protocols' tests share.

use http::{HeaderMap, StatusCode};
use millrace_crds::inference_service::RuntimeModel;
use serde_json::Value;

use super::http::Answer;

pub fn answer(body: &str) -> Answer {
    Answer {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: body.to_owned().into(),
    }
}

pub fn model(model: Value) -> RuntimeModel {
    serde_json::from_value(model).unwrap()
}
