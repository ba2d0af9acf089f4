//! What is wrong with manifests.

use std::fmt;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestProblem {
    /// The file, as it was named.
    pub origin: String,
    /// Number of the document in the file, from 1, empty documents not counted; absent where the
    /// file as a whole is wrong.
    pub document: Option<usize>,
    /// Kind and name of the document, as far as it says so.
    pub label: Option<String>,
    /// Path of the field, such as `spec.input.uris[0]`; empty where no single field is wrong.
    pub path: String,
    /// What is wrong and what to do. Never holds a string value of the manifest other than names
    /// of fields, kinds, enum values and URIs that hold no credentials.
    pub message: String,
}

impl ManifestProblem {
    /// A problem of a file as a whole.
    pub(super) fn of_file(origin: &str, message: String) -> Self {
        Self {
            origin: origin.to_owned(),
            document: None,
            label: None,
            path: String::new(),
            message,
        }
    }
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin,
            document,
            label,
            path,
            message,
        } = self;
        f.write_str(origin)?;
        if let Some(document) = document {
            write!(f, ", document {document}")?;
        }
        if let Some(label) = label {
            write!(f, " ({label})")?;
        }
        f.write_str(": ")?;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(message)
    }
}

/// Everything that is wrong with what was read; one problem per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    problems: Vec<ManifestProblem>,
}

impl ManifestError {
    pub(super) fn new(problems: Vec<ManifestProblem>) -> Self {
        assert!(!problems.is_empty(), "an error says what is wrong");
        Self { problems }
    }

    /// The problems, at least one, in the order of files and documents.
    pub fn problems(&self) -> &[ManifestProblem] {
        &self.problems
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestError {}
