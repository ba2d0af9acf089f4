//! What a remote service and its prompts mean for a job. Pure.

use millrace_crds::InferenceService;
use millrace_crds::batch_job::Prompt;
use millrace_crds::inference_service::{self, RemoteApi};
use serde::Serialize;

use super::{DEFAULT_TEXT_FIELD, JobError, Step};
use crate::prompt::Prompts;

/// An API elsewhere, as the workers of its service share it.
#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    /// What the service says of it.
    pub spec: inference_service::Remote,
    /// Name of the service, under which its limits are kept.
    pub service: String,
    /// Which answers are kept.
    pub cache: inference_service::Cache,
}

impl Remote {
    /// Asks row by row, one call after the other.
    pub fn ask_one_by_one(&mut self) {
        self.spec.rows_per_call = Some(1);
        self.spec.rows_per_call_max = None;
        self.spec.limits.concurrency = 1;
    }

    /// Whether answers are texts.
    pub fn writes(&self) -> bool {
        self.spec.api != RemoteApi::Embeddings
    }
}

/// The API of the service, if it has one.
pub fn remote(service: &InferenceService) -> Option<Remote> {
    let spec = service.spec.remote.clone()?;
    Some(Remote {
        spec,
        service: service.metadata.name.clone().unwrap_or_default(),
        cache: service.spec.cache.clone(),
    })
}

/// Checks what a prompt's schema cannot say of it.
pub fn check_prompt(
    index: usize,
    prompt: Option<&Prompt>,
    service: &InferenceService,
) -> Result<(), JobError> {
    let Some(prompt) = prompt else {
        return Ok(());
    };
    let refused = |field, message: &str| {
        Err(JobError::Prompt {
            index,
            field,
            message: message.to_owned(),
        })
    };
    let Some(remote) = &service.spec.remote else {
        return refused(
            "",
            "only a service with spec.remote takes prompts; remove it",
        );
    };
    let Prompt {
        system,
        template: _,
        output_schema,
        max_output_tokens,
        temperature,
    } = prompt;
    if remote.api == RemoteApi::Embeddings {
        let writes = [
            (".system", system.is_some()),
            (".outputSchema", output_schema.is_some()),
            (".maxOutputTokens", max_output_tokens.is_some()),
            (".temperature", temperature.is_some()),
        ];
        if let Some((field, _)) = writes.iter().find(|(_, is_given)| *is_given) {
            return refused(field, "an embedding is no text; remove it");
        }
    }
    if let Some(schema) = output_schema {
        let schema = serde_json::Value::Object(schema.clone());
        if schema["type"] != "object" {
            return refused(".outputSchema.type", "must be \"object\"");
        }
        if let Err(error) = jsonschema::validator_for(&schema) {
            let message = format!("is no JSON schema: {error}");
            return refused(".outputSchema", &message);
        }
    }
    Ok(())
}

/// The field that holds the text, and the fields that prompts are made of.
pub fn fields(steps: &[Step], text_field: Option<&str>) -> Result<(String, Vec<String>), JobError> {
    let text = text_field.unwrap_or(DEFAULT_TEXT_FIELD);
    let prompts = Prompts::new(steps.iter().map(Step::template), text);
    let prompts = prompts.map_err(|bad| JobError::Prompt {
        index: bad.step,
        field: ".template",
        message: bad.message,
    })?;
    let mut named = prompts.fields();
    let Some(first) = named.first() else {
        return Ok((text.to_owned(), named));
    };
    let is_all_templates = steps.iter().all(|step| step.template().is_some());
    let is_named = named.iter().any(|name| name == text);
    let text = match text_field {
        // Rows without a text are fine where nobody asks for it.
        None if is_all_templates && !is_named => first.clone(),
        _ => text.to_owned(),
    };
    if !named.contains(&text) {
        named.push(text.clone());
    }
    Ok((text, named))
}

impl Step {
    /// The template of its prompt, if it has one.
    pub fn template(&self) -> Option<&str> {
        self.prompt.as_ref()?.template.as_deref()
    }
}

/// What decides what a result line says.
#[derive(Serialize)]
pub struct Decisive<'a> {
    base_url: &'a str,
    api: RemoteApi,
    model: &'a str,
}

/// Limits, prices, the number of rows in a call and how answers are sent can change without another result.
pub fn decisive(remote: &inference_service::Remote) -> Decisive<'_> {
    let inference_service::Remote {
        base_url,
        api,
        model,
        api_key_secret_ref: _,
        rows_per_call: _,
        rows_per_call_max: _,
        limits: _,
        pricing: _,
        stream: _,
        timeout: _,
    } = remote;
    Decisive {
        base_url,
        api: *api,
        model,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::check_steps;
    use super::super::{CheckedJob, JobError};

    fn check_with(steps: Value, remote: Value) -> Result<CheckedJob, JobError> {
        let mut api = json!({"baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m"});
        for (key, value) in remote.as_object().unwrap() {
            api[key] = value.clone();
        }
        check_steps(steps, json!({"remote": api}))
    }

    fn step(prompt: Value) -> Value {
        json!([{"name": "a", "model": "m", "prompt": prompt}])
    }

    #[test]
    fn the_fields_of_prompts_are_read_and_the_first_stands_for_the_text() {
        let job = check_with(
            step(json!({"template": "{{ title }}: {{ body }}"})),
            json!({}),
        );
        let fields = job.unwrap().input.fields;
        assert_eq!((fields.text.as_str(), fields.prompted.len()), ("title", 2));
        let job = check_with(step(json!({"system": "Be brief."})), json!({}));
        let fields = job.unwrap().input.fields;
        assert_eq!((fields.text.as_str(), fields.prompted.len()), ("text", 0));
    }

    #[test]
    fn a_prompt_that_cannot_be_used_is_named_by_its_field() {
        let embeds = json!({"api": "Embeddings"});
        for (prompt, remote, field) in [
            (
                json!({"template": "{{ a"}),
                json!({}),
                "spec.steps[0].prompt.template: ",
            ),
            (
                json!({"system": "a"}),
                embeds,
                "spec.steps[0].prompt.system: ",
            ),
            (
                json!({"outputSchema": {"type": "array"}}),
                json!({}),
                "spec.steps[0].prompt.outputSchema.type: ",
            ),
        ] {
            let error = check_with(step(prompt), remote).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn another_prompt_is_another_spec_and_other_limits_are_not() {
        let hash = |prompt, remote| check_with(step(prompt), remote).unwrap().spec_sha256;
        let plain = hash(json!({}), json!({}));
        let limits = json!({"limits": {"requestsPerMinute": 5}, "rowsPerCall": 7});
        assert_eq!(plain, hash(json!({}), limits));
        assert_ne!(plain, hash(json!({"temperature": 0.5}), json!({})));
        assert_ne!(plain, hash(json!({"template": "{{ text }}"}), json!({})));
        assert_ne!(plain, hash(json!({}), json!({"api": "Responses"})));
    }
}
