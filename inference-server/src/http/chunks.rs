//! `POST /v1/chunks`: cuts a worker's long texts into chunks, in MessagePack. Runs no model.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::header::CONTENT_TYPE;
use millrace_models::chunks::{Ruler, cut};
use millrace_protocol::{
    row::{RowError, RowErrorCode},
    wire::{ChunksOfText, ChunksReply, ChunksRequest, ROWS_CONTENT_TYPE},
};

use crate::{
    http::{
        app::{App, find_models},
        body,
        error::ApiError,
    },
    inference::{Inference, guarded},
};

/// Cuts every text into chunks that are short enough for every model named.
pub async fn chunks(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let inference = app.inference()?;
    let _slot = app.rows_slot()?;
    let limits = &app.limits;
    let deadline = Instant::now() + limits.rows_deadline;
    let body = body::read(request, limits.rows_payload_bytes_max, limits.body_deadline).await?;
    let request: ChunksRequest = rmp_serde::from_slice(&body).map_err(|error| {
        ApiError::Malformed(format!("the body is not a request for chunks: {error}"))
    })?;
    drop(body);
    let ChunksRequest {
        models,
        texts,
        limits: chunk_limits,
    } = request;
    if texts.is_empty() || models.is_empty() {
        return Err(ApiError::Empty);
    }
    let (items, items_max) = (texts.len(), limits.rows_batch_items_max);
    if items > items_max {
        return Err(ApiError::TooManyItems { items, items_max });
    }
    let models = find_models(inference.models(), &models)?;
    let cutting = move |inference: &Inference| {
        // Models with the same tokens would measure the same.
        let distinct = BTreeSet::from_iter(inference.tokenizers(&models));
        let rulers = distinct.iter().map(|&model| &inference.models()[model]);
        let rulers: Vec<&dyn Ruler> = rulers.map(|model| model as &dyn Ruler).collect();
        let texts = texts.iter();
        let texts = texts.map(|text| {
            let cut = match Instant::now() < deadline {
                true => guarded(|| cut(text, &chunk_limits, &rulers)),
                false => Err(late()),
            };
            cut.map_or_else(ChunksOfText::Err, ChunksOfText::Ok)
        });
        texts.collect::<Vec<_>>()
    };
    let texts = inference.on_tokenizer_thread(cutting).await;
    let texts = texts.ok_or_else(|| failed("cutting texts panicked"))?;
    let reply = ChunksReply { texts };
    let bytes = rmp_serde::to_vec_named(&reply).expect("a reply always has a MessagePack form");
    Ok(([(CONTENT_TYPE, ROWS_CONTENT_TYPE)], bytes).into_response())
}

/// The server is busy, and no text is to blame.
fn late() -> RowError {
    RowError::new(RowErrorCode::Timeout, "the text could not be cut in time")
}

fn failed(message: &str) -> RowError {
    RowError::new(RowErrorCode::TokenizeFailed, message)
}
