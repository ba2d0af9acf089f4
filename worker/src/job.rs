//! A job that was checked: what plan, work and finish take instead of the manifests.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use millrace_crds::batch_job::{self, BatchJobSpec, OutputCompression};
use millrace_crds::{BatchJob, InferenceService};
use millrace_leases::RunKey;
use millrace_protocol::plan::{Compression, Format, RunNumber};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A BatchJob and its InferenceService, checked and resolved. Every URI is absolute.
#[derive(Debug, Clone)]
pub struct CheckedJob {
    /// Namespace of the job; `default` for a local run that names none.
    pub namespace: String,
    /// Name of the job.
    pub name: String,
    /// Id of the job's object, if it lies in a cluster.
    pub uid: Option<String>,
    /// What to do with each row, never empty.
    pub steps: Vec<Step>,
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
    /// Hash of everything in job and service that decides what a result line says, hexadecimal.
    pub spec_sha256: String,
}

impl CheckedJob {
    /// Where a lease store keeps the leases of the job's run.
    pub fn run_key(&self, run: RunNumber) -> RunKey {
        RunKey {
            namespace: self.namespace.clone(),
            job: self.name.clone(),
            uid: self.uid.clone(),
            run,
        }
    }
}

/// One model applied to every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Key of this step's value in the `result` object.
    pub name: String,
    /// Name of a model of the service.
    pub model: String,
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
    /// Layout of the rows; `None` means told from each file's name.
    pub format: Option<Format>,
    /// Compression; `None` means told from each file's name.
    pub compression: Option<Compression>,
    /// Which fields of a row are used.
    pub fields: Fields,
    /// Longest row in bytes.
    pub row_bytes_max: usize,
}

/// Which fields of a row are used. Meaningless for [`Format::Text`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Field that becomes the id.
    pub id: Option<String>,
    /// Field that holds the text.
    pub text: String,
    /// Fields carried into the result line.
    pub join: Vec<String>,
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

/// Why a job and its service do not fit together. The manifests by themselves are checked before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The job names another service.
    #[error("spec.serviceRef.name is {named:?}, but the InferenceService given is {given:?}")]
    OtherService {
        /// Name in the job.
        named: String,
        /// Name of the service.
        given: String,
    },
    /// A step names a model that the service lacks.
    #[error("spec.steps[{index}].model: the service has no model {model:?}; it has {known}")]
    UnknownModel {
        /// Index of the step.
        index: usize,
        /// The model it names.
        model: String,
        /// The service's models.
        known: String,
    },
}

/// Checks that `job` and `service` fit together and resolves them. Relative paths are taken from
/// `base`, the absolute folder of the manifest.
pub fn check(
    job: &BatchJob,
    service: &InferenceService,
    base: &Path,
) -> Result<CheckedJob, JobError> {
    let BatchJobSpec {
        service_ref,
        steps,
        input,
        output,
        sharding,
        retry,
        // Who works on the job, and with whose rights, is decided outside of the run.
        suspend: _,
        cancel: _,
        rerun_failed: _,
        priority: _,
        credentials: _,
        backoff_limit_per_index,
    } = &job.spec;
    let given = service.metadata.name.clone().unwrap_or_default();
    if service_ref.name != given {
        return Err(JobError::OtherService {
            named: service_ref.name.clone(),
            given,
        });
    }
    let steps = check_steps(steps.as_deref(), service)?;
    let uris: Vec<String> = input.uris.iter().map(|uri| absolute(uri, base)).collect();
    let checked_input = Input {
        uris,
        format: input.format.map(format),
        compression: input.compression.map(compression),
        fields: Fields {
            id: input.id_field.clone(),
            text: input
                .text_field
                .clone()
                .unwrap_or_else(|| "text".to_owned()),
            join: output.join.clone(),
        },
        row_bytes_max: input.max_row_bytes as usize,
    };
    Ok(CheckedJob {
        namespace: job
            .metadata
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        name: job.metadata.name.clone().unwrap_or_default(),
        uid: job.metadata.uid.clone(),
        spec_sha256: spec_sha256(&steps, input, &checked_input.uris, output, service),
        steps,
        input: checked_input,
        output: Output {
            uri: absolute(&output.uri, base).trim_end_matches('/').to_owned(),
            zstd: output.compression == OutputCompression::Zstd,
            merge: output.merge,
        },
        shard_bytes_target: u64::from(sharding.target_bytes),
        retry: Retry {
            attempts_max: retry.max_attempts,
            backoff_initial: retry.initial_backoff.into(),
            backoff_max: retry.max_backoff.into(),
        },
        deliveries_max: u64::from(*backoff_limit_per_index) + 1,
    })
}

