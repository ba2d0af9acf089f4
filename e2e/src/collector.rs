//! A collector of traces: takes OTLP over HTTP and keeps the spans.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Largest export; a batch of spans is far below it.
const EXPORT_BYTES_MAX: usize = 64 << 20;

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Name of the program that sent it.
    pub service: String,
    /// What it says that was done.
    pub name: String,
    /// 16 bytes.
    pub trace_id: Vec<u8>,
    /// 8 bytes.
    pub span_id: Vec<u8>,
    /// Empty for a span without a parent.
    pub parent_id: Vec<u8>,
    attributes: Vec<KeyValue>,
}

impl Seen {
    /// The number that an attribute holds.
    pub fn number(&self, key: &str) -> i64 {
        match find(&self.attributes, key) {
            Some(Value::IntValue(number)) => *number,
            other => panic!("{key} of {self:?} is {other:?}"),
        }
    }
}

type Spans = Arc<Mutex<Vec<Seen>>>;

/// A running collector.
pub struct Collector {
    spans: Spans,
    endpoint: String,
    /// Ends what serves when it is dropped.
    _runtime: Runtime,
}

impl Collector {
    /// Starts one on a loopback port.
    pub fn start() -> Self {
        Self::start_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// Starts one where `listener` listens.
    pub fn start_on(listener: std::net::TcpListener) -> Self {
        let runtime = Runtime::new().unwrap();
        listener.set_nonblocking(true).unwrap();
        let within = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        drop(within);
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let spans = Spans::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .layer(axum::extract::DefaultBodyLimit::max(EXPORT_BYTES_MAX))
            .with_state(spans.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            spans,
            endpoint,
            _runtime: runtime,
        }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` says.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// All spans that arrived so far.
    pub fn spans(&self) -> Vec<Seen> {
        self.spans.lock().unwrap().clone()
    }
}

async fn take(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut spans = spans.lock().unwrap();
    for sent in request.resource_spans {
        let attributes = sent.resource.unwrap_or_default().attributes;
        let service = match find(&attributes, "service.name") {
            Some(Value::StringValue(service)) => service.clone(),
            other => panic!("service.name is {other:?}"),
        };
        let of_scopes = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(of_scopes.map(|span| Seen {
            service: service.clone(),
            name: span.name,
            trace_id: span.trace_id,
            span_id: span.span_id,
            parent_id: span.parent_span_id,
            attributes: span.attributes,
        }));
    }
    StatusCode::OK
}

fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    let AnyValue { value } = found.value.as_ref()?;
    value.as_ref()
}
