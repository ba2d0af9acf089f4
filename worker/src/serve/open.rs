//! Opens a registered job: its manifests, its credentials, its plan, and the server's models.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_leases::{LeaseError, LeaseOptions, RedisLeaseStore};
use millrace_protocol::registry::RegisteredJob;
use tokio_util::task::AbortOnDropHandle;

use super::ServeOptions;
use crate::manifests::{self, LoadError};
use crate::run::{self, RunError, WorkOptions};
use crate::store::{LinkLocal, Stores};
use crate::work::Worker;
use crate::work::progress::Progress;

/// Why a job cannot be worked on, for now.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What is registered is no job that this build understands.
    #[error("its manifests cannot be used")]
    Manifests(#[from] LoadError),
    /// Its credentials are not there.
    #[error(
        "the Secret {secret:?} is not mounted; list it in spec.secrets of the InferenceService"
    )]
    Secret {
        /// Name of the Secret.
        secret: String,
        /// Why.
        source: std::io::Error,
    },
    /// The lease store refuses us.
    #[error("the lease store cannot be used")]
    Leases(#[from] LeaseError),
    /// It is not planned, or its plan cannot be read.
    #[error("its run cannot be joined")]
    Run(#[from] RunError),
}

/// Begins to open a job, beside the work in hand.
pub fn open(
    name: &str,
    registered: &RegisteredJob,
    options: &ServeOptions,
) -> AbortOnDropHandle<Result<Worker, OpenError>> {
    let RegisteredJob {
        priority: _,
        manifests,
        credentials,
    } = registered.clone();
    let ServeOptions {
        registry: _,
        redis,
        lease_ttl,
        server,
        pod: _,
        secrets,
        metrics,
        stop,
    } = options;
    let (redis, lease_ttl, server) = (redis.clone(), *lease_ttl, server.clone());
    let progress = Arc::new(Progress::counted_in(metrics.clone()));
    let (name, secrets, stop) = (name.to_owned(), secrets.clone(), stop.child_token());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let job = manifests::load_str(&name, &manifests, PathBuf::from("/"))?.job;
        let stores = stores(credentials.as_deref(), &secrets)?;
        let lease_options = LeaseOptions {
            lease_ttl,
            deliveries_max: job.deliveries_max,
        };
        let work_options = WorkOptions {
            server,
            leases: Arc::new(RedisLeaseStore::new(&redis, &job.run_key(), lease_options)?),
            lease_ttl,
            progress,
            stop,
        };
        let prepared = run::resume(&stores, &job).await?;
        Ok(run::worker(&stores, &job, &prepared, &work_options).await?)
    }))
}

/// The stores of a job: with its own credentials, or with the identity of the pod.
pub fn stores(credentials: Option<&str>, secrets: &Path) -> Result<Stores, OpenError> {
    let Some(secret) = credentials else {
        return Ok(Stores::from_env(LinkLocal::from_env()));
    };
    let folder = secrets.join(secret);
    Stores::from_env_and_folder(&folder, LinkLocal::from_env()).map_err(|source| {
        OpenError::Secret {
            secret: secret.to_owned(),
            source,
        }
    })
}
