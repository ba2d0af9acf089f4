//! Dashboard, alerts and documentation speak of metrics that there are.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::files;

/// What the operator counts and measures.
pub const OPERATOR: [&str; 11] = [
    "millrace_jobs",
    "millrace_leases_available",
    "millrace_namespace_cost",
    "millrace_operator_leader",
    "millrace_operator_visit_duration_seconds",
    "millrace_operator_visits_total",
    "millrace_service_backlog_shards",
    "millrace_service_cost",
    "millrace_service_ready_replicas",
    "millrace_service_replicas",
    "millrace_services",
];

/// What the worker counts.
const WORKER: [&str; 11] = [
    "millrace_worker_cache_lookups_total",
    "millrace_worker_call_duration_seconds",
    "millrace_worker_call_rows",
    "millrace_worker_call_wait_seconds",
    "millrace_worker_calls_in_flight",
    "millrace_worker_calls_total",
    "millrace_worker_cost_total",
    "millrace_worker_rows_total",
    "millrace_worker_shards_in_hand",
    "millrace_worker_shards_total",
    "millrace_worker_tokens_total",
];

/// What the inference-server counts and measures.
const SERVER: [&str; 13] = [
    "millrace_abandoned_texts_total",
    "millrace_batch_next_size",
    "millrace_batch_next_tokens",
    "millrace_batch_splits_total",
    "millrace_cache_lookups_total",
    "millrace_queue_size",
    "millrace_request_duration_seconds",
    "millrace_request_inference_duration_seconds",
    "millrace_request_queue_duration_seconds",
    "millrace_request_total",
    "millrace_row_errors_total",
    "millrace_tokenized_texts_total",
    "millrace_tokens_total",
];

/// What is exposed as several series of one metric.
const HISTOGRAMS: [&str; 9] = [
    "millrace_batch_next_size",
    "millrace_batch_next_tokens",
    "millrace_operator_visit_duration_seconds",
    "millrace_request_duration_seconds",
    "millrace_request_inference_duration_seconds",
    "millrace_request_queue_duration_seconds",
    "millrace_worker_call_duration_seconds",
    "millrace_worker_call_rows",
    "millrace_worker_call_wait_seconds",
];

fn known() -> BTreeSet<&'static str> {
    OPERATOR.into_iter().chain(WORKER).chain(SERVER).collect()
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("millrace_"))
        .map(str::to_owned)
        .collect()
}

/// The metric that a series belongs to: histograms are exposed as three series each.
fn metric_of(series: &str) -> &str {
    for suffix in ["_bucket", "_sum", "_count"] {
        if let Some(metric) = series.strip_suffix(suffix)
            && HISTOGRAMS.contains(&metric)
        {
            return metric;
        }
    }
    series
}

/// Every string under `key`, however deep.
fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == key => found.push(text),
                    _ => under(field, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| under(item, key, found)),
        _ => {}
    }
}

fn expressions(file: &str) -> Vec<String> {
    let file = files::yaml(file);
    let mut found = Vec::new();
    under(&file, "expr", &mut found);
    found.into_iter().map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_use_metrics_that_there_are() {
    for file in [
        "charts/millrace/files/dashboards/millrace.json",
        "charts/millrace/files/alerts.yaml",
    ] {
        let expressions = expressions(file);
        assert!(
            expressions.len() > 5,
            "{file} has {} expressions",
            expressions.len()
        );
        for expression in expressions {
            let names = named(&expression);
            assert!(
                !names.is_empty(),
                "{file}: {expression} speaks of no metric"
            );
            for series in names {
                let metric = metric_of(&series);
                assert!(known().contains(metric), "{file}: nobody measures {series}");
                let is_whole = metric == series && HISTOGRAMS.contains(&metric);
                assert!(
                    !is_whole,
                    "{file}: {series} is a histogram; name one of its series"
                );
            }
        }
    }
}

#[test]
fn the_dashboard_shows_every_metric() {
    let shown: BTreeSet<String> = expressions("charts/millrace/files/dashboards/millrace.json")
        .iter()
        .flat_map(|expression| named(expression))
        .map(|series| metric_of(&series).to_owned())
        .collect();
    let missing: Vec<_> = known()
        .into_iter()
        .filter(|it| !shown.contains(*it))
        .collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let documented = named(&files::text("docs/monitoring.md"));
    let documented: BTreeSet<&str> = documented.iter().map(|series| metric_of(series)).collect();
    assert_eq!(documented, known());
}

#[test]
fn the_server_registers_its_metrics_by_these_names() {
    let source = files::text("inference-server/src/metrics.rs");
    for metric in SERVER {
        let stem = metric.trim_start_matches("millrace_");
        let stem = stem.trim_end_matches("_total").trim_end_matches("_seconds");
        assert!(source.contains(&format!("\"{stem}\"")), "{metric}");
    }
    let registered = source.matches("registry.register(").count()
        + source.matches("registry.register_with_unit(").count();
    assert_eq!(
        registered,
        SERVER.len(),
        "a metric of the server is not listed here"
    );
}
