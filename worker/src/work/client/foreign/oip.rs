//! The Open Inference Protocol v2: one BYTES input of texts in, the first output out. Pure, but for
//! asking for a model's metadata.

use millrace_crds::inference_service::{RuntimeModel, RuntimeTask};
use millrace_protocol::wire::{LabelScore, Prediction};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answer::{Answered, Number, Unreadable, counted, json, labels, number};
use super::http::{Answer, Http};
use super::{About, told};
use crate::work::client::ClientError;

/// The tensors of a model that texts and numbers travel in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensors {
    /// Name of the one BYTES input.
    input: String,
    /// Whether the input has a second dimension, as it has where Triton batches: `[n, 1]`.
    is_column: bool,
    /// Name of the first output.
    output: String,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    versions: Vec<String>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    datatype: String,
    #[serde(default)]
    shape: Vec<i64>,
}

/// What the metadata says of the model.
pub async fn about(http: &Http, model: &RuntimeModel) -> Result<About, ClientError> {
    let answer = told(http.get(&["v2", "models", model.served_name()]).await?)?;
    let read = match &answer {
        Some(answer) => read_metadata(&answer.body),
        None => Err("the server has no metadata of a model of this name".to_owned()),
    };
    read.map_err(|message| ClientError::Unsuited {
        model: model.name.clone(),
        message,
    })
}

fn read_metadata(body: &[u8]) -> Result<About, String> {
    let metadata: Metadata = json(body).map_err(|error| error.to_string())?;
    let input = match metadata.inputs.as_slice() {
        [input] if input.datatype == "BYTES" && matches!(input.shape.len(), 1 | 2) => input,
        _ => {
            let message = "it must have one input, of datatype BYTES and shape [-1] or [-1, 1]";
            return Err(message.to_owned());
        }
    };
    let output = match metadata.outputs.as_slice() {
        [output, ..] if output.datatype == "FP32" => output,
        _ => return Err("its first output must have datatype FP32".to_owned()),
    };
    let id = match metadata.versions.is_empty() {
        true => metadata.name,
        false => format!("{}@{}", metadata.name, metadata.versions.join(",")),
    };
    Ok(About {
        id: Some(id),
        tensors: Some(Tensors {
            input: input.name.clone(),
            is_column: input.shape.len() == 2,
            output: output.name.clone(),
        }),
        ..About::default()
    })
}

/// The path of the endpoint for a model.
pub fn path(model: &RuntimeModel) -> [&str; 4] {
    ["v2", "models", model.served_name(), "infer"]
}

#[derive(Serialize)]
pub struct Body<'a> {
    inputs: [Input<'a>; 1],
    outputs: [Output<'a>; 1],
}

#[derive(Serialize)]
struct Input<'a> {
    name: &'a str,
    shape: Vec<usize>,
    datatype: &'static str,
    data: &'a [String],
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
}

pub fn body<'a>(tensors: &'a Tensors, texts: &'a [String]) -> Body<'a> {
    let Tensors {
        input,
        is_column,
        output,
    } = tensors;
    let shape = match is_column {
        true => vec![texts.len(), 1],
        false => vec![texts.len()],
    };
    Body {
        inputs: [Input {
            name: input,
            shape,
            datatype: "BYTES",
            data: texts,
        }],
        outputs: [Output { name: output }],
    }
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    outputs: Vec<Numbers<'a>>,
}

#[derive(Deserialize)]
struct Numbers<'a> {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    #[serde(borrow)]
    data: &'a RawValue,
}

pub fn read(
    model: &RuntimeModel,
    tensors: &Tensors,
    answer: &Answer,
    asked: usize,
) -> Result<Answered, Unreadable> {
    let reply: Reply = json(&answer.body)?;
    let output = reply.outputs.into_iter();
    let output = output.into_iter().find(|it| it.name == tensors.output);
    let Some(output) = output.filter(|output| output.datatype == "FP32") else {
        return Err(Unreadable::Shape("lacks the model's first output in FP32"));
    };
    let (&rows, row) = output.shape.split_first().unwrap_or((&0, &[]));
    counted(rows, asked)?;
    let width = row.iter().try_fold(1, |a: usize, &b| a.checked_mul(b));
    let numbers = flat(output.data)?;
    let width = width.filter(|&width| width > 0 && width.checked_mul(rows) == Some(numbers.len()));
    let width = width.ok_or(Unreadable::Shape("holds other numbers than its shape says"))?;
    let rows = numbers.chunks(width).map(|row| prediction(model, row));
    Ok(Answered {
        predictions: rows.collect::<Result<_, _>>()?,
        tokens: 0,
    })
}

