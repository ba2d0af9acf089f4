//! `spec.input.normalize`: how a text is written before anything is made of it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a text is written before anything is made of it: the filter, prompts and models all see it so.
/// What `output.join` names stays as it is in the input.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("has(self.unicode) || has(self.whitespace) || self.lowercase")
        .message("an empty normalize means nothing; give unicode, whitespace or lowercase, or remove it"),
)]
pub struct Normalize {
    /// Which of several ways to write the same characters is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unicode: Option<UnicodeForm>,

    /// What becomes of white space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whitespace: Option<Whitespace>,

    /// Whether all letters become small ones.
    #[serde(default)]
    pub lowercase: bool,
}

/// One way to write characters that can be written in several.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub enum UnicodeForm {
    /// Composed: an `e` and an accent after it become one `é`.
    #[serde(rename = "NFC")]
    Nfc,
    /// Composed, and what only looks different becomes the same: `ﬁ` becomes `fi`, `①` becomes `1`.
    #[serde(rename = "NFKC")]
    Nfkc,
}

/// What becomes of white space.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub enum Whitespace {
    /// None is left at the ends.
    Trim,
    /// None is left at the ends, and within the text any of it becomes one space, line breaks
    /// included.
    Collapse,
}
