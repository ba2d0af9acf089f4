//! Finds the job and its service among the manifests that a person names.

use std::path::{Path, PathBuf};

use millrace_crds::manifest::{self, Documents, Manifest, ManifestError};
use millrace_crds::{BatchJob, InferenceService};

use crate::job::{self, CheckedJob, JobError};

/// A job with its service, checked, and the manifests they came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The job, checked and resolved.
    pub job: CheckedJob,
    /// The BatchJob as it was written.
    pub batch_job: BatchJob,
    /// The InferenceService as it was written; of several the one that the worker stands beside.
    pub service: InferenceService,
    /// Absolute folder that relative paths are taken from.
    pub base: PathBuf,
}

/// Why no job could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The path does not exist or cannot be resolved.
    #[error("{} cannot be read", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The manifests do not pass the check.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There is not exactly one job.
    #[error("{} holds {found} BatchJobs; give a file or folder with exactly one", path.display())]
    NotOneJob {
        /// The path.
        path: PathBuf,
        /// Jobs found.
        found: usize,
    },
    /// The job's service is not among the manifests.
    #[error(
        "{field}: no InferenceService {named:?} in {}; put it into the same file or folder as the \
         BatchJob (found {found})",
        path.display()
    )]
    NoService {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The name asked for.
        named: String,
        /// The services found, or `none`.
        found: String,
    },
    /// Job and service do not fit together.
    #[error("{place}")]
    Job {
        /// Where the job stands: `job.yaml, document 2 (BatchJob reviews)`.
        place: String,
        /// Why.
        source: JobError,
    },
}

/// Loads the one job of a file or folder, with the service it names. Where a file holds only the
/// job, the service is looked for in the file's folder.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let resolved = path.canonicalize().map_err(|source| LoadError::Path {
        path: path.to_owned(),
        source,
    })?;
    let base = match resolved.is_dir() {
        true => resolved.clone(),
        false => resolved.parent().unwrap_or(Path::new("/")).to_owned(),
    };
    let (jobs, mut services) = split(manifest::documents_of_path(&resolved)?);
    if services.is_empty() && resolved.is_file() && jobs.len() == 1 {
        services = split(manifest::documents_of_path(&base)?).1;
    }
    one(path, base, jobs, services)
}

/// Loads the one job of a text, with the service it names. Relative paths are taken from `base`.
pub fn load_str(origin: &str, text: &str, base: PathBuf) -> Result<Loaded, LoadError> {
    let (jobs, services) = split(manifest::documents_of_str(origin, text)?);
    one(Path::new(origin), base, jobs, services)
}

fn one(
    path: &Path,
    base: PathBuf,
    mut jobs: Vec<(String, BatchJob)>,
    services: Vec<InferenceService>,
) -> Result<Loaded, LoadError> {
    if jobs.len() != 1 {
        return Err(LoadError::NotOneJob {
            path: path.to_owned(),
            found: jobs.len(),
        });
    }
    let (place, batch_job) = jobs.remove(0);
    let (service, others) = services_of(path, &batch_job, services)?;
    let job = job::check_all(&batch_job, &service, &others, &base);
    let job = job.map_err(|source| LoadError::Job { place, source })?;
    Ok(Loaded {
        job,
        batch_job,
        service,
        base,
    })
}

/// The service that the job names, or its own. Of several, that which has a server, or else the first;
/// and the others.
fn services_of(
    path: &Path,
    batch_job: &BatchJob,
    mut services: Vec<InferenceService>,
) -> Result<(InferenceService, Vec<InferenceService>), LoadError> {
    if let Some(own) = batch_job.own_service() {
        return Ok((own, Vec::new()));
    }
    let name = |service: &InferenceService| service.metadata.name.clone().unwrap_or_default();
    let found = match services.is_empty() {
        true => "none".to_owned(),
        false => services.iter().map(name).collect::<Vec<_>>().join(", "),
    };
    let field = match batch_job.spec.routes {
        Some(_) => "spec.routes",
        None => "spec.serviceRef.name",
    };
    let mut take = |named: &str| {
        let index = services.iter().position(|service| name(service) == named);
        let index = index.ok_or_else(|| LoadError::NoService {
            field,
            path: path.to_owned(),
            named: named.to_owned(),
            found: found.clone(),
        })?;
        Ok(services.swap_remove(index))
    };
    let named = batch_job.spec.services();
    let taken: Result<Vec<_>, LoadError> = named.into_iter().map(&mut take).collect();
    let mut taken = taken?;
    let has_server = |service: &InferenceService| service.spec.remote.is_none();
    let home = taken.iter().position(has_server).unwrap_or(0);
    Ok((taken.remove(home), taken))
}

/// The jobs, each with where it stands, and the services.
fn split(documents: Documents) -> (Vec<(String, BatchJob)>, Vec<InferenceService>) {
    let (mut jobs, mut services) = (Vec::new(), Vec::new());
    for document in documents.ours {
        match document.manifest {
            Manifest::BatchJob(job) => jobs.push((document.place, *job)),
            Manifest::InferenceService(service) => services.push(*service),
        }
    }
    (jobs, services)
}
