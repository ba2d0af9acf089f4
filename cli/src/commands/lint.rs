//! `millrace lint`: checks manifests as the API server and a run would, without either.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use millrace_crds::manifest::{Document, Documents, Kind, Manifest};
use millrace_crds::{BatchJob, InferenceService};
use millrace_protocol::plural::plural;
use millrace_worker::job::{self, JobError};

use crate::{exit, manifests, output};

/// Checks manifests: fields, bounds, rules, and whether jobs fit their services.
///
/// Every problem is printed with its file, document and field. Exit codes: 0 no problem; 1 some;
/// 2 wrong usage, such as a file that is not there.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// File or folder with manifests; `-` is standard input.
    #[arg(short = 'f', long, value_name = "PATH")]
    file: PathBuf,
}

/// Runs the command.
pub fn run(args: LintArgs) -> anyhow::Result<ExitCode> {
    let LintArgs { file } = args;
    if let Err(error) = manifests::found(&file) {
        eprintln!("error: {error:#}");
        return Ok(exit::BAD_MANIFEST.into());
    }
    let problems = match manifests::read(&file)? {
        Ok(Documents { ours, foreign }) => {
            for foreign in foreign {
                output::line(&format!("{foreign} is not of millrace: not checked"))?;
            }
            for note in notes(&ours) {
                output::line(&format!("note: {note}"))?;
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
        let beside: Vec<_> = services_beside(batch_job, documents).collect();
        let service = |named: &&str| {
            let mut beside = beside.iter();
            let found = beside.find(|it| it.metadata.name.as_deref() == Some(named))?;
            Some((**found).clone())
        };
        let named = batch_job.spec.services();
        let services: Option<Vec<InferenceService>> = named.iter().map(service).collect();
        problems.extend(services.and_then(|services| misfit(&services)));
    }
    problems
}

/// Services that jobs name and that are not among the manifests, though others are: they may be in the
/// cluster, or misspelt.
pub fn notes(documents: &[Document]) -> Vec<String> {
    let mut notes = Vec::new();
    for Document {
        place, manifest, ..
    } in documents
    {
        let Manifest::BatchJob(batch_job) = manifest else {
            continue;
        };
        let beside = services_beside(batch_job, documents);
        let beside: Vec<&str> = beside
            .filter_map(|it| it.metadata.name.as_deref())
            .collect();
        if beside.is_empty() || batch_job.own_service().is_some() {
            continue;
        }
        let named = batch_job.spec.services();
        let missing = named.iter().filter(|it| !beside.contains(*it));
        notes.extend(missing.map(|missing| {
            format!(
                "{place}: InferenceService {missing:?} is not among the manifests, which hold {}: it has to \
                 be in the cluster",
                beside.join(", ")
            )
        }));
    }
    notes
}

/// The services of the job's namespace among the manifests.
fn services_beside<'a>(
    batch_job: &'a BatchJob,
    documents: &'a [Document],
) -> impl Iterator<Item = &'a InferenceService> {
    documents.iter().filter_map(|other| match &other.manifest {
        Manifest::InferenceService(service)
            if service.metadata.namespace == batch_job.metadata.namespace =>
        {
            Some(&**service)
        }
        _ => None,
    })
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
        format!("{count} {}", plural(count as u64, kind.as_str()))
    });
    format!("{}: {}: no problems", file.display(), counts.join(", "))
}
