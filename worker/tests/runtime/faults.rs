//! Servers that are full, that break off, and that answer nonsense.

use std::time::{Duration, Instant};

use millrace_protocol::row::RowErrorCode;
use millrace_protocol::wire::Prediction;
use millrace_worker::work::client::ClientError;
use millrace_worker::work::submit::SubmitError;
use serde_json::{Value, json};

use crate::job::{
    assert_only, brief, classification, client, embedding, messages, patient_submitter, runtime,
    submitter, texts,
};
use crate::stand_in::{Asked, Say, StandIn};

fn inputs(asked: &Asked) -> Vec<&str> {
    let inputs = asked.body["input"].as_array().into_iter().flatten();
    inputs.filter_map(Value::as_str).collect()
}

/// OpenAI's answer: the length of each text.
fn lengths(asked: &Asked) -> Value {
    let entry = |(index, text): (usize, &str)| json!({"index": index, "embedding": [text.len()]});
    let data = inputs(asked).into_iter().enumerate().map(entry);
    json!({"object": "list", "data": data.collect::<Vec<_>>()})
}

/// What a server says where a row is not to its liking.
type Poison = fn(&Asked) -> Say;

/// A server that says something else to every request that holds the word `hemlock`.
async fn poisoned(say: Poison) -> StandIn {
    StandIn::start(move |asked, _| {
        match inputs(asked).iter().any(|text| text.contains("hemlock")) {
            true => say(asked),
            false => Say::Json(lengths(asked)),
        }
    })
    .await
}

#[tokio::test]
async fn a_row_whose_answer_cannot_be_used_fails_alone() {
    let scripts: [(Poison, RowErrorCode); 6] = [
        (
            |_| Say::Text("<html>hemlock</html>".to_owned()),
            RowErrorCode::ModelFailed,
        ),
        (
            |asked| {
                let mut answer = lengths(asked);
                answer["data"].as_array_mut().unwrap().pop();
                Say::Json(answer)
            },
            RowErrorCode::ModelFailed,
        ),
        (
            |asked| {
                let numbers = vec!["{\"embedding\": [NaN]}"; inputs(asked).len()];
                Say::Text(format!("{{\"data\": [{}]}}", numbers.join(",")))
            },
            RowErrorCode::NotFinite,
        ),
        (
            |_| Say::Status(400, json!({"error": "I do not like hemlock"})),
            RowErrorCode::Refused,
        ),
        (
            |_| Say::Status(422, json!({"detail": [{"input": "hemlock"}]})),
            RowErrorCode::Refused,
        ),
        (
            |_| Say::Status(500, json!("hemlock")),
            RowErrorCode::ModelFailed,
        ),
    ];
    for (script, code) in scripts {
        let server = poisoned(script).await;
        let client = client(server.url(), &runtime("OpenAI", embedding("m")));
        let mut rows = texts(9);
        rows[4] = "a hemlock row".to_owned();
        let answered = submitter(client).submit(rows.clone()).await.unwrap();
        assert_only(&answered, &[4], code);
        for (row, outcome) in brief(&answered).into_iter().enumerate() {
            if row != 4 {
                let expected = Prediction::Embedding(vec![rows[row].len() as f32]);
                assert_eq!(outcome, Ok(&expected));
            }
        }
        // What a server says may be the row itself.
        let said = messages(&answered);
        assert!(!said[0].contains("hemlock"), "{said:?}");
    }
}

