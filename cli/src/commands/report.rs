//! `millrace report`: what somebody else needs to know to find out what is wrong with a job.

use std::process::ExitCode;

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;
use kube::{Api, ResourceExt};
use millrace_crds::InferenceService;
use millrace_crds::names::service_of;

use crate::cluster::connect::{ClusterArgs, Connection};
use crate::cluster::gather::{Seen, gather};
use crate::cluster::jobs::job_name;
use crate::cluster::redact;
use crate::cluster::show::{Format, document};
use crate::cluster::sources::{Source, sources};
use crate::cluster::summary;
use crate::output;

/// Most containers whose logs are read.
const CONTAINERS_MAX: usize = 40;

/// Most bytes of the log of one container.
const LOG_BYTES_MAX: i64 = 1 << 20;

/// Name of the container of a server, which may be an image of somebody else.
const SERVER: &str = "server";

/// Prints a report for whoever is asked for help: the job and its service, pods, events and logs.
///
/// Keys and passwords are taken out, and rows are never in it: `millrace report embed > report.txt`.
/// Read it before you send it.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The job: its name, batchjob/NAME, or @latest, the newest one.
    #[arg(value_parser = job_name)]
    name: String,
    /// Most lines of the log of each container, from its end.
    #[arg(long, value_name = "LINES", default_value_t = 200)]
    tail: u32,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let ReportArgs {
        name,
        tail,
        cluster,
    } = args;
    let connection = cluster.connect().await?;
    let job = connection.job(&name).await?;
    let service = service(&connection, &service_of(&job)).await;
    let is_foreign = service.as_ref().is_ok_and(|it| it.spec.runtime.is_some());
    let seen = gather(&connection, job).await?;
    let step_pods = connection.step_pods(&seen.job.name_any()).await?;
    let now = Timestamp::now();
    output::line(&head(&connection, now).await)?;
    let shown = document(&redact::job(&seen.job), Format::Yaml)?;
    output::line(&section("job", &shown))?;
    let shown = match service {
        Ok(service) => document(&redact::service(&service), Format::Yaml)?,
        Err(reason) => reason,
    };
    output::line(&section("service", &shown))?;
    output::line(&about(&seen, &step_pods, now))?;
    let Seen { pods, .. } = &seen;
    let (steps, workers) = (step_pods.unwrap_or_default(), pods.as_deref());
    let sources = sources(&steps, workers.unwrap_or_default(), None);
    for source in sources.into_iter().take(CONTAINERS_MAX) {
        let title = format!("log of {}/{}", source.pod, source.container);
        let said = match is_foreign && source.container == SERVER {
            true => "left out: what a server of somebody else logs may be rows".to_owned(),
            false => log(&connection, &source, tail).await,
        };
        output::line(&section(&title, &said))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Which programs there are.
async fn head(connection: &Connection, now: Timestamp) -> String {
    let version = connection.client.apiserver_version().await;
    let version = version.map_or_else(|_| "unknown".to_owned(), |it| it.git_version);
    format!(
        "millrace report of {now}\nprogram: {}\nKubernetes: {version}",
        env!("CARGO_PKG_VERSION")
    )
}

/// The service, or why it is not known.
async fn service(connection: &Connection, name: &str) -> Result<InferenceService, String> {
    let services: Api<InferenceService> =
        Api::namespaced(connection.client.clone(), &connection.namespace);
    let service = services.get(name).await;
    service.map_err(|error| format!("{:#}", connection.explain(error, "read the service")))
}

/// Pods and events. Pure.
fn about(seen: &Seen, step_pods: &Result<Vec<Pod>, String>, now: Timestamp) -> String {
    let Seen {
        job: _,
        pods,
        events,
    } = seen;
    let sections = [
        ("pods of the job", summary::workers(step_pods, true, now)),
        ("pods of the service", summary::workers(pods, true, now)),
        ("events", summary::events_table(events, true, now)),
    ];
    let sections = sections.map(|(title, lines)| section(title, &redact::text(&lines.join("\n"))));
    sections.join("\n")
}

/// The end of what a container said, and before it that of the container whose place it took.
async fn log(connection: &Connection, source: &Source, tail: u32) -> String {
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let mut said = Vec::new();
    for previous in [true, false] {
        if previous && source.restarts == 0 {
            continue;
        }
        let params = LogParams {
            container: Some(source.container.clone()),
            tail_lines: Some(i64::from(tail)),
            limit_bytes: Some(LOG_BYTES_MAX),
            previous,
            timestamps: true,
            ..LogParams::default()
        };
        match pods.logs(&source.pod, &params).await {
            Ok(lines) => said.push(redact::text(&lines)),
            Err(error) => said.push(format!("{:#}", connection.explain(error, "read this log"))),
        }
    }
    said.join("\n--- started again ---\n")
}

fn section(title: &str, body: &str) -> String {
    format!("\n==== {title}\n{}", body.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::show::testing::{job, now};

    #[test]
    fn pods_and_events_are_told_without_keys() {
        let event = json!({
            "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "embed-plan-1"},
            "type": "Warning", "reason": "Failed", "message": "redis://default:hunter2@redis is away",
        });
        let pod = json!({"metadata": {"name": "embed-plan-1"}, "status": {"phase": "Failed"}});
        let seen = Seen {
            job: job("False", "PlanFailed"),
            pods: Err("this account lacks the right to list pods".to_owned()),
            events: Ok(vec![serde_json::from_value(event).unwrap()]),
        };
        let steps = Ok(vec![serde_json::from_value(pod).unwrap()]);
        let told = about(&seen, &steps, now());
        for expected in [
            "==== pods of the job\n",
            "embed-plan-1",
            "lacks the right to list pods",
            "redis://[redacted]@redis is away",
        ] {
            assert!(told.contains(expected), "{told}");
        }
        assert!(!told.contains("hunter2"), "{told}");
    }
}
