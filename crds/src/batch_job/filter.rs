//! `spec.input.filter`: rows that are left out on purpose.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Which rows are asked about. The others are skipped: counted, and neither a result nor an error.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("has(self.minChars) || has(self.languages) || has(self.expression)")
        .message("an empty filter means nothing; give minChars, languages or expression, or remove it"),
)]
pub struct Filter {
    /// Least characters of a text, without white space at its ends. With 1, empty texts are skipped
    /// instead of ending as row errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_chars: Option<u32>,

    /// Languages of texts, by their codes of three letters (ISO 639-3), such as `eng` or `deu`. A text
    /// whose language cannot be told for certain, as short ones, is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 3, max = 3), regex(pattern = r"^[a-z]{3}$"))
    )]
    pub languages: Option<Vec<String>>,

    /// A Jinja expression over the fields of the row, such as `project == 'a' and stars > 3`. What it
    /// is true for is kept; a row that lacks a field which it names is not. Fields of CSV files are
    /// texts: `stars|int > 3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub expression: Option<String>,
}
