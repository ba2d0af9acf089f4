//! Whether the API server knows every field that this build knows. With older CRDs it would drop
//! what users write and what the operator reports, without a word.
//!
//! The schema is asked for as it is served to everybody, which takes no rights over CRDs.

use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use millrace_crds::manifest::Kind;
use millrace_crds::{API_VERSION, crd};
use serde_json::Value;

/// How long CRDs may take to be served after they were applied, as by the same installation.
const PATIENCE: Duration = Duration::from_secs(15);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Most fields that a message names.
const FIELDS_NAMED_MAX: usize = 5;

/// What to do, whatever is wrong with the CRDs.
const REMEDY: &str = "upgrade the chart (helm upgrade), or apply the CRDs of this version \
                      (kubectl apply --server-side -f crds/generated) and start the operator again";

/// Why the operator cannot work with this API server.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// A kind is not served.
    #[error("the API server knows no {kind} of {API_VERSION}: {REMEDY}")]
    Missing {
        /// The kind.
        kind: &'static str,
    },
    /// The CRD of a kind lacks fields.
    #[error("the CRD of {kind} is older than this operator, it lacks {fields}: {REMEDY}")]
    Older {
        /// The kind.
        kind: &'static str,
        /// Fields that it lacks; the first few.
        fields: String,
    },
    /// The API server does not say.
    #[error("the API server does not say which CRDs it knows")]
    Unknown(#[source] kube::Error),
}

/// Returns once the API server knows every field; fails if it does not after a while.
pub async fn wait(client: &Client) -> Result<(), CrdError> {
    let begun = Instant::now();
    loop {
        match check(client).await {
            Err(error) if begun.elapsed() < PATIENCE => {
                tracing::debug!(error = &error as &dyn std::error::Error, "not yet");
            }
            checked => return checked,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn check(client: &Client) -> Result<(), CrdError> {
    let request = Request::get(format!("/openapi/v3/apis/{API_VERSION}"));
    let request = request.body(Vec::new()).expect("a plain request");
    let served: Value = match client.request(request).await {
        Ok(served) => served,
        Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
        Err(error) => return Err(CrdError::Unknown(error)),
    };
    for kind in Kind::ALL {
        compare(kind, &served)?;
    }
    Ok(())
}

/// Compares a kind's schema with what the API server says of all of them. Pure.
fn compare(kind: Kind, served: &Value) -> Result<(), CrdError> {
    let (group, version) = API_VERSION.split_once('/').unwrap_or_default();
    let group: Vec<&str> = group.rsplit('.').collect();
    let kind_name = kind.as_str();
    let name = format!("{}.{version}.{kind_name}", group.join("."));
    let Some(served) = served["components"]["schemas"].get(name) else {
        return Err(CrdError::Missing { kind: kind_name });
    };
    let known = crd::schema(kind);
    let mut lacking = Vec::new();
    for part in ["spec", "status"] {
        let part_of = |schema: &Value| schema["properties"][part].clone();
        collect(part, &part_of(&known), &part_of(served), &mut lacking);
    }
    if lacking.is_empty() {
        return Ok(());
    }
    let more = lacking.len().saturating_sub(FIELDS_NAMED_MAX);
    lacking.truncate(FIELDS_NAMED_MAX);
    let mut fields = lacking.join(", ");
    if more > 0 {
        fields += &format!(" and {more} more");
    }
    Err(CrdError::Older {
        kind: kind_name,
        fields,
    })
}

/// Collects the fields of `known` that `served` lacks.
fn collect(at: &str, known: &Value, served: &Value, lacking: &mut Vec<String>) {
    for (name, field) in known["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        match served["properties"].get(name) {
            Some(served) => collect(&at, field, served, lacking),
            None => lacking.push(at),
        }
    }
    for (name, mark) in [("items", "[]"), ("additionalProperties", ".*")] {
        if let Some(inner) = known.get(name) {
            collect(&format!("{at}{mark}"), inner, &served[name], lacking);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What an API server says that has exactly our CRDs.
    fn served() -> Value {
        json!({"components": {"schemas": {
            "dev.millrace.v1alpha1.BatchJob": crd::schema(Kind::BatchJob),
            "dev.millrace.v1alpha1.InferenceService": crd::schema(Kind::InferenceService),
        }}})
    }

    fn said(kind: Kind, served: &Value) -> String {
        compare(kind, served).unwrap_err().to_string()
    }

    #[test]
    fn our_own_crds_are_new_enough_and_those_with_more_fields_too() {
        let mut served = served();
        let schema = &mut served["components"]["schemas"]["dev.millrace.v1alpha1.BatchJob"];
        schema["properties"]["spec"]["properties"]["later"] = json!({"type": "string"});
        for kind in Kind::ALL {
            compare(kind, &served).unwrap();
        }
    }

    #[test]
    fn older_crds_are_told_by_the_fields_that_they_lack() {
        let mut served = served();
        let schema = &mut served["components"]["schemas"]["dev.millrace.v1alpha1.BatchJob"];
        let spec = schema["properties"]["spec"]["properties"].as_object_mut();
        spec.unwrap().remove("suspend");
        let steps = &mut schema["properties"]["spec"]["properties"]["steps"]["items"];
        steps["properties"].as_object_mut().unwrap().remove("model");
        let message = said(Kind::BatchJob, &served);
        assert!(
            message.contains("it lacks spec.steps[].model, spec.suspend: "),
            "{message}"
        );
        assert!(message.contains("helm upgrade"), "{message}");
        compare(Kind::InferenceService, &served).unwrap();
    }

    #[test]
    fn crds_that_are_not_there_are_named() {
        let message = said(Kind::InferenceService, &Value::Null);
        assert!(
            message.contains("no InferenceService of millrace.dev/v1alpha1"),
            "{message}"
        );
    }
}
