//! `millrace lint`: checks manifests as the API server and a run would, without either.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use millrace_crds::manifest::{Document, Documents, Kind, Manifest};
use millrace_crds::{BatchJob, InferenceService};
use millrace_worker::job::{self, JobError};

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
        Ok(Documents { ours, foreign }) => {
            for foreign in foreign {
                output::line(&format!("{foreign} is not of millrace: not checked"))?;
            }
            let problems = misfits(&ours);
            if problems.is_empty() {
                output::line(&summary(&file, &ours))?;
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
pub fn misfits(documents: &[Document]) -> Vec<String> {
    let mut problems = Vec::new();
    for Document {
        place, manifest, ..
    } in documents
    {
        let Manifest::BatchJob(batch_job) = manifest else {
            continue;
        };
        let misfit = |services: &[InferenceService]| {
            let error = misfit(batch_job, services)?;
            Some(format!("{place}: {error}"))
        };
        if let Some(own) = batch_job.own_service() {
            problems.extend(misfit(&[own]));
            continue;
        }
        let service = |named: &&str| {
            documents.iter().find_map(|other| match &other.manifest {
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
        problems.extend(services.and_then(|services| misfit(&services)));
    }
    problems
}

/// Only whether they fit is asked, so it does not matter what relative paths mean.
fn misfit(batch_job: &BatchJob, services: &[InferenceService]) -> Option<JobError> {
    let (service, others) = services.split_first()?;
    job::check_all(batch_job, service, others, Path::new("/")).err()
}

fn summary(file: &Path, documents: &[Document]) -> String {
    let counts = Kind::ALL.map(|kind| {
        let count = documents
            .iter()
            .filter(|document| document.manifest.kind() == kind)
            .count();
        format!("{count} {}", kind.as_str())
    });
    format!("{}: {}: no problems", file.display(), counts.join(", "))
}
