//! text-embeddings-inference: `/embed` and `/predict`. Pure, but for asking what is served.

use http::HeaderMap;
use millrace_crds::inference_service::{RuntimeModel, RuntimeTask};
use millrace_protocol::wire::LabelScore;
use serde::{Deserialize, Serialize};

use super::answer::{Answered, Number, Unreadable, counted, embeddings, json, labels, number};
use super::http::{Answer, Http};
use super::{About, told};
use crate::work::client::ClientError;

/// Header with the tokens of a request.
const TOKENS: &str = "x-compute-tokens";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    model_id: Option<String>,
    model_sha: Option<String>,
    max_client_batch_size: Option<usize>,
}

/// What `/info` says of the server's one model.
pub async fn about(http: &Http) -> Result<About, ClientError> {
    let answer = told(http.get(&["info"]).await?)?;
    let info = answer.and_then(|answer| json(&answer.body).ok());
    let Info {
        model_id,
        model_sha,
        max_client_batch_size,
    } = info.unwrap_or_default();
    let id = match (model_id, model_sha) {
        (Some(id), Some(sha)) => Some(format!("{id}@{sha}")),
        (id, sha) => id.or(sha),
    };
    Ok(About {
        id,
        batch_rows_max: max_client_batch_size.filter(|&rows| rows > 0),
        ..About::default()
    })
}

/// The path of the endpoint for a task.
pub fn path(model: &RuntimeModel) -> &'static [&'static str] {
    match model.task {
        RuntimeTask::Embedding => &["embed"],
        RuntimeTask::SequenceClassification => &["predict"],
    }
}

#[derive(Serialize)]
pub struct Body<'a> {
    inputs: Inputs<'a>,
    /// Long texts are cut, as this project's own server cuts them.
    truncate: bool,
    /// For servers of this protocol that have several models, where the manifest names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Inputs<'a> {
    Texts(&'a [String]),
    /// `/predict` takes a flat list for a pair.
    Singles(Vec<[&'a str; 1]>),
}

pub fn body<'a>(model: &'a RuntimeModel, texts: &'a [String]) -> Body<'a> {
    let inputs = match model.task {
        RuntimeTask::Embedding => Inputs::Texts(texts),
        RuntimeTask::SequenceClassification => {
            Inputs::Singles(texts.iter().map(|text| [text.as_str()]).collect())
        }
    };
    Body {
        inputs,
        truncate: true,
        model: model.served_name.as_deref(),
    }
}

#[derive(Deserialize)]
struct Scored {
    label: String,
    score: Number,
}

pub fn read(model: &RuntimeModel, answer: &Answer, asked: usize) -> Result<Answered, Unreadable> {
    let predictions = match model.task {
        RuntimeTask::Embedding => embeddings(json(&answer.body)?, asked)?,
        RuntimeTask::SequenceClassification => {
            let rows: Vec<Vec<Scored>> = json(&answer.body)?;
            counted(rows.len(), asked)?;
            let rows = rows.into_iter().map(|row| row.into_iter().map(scored));
            rows.map(|row| labels(row.collect())).collect()
        }
    };
    Ok(Answered {
        predictions,
        tokens: tokens(&answer.headers),
    })
}

fn scored(Scored { label, score }: Scored) -> LabelScore {
    LabelScore {
        label,
        score: number(score),
    }
}

fn tokens(headers: &HeaderMap) -> u64 {
    let value = headers.get(TOKENS).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use millrace_protocol::wire::Prediction;
    use serde_json::json;

    use super::super::testing::{answer, model};
    use super::*;

    #[test]
    fn labels_are_read_best_first() {
        let mood = model(json!({"name": "mood", "task": "SequenceClassification"}));
        let texts = ["a".to_owned(), "b".to_owned()];
        let sent = serde_json::to_value(body(&mood, &texts)).unwrap();
        assert_eq!(sent["inputs"], json!([["a"], ["b"]]));
        let reply = r#"[[{"label": "bad", "score": 0.2}, {"label": "good", "score": 0.8}], []]"#;
        let read = read(&mood, &answer(reply), 2).unwrap();
        let Prediction::Labels(labels) = &read.predictions[0] else {
            panic!("{read:?}");
        };
        let names: Vec<&str> = labels.iter().map(|label| label.label.as_str()).collect();
        assert_eq!(names, ["good", "bad"]);
    }

    #[test]
    fn tokens_are_what_the_header_says() {
        let bge = model(json!({"name": "bge", "task": "Embedding"}));
        let mut answer = answer("[[1.0, 2.0]]");
        assert_eq!(read(&bge, &answer, 1).unwrap().tokens, 0);
        answer.headers.insert(TOKENS, "12".parse().unwrap());
        assert_eq!(read(&bge, &answer, 1).unwrap().tokens, 12);
    }
}