/// The numbers of a tensor, which may be written row by row as well.
fn flat(data: &RawValue) -> Result<Vec<Number>, Unreadable> {
    let data = data.get().as_bytes();
    json(data).or_else(|_| Ok(json::<Vec<Vec<Number>>>(data)?.concat()))
}

fn prediction(model: &RuntimeModel, row: &[Number]) -> Result<Prediction, Unreadable> {
    let row = row.iter().copied().map(number);
    match model.task {
        RuntimeTask::Embedding => Ok(Prediction::Embedding(row.collect())),
        RuntimeTask::SequenceClassification => {
            let names = model.labels.as_deref().unwrap_or_default();
            if names.len() != row.len() {
                return Err(Unreadable::Shape(
                    "has not one score for each of the labels",
                ));
            }
            let scored = names.iter().cloned().zip(row);
            let scored = scored.map(|(label, score)| LabelScore { label, score });
            Ok(labels(scored.collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{answer, model};
    use super::*;

    fn tensors(shape: &str) -> Result<About, String> {
        let metadata = format!(
            r#"{{"name": "m", "versions": ["3"], "platform": "python",
                "inputs": [{{"name": "TEXT", "datatype": "BYTES", "shape": {shape}}}],
                "outputs": [{{"name": "vector", "datatype": "FP32", "shape": [-1, 2]}}]}}"#
        );
        read_metadata(metadata.as_bytes())
    }

    fn read_reply(reply: &str, asked: usize) -> Result<Vec<Prediction>, Unreadable> {
        let model = model(json!({"name": "m", "task": "Embedding"}));
        let tensors = tensors("[-1]").unwrap().tensors.unwrap();
        let answered = read(&model, &tensors, &answer(reply), asked)?;
        Ok(answered.predictions)
    }

    fn reply(shape: &str, data: &str) -> String {
        format!(
            r#"{{"model_name": "m", "outputs": [
                {{"name": "vector", "datatype": "FP32", "shape": {shape}, "data": {data}}}]}}"#
        )
    }

    #[test]
    fn texts_travel_in_the_tensor_that_the_model_has() {
        let texts = ["a".to_owned(), "b".to_owned()];
        for (shape, sent) in [("[-1]", json!([2])), ("[-1, 1]", json!([2, 1]))] {
            let about = tensors(shape).unwrap();
            assert_eq!(about.id.as_deref(), Some("m@3"));
            let tensors = about.tensors.unwrap();
            let body = serde_json::to_value(body(&tensors, &texts)).unwrap();
            assert_eq!(body["inputs"][0]["name"], "TEXT");
            assert_eq!(body["inputs"][0]["shape"], sent);
            assert_eq!(body["outputs"], json!([{"name": "vector"}]));
        }
        assert!(tensors("[-1, 3, 4]").is_err());
    }

    #[test]
    fn a_tensor_is_read_flat_or_row_by_row() {
        for data in ["[1, 2, 3, 4]", "[[1, 2], [3, 4]]"] {
            let read = read_reply(&reply("[2, 2]", data), 2).unwrap();
            let expected = [[1.0, 2.0], [3.0, 4.0]];
            assert_eq!(read, expected.map(|row| Prediction::Embedding(row.into())));
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_its_numbers_is_refused() {
        let huge = format!("[2, {}, 8]", usize::MAX / 4);
        for shape in ["[2, 3]", "[2, 0]", &huge] {
            let read = read_reply(&reply(shape, "[1, 2, 3, 4]"), 2);
            assert!(matches!(read, Err(Unreadable::Shape(_))), "{read:?}");
        }
        let read = read_reply(&reply("[1, 4]", "[1, 2, 3, 4]"), 2);
        assert!(matches!(read, Err(Unreadable::Count { .. })), "{read:?}");
        assert!(read_reply(r#"{"outputs": []}"#, 2).is_err());
    }
}
