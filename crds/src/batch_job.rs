//! `BatchJob`: a dataset, the models to run over it, and where the results go.

mod budget;
mod chunking;
mod dedup;
mod failed_rows;
mod filter;
mod format;
mod incremental;
mod normalize;
mod notify;
mod output;
mod prompt;
mod reader;
mod retry;
mod routes;
mod service;
mod sharding;
mod status;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretRef;
use crate::inference_service::{InferenceService, InferenceServiceSpec};
use crate::names::service_of;
pub use budget::{Budget, Estimate, RAISED_BUDGET, Spent};
pub use chunking::{ChunkJoin, ChunkUnit, Chunking};
pub use dedup::{Dedup, Near, NearMethod};
pub use failed_rows::FailedRowsMax;
pub use filter::Filter;
pub use format::{Compression, InputFormat};
pub use incremental::Incremental;
pub use normalize::{Normalize, UnicodeForm, Whitespace};
pub use notify::Notify;
pub use output::{Output, OutputCompression, Postgres};
pub use prompt::Prompt;
pub use reader::Reader;
pub use retry::Retry;
pub use routes::{Arm, Escalate, Route, RouteCounts};
pub use service::{JobService, ServiceRef};
pub use sharding::Sharding;
pub use status::{BatchJobStatus, RowCounts, SampleError, ShardCounts};

