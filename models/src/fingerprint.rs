//! What decides the answers of a model, as one hash. Pure.

use millrace_crds::inference_service::ModelSpec;
use sha2::{Digest, Sha256};

/// What was chosen when the model was loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loaded<'a> {
    /// Digest of the model's files.
    pub digest: &'a str,
    /// Number format.
    pub dtype: &'a str,
    /// Longest text in tokens.
    pub max_length: usize,
    /// What computes, where it is not the model itself.
    pub stand_in: Option<&'a str>,
}

/// Two models with the same fingerprint answer alike, whatever they are called and wherever they
/// come from.
pub(crate) fn fingerprint(spec: &ModelSpec, loaded: Loaded<'_>) -> [u8; 32] {
    let ModelSpec {
        name: _,
        task,
        source: _,
        // What was asked for; what was chosen counts.
        dtype: _,
        max_length: _,
        pooling,
        normalize,
        labels,
        activation,
    } = spec;
    let Loaded {
        digest,
        dtype,
        max_length,
        stand_in,
    } = loaded;
    let loaded = (digest, dtype, max_length, stand_in);
    let settings = (task, pooling, normalize, labels, activation);
    let bytes = serde_json::to_vec(&(loaded, settings)).expect("plain data");
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(more: Value, dtype: &str) -> [u8; 32] {
        let mut spec = json!({
            "name": "m", "task": "SequenceClassification", "source": {"uri": "hf://owner/name"},
        });
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let loaded = Loaded {
            digest: "sha256:0",
            dtype,
            max_length: 512,
            stand_in: None,
        };
        fingerprint(&serde_json::from_value(spec).unwrap(), loaded)
    }

    #[test]
    fn what_changes_an_answer_changes_the_fingerprint_and_a_name_does_not() {
        let one = of(json!({}), "Float32");
        assert_eq!(one, of(json!({"name": "n"}), "Float32"));
        assert_eq!(one, of(json!({"source": {"uri": "/m"}}), "Float32"));
        assert_ne!(one, of(json!({}), "BFloat16"));
        assert_ne!(one, of(json!({"labels": ["a", "b"]}), "Float32"));
        assert_ne!(one, of(json!({"activation": "Sigmoid"}), "Float32"));
        assert_ne!(one, of(json!({"task": "TokenClassification"}), "Float32"));
    }
}
