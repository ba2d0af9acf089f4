//! How the long texts of a job are cut, and what becomes of their chunks. Pure.

use millrace_crds::InferenceService;
use millrace_crds::batch_job::{self, ChunkJoin, ChunkUnit};
use millrace_crds::inference_service::{RemoteApi, RuntimeTask, Task};
use millrace_protocol::chunk::ChunkLimits;
use serde::Serialize;

use super::{JobError, Step};
use crate::prompt::Prompts;

/// Chunks of the rows that are read at a time, about: as many as there are rows otherwise.
const CHUNKS_OF_WINDOW: usize = 2_048;

/// Bytes of a token at least in most texts, for a first guess at the number of chunks.
const BYTES_PER_TOKEN_LEAST: usize = 2;

/// Tokens of a chunk where the job leaves it to the models: few take less.
const TOKENS_USUAL: usize = 128;

/// Fewest bytes of the rows that are read at a time.
const WINDOW_BYTES_LEAST: usize = 64 << 10;

/// How the texts of a job are cut, and what becomes of their chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunking {
    /// How they are cut.
    pub limits: ChunkLimits,
    /// What becomes of the results of their chunks, for each step.
    pub joins: Vec<ChunkJoin>,
}

impl Chunking {
    /// Most bytes of the rows that are read at a time, so that they have about as many chunks as there
    /// are rows in other jobs, and never more than `bytes_max`.
    pub fn window_bytes(&self, bytes_max: usize) -> usize {
        let tokens = (self.limits.tokens_max).map_or(TOKENS_USUAL, |tokens| tokens as usize);
        // A chunk brings half of itself at least.
        let bytes = CHUNKS_OF_WINDOW * BYTES_PER_TOKEN_LEAST * tokens / 2;
        bytes.max(WINDOW_BYTES_LEAST).min(bytes_max)
    }
}

/// What decides the answer to a row.
#[derive(Serialize)]
pub struct Decisive<'a> {
    limits: ChunkLimits,
    joins: &'a [ChunkJoin],
}

/// How many chunks a text may have decides whether it is answered, and not what the answer is.
pub fn decisive(chunking: &Chunking) -> Decisive<'_> {
    let Chunking { limits, joins } = chunking;
    let chunks_max = 0;
    Decisive {
        limits: ChunkLimits {
            chunks_max,
            ..*limits
        },
        joins,
    }
}

/// What a step answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerKind {
    Vector,
    Scores,
    /// What can neither be added up nor compared.
    Other,
}

/// Checks what a schema cannot say. `joins` is what steps say for themselves, if the job names steps,
/// and `text_field` holds the text.
pub fn chunking(
    spec: &batch_job::Chunking,
    steps: &[Step],
    joins: &[Option<ChunkJoin>],
    service: &InferenceService,
    text_field: &str,
) -> Result<Chunking, JobError> {
    let batch_job::Chunking {
        by,
        max_tokens,
        max_sentences,
        overlap,
        max_chunks,
        join,
    } = spec;
    let refused = |field: &str, message: String| JobError::Chunking {
        field: field.to_owned(),
        message,
    };
    if max_tokens.is_none() && service.spec.models.is_empty() {
        let message = "only models that this project's own server runs say what they take; give it";
        return Err(refused("input.chunking.maxTokens", message.to_owned()));
    }
    let of_step = |index: usize| joins.get(index).copied().flatten().unwrap_or(*join);
    let is_own = |index: usize| joins.get(index).is_some_and(Option::is_some);
    for (index, step) in steps.iter().enumerate() {
        if let Some(message) = not_joined(of_step(index), step, service) {
            let field = match is_own(index) {
                true => format!("steps[{index}].join"),
                false => "input.chunking.join".to_owned(),
            };
            return Err(refused(&field, message));
        }
        if let Some(message) = says_the_same(step, text_field) {
            return Err(refused("input.chunking", message));
        }
    }
    Ok(Chunking {
        limits: ChunkLimits {
            by_sentences: *by == ChunkUnit::Sentences,
            tokens_max: *max_tokens,
            sentences_max: *max_sentences,
            overlap_tokens: *overlap,
            chunks_max: *max_chunks,
        },
        joins: (0..steps.len()).map(of_step).collect(),
    })
}

/// What is wrong where what a step answers cannot be joined like this.
fn not_joined(join: ChunkJoin, step: &Step, service: &InferenceService) -> Option<String> {
    let (name, answers) = (&step.name, answers(step, service));
    let is_joined = match join {
        ChunkJoin::List => true,
        ChunkJoin::Mean => answers != AnswerKind::Other,
        ChunkJoin::Max => answers == AnswerKind::Scores,
    };
    if is_joined {
        return None;
    }
    let takes = match join {
        ChunkJoin::Max => "for the scores of labels",
        ChunkJoin::List | ChunkJoin::Mean => "for vectors and the scores of labels",
    };
    Some(format!(
        "{join:?} is {takes}, and step {name:?} answers otherwise; give it join: List"
    ))
}

/// What is wrong where the prompt of a step says the same of all chunks.
fn says_the_same(step: &Step, text_field: &str) -> Option<String> {
    let prompts = Prompts::new([Some(step.template()?)], text_field);
    let named = prompts.map(|prompts| prompts.fields());
    if named.is_ok_and(|named| named.iter().any(|name| name == text_field)) {
        return None;
    }
    let name = &step.name;
    Some(format!(
        "the prompt of step {name:?} does not name the text, {text_field:?}, and would say the same \
         of all its chunks; name it, or remove chunking"
    ))
}