/// Runs every row of a dataset through the models of an InferenceService. Every row ends as
/// exactly one result or one reported error.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "millrace.dev",
    version = "v1alpha1",
    kind = "BatchJob",
    plural = "batchjobs",
    shortname = "mbj",
    doc = "Runs every row of a dataset through the models of an InferenceService.",
    namespaced,
    status = "BatchJobStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Succeeded","type":"string","jsonPath":".status.conditions[?(@.type=='Succeeded')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Succeeded')].reason"}"#,
    printcolumn = r#"{"name":"Progress","type":"string","jsonPath":".status.progress"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.rows.failed"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Workers","type":"integer","jsonPath":".status.workers","priority":1}"#,
    printcolumn = r#"{"name":"Rows/s","type":"number","jsonPath":".status.rowsPerSecond","priority":1}"#,
    printcolumn = r#"{"name":"ETA","type":"string","jsonPath":".status.eta","priority":1}"#,
    printcolumn = r#"{"name":"Output","type":"string","jsonPath":".spec.output.uri","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    // A list of who can answer rows, so that a further way is a further entry.
    validation = Rule::new("[has(self.serviceRef), has(self.serviceTemplate), has(self.routes)].exists_one(given, given)")
        .message("give exactly one of serviceRef, the name of an InferenceService, serviceTemplate, a service of the job's own, and routes, several services"),
    validation = Rule::new("!has(self.routes) || has(self.steps)")
        .message("routes needs steps: the results of all routes stand under their names"),
    validation = Rule::new("has(self.routes) || !has(self.steps) || self.steps.all(step, has(step.model))")
        .message("each step needs model, the name of a model of the service; only with routes it can be left out"),
    validation = Rule::new("!has(self.routes) || self.routes.exists(route, !has(route.when))")
        .message("one of routes must be without `when`: it takes the rows that no other takes"),
    validation = Rule::new("!has(self.routes) || self.routes.all(route, !has(route.escalate) || self.routes.exists(other, other.name == route.escalate.to))")
        .message("escalate.to must be the name of one of routes"),
    validation = Rule::new("!has(self.routes) || !has(self.input.chunking)")
        .message("input.chunking cannot be used with routes: what a text is cut by are the models of one service; cut the texts in a job before"),
    validation = Rule::new("has(self.routes) == has(oldSelf.routes) && (!has(self.routes) || self.routes == oldSelf.routes)")
        .message("routes cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("has(self.serviceRef) == has(oldSelf.serviceRef) && (!has(self.serviceRef) || self.serviceRef == oldSelf.serviceRef)")
        .message("serviceRef cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("!has(self.serviceTemplate) || !has(oldSelf.serviceTemplate) || (has(self.serviceTemplate.models) == has(oldSelf.serviceTemplate.models) && (!has(self.serviceTemplate.models) || self.serviceTemplate.models == oldSelf.serviceTemplate.models))")
        .message("serviceTemplate.models cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("!has(self.serviceTemplate) || !has(oldSelf.serviceTemplate) || (has(self.serviceTemplate.runtime) == has(oldSelf.serviceTemplate.runtime) && (!has(self.serviceTemplate.runtime) || self.serviceTemplate.runtime == oldSelf.serviceTemplate.runtime))")
        .message("serviceTemplate.runtime cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("!has(self.serviceTemplate) || !has(oldSelf.serviceTemplate) || (has(self.serviceTemplate.remote) == has(oldSelf.serviceTemplate.remote) && (!has(self.serviceTemplate.remote) || [self.serviceTemplate.remote.baseUrl, self.serviceTemplate.remote.api, self.serviceTemplate.remote.model] == [oldSelf.serviceTemplate.remote.baseUrl, oldSelf.serviceTemplate.remote.api, oldSelf.serviceTemplate.remote.model]))")
        .message("baseUrl, api and model of serviceTemplate.remote cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("has(self.steps) == has(oldSelf.steps) && (!has(self.steps) || self.steps == oldSelf.steps)")
        .message("steps cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("self.input == oldSelf.input")
        .message("input cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("self.output == oldSelf.output")
        .message("output cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("self.sharding == oldSelf.sharding")
        .message("sharding cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("has(self.incremental) == has(oldSelf.incremental) && (!has(self.incremental) || self.incremental == oldSelf.incremental)")
        .message("incremental cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("has(self.dedup) == has(oldSelf.dedup) && (!has(self.dedup) || self.dedup == oldSelf.dedup)")
        .message("dedup cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("!has(self.incremental) || self.incremental.from != self.output.uri")
        .message("incremental.from is the job's own output; name an earlier one, and write to another folder"),
    validation = Rule::new("!has(self.dedup) || !has(self.dedup.near) || !has(self.dedup.near.from) || self.dedup.near.from != self.output.uri")
        .message("dedup.near.from is the job's own output; name that of an earlier job, and write to another folder"),
    validation = Rule::new("has(self.input.chunking) || !has(self.steps) || self.steps.all(s, !has(s.join))")
        .message("a step's join means nothing without input.chunking; remove it, or say how texts are cut"),
    validation = Rule::new("!oldSelf.cancel || self.cancel")
        .message("cancel cannot be taken back; create a new BatchJob with the same output, and it goes on"),
    validation = Rule::new("!has(oldSelf.reader) || has(self.reader)")
        .message("reader cannot be taken back; it goes with the BatchJob"),
    validation = Rule::new("has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)")
        .message("managedBy cannot be changed; create a new BatchJob instead"),
    validation = Rule::new("self.rerunFailed >= oldSelf.rerunFailed")
        .message("rerunFailed can only be raised"),
    // What a pattern matches and where links lead is seen when the run is planned.
    validation = Rule::new("!has(self.input.uris) || self.input.uris.all(u, u != self.output.uri && !u.startsWith(self.output.uri.endsWith('/') ? self.output.uri : self.output.uri + '/') && !self.output.uri.startsWith(u + '/'))")
        .message("output overlaps input; write results to another folder"),
)]
pub struct BatchJobSpec {
    /// The InferenceService whose models do the work; it lies in the job's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<ServiceRef>,

    /// An InferenceService of the job's own: it is made when the job begins, sleeps while the job
    /// rests, and goes when the job is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_template: Option<InferenceServiceSpec>,

    /// Several InferenceServices, and which of them answers which rows: the first route takes a row
    /// whose condition holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub routes: Option<Vec<Route>>,

    /// What to do with each row, in this order. By default one step per model of the service,
    /// named like the model. With `routes` they are the same for all services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub steps: Option<Vec<Step>>,

    /// The dataset.
    pub input: Input,

    /// Where results, errors and the manifest are written.
    pub output: Output,

    /// How the dataset is cut. Cannot be changed.
    #[serde(default)]
    pub sharding: Sharding,

    /// How often a row is tried again when the fault lies with the moment.
    #[serde(default)]
    pub retry: Retry,

    /// How many times the rows that ended as errors, and the shards that were given up, are run
    /// again, each time as a run of its own in the same output. Raising it on a job that is over
    /// begins the next run.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub rerun_failed: u32,

    /// How many rows may end as errors, as a number or as a percentage of the rows done so far, such
    /// as `5%` (of a hundred rows at least). One more, and the job is given up as by `cancel`: what
    /// is done stays. By default all may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "failed_rows::schema")]
    pub max_failed_rows: Option<IntOrString>,

    /// How many shards may be given up, those included that no row could be read of. One more, and the
    /// job is given up as by `cancel`: what is done stays. By default all may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_failed_indexes: Option<u32>,

    /// An earlier output whose answers are carried over: only rows that are new, changed, or failed
    /// there are asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,

    /// Rows that are not asked because an earlier row of the job has the answer. Each gets a result of
    /// its own, a copy that names the other row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup: Option<Dedup>,

    /// What the job may spend. Only for services with `remote.pricing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,

    /// Whether the job rests: workers give their shards back, and what is done stays. A local run
    /// of a suspended job is refused.
    #[serde(default)]
    pub suspend: bool,

    /// Whether the job is given up: workers give their shards back, the manifest is written over what
    /// is done, and names the rest. It cannot be taken back. A local run of it is refused.
    #[serde(default)]
    pub cancel: bool,

    /// Seconds from the job's beginning after which it is given up as by `cancel`. Means nothing for a
    /// local run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<u32>,

    /// Seconds after its end when the job's object is deleted; what it wrote stays. Means nothing for
    /// a local run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<u32>,

    /// Who brings the job about, such as `kueue.x-k8s.io/multikueue`. By default, and as
    /// `millrace.dev/operator`, it is the operator of millrace; it leaves all other jobs alone. Cannot
    /// be changed. Means nothing for a local run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 63),
        regex(
            pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9/_.~-]*[A-Za-z0-9])?$"
        )
    )]
    pub managed_by: Option<String>,

    /// Jobs of a service with a higher priority are worked off first; those with the same share its
    /// workers. Means nothing for a local run, which has one job.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,

    /// Secret of the same namespace with the credentials of input and output: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`. The service must
    /// list it in `spec.secrets`. Means nothing for a local run, which uses its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,

    /// Who is told when the job is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,

    /// Who may read the results over HTTP, as long as the job's object is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reader: Option<Reader>,

    /// How many more times a shard is handed to a worker after its first delivery failed. After
    /// that the shard is given up, with the last error, and the job goes on without it.
    #[serde(default = "default_backoff_limit_per_index")]
    #[schemars(range(min = 0, max = 1000))]
    pub backoff_limit_per_index: u32,
}

fn default_backoff_limit_per_index() -> u32 {
    6
}

/// What `spec.managedBy` says of a job that the operator of millrace brings about.
const MANAGED_HERE: &str = "millrace.dev/operator";

impl BatchJob {
    /// Who brings the job about, if it is not the operator of millrace.
    pub fn other_manager(&self) -> Option<&str> {
        let manager = self.spec.managed_by.as_deref();
        manager.filter(|manager| *manager != MANAGED_HERE)
    }

    /// The service that the job brings, if it brings one.
    pub fn own_service(&self) -> Option<InferenceService> {
        match self.spec.service() {
            JobService::Own(template) => {
                Some(InferenceService::new(&service_of(self), template.clone()))
            }
            JobService::Shared(_) => None,
        }
    }

    /// Fields with a path of one machine, where a cluster needs one that all its pods can reach.
    pub fn local_paths(&self) -> Vec<String> {
        let uris = self.spec.input.uris.iter().flatten().enumerate();
        let inputs = uris.map(|(index, uri)| (format!("spec.input.uris[{index}]"), uri));
        let output = ("spec.output.uri".to_owned(), &self.spec.output.uri);
        let earlier = self.spec.incremental.as_ref();
        let earlier = earlier.map(|earlier| ("spec.incremental.from".to_owned(), &earlier.from));
        let near = self
            .spec
            .dedup
            .as_ref()
            .and_then(|dedup| dedup.near.as_ref());
        let vectors = near.and_then(|near| near.from.as_ref());
        let vectors = vectors.map(|from| ("spec.dedup.near.from".to_owned(), from));
        let all = inputs.chain([output]).chain(earlier).chain(vectors);
        let local = all.filter(|(_, uri)| !uri.starts_with("s3://"));
        local.map(|(field, _)| field).collect()
    }
}

/// One model applied to every row.
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Key of this step's value in the `result` object of a result line.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    )]
    pub name: String,
    /// Name of a model of the service. With `routes` it can be left out where each service has one
    /// model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub model: Option<String>,
    /// What the model is asked about each row; for a service with `remote` alone. With `routes` the
    /// models of other services get the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// What becomes of this step's results of the chunks of a text; by default what
    /// `input.chunking.join` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<ChunkJoin>,
}

/// The dataset.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.uris) != has(self.inline)")
        .message("give either uris, the files to read, or inline, the rows themselves"),
    validation = Rule::new("!has(self.uris) || self.uris.all(u, !u.matches('^[A-Za-z0-9+.-]+://[^/]*[@:]'))")
        .message("a URI cannot carry credentials, nor a port; give them through the environment of the worker"),
    validation = Rule::new("!has(self.uris) || self.uris.all(u, !u.matches('^s3://(.*/)?[.][.](/.*)?$'))")
        .message("a URI cannot climb with `..`; name the place that it leads to"),
    validation = Rule::new("!has(self.inline) || (!has(self.format) && !has(self.compression))")
        .message("format and compression mean nothing for inline rows; remove them"),
    validation = Rule::new("!has(self.format) || self.format != 'Text' || !has(self.idField)")
        .message("idField means nothing for format Text: a line is the text; remove idField"),
    validation = Rule::new("!has(self.idField) || has(self.format) || !has(self.uris) || self.uris.all(u, !u.matches('[.][tT][xX][tT]([.](gz|zst))?$'))")
        .message("idField means nothing for .txt files: a line is the text; remove idField"),
    validation = Rule::new("!has(self.format) || self.format != 'Text' || !has(self.textField)")
        .message("textField means nothing for format Text: a line is the text; remove textField"),
)]
pub struct Input {
    /// Files to read: `s3://bucket/path`, `file:///path`, or, for a local run, a path relative to
    /// the manifest. `*`, `?`, `[…]`, `{a,b}` and `**` match as in a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1000),
        inner(
            length(min = 1, max = 1024),
            // What may hold credentials is let through to the rule: an API server repeats a value
            // that has not the form, and never one that a rule refuses.
            regex(
                pattern = r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]*/.+|file:///.+|[^:]+|[A-Za-z0-9+.-]+://[^/]*[@:].*)$"
            )
        )
    )]
    pub uris: Option<Vec<String>>,

    /// The rows themselves, for small jobs: texts. Each row's id is its index. They are written into
    /// the output before anything else, so that a position means the same as for files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000), inner(length(min = 1, max = 65_536)))]
    pub inline: Option<Vec<String>>,

    /// How rows are laid out. By default told from the file name: `.jsonl`, `.ndjson`, `.csv`,
    /// `.parquet`, `.txt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<InputFormat>,

    /// How files are compressed. By default told from the file name: `.gz`, `.zst`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,

    /// Field whose value becomes the `id` of result and error lines. Ids may repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub id_field: Option<String>,

    /// Field that holds the text. By default `text`, or, where no prompt of the job names that, the
    /// first field that one names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub text_field: Option<String>,

    /// How a text is written before anything is made of it; by default as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Normalize>,

    /// Which rows are asked about; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,

    /// Which rows are worked off first: Jinja expressions over the fields of the row, as
    /// `filter.expression`. Rows that the first one is true for come before all others, then those of
    /// the second, and so on; every other row comes last. By default the order is that of the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4), inner(length(min = 1, max = 4096)))]
    pub order: Option<Vec<String>>,

    /// How long texts are cut into chunks; by default a text is asked about whole, and models cut off
    /// what is too long for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunking: Option<Chunking>,

    /// Longest row in bytes; a longer one ends as a row error.
    #[serde(default = "default_max_row_bytes")]
    #[schemars(range(min = 64, max = 67_108_864))]
    pub max_row_bytes: u32,
}

fn default_max_row_bytes() -> u32 {
    1 << 20
}
