//! `millrace top`: who works on what, and how fast.

use std::process::ExitCode;

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use millrace_crds::names::service_of;
use millrace_crds::{BatchJob, InferenceService};
use serde::Serialize;

use crate::cluster::connect::{ClusterArgs, Connection};
use crate::cluster::end::{end, succeeded};
use crate::cluster::explain;
use crate::cluster::jobs::listed;
use crate::cluster::show::{Format, document, or_dash, span, table};
use crate::output;

/// Shows the jobs that are not over, the fastest first: their workers and their rates.
#[derive(Debug, Args)]
pub struct TopArgs {
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
pub async fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    let TopArgs {
        all_namespaces,
        output: format,
        cluster,
    } = args;
    let connection = cluster.connect().await?;
    let jobs = listed(&connection, all_namespaces).await?;
    let services = services(&connection, all_namespaces).await?;
    let rates = rates(&jobs, &services, Timestamp::now());
    if !matches!(format, Format::Text | Format::Wide) {
        output::line(document(&rates, format)?.trim_end())?;
    } else if rates.is_empty() {
        let list = connection.invocation.command("list");
        eprintln!("no job is under way; `{list}` shows those that are over as well");
    } else {
        output::line(&lines(&rates, all_namespaces).join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The services, as far as this account may see them: without them only the rates of pods are unknown.
async fn services(
    connection: &Connection,
    all_namespaces: bool,
) -> anyhow::Result<Vec<InferenceService>> {
    let client = connection.client.clone();
    let api = match all_namespaces {
        true => Api::all(client),
        false => Api::namespaced(client, &connection.namespace),
    };
    match api.list(&Default::default()).await {
        Ok(listed) => Ok(listed.items),
        Err(error) if explain::is_forbidden(&error) => Ok(Vec::new()),
        Err(error) => Err(connection.explain(error, "list services")),
    }
}

/// How fast a job gets on.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rate {
    namespace: String,
    name: String,
    service: String,
    reason: Option<String>,
    progress: Option<String>,
    /// Pods that work for the job's service, and how many there should be.
    workers: Option<u32>,
    workers_wanted: Option<u32>,
    rows_per_second: Option<f64>,
    /// Of one pod, over all jobs of the service.
    tokens_per_second_per_worker: Option<f64>,
    shards_open: Option<u32>,
    seconds_left: Option<i64>,
}

/// The rates of the jobs that are not over, the fastest first. Pure.
fn rates(jobs: &[BatchJob], services: &[InferenceService], now: Timestamp) -> Vec<Rate> {
    let under_way = jobs.iter().filter(|job| end(job).is_none());
    let mut rates: Vec<Rate> = under_way.map(|job| rate(job, services, now)).collect();
    rates.sort_by(|a, b| {
        let by_rate = b
            .rows_per_second
            .unwrap_or(0.0)
            .total_cmp(&a.rows_per_second.unwrap_or(0.0));
        by_rate.then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
    });
    rates
}

fn rate(job: &BatchJob, services: &[InferenceService], now: Timestamp) -> Rate {
    let status = job.status.clone().unwrap_or_default();
    let (namespace, service) = (job.namespace().unwrap_or_default(), service_of(job));
    let is_its = |it: &&InferenceService| {
        it.namespace().as_deref() == Some(&namespace) && it.name_any() == service
    };
    let of_service = services
        .iter()
        .find(is_its)
        .and_then(|it| it.status.as_ref());
    let shards = status.shards;
    Rate {
        name: job.name_any(),
        reason: succeeded(job).map(|it| it.reason.clone()),
        progress: status.progress,
        workers: status.workers,
        workers_wanted: of_service.and_then(|it| it.replicas),
        rows_per_second: status.rows_per_second,
        tokens_per_second_per_worker: of_service.and_then(|it| it.tokens_per_second),
        shards_open: shards.map(|it| it.total.saturating_sub(it.committed + it.failed)),
        seconds_left: status
            .eta
            .map(|eta| eta.0.duration_since(now).as_secs().max(0)),
        namespace,
        service,
    }
}

fn lines(rates: &[Rate], all_namespaces: bool) -> Vec<String> {
    let mut header = vec![
        "NAME",
        "SERVICE",
        "REASON",
        "PROGRESS",
        "WORKERS",
        "ROWS/S",
        "TOKENS/S/WORKER",
        "SHARDS",
        "LEFT",
    ];
    if all_namespaces {
        header.insert(0, "NAMESPACE");
    }
    let row = |rate: &Rate| {
        let Rate {
            namespace,
            name,
            service,
            reason,
            progress,
            workers,
            workers_wanted,
            rows_per_second,
            tokens_per_second_per_worker,
            shards_open,
            seconds_left,
        } = rate;
        let wanted = workers_wanted.map(|wanted| format!("/{wanted}"));
        let workers = workers.map(|workers| format!("{workers}{}", wanted.unwrap_or_default()));
        let mut row = vec![
            name.clone(),
            service.clone(),
            or_dash(reason.as_ref()),
            or_dash(progress.as_ref()),
            or_dash(workers),
            or_dash(rows_per_second.map(|rate| format!("{rate:.1}"))),
            or_dash(tokens_per_second_per_worker.map(|rate| format!("{rate:.0}"))),
            or_dash(*shards_open),
            or_dash(seconds_left.map(span)),
        ];
        if all_namespaces {
            row.insert(0, namespace.clone());
        }
        row
    };
    table(&header, rates.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::show::testing::{job, now};

    fn named(name: &str, rows_per_second: f64) -> BatchJob {
        let mut job = job("Unknown", "Running");
        job.metadata.name = Some(name.to_owned());
        job.status.as_mut().unwrap().rows_per_second = Some(rows_per_second);
        job
    }

    fn service() -> InferenceService {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "minilm", "namespace": "tenant"},
            "spec": {"models": []},
            "status": {"replicas": 3, "tokensPerSecond": 4200.0},
        }))
        .unwrap()
    }

    #[test]
    fn the_fastest_job_comes_first_and_one_that_is_over_not_at_all() {
        let jobs = [
            named("slow", 1.5),
            job("True", "Completed"),
            named("fast", 282.5),
        ];
        let rates = rates(&jobs, &[service()], now());
        assert_eq!(
            lines(&rates, false),
            [
                "NAME  SERVICE  REASON   PROGRESS  WORKERS  ROWS/S  TOKENS/S/WORKER  SHARDS  LEFT",
                "fast  minilm   Running  41%       2/3      282.5   4200             58      3m50s",
                "slow  minilm   Running  41%       2/3      1.5     4200             58      3m50s",
            ]
        );
        assert!(lines(&rates, true)[1].starts_with("tenant "));
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let mut unseen = job("Unknown", "Running");
        unseen.status = None;
        let rates = rates(&[unseen], &[], now());
        let row = &lines(&rates, false)[1];
        assert_eq!(
            row,
            "embed  minilm   -       -         -        -       -                -       -"
        );
    }
}
