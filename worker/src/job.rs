//! A job that was checked: what plan, work and finish take instead of the manifests.

mod answering;
mod chunking;
mod dedup;
mod error;
mod input;
mod postgres;
mod remote;
mod routes;
mod runtime;
mod spec_fields;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_crds::batch_job::{
    self, BatchJobSpec, FailedRowsMax, JobService, Notify, OutputCompression, Prompt,
};
use millrace_crds::inference_service::{Pricing, Runtime};
use millrace_crds::{BatchJob, InferenceService};
use millrace_leases::{RunKey, limits};
use millrace_protocol::cost::Cost;
use millrace_protocol::plan::{Compression, FIRST_RUN, Format, RunNumber, SpecField};
use serde::Serialize;
use sha2::{Digest, Sha256};

use self::answering::answering;
pub use self::chunking::Chunking;
pub use self::dedup::{Dedup, Near};
pub use self::error::JobError;
pub use self::postgres::{LEDGER, OWN_COLUMNS, Postgres, StepColumn};
pub use self::remote::{Remote, decisive};
pub use self::routes::{Arm, Routing, Service};
pub use self::spec_fields::{SpecDifference, difference};
use crate::filter::Filter;
use crate::normalize::Normalizer;
use crate::order::Order;
use crate::store::Location;
use crate::work::call::purse::Purse;

/// Field that holds the text where a job names none.
const DEFAULT_TEXT_FIELD: &str = "text";

/// A BatchJob and its InferenceService, checked and resolved. Every URI is absolute.
#[derive(Debug, Clone)]
pub struct CheckedJob {
    /// Namespace of the job; `default` for a local run that names none.
    pub namespace: String,
    /// Name of the job.
    pub name: String,
    /// Id of the job's object, if it lies in a cluster.
    pub uid: Option<String>,
    /// The run that is asked for: the first one, or one that runs failed rows again.
    pub run: RunNumber,
    /// What to do with each row, never empty.
    pub steps: Vec<Step>,
    /// The server that the user brings, if that answers.
    pub runtime: Option<Runtime>,
    /// The API elsewhere, if that answers.
    pub remote: Option<Remote>,
    /// Which of several services answers which rows, if there are several. `steps`, `runtime` and
    /// `remote` are then those of the service that the worker stands beside.
    pub routing: Option<Arc<Routing>>,
    /// The dataset.
    pub input: Input,
    /// Where results go.
    pub output: Output,
    /// Size of a shard in bytes of its file.
    pub shard_bytes_target: u64,
    /// How often a row is tried again.
    pub retry: Retry,
    /// How many times a shard is handed to a worker before it is given up, the first included.
    pub deliveries_max: u64,
    /// How many rows may fail before the run is given up.
    pub failed_rows_max: Option<FailedRowsMax>,
    /// How many shards may be given up before the run is.
    pub failed_shards_max: Option<u32>,
    /// Most that its calls may cost before the run is given up.
    pub cost_max: Option<Cost>,
    /// Who is told when the job is over.
    pub notify: Option<Notify>,
    /// Hash of everything in job and service that decides what a result line says, hexadecimal.
    pub spec_sha256: String,
    /// Hash of everything in job and service that decides the answer to a row, hexadecimal.
    pub answers_sha256: String,
    /// The fields that the first of these hashes is of.
    pub spec_fields: Vec<SpecField>,
    /// Absolute URI of the earlier output whose answers are carried over, if there is one.
    pub incremental_from: Option<String>,
    /// Which rows are not asked because an earlier one has the answer, if the job says so.
    pub dedup: Option<Dedup>,
}

impl CheckedJob {
    /// Where a lease store keeps the leases of the job's run.
    pub fn run_key(&self) -> RunKey {
        RunKey {
            namespace: self.namespace.clone(),
            job: self.name.clone(),
            uid: self.uid.clone(),
            run: self.run,
        }
    }

    /// What pays for the job's calls of an API, if that names prices.
    pub fn purse(&self, remote: &Remote, output: &Location) -> Option<Purse> {
        Some(Purse {
            account: limits::account(&self.name, self.uid.as_deref()),
            prices: remote.spec.pricing.as_ref()?.prices(),
            max: self.cost_max,
            output: output.clone(),
            run: self.run,
        })
    }

