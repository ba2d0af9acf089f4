//! More work than the server can do at once, and work that nobody wants any more.

use std::time::Duration;

use futures::future::join_all;
use http::{StatusCode, header::RETRY_AFTER};
use millrace_inference_server::http::app::HttpLimits;
use millrace_protocol::{row::RowErrorCode, wire::ModelReply};
use serde_json::json;

use crate::{
    client::{get, post, post_rows, rows, send},
    scene::{Scene, Setup, until},
};

#[tokio::test]
async fn over_capacity_is_429_with_retry_after_and_the_rest_is_answered() {
    let scene = Setup {
        fake: crate::scene::SLOW,
        queue_items_max: 2,
        ..Setup::default()
    }
    .start()
    .await;
    let socket = scene.socket();
    let body = json!({"inputs": "grain"});
    let answers = join_all((0..50).map(|_| post(&socket, "/embed", &body))).await;
    let (good, bad) = answers
        .into_iter()
        .partition::<Vec<_>, _>(|answer| answer.status == StatusCode::OK);
    assert!(
        !good.is_empty() && !bad.is_empty(),
        "{} {}",
        good.len(),
        bad.len()
    );
    for answer in bad {
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(answer.headers.contains_key(RETRY_AFTER));
        assert_eq!(answer.json()["error_type"], "Overloaded");
    }
}

#[tokio::test]
async fn a_request_larger_than_the_queue_is_413_because_waiting_would_not_help() {
    let scene = Setup {
        queue_items_max: 2,
        ..Setup::default()
    }
    .start()
    .await;
    let body = json!({"inputs": ["a", "b", "c"]});
    assert_eq!(
        post(&scene.socket(), "/embed", &body).await.status.as_u16(),
        413
    );
}

#[tokio::test]
async fn too_many_requests_at_a_time_are_429() {
    let limits = HttpLimits {
        concurrent_requests_max: 1,
        ..HttpLimits::default()
    };
    let scene = Setup {
        fake: crate::scene::SLOW,
        limits,
        ..Setup::default()
    }
    .start()
    .await;
    let socket = scene.socket();
    let body = json!({"inputs": "grain"});
    let answers = join_all((0..20).map(|_| post(&socket, "/embed", &body))).await;
    assert!(answers.iter().any(|answer| answer.status == StatusCode::OK));
    assert!(
        answers
            .iter()
            .any(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS)
    );
}

#[tokio::test]
async fn a_job_that_fills_the_queue_neither_shuts_out_nor_delays_online_requests() {
    let setup = Setup {
        fake: crate::scene::SLOW,
        queue_items_max: 60,
        batch_items_max: 1,
        ..Setup::default()
    };
    let scene = setup.start().await;
    let socket = scene.socket();
    let texts = vec!["grain"; 60];
    let job = tokio::spawn({
        let socket = socket.clone();
        async move { rows(&socket, &["embed"], &texts).await }
    });
    until("the job is queued", async || {
        scene.metric("millrace_queue_size").await > 40.0
    })
    .await;
    let full = post_rows(&socket, &["embed"], &["grain"; 60]).await;
    assert_eq!(full.status, StatusCode::TOO_MANY_REQUESTS);
    let online = post(&socket, "/embed", &json!({"inputs": "grain"})).await;
    assert_eq!(online.status, StatusCode::OK);
    assert!(!job.is_finished(), "the online text overtook the job's");
    assert_eq!(job.await.unwrap().rows.len(), 60);
}

#[tokio::test]
async fn work_of_a_client_that_went_away_leaves_the_queue() {
    let setup = Setup {
        fake: crate::scene::SLOW,
        batch_items_max: 1,
        ..Setup::default()
    };
    let scene = setup.start().await;
    let socket = scene.socket();
    let request = tokio::spawn({
        let socket = socket.clone();
        async move { rows(&socket, &["embed"], &["grain"; 1000]).await }
    });
    until("the work is queued", async || {
        scene.metric("millrace_queue_size").await > 900.0
    })
    .await;
    request.abort();
    until("the queue is empty", async || {
        scene.metric("millrace_queue_size").await == 0.0
    })
    .await;
    assert!(scene.metric("millrace_abandoned_texts_total").await > 900.0);
    let answer = post(&socket, "/embed", &json!({"inputs": "grain"})).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_text_past_its_deadline_ends_as_a_timeout() {
    let limits = HttpLimits {
        rows_deadline: Duration::from_millis(200),
        request_deadline: Duration::from_millis(200),
        ..HttpLimits::default()
    };
    let setup = Setup {
        fake: crate::scene::STUCK,
        limits,
        batch_items_max: 1,
        ..Setup::default()
    };
    let scene = setup.start().await;
    let socket = scene.socket();
    let reply = rows(&socket, &["embed"], &["grain"; 10]).await;
    for row in reply.rows {
        assert!(matches!(&row[0], ModelReply::Err(error) if error.code == RowErrorCode::Timeout));
    }
    let online = post(&socket, "/embed", &json!({"inputs": "grain"})).await;
    assert_eq!(online.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_drain_turns_unready_and_finishes_what_is_queued() {
    let setup = Setup {
        fake: crate::scene::SLOW,
        batch_items_max: 1,
        drain_delay: Duration::from_millis(300),
        ..Setup::default()
    };
    let mut scene = setup.start().await;
    let socket = scene.socket();
    let job = tokio::spawn({
        let socket = socket.clone();
        async move { rows(&socket, &["embed"], &["grain"; 40]).await }
    });
    until("the job is queued", async || {
        scene.metric("millrace_queue_size").await > 20.0
    })
    .await;
    scene.begin_shutdown();
    until("unready", async || {
        get(&socket, "/ready").await.status == 503
    })
    .await;
    let late = post(&socket, "/embed", &json!({"inputs": "grain"})).await;
    assert_eq!(
        late.status,
        StatusCode::OK,
        "served until the drain delay is over"
    );
    let reply = job.await.unwrap();
    assert!(
        reply
            .rows
            .iter()
            .all(|row| matches!(row[0], ModelReply::Ok(_)))
    );
    scene.running.await.unwrap().unwrap();
    assert!(
        send(&socket, http::Method::GET, "/health", "")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn many_clients_at_once_each_get_their_own_answers() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let ask = async |client: usize| {
        let texts = (0..8).map(|i| vec!["grain"; (client + i) % 30 + 1].join(" "));
        let texts = texts.collect::<Vec<_>>();
        let answer = post(&socket, "/embed", &json!({"inputs": texts})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        (client, answer.json())
    };
    let answers = join_all((0..100).map(ask)).await;
    // The same text has the same vector, whoever asked and whatever ran beside it.
    for (client, answer) in &answers {
        let (_, other) = &answers[(client + 1) % 100];
        if *client != 99 {
            assert_eq!(answer[1], other[0]);
        }
    }
}
