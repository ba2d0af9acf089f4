//! Reads manifests: YAML or JSON text with one or more documents, each through the full check.
//!
//! Every problem of every document is reported at once, with the document and the field it is in.
//! No message repeats a string value of the manifest, because a value may be a secret; a URI without any place
//! for one is repeated.

mod error;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use self::error::{ManifestError, ManifestProblem};
use crate::{API_VERSION, BatchJob, InferenceService, check};

/// Most bytes in one manifest file; etcd would not take an object that large either.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Most manifest files in one folder.
pub const FOLDER_FILES_MAX: usize = 1000;

/// What was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Documents {
    /// Those of this API, at least one.
    pub ours: Vec<Document>,
    /// Those of other APIs, such as a Secret, of which nothing is checked: what each is and where.
    pub foreign: Vec<String>,
}

/// A document that passed the check, with what was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it stands, as problems name it: `job.yaml, document 2 (BatchJob reviews)`.
    pub place: String,
    /// The object, with its defaults filled in.
    pub manifest: Manifest,
    /// The object as a person wrote it: what an API server is asked to apply, since a default that
    /// is spelt out would undo what others changed since.
    pub written: Value,
}

/// A kind of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A dataset to run through models.
    BatchJob,
    /// Models that run together in one server.
    InferenceService,
}

/// An object that passed the check, with its defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub enum Manifest {
    /// A dataset to run through models.
    BatchJob(Box<BatchJob>),
    /// Models that run together in one server.
    InferenceService(Box<InferenceService>),
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 2] = [Kind::BatchJob, Kind::InferenceService];

    /// The kind as a manifest names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::BatchJob => "BatchJob",
            Kind::InferenceService => "InferenceService",
        }
    }

    /// The plural as an API server names it.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::BatchJob => "batchjobs",
            Kind::InferenceService => "inferenceservices",
        }
    }
}

impl Manifest {
    /// The kind of the object.
    pub fn kind(&self) -> Kind {
        match self {
            Manifest::BatchJob(_) => Kind::BatchJob,
            Manifest::InferenceService(_) => Kind::InferenceService,
        }
    }

    /// Name of the object.
    pub fn name(&self) -> &str {
        let metadata = match self {
            Manifest::BatchJob(job) => &job.metadata,
            Manifest::InferenceService(service) => &service.metadata,
        };
        metadata.name.as_deref().unwrap_or_default()
    }

    /// Namespace of the object; empty where it names none.
    pub fn namespace(&self) -> &str {
        let metadata = match self {
            Manifest::BatchJob(job) => &job.metadata,
            Manifest::InferenceService(service) => &service.metadata,
        };
        metadata.namespace.as_deref().unwrap_or_default()
    }
}

/// Reads a file, or the `*.yaml`, `*.yml` and `*.json` files of a folder in the order of their
/// names (its subfolders are not read). At least one document is returned; those of other APIs are not.
pub fn read_path(path: &Path) -> Result<Vec<Manifest>, ManifestError> {
    documents_of_path(path).map(manifests)
}

/// Reads text whose messages call it `origin`, as [`read_path`] does.
pub fn read_str(origin: &str, text: &str) -> Result<Vec<Manifest>, ManifestError> {
    documents_of_str(origin, text).map(manifests)
}

/// Reads as [`read_path`] does, and keeps what was written.
pub fn documents_of_path(path: &Path) -> Result<Documents, ManifestError> {
    let mut reading = Reading::default();
    for file in files(path)? {
        let origin = file.display().to_string();
        match text::read(&file) {
            Ok(text) => reading.read(&origin, &text),
            Err(problem) => reading.problems.push(problem),
        }
    }
    reading.finish(&path.display().to_string())
}

/// Reads as [`read_str`] does, and keeps what was written.
pub fn documents_of_str(origin: &str, text: &str) -> Result<Documents, ManifestError> {
    let mut reading = Reading::default();
    reading.read(origin, text);
    reading.finish(origin)
}

fn manifests(documents: Documents) -> Vec<Manifest> {
    let manifest = |document: Document| document.manifest;
    documents.ours.into_iter().map(manifest).collect()
}

/// What was read so far.
#[derive(Default)]
struct Reading {
    documents: Documents,
    problems: Vec<ManifestProblem>,
    /// Where each kind, namespace and name was seen first.
    seen: BTreeMap<(Kind, String, String), String>,
}

impl Reading {
    fn read(&mut self, origin: &str, text: &str) {
        let documents = match text::parse(origin, text) {
            Ok(documents) => documents,
            Err(problem) => return self.problems.push(problem),
        };
        for (index, document) in documents.into_iter().enumerate() {
            let at = Place {
                origin,
                number: index + 1,
                label: label(&document),
            };
            if let Some(api_version) = foreign_api(&document) {
                self.documents.foreign.push(format!("{at}: {api_version}"));
                continue;
            }
            match read_document(&at, &document) {
                Ok(manifest) => self.take(
                    &at,
                    Document {
                        place: at.to_string(),
                        manifest,
                        written: document,
                    },
                ),
                Err(problems) => self.problems.extend(problems),
            }
        }
    }

