//! The CEL rules of the schema, those for transitions included.

use kube::core::cel::{ErrorKind, ValidationError, Validator};
use serde_json::Value;

use super::Problem;

/// Evaluates every rule on an object of the right shape. Rules that speak of `oldSelf` are evaluated
/// only where there is an old object. A rule that cannot be evaluated is a problem only where
/// `in_form`: else the value it stumbles over is reported already.
pub(super) fn check(
    schema: &Value,
    object: &Value,
    old: Option<&Value>,
    in_form: bool,
) -> Vec<Problem> {
    let Err(errors) = Validator::new().validate(schema, object, old) else {
        return Vec::new();
    };
    let problem = |error: &ValidationError| Problem {
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
    let counts = |error: &&ValidationError| in_form || error.kind == ErrorKind::ValidationFailure;
    errors
        .as_slice()
        .iter()
        .filter(counts)
        .map(problem)
        .collect()
}
