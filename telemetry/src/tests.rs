//! What a collector would be sent, looked at in memory.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use opentelemetry::trace::{SpanId, Status, TraceId, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::export::begin;
use crate::{PastSpan, RunTrace, SPANS, TRACER, in_span, inject, join_remote, panics, spans};

fn past(name: &'static str) -> PastSpan {
    PastSpan {
        name,
        started: SystemTime::UNIX_EPOCH,
        ended: SystemTime::UNIX_EPOCH + Duration::from_secs(60),
        attributes: Vec::new(),
        error: None,
    }
}

fn find<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    let found = spans.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("there is no span {name:?}: {spans:#?}"))
}

/// One test, since a process traces to one place.
#[tokio::test]
async fn the_spans_of_a_run_join_without_talking_and_those_of_a_request_by_its_header() {
    let exporter = InMemorySpanExporter::default();
    let provider = begin(SdkTracerProvider::builder().with_simple_exporter(exporter.clone()));
    let layer = spans::layer(provider.tracer(TRACER)).with_filter(filter_fn(spans::is_traced));
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(layer));

    let run = RunTrace::of("uid", 1);
    run.write_whole(|| past("whole"));
    run.write(|| past("visit"));
    let mut headers = HeaderMap::new();
    {
        let shard = tracing::info_span!(target: SPANS, parent: None, "shard");
        run.join(&shard);
        let failed = in_span(shard, async {
            inject(&mut headers);
            let child = tracing::info_span!(target: SPANS, "commit");
            drop(child);
            drop(tracing::info_span!("of another crate"));
            Err::<(), _>(std::io::Error::other("no such bucket"))
        });
        failed.await.unwrap_err();
        let request = tracing::info_span!(target: SPANS, parent: None, "request");
        join_remote(&request, &headers);
    }

    let spans = exporter.get_finished_spans().unwrap();
    assert_eq!(spans.len(), 5, "{spans:#?}");
    let trace_id = TraceId::from_bytes(run.trace_id());
    assert!(
        spans
            .iter()
            .all(|span| span.span_context.trace_id() == trace_id)
    );
    let (whole, shard) = (find(&spans, "whole"), find(&spans, "shard"));
    assert_eq!(whole.parent_span_id, SpanId::INVALID);
    assert_eq!(
        whole.span_context.span_id(),
        SpanId::from_bytes(run.span_id())
    );
    assert_eq!(whole.end_time, past("whole").ended);
    for (child, parent) in [
        ("visit", whole),
        ("shard", whole),
        ("commit", shard),
        ("request", shard),
    ] {
        let child = find(&spans, child);
        assert_eq!(
            child.parent_span_id,
            parent.span_context.span_id(),
            "{child:?}"
        );
    }
    assert_eq!(shard.status, Status::error("no such bucket"));
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_is_logged_by_its_place_and_the_text_that_it_quotes_is_not() {
    let log = Log::default();
    let writer = log.clone();
    let logs = fmt::layer().with_ansi(false);
    let logs = logs.with_writer(move || writer.clone());
    let usual = std::panic::take_hook();
    panics::log_places();
    let row = "the text of a row";
    let panicked = tracing::subscriber::with_default(Registry::default().with(logs), || {
        std::panic::catch_unwind(|| row[..row.len() + 1].len())
    });
    std::panic::set_hook(usual);
    let payload = panicked.unwrap_err();
    let words = payload.downcast_ref::<String>().expect("made words");
    assert!(words.contains(row), "the panic quotes it: {words}");
    let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(said.contains("this program panicked"), "{said}");
    assert!(said.contains("telemetry/src/tests.rs:"), "{said}");
    assert!(!said.contains("of a row"), "{said}");
}