    fn take(&mut self, at: &Place, document: Document) {
        let manifest = &document.manifest;
        let key = (
            manifest.kind(),
            manifest.namespace().to_owned(),
            manifest.name().to_owned(),
        );
        if let Some(first) = self.seen.get(&key) {
            let message = format!("this name is already taken by {first}; rename or remove one");
            return self.problems.push(at.problem("metadata.name", message));
        }
        self.seen
            .insert(key, format!("{}, document {}", at.origin, at.number));
        self.documents.ours.push(document);
    }

    fn finish(mut self, origin: &str) -> Result<Documents, ManifestError> {
        if self.documents.ours.is_empty() && self.problems.is_empty() {
            let message = format!("holds no document of millrace; write a {}", known_kinds());
            self.problems
                .push(ManifestProblem::of_file(origin, message));
        }
        if self.problems.is_empty() {
            Ok(self.documents)
        } else {
            Err(ManifestError::new(self.problems))
        }
    }
}

/// The document that a problem is in.
struct Place<'a> {
    origin: &'a str,
    number: usize,
    label: Option<String>,
}

impl Place<'_> {
    fn problem(&self, path: &str, message: String) -> ManifestProblem {
        ManifestProblem {
            origin: self.origin.to_owned(),
            document: Some(self.number),
            label: self.label.clone(),
            path: path.to_owned(),
            message,
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            number,
            label,
        } = self;
        write!(f, "{origin}, document {number}")?;
        match label {
            Some(label) => write!(f, " ({label})"),
            None => Ok(()),
        }
    }
}

/// The `apiVersion` of a document that is of another API. One with a kind of this API is meant to be of
/// this API, whatever it says.
fn foreign_api(document: &Value) -> Option<&str> {
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    let (kind, api_version) = (text("kind")?, text("apiVersion")?);
    let group = |api_version: &str| {
        api_version
            .rsplit_once('/')
            .map(|(group, _)| group.to_owned())
    };
    let is_ours = group(api_version) == group(API_VERSION)
        || Kind::ALL.iter().any(|known| known.as_str() == kind);
    (!is_ours).then(|| check::clipped(api_version))
}

fn read_document(at: &Place, document: &Value) -> Result<Manifest, Vec<ManifestProblem>> {
    let kind = kind_of(at, document).map_err(|problem| vec![problem])?;
    let checked = check::check(kind, document).map_err(|problems| {
        let located = |check::Problem { path, message }| at.problem(&path, message);
        problems.into_iter().map(located).collect::<Vec<_>>()
    })?;
    let typed = match kind {
        Kind::BatchJob => {
            serde_json::from_value(checked).map(|job| Manifest::BatchJob(Box::new(job)))
        }
        Kind::InferenceService => serde_json::from_value(checked)
            .map(|service| Manifest::InferenceService(Box::new(service))),
    };
    // The schema lets through what Rust's types do not take only in corners such as `1.0` for a
    // count; the message of the type is all there is to say then.
    typed.map_err(|error| vec![at.problem("", error.to_string())])
}

fn kind_of(at: &Place, document: &Value) -> Result<Kind, ManifestProblem> {
    let Some(object) = document.as_object() else {
        let message = format!("is not an object; write a {}", known_kinds());
        return Err(at.problem("", message));
    };
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let found_kind = text("kind").ok_or_else(|| {
        at.problem(
            "kind",
            format!("is missing or no string; write one of {}", known_kinds()),
        )
    })?;
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == found_kind)
        .ok_or_else(|| {
            let found = check::shown(found_kind);
            at.problem(
                "kind",
                format!(
                    "{found} is no kind of millrace; known are {}",
                    known_kinds()
                ),
            )
        })?;
    match text("apiVersion") {
        Some(API_VERSION) => Ok(kind),
        Some(found) => {
            let found = check::shown(found);
            let message = format!("{found} is not known to this build; write {API_VERSION}");
            Err(at.problem("apiVersion", message))
        }
        None => Err(at.problem(
            "apiVersion",
            format!("is missing or no string; write {API_VERSION}"),
        )),
    }
}

fn known_kinds() -> String {
    Kind::ALL.map(Kind::as_str).join(", ")
}

/// `BatchJob reviews`, as far as the document says so.
fn label(document: &Value) -> Option<String> {
    let kind = document.get("kind")?.as_str()?;
    let name = document.pointer("/metadata/name").and_then(Value::as_str);
    Some(match name {
        Some(name) => format!("{} {}", check::clipped(kind), check::clipped(name)),
        None => check::clipped(kind).to_owned(),
    })
}

/// The files that a path stands for.
fn files(path: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot be read: {error}");
        ManifestError::new(vec![ManifestProblem::of_file(
            &path.display().to_string(),
            message,
        )])
    };
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let known = file.extension().is_some_and(|end| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| end.eq_ignore_ascii_case(known))
        });
        if known && file.is_file() {
            files.push(file);
        }
        if files.len() > FOLDER_FILES_MAX {
            let message = format!("holds more than {FOLDER_FILES_MAX} manifests; name one file");
            let origin = path.display().to_string();
            return Err(ManifestError::new(vec![ManifestProblem::of_file(
                &origin, message,
            )]));
        }
    }
    files.sort();
    Ok(files)
}
