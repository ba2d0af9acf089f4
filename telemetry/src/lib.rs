//! What all programs set up alike: logs, traces, and the signal that tells them to end.
//!
//! It knows neither Kubernetes nor models. Traces leave by OTLP where the standard `OTEL_…`
//! variables name a collector; where they name none, no span is ever made.

mod export;
mod panics;
mod past;
mod run_trace;
mod signal;
mod spans;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

pub use self::export::handed_on;
pub use self::past::PastSpan;
pub use self::run_trace::{RunTrace, WHOLE_RUN};
pub use self::signal::on_signal;
pub use self::spans::{SPANS, chain, in_span, inject, join_remote, note_error};
pub use opentelemetry::KeyValue;

/// Content type of metrics, as every program of ours renders them.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Name of what writes the spans.
const TRACER: &str = "millrace";

/// Longest that the last spans may hold up the end of a process.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);

/// What a program says of itself.
#[derive(Debug, Clone, Copy)]
pub struct TelemetryOptions {
    /// Name of the program in traces, unless `OTEL_SERVICE_NAME` gives one.
    pub service: &'static str,
    /// What is logged, unless `MILLRACE_LOG` says.
    pub log: &'static str,
    /// Whether this process has work to trace; one that only watches over another has none.
    pub traces: bool,
}

/// The logs and traces of this process.
#[must_use = "spans that are not flushed are lost"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Begins to log to the standard error stream, panics by their place alone, and to trace if the environment
/// asks for it. Once per process.
pub fn start(options: TelemetryOptions) -> Telemetry {
    let TelemetryOptions {
        service,
        log,
        traces,
    } = options;
    let started = match traces {
        true => export::start(service),
        false => Ok(None),
    };
    let (provider, refused) = match started {
        Ok(provider) => (provider, None),
        Err(refused) => (None, Some(refused)),
    };
    let wanted = EnvFilter::try_from_env("MILLRACE_LOG").unwrap_or_else(|_| EnvFilter::new(log));
    let logs = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(wanted.and(filter_fn(spans::is_logged)));
    let spans = provider.as_ref().map(|provider| {
        let tracer = provider.tracer(TRACER);
        spans::layer(tracer).with_filter(filter_fn(spans::is_traced))
    });
    tracing_subscriber::registry().with(logs).with(spans).init();
    panics::log_places();
    if let Some(refused) = refused {
        let error: &dyn std::error::Error = &refused;
        tracing::warn!(error, "nothing is traced");
    }
    Telemetry { provider }
}

impl Telemetry {
    /// Sends the spans that are left, for a few seconds at most.
    pub async fn flush(self) {
        let Some(provider) = self.provider else {
            return;
        };
        let flushing = move || provider.shutdown_with_timeout(FLUSH_PATIENCE);
        match tokio::task::spawn_blocking(flushing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans are lost"),
            Err(error) => tracing::warn!(%error, "the last spans are lost"),
        }
    }
}
