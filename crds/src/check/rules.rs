//! The CEL rules of the schema, those for transitions included.

use kube::core::cel::{ErrorKind, Validator};
use serde_json::Value;

use super::Problem;

/// Evaluates every rule on an object whose structure is right. Rules that speak of `oldSelf` are
/// evaluated only where there is an old object.
pub(super) fn check(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<Problem> {
    let Err(errors) = Validator::new().validate(schema, object, old) else {
        return Vec::new();
    };
    let problem = |error: &kube::core::cel::ValidationError| Problem {
        path: error.field_path.clone(),
        message: match error.kind {
            ErrorKind::ValidationFailure => error.message.clone(),
            // Every other kind means that the rule could not be evaluated. Its error may quote the
            // value, so only the rule is named.
            _ => format!(
                "the rule `{}` cannot be evaluated on this value",
                error.rule
            ),
        },
    };
    errors.as_slice().iter().map(problem).collect()
}
