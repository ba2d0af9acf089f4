//! A span that is over when it is written: what was looked back at, not watched.

use std::time::SystemTime;

use opentelemetry::trace::{Span, SpanBuilder, Status, Tracer};
use opentelemetry::{Context, KeyValue};

use crate::export::{self, Exporting};

/// A span that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct PastSpan {
    /// What was done.
    pub name: &'static str,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What is known of it.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl PastSpan {
    /// Writes a span that belongs to no other.
    pub fn write_alone(past: impl FnOnce() -> PastSpan) {
        if let Some(exporting) = export::exporting() {
            past().write(exporting, &Context::new());
        }
    }

    pub(crate) fn write(self, exporting: &Exporting, parent: &Context) {
        let PastSpan {
            name,
            started,
            ended,
            attributes,
            error,
        } = self;
        let builder = SpanBuilder::from_name(name)
            .with_start_time(started)
            .with_attributes(attributes);
        let mut span = exporting.tracer.build_with_context(builder, parent);
        if let Some(error) = error {
            span.set_status(Status::error(error));
        }
        span.end_with_timestamp(ended);
    }
}
