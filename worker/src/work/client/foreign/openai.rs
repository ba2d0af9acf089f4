//! OpenAI's `/v1/embeddings`. Pure, but for asking which models there are.

use millrace_crds::inference_service::RuntimeModel;
use millrace_protocol::wire::Prediction;
use serde::{Deserialize, Serialize};

use super::answer::{Answered, Number, Unreadable, embeddings, json};
use super::http::{Answer, Http};
use super::{About, told};
use crate::work::client::ClientError;

#[derive(Deserialize)]
struct Models {
    data: Vec<ListedModel>,
}

#[derive(Deserialize)]
struct ListedModel {
    id: String,
    /// Where vLLM took the model from.
    root: Option<String>,
}

/// What `/v1/models` says of the model.
pub async fn about(http: &Http, model: &RuntimeModel) -> Result<About, ClientError> {
    let answer = told(http.get(&["v1", "models"]).await?)?;
    let models = answer.and_then(|answer| json::<Models>(&answer.body).ok());
    let mut listed = models.into_iter().flat_map(|models| models.data);
    let listed = listed.find(|listed| listed.id == model.served_name());
    Ok(About {
        id: listed.map(|listed| listed.root.unwrap_or(listed.id)),
        ..About::default()
    })
}

/// The path of the endpoint.
pub const PATH: [&str; 2] = ["v1", "embeddings"];

#[derive(Serialize)]
pub struct Body<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
}

pub fn body<'a>(model: &'a RuntimeModel, texts: &'a [String]) -> Body<'a> {
    Body {
        model: model.served_name(),
        input: texts,
        encoding_format: "float",
    }
}

#[derive(Deserialize)]
struct Reply {
    data: Vec<Entry>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Entry {
    /// Which text it answers; by default the one in its place.
    index: Option<usize>,
    embedding: Vec<Number>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
}

pub fn read(answer: &Answer, asked: usize) -> Result<Answered, Unreadable> {
    let Reply { data, usage } = json(&answer.body)?;
    Ok(Answered {
        predictions: in_order(data, asked)?,
        tokens: usage.map_or(0, |usage| usage.prompt_tokens),
    })
}

fn in_order(data: Vec<Entry>, asked: usize) -> Result<Vec<Prediction>, Unreadable> {
    let mut entries: Vec<(usize, Vec<Number>)> = data
        .into_iter()
        .enumerate()
        .map(|(place, entry)| (entry.index.unwrap_or(place), entry.embedding))
        .collect();
    entries.sort_by_key(|(index, _)| *index);
    let answered = entries.len();
    let is_each_once = entries.iter().map(|(index, _)| *index).eq(0..answered);
    let vectors = entries.into_iter().map(|(_, vector)| vector).collect();
    let predictions = embeddings(vectors, asked)?;
    match is_each_once {
        true => Ok(predictions),
        false => Err(Unreadable::Shape("does not answer each row once")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::answer;
    use super::*;

    #[test]
    fn vectors_belong_to_the_text_that_their_index_names() {
        let answer = answer(
            r#"{"object": "list", "data": [
                {"object": "embedding", "index": 1, "embedding": [1.0]},
                {"object": "embedding", "index": 0, "embedding": [0.0]}
            ], "usage": {"prompt_tokens": 7, "total_tokens": 7}}"#,
        );
        let Answered {
            predictions,
            tokens,
        } = read(&answer, 2).unwrap();
        let expected = [0.0, 1.0].map(|number| Prediction::Embedding(vec![number]));
        assert_eq!((&predictions[..], tokens), (&expected[..], 7));
    }

    #[test]
    fn an_answer_that_names_a_text_twice_is_refused() {
        let twice = r#"{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}]}"#;
        let read = read(&answer(twice), 2);
        assert!(matches!(read, Err(Unreadable::Shape(_))), "{read:?}");
    }

    #[test]
    fn an_answer_to_fewer_texts_is_refused() {
        let one = r#"{"data": [{"embedding": [1]}]}"#;
        let (answered, asked) = (1, 2);
        let expected = Err(Unreadable::Count { answered, asked });
        assert_eq!(read(&answer(one), 2), expected);
    }
}
