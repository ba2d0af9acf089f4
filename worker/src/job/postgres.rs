//! The table that results are loaded into: its columns, and which names they cannot have. Pure.

use millrace_crds::batch_job::{self, ChunkJoin};
use millrace_crds::inference_service::{InferenceServiceSpec, RemoteApi, RuntimeTask, Task};
use millrace_crds::{InferenceService, SecretKeyRef};

use super::routes::{Routing, manifest_of};
use super::{Chunking, JobError, Step};

/// The table that notes what is loaded, beside the one that is loaded.
pub const LEDGER: &str = "millrace_loads";

/// Columns that every table has besides those of its steps.
pub const OWN_COLUMNS: [&str; 8] = [
    "row_key",
    "id",
    "input",
    "error_code",
    "error_message",
    "output",
    "run",
    "loaded_at",
];

/// Columns that every table of Postgres has in secret.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// A table that finish loads results into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// The Secret with the connection URL.
    pub secret: SecretKeyRef,
    /// Schema of the table, where the job names one.
    pub schema: Option<String>,
    /// Name of the table.
    pub table: String,
    /// The columns of the steps, in their order.
    pub steps: Vec<StepColumn>,
    /// Whether there is a column for the joined input.
    pub has_input: bool,
}

/// The column of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepColumn {
    /// Its name, which is the step's.
    pub name: String,
    /// Whether it holds vectors.
    pub is_vector: bool,
}

impl Postgres {
    /// The table's name, with its schema if the job names one.
    pub fn name(&self) -> String {
        let schema = self.schema.iter().map(|schema| format!("{schema}."));
        schema.chain([self.table.clone()]).collect()
    }
}

/// Resolves the table of a job, if it has one. With `chunking` a result may be a list of results.
pub fn postgres(
    output: &batch_job::Output,
    steps: &[Step],
    service: &InferenceService,
    chunking: Option<&Chunking>,
) -> Result<Option<Postgres>, JobError> {
    let Some(asked) = &output.postgres else {
        return Ok(None);
    };
    let batch_job::Postgres {
        secret_ref,
        table,
        schema,
    } = asked;
    if table == LEDGER {
        return Err(JobError::Postgres {
            field: ".table".to_owned(),
            message: format!("{LEDGER} is where is noted what is loaded; name another"),
        });
    }
    let taken = |step: &&Step| {
        let name = step.name.as_str();
        OWN_COLUMNS.contains(&name) || SYSTEM_COLUMNS.contains(&name)
    };
    if let Some(step) = steps.iter().find(taken) {
        return Err(JobError::Postgres {
            field: String::new(),
            message: format!(
                "the step {0:?} would be a column of the table, which has a column {0:?} of its own; \
                 call the step otherwise in spec.steps",
                step.name
            ),
        });
    }
    let column = |(index, step): (usize, &Step)| StepColumn {
        name: step.name.clone(),
        is_vector: is_vector(&service.spec, &step.model)
            && chunking.is_none_or(|chunking| chunking.joins[index] != ChunkJoin::List),
    };
    Ok(Some(Postgres {
        secret: secret_ref.clone(),
        schema: schema.clone(),
        table: table.clone(),
        steps: steps.iter().enumerate().map(column).collect(),
        has_input: !output.join.is_empty(),
    }))
}

/// Resolves the table of a job with routes, if it has one: a step's column is the same whoever answers.
pub fn of_all(
    output: &batch_job::Output,
    routing: &Routing,
    services: &[&InferenceService],
) -> Result<Option<Postgres>, JobError> {
    let mut found = None;
    for service in routing.services() {
        let table = postgres(output, &service.steps, manifest_of(service, services), None)?;
        if found.get_or_insert_with(|| table.clone()) != &table {
            return Err(JobError::Postgres {
                field: String::new(),
                message: format!(
                    "a step has vectors from some services of the routes and none from {:?}, so that \
                     it has no type as a column; remove the table",
                    service.name
                ),
            });
        }
    }
    Ok(found.flatten())
}

/// Whether a model of the service answers with a vector.
fn is_vector(service: &InferenceServiceSpec, model: &str) -> bool {
    let own = service.models.iter().find(|it| it.name == model);
    if let Some(own) = own {
        return own.task == Task::Embedding;
    }
    let mut brought = service.runtime.iter().flat_map(|runtime| &runtime.models);
    if let Some(brought) = brought.find(|it| it.name == model) {
        return brought.task == RuntimeTask::Embedding;
    }
    let remote = service.remote.as_ref();
    remote.is_some_and(|remote| remote.api == RemoteApi::Embeddings)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::job::check;

    fn checked(steps: Value, table: &str) -> Result<Postgres, JobError> {
        checked_over(json!({"uris": ["in.jsonl"]}), steps, table)
    }

    fn checked_over(input: Value, steps: Value, table: &str) -> Result<Postgres, JobError> {
        let service = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "s"},
            "spec": {"models": [
                {"name": "minilm", "task": "Embedding", "source": {"uri": "hf://a/b"}},
                {"name": "mood", "task": "SequenceClassification", "source": {"uri": "hf://a/c"}},
            ]},
        });
        let job = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "j"},
            "spec": {
                "serviceRef": {"name": "s"}, "steps": steps, "input": input,
                "output": {"uri": "out", "postgres": {
                    "secretRef": {"name": "db"}, "table": table, "schema": "nlp",
                }},
            },
        });
        let job = serde_json::from_value(job).unwrap();
        let service = serde_json::from_value(service).unwrap();
        let checked = check(&job, &service, Path::new("/"))?;
        Ok(checked.output.postgres.expect("the job names a table"))
    }

    #[test]
    fn each_step_is_a_column_and_that_of_an_embedding_holds_vectors() {
        let steps = json!([{"name": "e", "model": "minilm"}, {"name": "m", "model": "mood"}]);
        let found = checked(steps, "texts").unwrap();
        let columns: Vec<_> = (found.steps.iter())
            .map(|it| (it.name.as_str(), it.is_vector))
            .collect();
        assert_eq!(columns, [("e", true), ("m", false)]);
        assert_eq!(
            (found.name().as_str(), found.has_input),
            ("nlp.texts", false)
        );
    }

    #[test]
    fn a_list_of_the_results_of_chunks_is_no_vector_and_their_mean_is() {
        let input = json!({"uris": ["in.jsonl"], "chunking": {"join": "Mean"}});
        let steps = json!([
            {"name": "mean", "model": "minilm"},
            {"name": "list", "model": "minilm", "join": "List"},
        ]);
        let found = checked_over(input, steps, "texts").unwrap();
        let vectors: Vec<bool> = found.steps.iter().map(|it| it.is_vector).collect();
        assert_eq!(vectors, [true, false]);
    }

    #[test]
    fn a_step_that_would_be_a_column_of_the_tables_own_is_refused() {
        for name in ["id", "loaded_at", "ctid"] {
            let steps = json!([{"name": name, "model": "mood"}]);
            let error = checked(steps, "texts").unwrap_err().to_string();
            assert!(error.starts_with("spec.output.postgres: "), "{error}");
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
        let error = checked(json!([{"name": "m", "model": "mood"}]), LEDGER).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("spec.output.postgres.table: "), "{error}");
    }
}