#[tokio::test]
async fn a_null_among_the_numbers_spoils_its_row_alone_and_at_once() {
    let server = StandIn::start(|asked, _| {
        let mut answer = lengths(asked);
        answer["data"][2]["embedding"] = json!([null]);
        Say::Json(answer)
    })
    .await;
    let client = client(server.url(), &runtime("OpenAI", embedding("m")));
    let answered = submitter(client).submit(texts(5)).await.unwrap();
    assert_only(&answered, &[2], RowErrorCode::NotFinite);
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_server_gets_the_time_that_it_asks_for() {
    for status in [429, 503] {
        let server = StandIn::start(move |asked, before| match (asked.body.is_null(), before) {
            // It is ready, and does not like the first request all the same.
            (true, _) => Say::Json(json!({})),
            (false, 0) => Say::RetryAfter(status, "1"),
            (false, _) => Say::Json(lengths(asked)),
        })
        .await;
        let client = client(server.url(), &runtime("OpenAI", embedding("m")));
        let asked_at = Instant::now();
        let answered = submitter(client).submit(texts(3)).await.unwrap();
        assert_only(&answered, &[], RowErrorCode::Refused);
        assert!(asked_at.elapsed() >= Duration::from_secs(1), "{status}");
        assert_eq!(server.asked().len(), 2);
    }
}

#[tokio::test]
async fn a_server_that_stays_unready_is_not_waited_for_for_ever() {
    let server = StandIn::start(|_, _| Say::RetryAfter(503, "0")).await;
    let client = client(server.url(), &runtime("TEI", embedding("m")));
    let submitter = patient_submitter(client, Duration::from_millis(300));
    let error = submitter.submit(texts(1)).await.unwrap_err();
    assert!(matches!(error, SubmitError::ServerAway(_)), "{error}");
}

#[tokio::test]
async fn a_server_that_lets_nobody_in_is_no_rows_fault() {
    for status in [401, 403, 404, 405] {
        let server = StandIn::start(move |_, _| Say::Status(status, json!({}))).await;
        let client = client(server.url(), &runtime("OpenAI", embedding("m")));
        let error = submitter(client).submit(texts(2)).await.unwrap_err();
        assert!(matches!(error, SubmitError::Refused(_)), "{error}");
        assert_eq!(server.asked().len(), 1, "it is not asked again");
    }
}

#[tokio::test]
async fn what_a_server_says_of_itself_is_kept_and_kept_to() {
    let server = StandIn::start(|asked, _| match asked.path.as_str() {
        "/info" => Say::Json(json!({
            "model_id": "BAAI/bge-m3", "model_sha": "5617a9f", "model_dtype": "float16",
            "max_client_batch_size": 4,
        })),
        _ => {
            let texts = asked.body["inputs"].as_array().unwrap();
            assert!(texts.len() <= 4, "more than it said");
            Say::Json(json!(vec![[1.0]; texts.len()]))
        }
    })
    .await;
    let client = client(server.url(), &runtime("TEI", embedding("m")));
    let models = client.models().await.unwrap();
    assert_eq!(models[0].digest, "acme/server:1#BAAI/bge-m3@5617a9f");
    let probes = server.asked().len();
    let answered = submitter(client).submit(texts(10)).await.unwrap();
    assert_only(&answered, &[], RowErrorCode::Refused);
    let asked = server.asked();
    let sizes = asked[probes..].iter();
    let sizes = sizes.map(|asked| asked.body["inputs"].as_array().unwrap().len());
    assert_eq!(sizes.collect::<Vec<_>>(), [4, 4, 2]);
    assert!(asked.iter().all(|asked| asked.body["truncate"] == true));
}

#[tokio::test]
async fn the_origin_that_vllm_lists_tells_its_model_from_others() {
    let server = StandIn::start(|asked, _| match asked.path.as_str() {
        "/v1/models" => Say::Json(json!({"object": "list", "data": [
            {"id": "other", "root": "/other"}, {"id": "m", "root": "intfloat/e5-mistral"},
        ]})),
        _ => Say::Json(lengths(asked)),
    })
    .await;
    let client = client(server.url(), &runtime("OpenAI", embedding("m")));
    let models = client.models().await.unwrap();
    assert_eq!(models[0].digest, "acme/server:1#intfloat/e5-mistral");
}

#[tokio::test]
async fn a_server_of_another_task_is_found_out_before_any_row() {
    // Vectors where labels are asked for.
    let server = StandIn::start(|_, _| Say::Json(json!([[0.5]]))).await;
    let client = client(server.url(), &runtime("TEI", classification("m")));
    let error = client.models().await.unwrap_err();
    assert!(matches!(error, ClientError::Unsuited { .. }), "{error}");
}
