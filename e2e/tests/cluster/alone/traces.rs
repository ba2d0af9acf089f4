//! The spans of all processes of a job, as a collector beside the cluster gets them.

use std::collections::BTreeSet;

use millrace_e2e::collector::{Collector, Seen};

use crate::tenant::Tenant;
use crate::turn::turn_alone;

/// What the processes of a job do, each in a span.
const SPANS: [&str; 8] = [
    "batch_job",
    "visit",
    "plan",
    "shard",
    "commit",
    "POST /v1/rows",
    "batch",
    "finish",
];

#[test]
fn operator_planner_worker_server_and_finisher_of_a_job_write_one_trace() {
    let Some(cluster) = turn_alone() else { return };
    let collector = Collector::start_on(cluster.listen());
    let endpoint = format!("operator.otlpEndpoint={}", collector.endpoint());
    cluster.upgrade(&["--set", &endpoint]);
    let tenant = Tenant::new(&cluster, "traces");
    let rows = tenant.rows(200);
    tenant.service("");
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.check_succeeded("embed", &rows, 180);

    let of_job = || -> Option<Vec<Seen>> {
        let spans = collector.spans();
        let plan = spans.iter().find(|span| span.name == "plan")?;
        let trace = plan.trace_id.clone();
        Some(
            spans
                .into_iter()
                .filter(|span| span.trace_id == trace)
                .collect(),
        )
    };
    let spans = cluster.wait(tenant.namespace(), 60, "all spans are there", || {
        let spans = of_job()?;
        let has = |name: &&str| spans.iter().any(|span| span.name == **name);
        SPANS.iter().all(has).then_some(spans)
    });
    cluster.install();
    let services: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
    let expected = [
        "millrace-inference-server",
        "millrace-operator",
        "millrace-worker",
    ];
    assert_eq!(services, expected.into());
    let whole: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "batch_job")
        .collect();
    assert_eq!(whole.len(), 1, "{whole:#?}");
    assert_eq!(whole[0].service, "millrace-operator");
    for name in ["plan", "shard", "finish", "visit"] {
        let mut of_name = spans.iter().filter(|span| span.name == name);
        assert!(
            of_name.all(|span| span.parent_id == whole[0].span_id),
            "{name}"
        );
    }
    let asked: i64 = (spans.iter().filter(|span| span.name == "batch"))
        .map(|span| span.number("millrace.rows"))
        .sum();
    assert_eq!(asked, 200);
}
