//! What of a foreign server is part of the spec hash. Pure.

use millrace_crds::inference_service::{Protocol, Runtime, RuntimeModel, Variable};
use serde::Serialize;

/// What decides what a result line says.
#[derive(Serialize)]
pub struct Decisive<'a> {
    image: &'a str,
    command: &'a [String],
    args: &'a [String],
    env: &'a [Variable],
    protocol: Protocol,
    models: &'a [RuntimeModel],
}

/// Where the server listens and how much it is asked at a time can change without another result.
pub fn decisive(runtime: &Runtime) -> Decisive<'_> {
    let Runtime {
        image,
        command,
        args,
        env,
        port: _,
        protocol,
        ready_path: _,
        max_batch_size: _,
        models,
    } = runtime;
    Decisive {
        image,
        command,
        args,
        env,
        protocol: *protocol,
        models,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::check_steps;
    use super::super::{CheckedJob, JobError, models};

    fn check_with(steps: Value, patch: Value) -> Result<CheckedJob, JobError> {
        let mut runtime = json!({
            "image": "tei:1", "port": 80, "protocol": "TEI",
            "models": [{"name": "bge", "task": "Embedding"}],
        });
        for (key, value) in patch.as_object().unwrap() {
            runtime[key] = value.clone();
        }
        check_steps(steps, json!({"runtime": runtime}))
    }

    #[test]
    fn the_models_of_a_runtime_are_what_steps_can_name() {
        let job = check_with(json!(null), json!({})).unwrap();
        assert_eq!(models(&job.steps), ["bge"]);
        let unknown = json!([{"name": "a", "model": "m"}]);
        let error = check_with(unknown, json!({})).unwrap_err();
        assert!(error.to_string().contains("it has bge"), "{error}");
    }

    #[test]
    fn another_image_is_another_spec_and_another_port_is_not() {
        let hash = |patch| check_with(json!(null), patch).unwrap().spec_sha256;
        let plain = hash(json!({}));
        for same in [
            json!({"port": 8080}),
            json!({"readyPath": "/ready"}),
            json!({"maxBatchSize": 8}),
        ] {
            assert_eq!(plain, hash(same));
        }
        for other in [
            json!({"image": "tei:2"}),
            json!({"args": ["--dtype=float16"]}),
            json!({"protocol": "OpenAI"}),
        ] {
            assert_ne!(plain, hash(other));
        }
    }
}