fn answers(step: &Step, service: &InferenceService) -> AnswerKind {
    let spec = &service.spec;
    let own = spec.models.iter().find(|it| it.name == step.model);
    if let Some(own) = own {
        return match own.task {
            Task::Embedding => AnswerKind::Vector,
            Task::SequenceClassification => AnswerKind::Scores,
            Task::TokenClassification | Task::TorchScript => AnswerKind::Other,
        };
    }
    let mut brought = spec.runtime.iter().flat_map(|runtime| &runtime.models);
    if let Some(brought) = brought.find(|it| it.name == step.model) {
        return match brought.task {
            RuntimeTask::Embedding => AnswerKind::Vector,
            RuntimeTask::SequenceClassification => AnswerKind::Scores,
        };
    }
    match spec.remote.as_ref().map(|remote| remote.api) {
        Some(RemoteApi::Embeddings) => AnswerKind::Vector,
        _ => AnswerKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::job::{CheckedJob, check};

    fn checked(chunking: Value, steps: Value, service: Value) -> Result<CheckedJob, JobError> {
        let manifest = |kind: &str, name: &str, spec: Value| {
            json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": kind,
                "metadata": {"name": name}, "spec": spec,
            })
        };
        let spec = json!({
            "serviceRef": {"name": "s"}, "steps": steps,
            "input": {"uris": ["in.jsonl"], "textField": "text", "chunking": chunking},
            "output": {"uri": "out"},
        });
        let job = serde_json::from_value(manifest("BatchJob", "j", spec)).unwrap();
        let service = serde_json::from_value(manifest("InferenceService", "s", service)).unwrap();
        check(&job, &service, Path::new("/"))
    }

    fn models() -> Value {
        let source = json!({"uri": "hf://a/b"});
        json!({"models": [
            {"name": "vector", "task": "Embedding", "source": source},
            {"name": "mood", "task": "SequenceClassification", "source": source},
            {"name": "names", "task": "TokenClassification", "source": source},
        ]})
    }

    fn chat() -> Value {
        json!({"remote": {"baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m"}})
    }

    #[test]
    fn results_are_joined_where_they_can_be() {
        let steps = |models: &[&str]| {
            let step = |model: &&str| json!({"name": model, "model": model});
            Value::Array(models.iter().map(step).collect())
        };
        let fine = [
            ("List", &["vector", "mood", "names"][..]),
            ("Mean", &["vector", "mood"]),
            ("Max", &["mood"]),
        ];
        for (join, named) in fine {
            let found = checked(json!({"join": join}), steps(named), models());
            assert!(found.is_ok(), "{join}: {found:?}");
        }
        for (join, named) in [("Mean", "names"), ("Max", "names"), ("Max", "vector")] {
            let error = checked(json!({"join": join}), steps(&["mood", named]), models());
            let error = error.unwrap_err().to_string();
            let expected = format!("spec.input.chunking.join: {join} is for");
            assert!(error.starts_with(&expected), "{error}");
            assert!(error.contains(&format!("{named:?}")), "{error}");
        }
        let own = json!([{"name": "v", "model": "vector", "join": "Max"}]);
        let error = checked(json!({}), own, models()).unwrap_err().to_string();
        assert!(
            error.starts_with("spec.steps[0].join: Max is for"),
            "{error}"
        );
        let each = json!([
            {"name": "v", "model": "vector"},
            {"name": "m", "model": "mood", "join": "Max"},
            {"name": "n", "model": "names", "join": "List"},
        ]);
        let job = checked(json!({"join": "Mean"}), each, models()).unwrap();
        let joins = job.input.chunking.unwrap().joins;
        assert_eq!(joins, [ChunkJoin::Mean, ChunkJoin::Max, ChunkJoin::List]);
    }

    #[test]
    fn who_does_not_know_the_tokens_of_a_model_is_told_how_many() {
        let error = checked(json!({}), json!(null), chat()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("spec.input.chunking.maxTokens: "),
            "{error}"
        );
        assert!(checked(json!({"maxTokens": 500}), json!(null), chat()).is_ok());
        assert!(checked(json!({}), json!(null), models()).is_ok());
    }

    #[test]
    fn a_prompt_that_does_not_name_the_text_is_not_asked_of_each_chunk() {
        let steps =
            |template: &str| json!([{"name": "a", "model": "m", "prompt": {"template": template}}]);
        let chunking = json!({"maxTokens": 500});
        let error = checked(chunking.clone(), steps("{{ title }}"), chat());
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("spec.input.chunking: "), "{error}");
        assert!(checked(chunking, steps("{{ title }}: {{ text }}"), chat()).is_ok());
    }

    #[test]
    fn other_chunks_are_other_answers() {
        let hashes = |chunking: Value| {
            let job = checked(
                chunking,
                json!(null),
                json!({"models": [
                    {"name": "vector", "task": "Embedding", "source": {"uri": "hf://a/b"}},
                ]}),
            );
            let job = job.unwrap();
            (job.answers_sha256, job.spec_sha256)
        };
        let plain = hashes(json!({}));
        assert_eq!(plain, hashes(json!({"by": "Tokens"})));
        for other in [
            json!(null),
            json!({"maxTokens": 64}),
            json!({"by": "Sentences"}),
            json!({"overlap": 8}),
            json!({"join": "Mean"}),
        ] {
            let (answers, spec) = hashes(other.clone());
            assert!(answers != plain.0 && spec != plain.1, "{other}");
        }
        let (answers, spec) = hashes(json!({"maxChunks": 2_000}));
        assert!(answers == plain.0 && spec != plain.1);
    }
}
