//! The spans of requests and batches. A request joins whoever names a span in its headers; the
//! server itself knows nothing of jobs and shards.
//!
//! Numbers are signed, since OpenTelemetry has no others.

use std::collections::HashSet;

use axum::extract::Request;
use http::StatusCode;
use millrace_telemetry::{SPANS, join_remote};
use tracing::{Id, Span, field::Empty};

use crate::work::Work;

/// A request for answers.
pub fn request(endpoint: &'static str, request: &Request) -> Span {
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "request",
        otel.name = format!("POST {endpoint}"),
        otel.kind = "server",
        http.request.method = "POST",
        http.route = endpoint,
        http.response.status_code = Empty,
        millrace.rows = Empty,
        millrace.tokens = Empty,
    );
    join_remote(&span, request.headers());
    span
}

/// Says how many texts the current request asks about.
pub fn note_rows(rows: usize) {
    Span::current().record("millrace.rows", rows as i64);
}

/// Says how many tokens the current request's answers took.
pub fn note_tokens(tokens: usize) {
    Span::current().record("millrace.tokens", tokens as i64);
}

/// Says how a request ended. That the queue is full is no fault of the server.
pub fn note_status(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
}

/// Running a batch. It is a child of the first text's request and linked to those of the others.
pub fn batch(model: &str, works: &[Work]) -> Span {
    let parent = works
        .first()
        .map_or_else(Span::none, |work| work.span.clone());
    let span = tracing::info_span!(
        target: SPANS,
        parent: &parent,
        "batch",
        millrace.model = model,
        millrace.rows = works.len() as i64,
        millrace.tokens = works
            .iter()
            .map(|work| work.encoding.token_ids.len() as i64)
            .sum::<i64>(),
    );
    if !span.is_disabled() {
        let requests = works.iter().filter_map(|work| work.span.id());
        let mut others: HashSet<Id> = requests.collect();
        others.retain(|request| Some(request) != parent.id().as_ref());
        for request in others {
            span.follows_from(request);
        }
    }
    span
}
