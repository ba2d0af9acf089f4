//! `POST /v1/rows`: a worker's texts, with priority *batch*, in MessagePack.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::header::CONTENT_TYPE;
use millrace_protocol::wire::{ModelReply, ROWS_CONTENT_TYPE, RowsReply, RowsRequest};

use crate::{
    batcher::Priority,
    http::{
        app::{App, find_models},
        body,
        error::ApiError,
    },
    inference::Question,
    work::Answer,
};

/// Answers every text by every model named; texts above a model's length are cut.
pub async fn rows(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let inference = app.inference()?;
    let _slot = app.rows_slot()?;
    let limits = &app.limits;
    let body = body::read(request, limits.rows_payload_bytes_max, limits.body_deadline).await?;
    let RowsRequest { models, texts } = rmp_serde::from_slice(&body)
        .map_err(|error| ApiError::Malformed(format!("the body is not a rows request: {error}")))?;
    drop(body);
    if texts.is_empty() || models.is_empty() {
        return Err(ApiError::Empty);
    }
    let (items, items_max) = (texts.len(), limits.rows_batch_items_max);
    if items > items_max {
        return Err(ApiError::TooManyItems { items, items_max });
    }
    let question = Question {
        texts,
        models: find_models(inference.models(), &models)?,
        priority: Priority::Batch,
        truncate: true,
        deadline: Instant::now() + limits.rows_deadline,
    };
    let answers = inference.ask(question).await?;
    let reply = to_reply(answers, models.len());
    let bytes = rmp_serde::to_vec_named(&reply).expect("a reply always has a MessagePack form");
    Ok(([(CONTENT_TYPE, ROWS_CONTENT_TYPE)], bytes).into_response())
}

fn to_reply(answers: Vec<Answer>, models: usize) -> RowsReply {
    let tokens = answers.iter().map(|answer| answer.tokens as u64).sum();
    let mut rows = Vec::with_capacity(answers.len() / models);
    let mut answers = answers.into_iter().map(|answer| match answer.result {
        Ok(prediction) => ModelReply::Ok(prediction),
        Err(error) => ModelReply::Err(error),
    });
    loop {
        let row = answers.by_ref().take(models).collect::<Vec<_>>();
        if row.is_empty() {
            return RowsReply { rows, tokens };
        }
        rows.push(row);
    }
}
