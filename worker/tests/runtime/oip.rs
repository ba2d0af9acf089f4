//! The Open Inference Protocol v2, which no server at hand speaks: a stand-in that keeps to its
//! specification and refuses what does not.

use millrace_protocol::row::RowErrorCode;
use millrace_protocol::wire::{LabelScore, Prediction};
use serde_json::{Value, json};

use crate::job::{assert_only, brief, client, messages, runtime, submitter, texts};
use crate::stand_in::{Asked, Say, StandIn};

/// Most rows that the stand-in takes, as Triton's `max_batch_size`.
const ROWS_MAX: usize = 4;

/// Longest text that it takes.
const TEXT_BYTES_MAX: usize = 100;

/// A model with one BYTES input of this shape: two numbers per text, its length and its words.
fn triton(shape: Value) -> impl Fn(&Asked, usize) -> Say + Send + Sync + 'static {
    move |asked, _| match asked.path.as_str() {
        "/v2/health/ready" => Say::Json(json!({})),
        "/v2/models/ranker" => Say::Json(json!({
            "name": "ranker", "versions": ["1", "3"], "platform": "python",
            "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": shape}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
        })),
        "/v2/models/ranker/infer" => match infer(&asked.body, &shape) {
            Ok(reply) => Say::Json(reply),
            Err(message) => Say::Status(400, json!({"error": message})),
        },
        _ => Say::Status(404, json!({"error": "unknown model"})),
    }
}

fn infer(body: &Value, shape: &Value) -> Result<Value, String> {
    let [input] = body["inputs"].as_array().unwrap().as_slice() else {
        return Err("one input is expected".to_owned());
    };
    let texts: Vec<&str> = input["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let expected = match shape.as_array().unwrap().len() {
        1 => json!([texts.len()]),
        _ => json!([texts.len(), 1]),
    };
    if input["name"] != "TEXT" || input["datatype"] != "BYTES" {
        return Err(format!("unexpected input {input}"));
    }
    if input["shape"] != expected {
        return Err(format!("unexpected shape, expected {expected}: {input}"));
    }
    if texts.len() > ROWS_MAX {
        return Err(format!("batch size must be <= {ROWS_MAX}"));
    }
    if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(format!("a text is too long: {texts:?}"));
    }
    if body["outputs"] != json!([{"name": "scores"}]) {
        return Err("unexpected output".to_owned());
    }
    let numbers = texts.iter().flat_map(|text| numbers(text));
    Ok(json!({
        "model_name": "ranker", "model_version": "3",
        "outputs": [{
            "name": "scores", "datatype": "FP32", "shape": [texts.len(), 2],
            "data": numbers.collect::<Vec<_>>(),
        }],
    }))
}

fn numbers(text: &str) -> [f32; 2] {
    [text.len() as f32, text.split(' ').count() as f32]
}

fn ranker(task: &str) -> Value {
    json!({"name": "step", "task": task, "servedName": "ranker"})
}

#[tokio::test]
async fn rows_travel_in_the_tensors_that_the_model_has() {
    for shape in [json!([-1]), json!([-1, 1])] {
        let server = StandIn::start(triton(shape)).await;
        let client = client(server.url(), &runtime("OIP", ranker("Embedding")));
        client
            .wait_ready(std::time::Duration::from_secs(60))
            .await
            .unwrap();
        let models = client.models().await.unwrap();
        assert_eq!(models[0].digest, "acme/server:1#ranker@1,3");
        let rows = texts(11);
        // It refuses more than four rows with the same status as anything else that it refuses.
        let answered = submitter(client).submit(rows.clone()).await.unwrap();
        for (outcome, text) in brief(&answered).into_iter().zip(&rows) {
            let expected = Prediction::Embedding(numbers(text).to_vec());
            assert_eq!(outcome, Ok(&expected));
        }
    }
}

#[tokio::test]
async fn a_row_that_the_model_refuses_fails_alone() {
    let server = StandIn::start(triton(json!([-1, 1]))).await;
    let client = client(server.url(), &runtime("OIP", ranker("Embedding")));
    let mut rows = texts(6);
    rows[5] = "long ".repeat(30);
    let answered = submitter(client).submit(rows).await.unwrap();
    assert_only(&answered, &[5], RowErrorCode::Refused);
    assert!(!messages(&answered)[0].contains("long long"));
}

#[tokio::test]
async fn scores_get_the_names_that_the_manifest_gives_them() {
    let server = StandIn::start(triton(json!([-1]))).await;
    let mut model = ranker("SequenceClassification");
    model["labels"] = json!(["bytes", "words"]);
    let with_labels = client(server.url(), &runtime("OIP", model.clone()));
    let submitter = submitter(with_labels);
    let answered = submitter.submit(vec!["a b c".to_owned()]).await.unwrap();
    let score = |label: &str, score| LabelScore {
        label: label.to_owned(),
        score,
    };
    let expected = Prediction::Labels(vec![score("bytes", 5.0), score("words", 3.0)]);
    assert_eq!(brief(&answered), [Ok(&expected)]);

    model["labels"] = json!(["only one"]);
    let with_too_few = client(server.url(), &runtime("OIP", model));
    let error = with_too_few.models().await.unwrap_err().to_string();
    assert!(
        error.contains("one score for each of the labels"),
        "{error}"
    );
}

#[tokio::test]
async fn a_model_that_takes_no_texts_is_refused_before_any_row() {
    let server = StandIn::start(triton(json!([-1, 3, 224]))).await;
    let unfit = client(server.url(), &runtime("OIP", ranker("Embedding")));
    let error = unfit.models().await.unwrap_err().to_string();
    assert!(error.contains("one input, of datatype BYTES"), "{error}");
    let mut other = ranker("Embedding");
    other["servedName"] = json!("not/there");
    let unknown = client(server.url(), &runtime("OIP", other));
    let error = unknown.models().await.unwrap_err().to_string();
    assert!(error.contains("no metadata"), "{error}");
}
