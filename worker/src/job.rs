//! A job that was checked: what plan, work and finish take instead of the manifests.

mod chunking;
mod error;
mod input;
mod postgres;
mod remote;
mod runtime;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use millrace_crds::batch_job::{
    self, BatchJobSpec, Dedup, FailedRowsMax, JobService, Notify, OutputCompression, Prompt,
};
use millrace_crds::inference_service::{Pricing, Runtime};
use millrace_crds::{BatchJob, InferenceService};
use millrace_leases::{RunKey, limits};
use millrace_protocol::cost::Cost;
use millrace_protocol::plan::{Compression, FIRST_RUN, Format, RunNumber};
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use self::chunking::Chunking;
pub use self::error::JobError;
pub use self::postgres::{LEDGER, OWN_COLUMNS, Postgres, StepColumn};
pub use self::remote::Remote;
use crate::filter::{BadFilter, Filter};
use crate::normalize::Normalizer;
use crate::store::{INLINE_ROWS, Location};
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
    /// Most that its calls may cost before the run is given up.
    pub cost_max: Option<Cost>,
    /// Who is told when the job is over.
    pub notify: Option<Notify>,
    /// Hash of everything in job and service that decides what a result line says, hexadecimal.
    pub spec_sha256: String,
    /// Hash of everything in job and service that decides the answer to a row, hexadecimal.
    pub answers_sha256: String,
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

    /// What pays for the calls of the job, if its service names prices.
    pub fn purse(&self, output: &Location) -> Option<Purse> {
        Some(Purse {
            account: limits::account(&self.name, self.uid.as_deref()),
            prices: self.pricing()?.prices(),
            max: self.cost_max,
            output: output.clone(),
            run: self.run,
        })
    }

    /// What calls of the job's service cost, if it says so.
    pub fn pricing(&self) -> Option<&Pricing> {
        self.remote.as_ref()?.spec.pricing.as_ref()
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
    /// Fields that the filter names.
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

/// Checks that `job` and `service` fit together and resolves them. Relative paths are taken from
/// `base`, the absolute folder of the manifest.
pub fn check(
    job: &BatchJob,
    service: &InferenceService,
    base: &Path,
) -> Result<CheckedJob, JobError> {
    let BatchJobSpec {
        service_ref: _,
        service_template: _,
        steps,
        input,
        output,
        sharding,
        retry,
        rerun_failed,
        // Who works on the job, how long and with whose rights, and who reads it, is decided outside.
        suspend: _,
        cancel: _,
        active_deadline_seconds: _,
        ttl_seconds_after_finished: _,
        priority: _,
        credentials: _,
        reader: _,
        backoff_limit_per_index,
        max_failed_rows: _,
        incremental,
        dedup,
        budget,
        notify,
    } = &job.spec;
    let given = service.metadata.name.clone().unwrap_or_default();
    if let JobService::Shared(named) = job.spec.service()
        && named != given
    {
        return Err(JobError::OtherService {
            named: named.to_owned(),
            given,
        });
    }
    let cost_max = budget.as_ref().map(|budget| budget.max_cost);
    if cost_max.is_some() && service.spec.pricing().is_none() {
        return Err(JobError::Unpriced { service: given });
    }
    let asked_steps = steps.as_deref();
    let steps = check_steps(asked_steps, service)?;
    let (text_field, prompted) = remote::fields(&steps, input.text_field.as_deref())?;
    let joins = asked_steps.into_iter().flatten().map(|step| step.join);
    let chunking = input.chunking.as_ref();
    let chunking = chunking.map(|spec| {
        let joins = joins.collect::<Vec<_>>();
        chunking::chunking(spec, &steps, &joins, service, &text_field)
    });
    let chunking = chunking.transpose()?;
    let postgres = postgres::postgres(output, &steps, service, chunking.as_ref())?;
    let filter = input.filter.as_ref().map(Filter::new).transpose();
    let filter =
        filter.map_err(|BadFilter { field, message }| JobError::Filter { field, message })?;
    let filtered = filter.as_ref().map(|filter| filter.fields().to_vec());
    let uris = input.uris.iter().flatten();
    let uris: Vec<String> = match &input.inline {
        Some(_) => vec![INLINE_ROWS.to_owned()],
        None => uris.map(|uri| absolute(uri, base)).collect(),
    };
    let checked_input = Input {
        uris,
        inline: (input.inline.as_ref())
            .map(|texts| input::inline_rows(texts, input.id_field.as_deref(), &text_field)),
        format: input.format.map(input::format),
        compression: input.compression.map(input::compression),
        fields: Fields {
            id: input.id_field.clone(),
            text: text_field,
            join: output.join.clone(),
            prompted,
            filtered: filtered.unwrap_or_default(),
            normalize: (input.normalize.as_ref())
                .map(|spec| Normalizer::new(spec, input.max_row_bytes as usize)),
        },
        filter,
        chunking,
        row_bytes_max: input.max_row_bytes as usize,
    };
    let answers_sha256 = answers_sha256(&steps, service, checked_input.chunking.as_ref());
    Ok(CheckedJob {
        namespace: job
            .metadata
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        name: job.metadata.name.clone().unwrap_or_default(),
        uid: job.metadata.uid.clone(),
        run: FIRST_RUN + rerun_failed,
        spec_sha256: spec_sha256(&answers_sha256, &job.spec, &checked_input.uris),
        answers_sha256,
        incremental_from: (incremental.as_ref()).map(|earlier| folder(&earlier.from, base)),
        dedup: dedup.clone(),
        steps,
        runtime: service.spec.runtime.clone(),
        remote: remote::remote(service),
        input: checked_input,
        output: Output {
            uri: folder(&output.uri, base),
            zstd: output.compression == OutputCompression::Zstd,
            merge: output.merge,
            postgres,
        },
        shard_bytes_target: u64::from(sharding.target_bytes),
        retry: Retry {
            attempts_max: retry.max_attempts,
            backoff_initial: retry.initial_backoff.into(),
            backoff_max: retry.max_backoff.into(),
        },
        deliveries_max: u64::from(*backoff_limit_per_index) + 1,
        failed_rows_max: job.spec.failed_rows_max(),
        cost_max,
        notify: notify.clone(),
    })
}

fn check_steps(
    steps: Option<&[batch_job::Step]>,
    service: &InferenceService,
) -> Result<Vec<Step>, JobError> {
    let models: Vec<&str> = service.spec.model_names().collect();
    let Some(steps) = steps else {
        let step = |model: &&str| Step {
            name: (*model).to_owned(),
            model: (*model).to_owned(),
            prompt: None,
        };
        return Ok(models.iter().map(step).collect());
    };
    let checked = steps.iter().enumerate().map(|(index, step)| {
        let batch_job::Step {
            name,
            model,
            prompt,
            // It is resolved with the chunking that it is about.
            join: _,
        } = step;
        if models.contains(&model.as_str()) {
            remote::check_prompt(index, prompt.as_ref(), service)?;
            Ok(Step {
                name: name.clone(),
                model: model.clone(),
                prompt: prompt.clone(),
            })
        } else {
            let known = models.join(", ");
            Err(JobError::UnknownModel {
                index,
                model: model.clone(),
                known,
            })
        }
    });
    checked.collect()
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

/// Hashes what decides the answer to a row, whatever row it is.
fn answers_sha256(
    steps: &[Step],
    service: &InferenceService,
    chunking: Option<&Chunking>,
) -> String {
    #[derive(Serialize)]
    struct Decisive<'a> {
        steps: Vec<(&'a str, &'a str)>,
        models: &'a [millrace_crds::inference_service::ModelSpec],
        runtime: Option<runtime::Decisive<'a>>,
        remote: Option<remote::Decisive<'a>>,
        prompts: Vec<Option<&'a Prompt>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        chunking: Option<chunking::Decisive<'a>>,
    }
    sha256(&Decisive {
        steps: steps
            .iter()
            .map(|step| (step.name.as_str(), step.model.as_str()))
            .collect(),
        models: &service.spec.models,
        runtime: service.spec.runtime.as_ref().map(runtime::decisive),
        remote: service.spec.remote.as_ref().map(remote::decisive),
        prompts: steps.iter().map(|step| step.prompt.as_ref()).collect(),
        chunking: chunking.map(chunking::decisive),
    })
}

fn sha256(decisive: &impl Serialize) -> String {
    let json = serde_json::to_vec(decisive).expect("a spec serialises");
    data_encoding::HEXLOWER.encode(&Sha256::digest(&json))
}

/// Hashes what decides what a result line says. Where the output lies, how the input is cut and
/// how often rows are tried do not: a run goes on when they change.
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
        dedup: Option<&'a Dedup>,
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