fn check_steps(
    steps: Option<&[batch_job::Step]>,
    service: &InferenceService,
) -> Result<Vec<Step>, JobError> {
    let models: Vec<&str> = service
        .spec
        .models
        .iter()
        .map(|model| model.name.as_str())
        .collect();
    let Some(steps) = steps else {
        let step = |model: &&str| Step {
            name: (*model).to_owned(),
            model: (*model).to_owned(),
        };
        return Ok(models.iter().map(step).collect());
    };
    let checked = steps
        .iter()
        .enumerate()
        .map(|(index, batch_job::Step { name, model })| {
            if models.contains(&model.as_str()) {
                Ok(Step {
                    name: name.clone(),
                    model: model.clone(),
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

fn format(format: batch_job::InputFormat) -> Format {
    match format {
        batch_job::InputFormat::Jsonl => Format::Jsonl,
        batch_job::InputFormat::Csv => Format::Csv,
        batch_job::InputFormat::Parquet => Format::Parquet,
        batch_job::InputFormat::Text => Format::Text,
    }
}

fn compression(compression: batch_job::Compression) -> Compression {
    match compression {
        batch_job::Compression::None => Compression::None,
        batch_job::Compression::Gzip => Compression::Gzip,
        batch_job::Compression::Zstd => Compression::Zstd,
    }
}

/// Hashes what decides what a result line says. Where the output lies, how the input is cut and
/// how often rows are tried do not: a run goes on when they change.
fn spec_sha256(
    steps: &[Step],
    input: &batch_job::Input,
    uris: &[String],
    output: &batch_job::Output,
    service: &InferenceService,
) -> String {
    let batch_job::Input {
        uris: _,
        format,
        compression,
        id_field,
        text_field,
        max_row_bytes,
    } = input;
    let batch_job::Output {
        uri: _,
        compression: parts,
        join,
        merge: _,
    } = output;
    #[derive(Serialize)]
    struct Decisive<'a> {
        steps: Vec<(&'a str, &'a str)>,
        models: &'a [millrace_crds::inference_service::ModelSpec],
        uris: &'a [String],
        format: &'a Option<batch_job::InputFormat>,
        input_compression: &'a Option<batch_job::Compression>,
        id_field: &'a Option<String>,
        text_field: &'a Option<String>,
        max_row_bytes: u32,
        output_compression: OutputCompression,
        join: &'a [String],
    }
    let decisive = Decisive {
        steps: steps
            .iter()
            .map(|step| (step.name.as_str(), step.model.as_str()))
            .collect(),
        models: &service.spec.models,
        uris,
        format,
        input_compression: compression,
        id_field,
        text_field,
        max_row_bytes: *max_row_bytes,
        output_compression: *parts,
        join,
    };
    let json = serde_json::to_vec(&decisive).expect("a spec serialises");
    data_encoding::HEXLOWER.encode(&Sha256::digest(&json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifests(job_spec: serde_json::Value) -> (BatchJob, InferenceService) {
        let job = serde_json::json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job"}, "spec": job_spec,
        });
        let service = serde_json::json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service"},
            "spec": {"models": [
                {"name": "embed", "task": "Embedding", "source": {"uri": "hf://a/b"}},
                {"name": "mood", "task": "SequenceClassification", "source": {"uri": "hf://a/c"}},
            ]},
        });
        (
            serde_json::from_value(job).unwrap(),
            serde_json::from_value(service).unwrap(),
        )
    }

    fn check_spec(patch: serde_json::Value) -> Result<CheckedJob, JobError> {
        let mut spec = serde_json::json!({
            "serviceRef": {"name": "service"},
            "input": {"uris": ["data/*.jsonl"]},
            "output": {"uri": "../out/"},
        });
        for (key, value) in patch.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let (job, service) = manifests(spec);
        check(&job, &service, Path::new("/jobs/here"))
    }

    #[test]
    fn relative_paths_are_taken_from_the_manifests_folder() {
        let job = check_spec(serde_json::json!({})).unwrap();
        assert_eq!(job.input.uris, ["file:///jobs/here/data/*.jsonl"]);
        assert_eq!(job.output.uri, "file:///jobs/out");
    }

    #[test]
    fn without_steps_every_model_of_the_service_is_one() {
        let job = check_spec(serde_json::json!({})).unwrap();
        let steps: Vec<_> = job.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(steps, ["embed", "mood"]);
    }

    #[test]
    fn a_step_with_an_unknown_model_is_refused_with_what_is_known() {
        let error = check_spec(serde_json::json!({"steps": [{"name": "a", "model": "nope"}]}));
        let message = error.unwrap_err().to_string();
        assert!(message.contains("spec.steps[0].model"), "{message}");
        assert!(message.contains("embed, mood"), "{message}");
    }

    #[test]
    fn a_service_of_another_name_is_refused() {
        let error = check_spec(serde_json::json!({"serviceRef": {"name": "other"}}));
        assert!(matches!(error, Err(JobError::OtherService { .. })));
    }

    #[test]
    fn only_what_decides_a_result_line_changes_the_spec_hash() {
        let hash = |patch| check_spec(patch).unwrap().spec_sha256;
        let plain = hash(serde_json::json!({}));
        assert_eq!(
            plain,
            hash(serde_json::json!({"output": {"uri": "elsewhere", "merge": true}}))
        );
        assert_eq!(
            plain,
            hash(serde_json::json!({"sharding": {"targetBytes": 2048}}))
        );
        assert_eq!(
            plain,
            hash(serde_json::json!({"retry": {"maxAttempts": 9}}))
        );
        assert_ne!(
            plain,
            hash(serde_json::json!({"output": {"uri": "../out", "join": ["a"]}}))
        );
        assert_ne!(
            plain,
            hash(serde_json::json!({"steps": [{"name": "e", "model": "embed"}]}))
        );
    }
}
