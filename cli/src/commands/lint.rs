//! `millrace lint`: checks manifests as the API server and a run would, without either.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use millrace_crds::manifest::{Document, Kind, Manifest};
use millrace_crds::{BatchJob, InferenceService};
use millrace_worker::job;

use crate::{manifests, output};

/// Checks manifests: fields, bounds, rules, and whether jobs fit their services.
///
/// Every problem is printed with its file, document and field. Exit codes: 0 no problem; 1 some;
/// 2 wrong usage.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// File or folder with manifests; `-` is standard input.
    #[arg(short = 'f', long, value_name = "PATH")]
    file: PathBuf,
}

/// Runs the command.
pub fn run(args: LintArgs) -> anyhow::Result<ExitCode> {
    let LintArgs { file } = args;
    let problems = match manifests::read(&file)? {
        Ok(documents) => {
            let manifest = |document: Document| document.manifest;
            let manifests: Vec<Manifest> = documents.into_iter().map(manifest).collect();
            let problems = misfits(&manifests);
            if problems.is_empty() {
                output::line(&summary(&file, &manifests))?;
            }
            problems
        }
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    };
    for problem in &problems {
        output::line(problem)?;
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Jobs that do not fit the service they name. A service that is not among the manifests may well
/// be in the cluster, so its absence is no problem.
pub fn misfits(manifests: &[Manifest]) -> Vec<String> {
    let mut problems = Vec::new();
    for manifest in manifests {
        let Manifest::BatchJob(batch_job) = manifest else {
            continue;
        };
        if let Some(own) = batch_job.own_service() {
            problems.extend(misfit(batch_job, &[own]));
            continue;
        }
        let service = |named: &&str| {
            manifests.iter().find_map(|other| match other {
                Manifest::InferenceService(service)
                    if service.metadata.name.as_deref() == Some(named)
                        && service.metadata.namespace == batch_job.metadata.namespace =>
                {
                    Some(*service.clone())
                }
                _ => None,
            })
        };
        let named = batch_job.spec.services();
        let services: Option<Vec<InferenceService>> = named.iter().map(service).collect();
        problems.extend(services.and_then(|services| misfit(batch_job, &services)));
    }
    problems
}

/// Only whether they fit is asked, so it does not matter what relative paths mean.
fn misfit(batch_job: &BatchJob, services: &[InferenceService]) -> Option<String> {
    let name = batch_job.metadata.name.clone().unwrap_or_default();
    let (service, others) = services.split_first()?;
    let error = job::check_all(batch_job, service, others, Path::new("/")).err()?;
    Some(format!("BatchJob {name}: {error}"))
}

fn summary(file: &Path, manifests: &[Manifest]) -> String {
    let counts = Kind::ALL.map(|kind| {
        let count = manifests
            .iter()
            .filter(|manifest| manifest.kind() == kind)
            .count();
        format!("{count} {}", kind.as_str())
    });
    format!("{}: {}: no problems", file.display(), counts.join(", "))
}
