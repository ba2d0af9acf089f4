//! Spans of this process: which of them exist, and how they join those of other processes.

use std::error::Error;

use http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::Status;
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use tracing::{Instrument, Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

/// Target of every span that is traced. Nothing else looks at it, so that without a collector such
/// a span is disabled where it stands and costs one load of an atomic.
pub const SPANS: &str = "millrace_spans";

/// Whether the logs show it: events, whatever span they happen in.
pub(crate) fn is_logged(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
}

/// Whether traces show it: our spans, and the warnings that happen in them.
pub(crate) fn is_traced(metadata: &Metadata<'_>) -> bool {
    match metadata.is_span() {
        true => metadata.target() == SPANS,
        // What the exporter says of itself must not become its own work.
        false => {
            *metadata.level() <= Level::WARN && !metadata.target().starts_with("opentelemetry")
        }
    }
}

/// Turns spans into those of OpenTelemetry, with what they say and nothing about the program's text.
pub(crate) fn layer<S>(tracer: SdkTracer) -> OpenTelemetryLayer<S, SdkTracer>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_context_activation(false)
        .with_location(false)
        .with_target(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
}

/// Does `work` within `span`, which takes the error if there is one.
pub async fn in_span<T, E>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E>
where
    E: Error,
{
    let noted = async {
        let done = work.await;
        if let Err(error) = &done {
            note_error(error);
        }
        done
    };
    noted.instrument(span).await
}

/// Says that what the current span does failed.
pub fn note_error(error: &dyn Error) {
    let span = Span::current();
    if !span.is_disabled() {
        span.set_status(Status::error(chain(error)));
    }
}

/// Names the current span in the headers of a request (`traceparent`), so that whoever answers
/// joins it.
pub fn inject(headers: &mut HeaderMap) {
    let span = Span::current();
    if !span.is_disabled() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(headers));
    }
}

/// Makes `span` a child of the span that a request names in its headers, if it names one. To be
/// called before the span has a child.
pub fn join_remote(span: &Span, headers: &HeaderMap) {
    if !span.is_disabled() && headers.contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // Only a span that has begun already keeps the parent it has.
        let _ = span.set_parent(parent);
    }
}

/// An error and its sources in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
