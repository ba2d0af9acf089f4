//! What becomes of a chunk that the server does not simply answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace_protocol::chunk::ChunkLimits;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::{ChunksOfText, ModelReply, Prediction, RowsReply};

use super::submit::{Answered, SubmitError, SubmitOptions, Submitter};
use super::testing::{FakeServer, Say, submit_options};
use crate::job::Step;

fn step(name: &str, model: &str) -> Step {
    Step {
        name: name.to_owned(),
        model: model.to_owned(),
        prompt: None,
    }
}

/// A submitter with one step.
fn submitter(server: &FakeServer, options: SubmitOptions) -> Submitter {
    Submitter::new(server.client(), vec![step("embed", "embed")], options)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The vector's number, or the error's code, of each row.
fn brief(answered: &Answered) -> Vec<Result<f32, RowErrorCode>> {
    let brief = |outcome: &Result<Vec<Prediction>, RowError>| match outcome {
        Ok(predictions) => match &predictions[..] {
            [Prediction::Embedding(vector)] => Ok(vector[0]),
            other => panic!("{other:?}"),
        },
        Err(error) => Err(error.code),
    };
    answered.outcomes.iter().map(brief).collect()
}

#[tokio::test]
async fn steps_that_share_a_model_share_its_answer() {
    let server = FakeServer::start(|_, _| Say::Vectors);
    let steps = ["a", "b", "a"].iter().zip(["one", "two", "three"]);
    let steps = steps.map(|(model, name)| step(name, model)).collect();
    let submitter = Submitter::new(server.client(), steps, submit_options());
    let answered = submitter.submit(texts(&["grain"])).await.unwrap();
    assert_eq!(server.asked()[0].models, ["a", "b"]);
    let vector = Prediction::Embedding(vec![5.0]);
    assert_eq!(answered.outcomes, [Ok(vec![vector; 3])]);
}

#[tokio::test]
async fn a_chunk_that_is_too_large_is_halved_and_a_row_that_is_fails_alone() {
    let server = FakeServer::start(|request, _| {
        match request.texts.iter().map(String::len).sum::<usize>() > 5 {
            true => Say::Status(413),
            false => Say::Vectors,
        }
    });
    let submitter = submitter(&server, submit_options());
    let rows = texts(&["aa", "much too long", "bbb", "c", "dddd"]);
    let answered = submitter.submit(rows).await.unwrap();
    let too_long = Err(RowErrorCode::TextTooLong);
    let expected = [Ok(2.0), too_long, Ok(3.0), Ok(1.0), Ok(4.0)];
    assert_eq!(brief(&answered), expected);
}

#[tokio::test]
async fn a_text_that_the_server_cannot_cut_fails_alone() {
    let server = FakeServer::start(|request, _| {
        let is_bad = |text: &String| text == "bad";
        match request.texts.len() > 1 || request.texts.iter().any(is_bad) {
            true => Say::Status(413),
            false => Say::Vectors,
        }
    });
    let submitter = submitter(&server, submit_options());
    let rows = texts(&["aa", "bad", "bbb", "c"]);
    let cut = submitter.cut(&rows, chunk_limits()).await.unwrap();
    let cut = cut.into_iter().map(|cut| match cut {
        ChunksOfText::Ok(chunks) => Ok(chunks[0].end),
        ChunksOfText::Err(error) => Err(error.code),
    });
    let too_long = Err(RowErrorCode::TextTooLong);
    assert_eq!(cut.collect::<Vec<_>>(), [Ok(2), too_long, Ok(3), Ok(1)]);
}

#[tokio::test]
async fn a_text_that_was_not_cut_in_time_is_cut_by_a_later_try() {
    let tries = AtomicUsize::new(0);
    let server = FakeServer::start(move |request, _| {
        // The server is also asked whether it is ready, with nothing.
        let is_asked = !request.texts.is_empty();
        match is_asked && tries.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Say::Status(408),
            false => Say::Vectors,
        }
    });
    let submitter = submitter(&server, submit_options());
    let cut = submitter.cut(&texts(&["aa", "b"]), chunk_limits()).await;
    let is_cut = |cut: &ChunksOfText| matches!(cut, ChunksOfText::Ok(_));
    assert!(cut.unwrap().iter().all(is_cut));
}

fn chunk_limits() -> ChunkLimits {
    ChunkLimits {
        by_sentences: false,
        tokens_max: None,
        sentences_max: None,
        overlap_tokens: 0,
        chunks_max: 10,
    }
}

#[tokio::test]
async fn a_request_that_arrives_too_slowly_is_sent_again() {
    let server = FakeServer::start(|_, before| match before {
        0 => Say::Status(408),
        _ => Say::Vectors,
    });
    let submitter = submitter(&server, submit_options());
    let answered = submitter.submit(texts(&["a", "bb"])).await.unwrap();
    assert_eq!(brief(&answered), [Ok(1.0), Ok(2.0)]);
}

#[tokio::test]
async fn a_server_that_stays_unready_is_not_waited_for_for_ever() {
    let server = FakeServer::start(|_, _| Say::Status(503));
    let options = SubmitOptions {
        server_patience: Duration::from_millis(100),
        ..submit_options()
    };
    let refused = submitter(&server, options).submit(texts(&["a"])).await;
    let error = refused.expect_err("it never answers");
    assert!(matches!(error, SubmitError::ServerAway(_)), "{error}");
}

#[tokio::test]
async fn a_chunk_between_two_tries_leaves_its_place_to_others() {
    let failed = |message: &str| {
        let error = RowError::new(RowErrorCode::ModelFailed, message);
        Say::Reply(RowsReply {
            rows: vec![vec![ModelReply::Err(error)]],
            tokens: 0,
        })
    };
    let server = FakeServer::start(move |request, _| match request.texts.join("").as_str() {
        "fails" => failed("for now"),
        _ => Say::Vectors,
    });
    let mut options = submit_options();
    options.chunks_in_flight_max = 1;
    options.retry.backoff_initial = Duration::from_secs(600);
    options.retry.backoff_max = Duration::from_secs(600);
    let submitter = Arc::new(submitter(&server, options));
    let first = {
        let submitter = submitter.clone();
        tokio::spawn(async move { submitter.submit(texts(&["fails"])).await })
    };
    while server.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    let other = submitter.submit(texts(&["other"]));
    let other = tokio::time::timeout(Duration::from_secs(30), other).await;
    let other = other.expect("it does not wait for the first").unwrap();
    assert_eq!(brief(&other), [Ok(5.0)]);
    first.abort();
}
