//! How token vectors become one: from the service, else from the model's own files.

use std::path::Path;

use millrace_crds::inference_service::{ModelSpec, Pooling};
use millrace_model_files::bounded;
use serde_json::Value;

use super::error::TorchLoadError;
use crate::source::ModelFiles;

/// Real files of this kind have under 1 KiB.
const POOLING_BYTES_MAX: u64 = 1024 * 1024;

/// Chooses the pooling of an embedding model. Refuses a model whose vectors pass through more than
/// pooling and normalising: leaving the rest out would be wrong without a sign of it.
pub fn choose(spec: &ModelSpec, files: &ModelFiles) -> Result<Pooling, TorchLoadError> {
    if let Some(path) = &files.modules {
        check_modules(&read(path)?).map_err(|reason| TorchLoadError::Pooling {
            path: path.clone(),
            reason,
        })?;
    }
    match (spec.pooling, &files.pooling_config) {
        (Some(asked), _) => Ok(asked),
        (None, None) => Ok(Pooling::Mean),
        (None, Some(path)) => parse(&read(path)?).map_err(|reason| TorchLoadError::Pooling {
            path: path.clone(),
            reason,
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TorchLoadError> {
    let fail = |source| TorchLoadError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = bounded::read(path, POOLING_BYTES_MAX).map_err(fail)?;
    bytes.ok_or_else(|| TorchLoadError::Pooling {
        path: path.to_owned(),
        reason: format!("it is larger than {POOLING_BYTES_MAX} bytes"),
    })
}

fn check_modules(bytes: &[u8]) -> Result<(), String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    for module in value.as_array().ok_or("not a JSON array")? {
        let name = module["type"].as_str().ok_or("a module has no type")?;
        match name.rsplit('.').next() {
            Some("Transformer" | "Pooling" | "Normalize" | "Dropout") => {}
            _ => return Err(format!("module {name} is not supported")),
        }
    }
    Ok(())
}

/// Reads `pooling_mode`, or the older form with one flag per mode, which joins the vectors of
/// several modes that are true; that is not computed here, and a part of it would be wrong.
fn parse(bytes: &[u8]) -> Result<Pooling, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let map = value.as_object().ok_or("not a JSON object")?;
    let modes: Vec<&str> = match map.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(_) => return Err("pooling_mode must be a string".to_owned()),
        None => map
            .iter()
            .filter(|(_, value)| **value == Value::Bool(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .collect(),
    };
    match modes.as_slice() {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        [] => Err("no pooling mode is true".to_owned()),
        other => Err(format!(
            "pooling {} is not supported; set pooling to Mean or Cls to override it",
            other.join(" + ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<Pooling, &str>) {
        assert_eq!(
            parse(text.as_bytes()),
            expected.map_err(str::to_owned),
            "{text}"
        );
    }

    #[test]
    fn both_forms_of_the_file_are_read() {
        check(
            r#"{"word_embedding_dimension": 8, "pooling_mode_mean_tokens": true}"#,
            Ok(Pooling::Mean),
        );
        check(
            r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false, "include_prompt": true}"#,
            Ok(Pooling::Cls),
        );
        check(r#"{"pooling_mode": "cls"}"#, Ok(Pooling::Cls));
    }

    #[test]
    fn a_module_that_is_not_computed_is_refused() {
        let known = r#"[{"type": "sentence_transformers.models.Transformer"},
            {"type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"}]"#;
        assert_eq!(check_modules(known.as_bytes()), Ok(()));
        let dense = br#"[{"type": "sentence_transformers.models.Dense"}]"#;
        let refused = Err("module sentence_transformers.models.Dense is not supported".to_owned());
        assert_eq!(check_modules(dense), refused);
        assert_eq!(check_modules(b"{}"), Err("not a JSON array".to_owned()));
        assert_eq!(
            check_modules(b"[{}]"),
            Err("a module has no type".to_owned())
        );
    }

    #[test]
    fn a_pooling_that_is_not_computed_is_refused() {
        check("{}", Err("no pooling mode is true"));
        check(
            r#"{"pooling_mode_max_tokens": true}"#,
            Err("pooling max_tokens is not supported; set pooling to Mean or Cls to override it"),
        );
        check(
            r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#,
            Err(
                "pooling cls_token + mean_tokens is not supported; set pooling to Mean or Cls to override it",
            ),
        );
    }
}