    /// Where the expressions stand that name a field of rows.
    pub fn named_in(&self, field: &str) -> Vec<&'static str> {
        let filter = self.input.filter.as_ref().map_or(&[][..], Filter::fields);
        let order = self.input.order.as_ref().map(Order::fields);
        let routes = self.routing.as_deref().map_or(&[][..], Routing::fields);
        let named = |fields: &[String]| fields.iter().any(|named| named == field);
        let places = [
            ("spec.input.filter.expression", named(filter)),
            ("spec.input.order", named(&order.unwrap_or_default())),
            ("spec.routes", named(routes)),
        ];
        let places = places.into_iter().filter(|(_, is_named)| *is_named);
        places.map(|(place, _)| place).collect()
    }

    /// The APIs elsewhere that the job asks.
    pub fn remotes(&self) -> impl Iterator<Item = &Remote> {
        let routing = self.routing.as_deref();
        let alone = self.remote.iter().filter(move |_| routing.is_none());
        let services = routing.map_or(&[][..], Routing::services);
        alone.chain(services.iter().filter_map(|it| it.remote.as_ref()))
    }

    /// What calls of the job's service cost, or those of one of its services, if it says so.
    pub fn pricing(&self) -> Option<&Pricing> {
        self.remotes().find_map(|it| it.spec.pricing.as_ref())
    }

    /// Asks APIs elsewhere row by row, one call after the other. Whether there is one.
    pub fn ask_one_by_one(&mut self) -> bool {
        if let Some(remote) = &mut self.remote {
            remote.ask_one_by_one();
        }
        if let Some(routing) = &mut self.routing {
            Arc::make_mut(routing).change_remotes(Remote::ask_one_by_one);
        }
        self.remotes().next().is_some()
    }

    /// The same job, asked for an earlier run.
    pub fn at_run(&self, run: RunNumber) -> Self {
        Self {
            run,
            ..self.clone()
        }
    }
}

/// One model applied to every row.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Key of this step's value in the `result` object.
    pub name: String,
    /// Name of a model of the service.
    pub model: String,
    /// What a remote model is asked.
    pub prompt: Option<Prompt>,
}

/// The models of `steps`, each once, in the order of the steps: what a server is asked for.
pub fn models(steps: &[Step]) -> Vec<String> {
    let mut models: Vec<String> = Vec::new();
    for step in steps {
        if !models.contains(&step.model) {
            models.push(step.model.clone());
        }
    }
    models
}

/// The dataset.
#[derive(Debug, Clone)]
pub struct Input {
    /// Absolute URIs, possibly with glob characters.
    pub uris: Vec<String>,
    /// The rows that the manifest itself holds, as JSON lines; they are at [`INLINE_ROWS`].
    pub inline: Option<Bytes>,
    /// Layout of the rows; `None` means told from each file's name.
    pub format: Option<Format>,
    /// Compression; `None` means told from each file's name.
    pub compression: Option<Compression>,
    /// Which fields of a row are used.
    pub fields: Fields,
    /// Which rows are asked about.
    pub filter: Option<Filter>,
    /// Which rows are worked off first.
    pub order: Option<Order>,
    /// How long texts are cut into chunks.
    pub chunking: Option<Chunking>,
    /// Longest row in bytes.
    pub row_bytes_max: usize,
}

/// Which fields of a row are used, and how the text is. Names mean nothing for [`Format::Text`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Field that becomes the id.
    pub id: Option<String>,
    /// Field that holds the text.
    pub text: String,
    /// Fields carried into the result line.
    pub join: Vec<String>,
    /// Fields that prompts are made of.
    pub prompted: Vec<String>,
    /// Fields that the filter, the order or conditions of routes name.
    pub filtered: Vec<String>,
    /// How the text is written wherever it goes but into the result line.
    pub normalize: Option<Normalizer>,
}

/// Where results go.
#[derive(Debug, Clone)]
pub struct Output {
    /// Absolute URI of the folder, without a trailing slash.
    pub uri: String,
    /// Whether parts are compressed with Zstandard.
    pub zstd: bool,
    /// Whether finish merges the parts into one file.
    pub merge: bool,
    /// The table that finish loads results into, if the job names one.
    pub postgres: Option<Postgres>,
}

/// How often a row is tried again when the fault lies with the moment.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Tries per row, the first included.
    pub attempts_max: u32,
    /// Wait before the second try; doubles with each further one.
    pub backoff_initial: Duration,
    /// Longest wait between two tries.
    pub backoff_max: Duration,
}

impl From<&batch_job::Retry> for Retry {
    fn from(spec: &batch_job::Retry) -> Self {
        let batch_job::Retry {
            max_attempts,
            initial_backoff,
            max_backoff,
        } = spec;
        Self {
            attempts_max: *max_attempts,
            backoff_initial: (*initial_backoff).into(),
            backoff_max: (*max_backoff).into(),
        }
    }
}

/// Checks that `job` and `service` fit together and resolves them. Relative paths are taken from
/// `base`, the absolute folder of the manifest.
pub fn check(
    job: &BatchJob,
    service: &InferenceService,
    base: &Path,
) -> Result<CheckedJob, JobError> {
    check_all(job, service, &[], base)
}

