//! Who answers the rows of a job, and what they are asked. Pure.

use millrace_crds::InferenceService;
use millrace_crds::batch_job::{self, BatchJobSpec, Prompt};
use serde::Serialize;

use super::routes::{self, Routing};
use super::{Chunking, JobError, Postgres, Step, chunking, postgres, remote, runtime, sha256};

/// Who answers the rows of a job, and what they are asked.
pub struct Answering {
    /// The steps, of several services those of the one that the worker stands beside.
    pub steps: Vec<Step>,
    /// Which of several services answers which rows.
    pub routing: Option<Routing>,
    /// The field that holds the text.
    pub text_field: String,
    /// Fields that prompts are made of.
    pub prompted: Vec<String>,
    /// How long texts are cut into chunks.
    pub chunking: Option<Chunking>,
    /// The table that results are loaded into, if the job names one.
    pub postgres: Option<Postgres>,
    /// Hash of all of it, as far as it decides answers.
    pub answers_sha256: String,
}

/// Resolves who answers: `service` alone, or it and the `others` that the job's routes name.
pub fn answering(
    spec: &BatchJobSpec,
    service: &InferenceService,
    others: &[InferenceService],
) -> Result<Answering, JobError> {
    let text_field = spec.input.text_field.as_deref();
    let max_cost = spec.budget.as_ref().map(|budget| budget.max_cost);
    let name = service.metadata.name.clone().unwrap_or_default();
    let Some(routes) = &spec.routes else {
        if max_cost.is_some() && service.spec.pricing().is_none() {
            return Err(JobError::Unpriced { service: name });
        }
        let steps = check_steps(spec.steps.as_deref(), service)?;
        let (text_field, prompted) = remote::fields(&steps, text_field)?;
        let joins = spec.steps.iter().flatten().map(|step| step.join);
        let chunking = spec.input.chunking.as_ref();
        let chunking = chunking.map(|spec| {
            let joins = joins.collect::<Vec<_>>();
            chunking::chunking(spec, &steps, &joins, service, &text_field)
        });
        let chunking = chunking.transpose()?;
        return Ok(Answering {
            postgres: postgres::postgres(&spec.output, &steps, service, chunking.as_ref())?,
            answers_sha256: answers_sha256(&steps, service, chunking.as_ref()),
            routing: None,
            text_field,
            prompted,
            chunking,
            steps,
        });
    };
    let services: Vec<&InferenceService> = [service].into_iter().chain(others).collect();
    let steps = spec.steps.as_deref().unwrap_or_default();
    let routing = routes::routing(routes, steps, &services)?;
    routing.check_prices(max_cost)?;
    let (text_field, prompted) = remote::fields(routing.prompts(), text_field)?;
    let hashes = routing.services().iter().map(|answers| {
        let service = routes::manifest_of(answers, &services);
        answers_sha256(&answers.steps, service, None)
    });
    let hashes: Vec<String> = hashes.collect();
    Ok(Answering {
        steps: routing.steps_of(&name).to_vec(),
        postgres: postgres::of_all(&spec.output, &routing, &services)?,
        answers_sha256: sha256(&(routes, hashes)),
        routing: Some(routing),
        text_field,
        prompted,
        // A schema refuses it beside routes.
        chunking: None,
    })
}

fn check_steps(
    steps: Option<&[batch_job::Step]>,
    service: &InferenceService,
) -> Result<Vec<Step>, JobError> {
    let models: Vec<&str> = service.spec.model_names().collect();
    let Some(steps) = steps else {
        let step = |model: &&str| Step {
            name: (*model).to_owned(),
            model: (*model).to_owned(),
            prompt: None,
        };
        return Ok(models.iter().map(step).collect());
    };
    let checked = steps.iter().enumerate().map(|(index, step)| {
        let batch_job::Step {
            name,
            model,
            prompt,
            // It is resolved with the chunking that it is about.
            join: _,
        } = step;
        let model = model.clone().unwrap_or_default();
        if models.contains(&model.as_str()) {
            remote::check_prompt(index, prompt.as_ref(), service)?;
            Ok(Step {
                name: name.clone(),
                model,
                prompt: prompt.clone(),
            })
        } else {
            let known = models.join(", ");
            Err(JobError::UnknownModel {
                index,
                model,
                known,
            })
        }
    });
    checked.collect()
}

/// Hashes what decides the answer to a row, whatever row it is.
fn answers_sha256(
    steps: &[Step],
    service: &InferenceService,
    chunking: Option<&Chunking>,
) -> String {
    #[derive(Serialize)]
    struct Decisive<'a> {
        steps: Vec<(&'a str, &'a str)>,
        models: &'a [millrace_crds::inference_service::ModelSpec],
        runtime: Option<runtime::Decisive<'a>>,
        remote: Option<remote::Decisive<'a>>,
        prompts: Vec<Option<&'a Prompt>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        chunking: Option<chunking::Decisive<'a>>,
    }
    sha256(&Decisive {
        steps: steps
            .iter()
            .map(|step| (step.name.as_str(), step.model.as_str()))
            .collect(),
        models: &service.spec.models,
        runtime: service.spec.runtime.as_ref().map(runtime::decisive),
        remote: service.spec.remote.as_ref().map(remote::decisive),
        prompts: steps.iter().map(|step| step.prompt.as_ref()).collect(),
        chunking: chunking.map(chunking::decisive),
    })
}
