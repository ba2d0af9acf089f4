//! The way of spans out of the process: OTLP over HTTP, as the standard variables say.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    Config, IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider, ShouldSample,
    TracerProviderBuilder,
};
use tokio::runtime::Runtime;

use crate::TRACER;

/// Where traces go, if the variable for all signals does not say.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Where all signals go.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Milliseconds that an export may take.
const TIMEOUT: &str = "OTEL_EXPORTER_OTLP_TIMEOUT";

/// What holds where `TIMEOUT` says nothing, by the specification.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// What one process may tell those that it starts. Headers are left out: they hold credentials,
/// and whoever may read a pod could read them.
const HANDED_ON: [&str; 5] = [
    ENDPOINT,
    TRACES_ENDPOINT,
    TIMEOUT,
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
];

/// What spans are written with, once tracing began.
pub(crate) struct Exporting {
    pub(crate) tracer: SdkTracer,
    pub(crate) sampler: Box<dyn ShouldSample>,
}

static EXPORTING: OnceLock<Exporting> = OnceLock::new();

thread_local! {
    /// The ids of the next span of this thread, where they must be certain ones.
    static IDS: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Why nothing is traced although a collector is named.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracesRefused {
    #[error("{0} begins with https: name a collector that takes http, such as one on this node")]
    Encrypted(&'static str),
    #[error("the exporter of traces cannot be made")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// What writes spans, if this process traces.
pub(crate) fn exporting() -> Option<&'static Exporting> {
    EXPORTING.get()
}

/// The variables of this process that others need in order to trace to the same collector.
pub fn handed_on() -> Vec<(String, String)> {
    let set = HANDED_ON.into_iter();
    set.filter_map(|name| Some((name.to_owned(), variable(name)?)))
        .collect()
}

/// Begins to export if the environment names a collector.
pub(crate) fn start(service: &'static str) -> Result<Option<SdkTracerProvider>, TracesRefused> {
    if !is_wanted(variable)? {
        return Ok(None);
    }
    let timeout = variable(TIMEOUT).and_then(|millis| millis.parse().ok());
    let sender = Sender {
        client: HyperClient::with_default_connector(
            timeout.map_or(TIMEOUT_DEFAULT, Duration::from_millis),
            None,
        ),
        runtime: OnceLock::new(),
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(sender)
        .with_protocol(Protocol::HttpBinary)
        .build()
        .map_err(TracesRefused::Exporter)?;
    let provider = SdkTracerProvider::builder()
        .with_resource(resource(service))
        .with_batch_exporter(exporter);
    Ok(Some(begin(provider)))
}

/// Builds the provider and lets all of this process write by it.
pub(crate) fn begin(provider: TracerProviderBuilder) -> SdkTracerProvider {
    let provider = provider.with_id_generator(Ids::default()).build();
    let exporting = Exporting {
        tracer: provider.tracer(TRACER),
        sampler: Config::default().sampler,
    };
    // A second start in one process would be a second subscriber too, which is refused.
    let _ = EXPORTING.set(exporting);
    provider
}

/// A variable that says something; an empty one counts as absent, by the specification.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the environment asks for traces that this program can send.
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> Result<bool, TracesRefused> {
    let says = |name, word| variable(name).is_some_and(|value| value.eq_ignore_ascii_case(word));
    if says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none") {
        return Ok(false);
    }
    let named = [TRACES_ENDPOINT, ENDPOINT].into_iter();
    let mut named = named.filter_map(|name| Some((name, variable(name)?)));
    match named.next() {
        None => Ok(false),
        Some((name, endpoint)) if endpoint.starts_with("https:") => {
            Err(TracesRefused::Encrypted(name))
        }
        Some(_) => Ok(true),
    }
}

/// Who writes the spans: what the environment says, and where it says nothing the program and its
/// machine, which in a cluster is the pod.
fn resource(service: &'static str) -> Resource {
    let said = Resource::builder().build();
    let mut resource = Resource::builder();
    let name = said.get(&Key::new("service.name"));
    if name.is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        resource = resource.with_service_name(service);
    }
    if said.get(&Key::new("service.instance.id")).is_none()
        && let Some(host) = variable("HOSTNAME")
    {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", host));
    }
    resource.build()
}

/// Runs `write` with these ids for the first span that it makes.
pub(crate) fn with_ids(trace_id: TraceId, span_id: SpanId, write: impl FnOnce()) {
    IDS.set(Some((trace_id, span_id)));
    write();
    IDS.set(None);
}

/// Random ids, but for spans whose ids are known beforehand.
#[derive(Debug, Default)]
struct Ids {
    random: RandomIdGenerator,
}

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        match IDS.get() {
            Some((trace_id, _)) => trace_id,
            None => self.random.new_trace_id(),
        }
    }

    fn new_span_id(&self) -> SpanId {
        match IDS.get() {
            Some((_, span_id)) => span_id,
            None => self.random.new_span_id(),
        }
    }
}

/// Sends exports from the plain thread that the SDK exports on, by a runtime of its own: the
/// program's may be busy, or over already when the last spans are sent.
#[derive(Debug)]
struct Sender {
    client: HyperClient,
    /// Made on that thread, which also drops it: an async one must not.
    runtime: OnceLock<Runtime>,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let runtime = match self.runtime.get() {
            Some(runtime) => runtime,
            None => {
                let mut builder = tokio::runtime::Builder::new_current_thread();
                let runtime = builder.enable_all().build()?;
                self.runtime.get_or_init(|| runtime)
            }
        };
        runtime.block_on(self.client.send_bytes(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_wanted_only_where_a_collector_is_named() {
        let check = |variables: &[(&str, &str)], expected: Option<bool>| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(is_wanted(variable).ok(), expected, "{variables:?}");
        };
        let named = (ENDPOINT, "http://collector:4318");
        check(&[], Some(false));
        check(&[named], Some(true));
        check(
            &[(TRACES_ENDPOINT, "http://collector:4318/v1/traces")],
            Some(true),
        );
        check(&[named, ("OTEL_SDK_DISABLED", "true")], Some(false));
        check(&[named, ("OTEL_TRACES_EXPORTER", "none")], Some(false));
        check(&[(ENDPOINT, "https://collector:4318")], None);
    }
}
