//! `millrace list`: the jobs of a namespace, or of all.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use millrace_crds::batch_job::Spent;
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_protocol::cost::Cost;
use serde_json::json;

use crate::cluster::connect::{ClusterArgs, Connection};
use crate::cluster::end::{end, succeeded};
use crate::cluster::jobs::{listed, output_of};
use crate::cluster::show::{Format, age, bare, count, document, or_dash, span, table};
use crate::output;
use millrace_crds::names::service_of;

/// Lists jobs.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The jobs of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: ListArgs) -> anyhow::Result<ExitCode> {
    let ListArgs {
        all_namespaces,
        output: format,
        cluster,
    } = args;
    let connection = cluster.connect().await?;
    let jobs = listed(&connection, all_namespaces).await?;
    let is_table = matches!(format, Format::Text | Format::Wide);
    if !is_table {
        let items: Vec<BatchJob> = jobs.into_iter().map(bare).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        output::line(document(&list, format)?.trim_end())?;
    } else if jobs.is_empty() {
        eprintln!("{}", none(&connection, all_namespaces));
    } else {
        let shape = Shape {
            all_namespaces,
            wide: format == Format::Wide,
        };
        output::line(&lines(&jobs, shape, Timestamp::now()).join("\n"))?;
        for line in costs(&jobs) {
            output::line(&line)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn none(connection: &Connection, all_namespaces: bool) -> String {
    let Connection {
        namespace,
        invocation,
        ..
    } = connection;
    let submit = invocation.command("submit -f PATH");
    if all_namespaces {
        return format!("there are no jobs; `{submit}` makes some");
    }
    let all = invocation.command("list -A");
    format!(
        "there are no jobs in namespace {namespace}; `{all}` looks in all, `{submit}` makes some"
    )
}

/// Which columns there are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    all_namespaces: bool,
    wide: bool,
}

/// The columns of `kubectl get batchjobs`, and the service.
fn lines(jobs: &[BatchJob], shape: Shape, now: Timestamp) -> Vec<String> {
    let Shape {
        all_namespaces,
        wide,
    } = shape;
    let mut header = vec![
        "NAME",
        "SERVICE",
        "SUCCEEDED",
        "REASON",
        "PROGRESS",
        "FAILED",
        "AGE",
    ];
    if all_namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["WORKERS", "ROWS/S", "ETA", "OUTPUT"]);
    }
    let row = |job: &BatchJob| {
        let nothing = BatchJobStatus::default();
        let status = job.status.as_ref().unwrap_or(&nothing);
        let condition = succeeded(job);
        let mut row = vec![
            or_dash(job.metadata.name.as_ref()),
            service_of(job),
            or_dash(condition.map(|it| &it.status)),
            or_dash(condition.map(|it| &it.reason)),
            or_dash(status.progress.as_ref()),
            or_dash(status.rows.map(|rows| count(rows.failed))),
            age(job.metadata.creation_timestamp.as_ref(), now),
        ];
        if all_namespaces {
            row.insert(0, or_dash(job.metadata.namespace.as_ref()));
        }
        if wide {
            let left = status.eta.as_ref().filter(|_| end(job).is_none());
            let left = left.map(|eta| span(eta.0.duration_since(now).as_secs()));
            row.extend([
                or_dash(status.workers),
                or_dash(status.rows_per_second.map(|rate| format!("{rate:.1}"))),
                or_dash(left),
                output_of(job).to_owned(),
            ]);
        }
        row
    };
    table(&header, jobs.iter().map(row).collect())
}

/// What the jobs cost together, in each namespace and currency; nothing where no service names prices.
fn costs(jobs: &[BatchJob]) -> Vec<String> {
    let mut sums: BTreeMap<(&str, &str), Cost> = BTreeMap::new();
    for job in jobs {
        let spent = job.status.as_ref().and_then(|status| status.cost.as_ref());
        let Some(Spent {
            total,
            per_row: _,
            currency,
        }) = spent
        else {
            continue;
        };
        let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
        *sums.entry((namespace, currency)).or_default() += *total;
    }
    let line = |((namespace, currency), sum): ((&str, &str), Cost)| {
        format!("cost in namespace {namespace}: {} {currency}", sum.short())
    };
    sums.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::show::testing::{job, now};

    #[test]
    fn the_columns_are_those_of_kubectl_and_the_service() {
        let shape = Shape {
            all_namespaces: false,
            wide: false,
        };
        let mut unseen = job("Unknown", "Running");
        unseen.status = None;
        assert_eq!(
            lines(&[job("Unknown", "Running"), unseen], shape, now()),
            [
                "NAME   SERVICE  SUCCEEDED  REASON   PROGRESS  FAILED  AGE",
                "embed  minilm   Unknown    Running  41%       3       70s",
                "embed  minilm   -          -        -         -       70s",
            ]
        );
    }

    #[test]
    fn what_jobs_cost_is_summed_up_by_namespace_and_currency() {
        let of = |namespace: &str, cost: Option<(&str, &str)>| {
            let mut job = job("True", "Completed");
            job.metadata.namespace = Some(namespace.to_owned());
            job.status.as_mut().unwrap().cost =
                cost.map(|(total, currency)| Spent::of(total.parse().unwrap(), 10, currency));
            job
        };
        let jobs = [
            of("b", Some(("1.5", "USD"))),
            of("a", Some(("0.25", "USD"))),
            of("a", None),
            of("a", Some(("0.5", "USD"))),
            of("a", Some(("2", "EUR"))),
        ];
        let expected = [
            "cost in namespace a: 2 EUR",
            "cost in namespace a: 0.75 USD",
            "cost in namespace b: 1.5 USD",
        ];
        assert_eq!(costs(&jobs), expected);
        assert_eq!(costs(&[of("a", None)]), [""; 0]);
    }

    #[test]
    fn a_wide_list_of_all_namespaces_has_more_columns_at_both_ends() {
        let shape = Shape {
            all_namespaces: true,
            wide: true,
        };
        let lines = lines(&[job("Unknown", "Running")], shape, now());
        assert!(lines[0].starts_with("NAMESPACE  NAME"), "{lines:?}");
        let expected = "2        282.5   3m50s  s3://bucket/embed";
        assert!(
            lines[1].starts_with("tenant ") && lines[1].ends_with(expected),
            "{lines:?}"
        );
    }
}
