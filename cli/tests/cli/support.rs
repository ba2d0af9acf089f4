//! Runs the binary, and builds manifests and outputs for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use millrace_protocol::commit::Commit;
use millrace_protocol::layout;
use millrace_protocol::manifest::{LivePart, Manifest};
use millrace_protocol::plan::{
    Compression, Format, InputFile, Plan, Shard, ShardIndex, ShardRange,
};
use millrace_protocol::tally::Rows;

pub const INPUT: &str = "file:///data/reviews.jsonl";

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    /// Asserts the exit code and shows what was printed where it differs.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

impl From<Output> for Ended {
    fn from(
        Output {
            status,
            stdout,
            stderr,
        }: Output,
    ) -> Self {
        Self {
            code: status.code(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let is_ours = name
            .to_str()
            .is_some_and(|name| name.starts_with("MILLRACE_"));
        if is_ours {
            command.env_remove(name);
        }
    }
    command
}

pub fn millrace(arguments: &[&str]) -> Ended {
    command(arguments).output().unwrap().into()
}

pub const SERVICE: &str = "
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: sentiment}
spec:
  models:
  - name: minilm
    task: Embedding
    source: {uri: hf://acme/minilm}
";

pub const JOB: &str = "
apiVersion: millrace.dev/v1alpha1
kind: BatchJob
metadata: {name: reviews}
spec:
  serviceRef: {name: sentiment}
  input: {uris: [reviews.jsonl]}
  output: {uri: out}
";

/// Writes job and service into one file.
pub fn manifest(folder: &Path, job: &str) -> PathBuf {
    let path = folder.join("job.yaml");
    std::fs::write(&path, format!("{SERVICE}---{job}")).unwrap();
    path
}

/// An output as a run leaves it, part by part.
pub struct OutputFolder {
    pub folder: PathBuf,
    pub plan: Plan,
}

impl OutputFolder {
    /// An output with a plan of `shards` shards and no commit.
    pub fn planned(folder: &Path, shards: u64) -> Self {
        let input = InputFile {
            uri: INPUT.to_owned(),
            size_bytes: shards * 100,
            etag: None,
            format: Format::Jsonl,
            compression: Compression::None,
            columns: None,
        };
        let shard = |index| {
            let (start, end) = (index * 100, (index + 1) * 100);
            Shard::of(0, ShardRange::Bytes { start, end })
        };
        let plan = Plan {
            version: Plan::VERSION,
            run: 1,
            spec_sha256: "00".to_owned(),
            answers_sha256: "00".to_owned(),
            spec: Vec::new(),
            incremental_from: None,
            carried: None,
            dedup: None,
            inputs: vec![input],
            shards: (0..shards).map(shard).collect(),
            order: Vec::new(),
        };
        let output = Self {
            folder: folder.to_owned(),
            plan,
        };
        output.write(&layout::plan(1), &serde_json::to_vec(&output.plan).unwrap());
        output
    }

    /// Commits a shard with these lines.
    pub fn commit(&self, shard: ShardIndex, results: &[String], errors: &[String], zstd: bool) {
        let file = |lines: &[String], path: String, zstd: bool| {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let bytes = if zstd {
                zstd::encode_all(text.as_bytes(), 1).unwrap()
            } else {
                text.into()
            };
            self.write(&path, &bytes);
            (!lines.is_empty()).then_some(path)
        };
        let commit = Commit {
            shard,
            epoch: 1,
            attempt: "a".to_owned(),
            part: file(results, layout::part(1, shard, "a", zstd), zstd),
            errors: file(errors, layout::errors(1, shard, "a"), false),
            ledger: None,
            error_ledger: None,
            carried: 0,
            duplicates: 0,
            rows: Rows {
                succeeded: results.len() as u64,
                failed: errors.len() as u64,
                skipped: 0,
            },
            tokens: 0,
            cost: Default::default(),
            routes: Vec::new(),
            sha256: None,
            models: Default::default(),
        };
        self.write(
            &layout::commit(1, shard),
            &serde_json::to_vec(&commit).unwrap(),
        );
    }

    fn write(&self, relative: &str, bytes: &[u8]) {
        let path = self.folder.join(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Whole once it is there, as from a store.
        let staged = format!("{}#1", path.display());
        std::fs::write(&staged, bytes).unwrap();
        std::fs::rename(staged, path).unwrap();
    }

    /// Writes the manifest over what is committed.
    pub fn finish(&self) {
        let folder = self.folder.join(layout::commits(1));
        let mut parts: Vec<LivePart> = (std::fs::read_dir(folder).unwrap())
            .map(|entry| {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                let commit: Commit = serde_json::from_slice(&bytes).unwrap();
                LivePart {
                    run: 1,
                    range: self.plan.shards[commit.shard as usize],
                    commit,
                }
            })
            .collect();
        parts.sort_by_key(|part| part.commit.shard);
        let manifest = Manifest {
            version: Manifest::VERSION,
            run: 1,
            spec_sha256: self.plan.spec_sha256.clone(),
            answers_sha256: "00".to_owned(),
            routes: Vec::new(),
            currency: None,
            difference: None,
            dedup: None,
            complete: true,
            totals: parts.iter().map(|part| part.commit.tally()).sum(),
            inputs: self.plan.inputs.clone(),
            order: Vec::new(),
            parts,
            failed_shards: Vec::new(),
            models: Vec::new(),
            merged: None,
            postgres: None,
            finished_at: "2026-01-01T00:00:00Z".to_owned(),
        };
        self.write(layout::MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    }

    pub fn path(&self) -> &str {
        self.folder.to_str().unwrap()
    }
}

/// A result line at an offset.
pub fn result(offset: u64) -> String {
    format!(
        r#"{{"id":null,"position":{{"file":"{INPUT}","offset":{offset}}},"result":{{"minilm":[1.0]}}}}"#
    )
}

/// An error line at an offset.
pub fn error(offset: u64, code: &str) -> String {
    format!(
        r#"{{"id":"r{offset}","position":{{"file":"{INPUT}","offset":{offset}}},"error":{{"code":"{code}","message":"said of {code}"}}}}"#
    )
}