/// As [`check`], with the services of a job that has several: the worker stands beside `service`, and
/// asks the `others`.
pub fn check_all(
    job: &BatchJob,
    service: &InferenceService,
    others: &[InferenceService],
    base: &Path,
) -> Result<CheckedJob, JobError> {
    let BatchJobSpec {
        service_ref: _,
        service_template: _,
        // Who answers which rows, and what they are asked, is resolved as a whole.
        routes: _,
        steps: _,
        input: _,
        output,
        sharding,
        retry,
        rerun_failed,
        // Who works on the job, how long and with whose rights, and who reads it, is decided outside.
        suspend: _,
        cancel: _,
        active_deadline_seconds: _,
        ttl_seconds_after_finished: _,
        managed_by: _,
        priority: _,
        credentials: _,
        reader: _,
        backoff_limit_per_index,
        max_failed_rows: _,
        max_failed_indexes,
        incremental,
        dedup,
        budget,
        notify,
    } = &job.spec;
    check_service(&job.spec, service)?;
    let answering = answering(&job.spec, service, others)?;
    let input = input::checked(&job.spec, &answering, base)?;
    Ok(CheckedJob {
        namespace: (job.metadata.namespace.clone()).unwrap_or_else(|| "default".to_owned()),
        name: job.metadata.name.clone().unwrap_or_default(),
        uid: job.metadata.uid.clone(),
        run: FIRST_RUN + rerun_failed,
        spec_sha256: spec_sha256(&answering.answers_sha256, &job.spec, &input.uris),
        answers_sha256: answering.answers_sha256,
        spec_fields: spec_fields::fields(&job.spec, &input.uris, service, others),
        incremental_from: (incremental.as_ref()).map(|earlier| folder(&earlier.from, base)),
        dedup: (dedup.as_ref())
            .map(|spec| Dedup::new(spec, |from| folder(from, base)))
            .transpose()?,
        steps: answering.steps,
        runtime: service.spec.runtime.clone(),
        remote: remote::remote(service),
        routing: answering.routing.map(Arc::new),
        input,
        output: Output {
            uri: folder(&output.uri, base),
            zstd: output.compression == OutputCompression::Zstd,
            merge: output.merge,
            postgres: answering.postgres,
        },
        shard_bytes_target: u64::from(sharding.target_bytes),
        retry: Retry::from(retry),
        deliveries_max: u64::from(*backoff_limit_per_index) + 1,
        failed_rows_max: job.spec.failed_rows_max(),
        failed_shards_max: *max_failed_indexes,
        cost_max: budget.as_ref().map(|budget| budget.max_cost),
        notify: notify.clone(),
    })
}

/// Checks that the service is the one that the job names, if it names one.
fn check_service(spec: &BatchJobSpec, service: &InferenceService) -> Result<(), JobError> {
    let given = service.metadata.name.clone().unwrap_or_default();
    match spec.service() {
        JobService::Shared(named) if named != given && spec.routes.is_none() => {
            Err(JobError::OtherService {
                named: named.to_owned(),
                given,
            })
        }
        _ => Ok(()),
    }
}

/// An absolute URI: what has a scheme stays, a path becomes `file://` below `base`.
fn absolute(uri: &str, base: &Path) -> String {
    if uri.contains("://") {
        return uri.to_owned();
    }
    let mut path = PathBuf::new();
    for component in base.join(uri).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop();
            }
            other => path.push(other),
        }
    }
    format!("file://{}", path.display())
}

/// An absolute URI without a slash at its end.
fn folder(uri: &str, base: &Path) -> String {
    absolute(uri, base).trim_end_matches('/').to_owned()
}

fn sha256(decisive: &impl Serialize) -> String {
    let json = serde_json::to_vec(decisive).expect("a spec serialises");
    data_encoding::HEXLOWER.encode(&Sha256::digest(&json))
}

/// Hashes what decides what a result line says. Where the output lies, how the input is cut, which rows
/// come first and how often they are tried do not: a run goes on when they change.
fn spec_sha256(answers_sha256: &str, spec: &BatchJobSpec, uris: &[String]) -> String {
    let batch_job::Input {
        uris: _,
        inline,
        format,
        compression,
        id_field,
        text_field,
        normalize,
        filter,
        order: _,
        chunking,
        max_row_bytes,
    } = &spec.input;
    let batch_job::Output {
        uri: _,
        compression: parts,
        join,
        merge: _,
        postgres: _,
    } = &spec.output;
    #[derive(Serialize)]
    struct Decisive<'a> {
        answers_sha256: &'a str,
        uris: &'a [String],
        inline: &'a Option<Vec<String>>,
        format: &'a Option<batch_job::InputFormat>,
        input_compression: &'a Option<batch_job::Compression>,
        id_field: &'a Option<String>,
        text_field: &'a Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        normalize: &'a Option<batch_job::Normalize>,
        filter: &'a Option<batch_job::Filter>,
        #[serde(skip_serializing_if = "Option::is_none")]
        chunking: &'a Option<batch_job::Chunking>,
        max_row_bytes: u32,
        output_compression: OutputCompression,
        join: &'a [String],
        // Outputs of jobs without it are found as before.
        #[serde(skip_serializing_if = "Option::is_none")]
        dedup: Option<&'a batch_job::Dedup>,
    }
    sha256(&Decisive {
        answers_sha256,
        uris,
        inline,
        format,
        input_compression: compression,
        id_field,
        text_field,
        normalize,
        filter,
        chunking,
        max_row_bytes: *max_row_bytes,
        output_compression: *parts,
        join,
        dedup: spec.dedup.as_ref(),
    })
}

#[cfg(test)]
mod tests;
