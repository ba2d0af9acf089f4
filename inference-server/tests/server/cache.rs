//! Answers that were given before.

use std::{path::Path, time::Duration};

use millrace_answers::disk::DiskOptions;
use millrace_crds::inference_service::Cache;
use millrace_e2e::redis_server::RedisServer;
use millrace_protocol::wire::ModelReply;
use serde_json::{Value, json};

use crate::{
    client::{get, post, rows},
    scene::{MISBEHAVING, SLOW, Scene, Setup, until},
};

fn keeping() -> Setup {
    let cache = Cache {
        enabled: true,
        ..Cache::default()
    };
    Setup {
        cache,
        ..Setup::default()
    }
}

fn sharing(redis: &RedisServer) -> Setup {
    Setup {
        cache_redis_url: Some(redis.url()),
        ..keeping()
    }
}

async fn classify(socket: &Path, texts: &[&str]) -> Value {
    let body = json!({"texts": texts, "truncate": true});
    post(socket, "/classify/batch", &body).await.json()
}

async fn lookups(scene: &Scene, tier: &str, outcome: &str) -> u64 {
    let text = get(&scene.socket(), "/metrics").await.text();
    let labels = format!(r#"{{tier="{tier}",outcome="{outcome}"}} "#);
    let series = format!("millrace_cache_lookups_total{labels}");
    let found = text.lines().find_map(|line| line.strip_prefix(&series));
    found.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn what_was_answered_before_is_not_computed_again() {
    let scene = keeping().start().await;
    let socket = scene.socket();
    let first = classify(&socket, &["grain", "water"]).await;
    let tokens = scene.metric("millrace_tokens_total").await;
    let second = classify(&socket, &["water", "wheel", "grain"]).await;
    assert_eq!(second["results"][0], first["results"][1]);
    assert_eq!(second["results"][2], first["results"][0]);
    assert_eq!(second["totals"]["cached"], 2);
    assert_eq!(scene.metric("millrace_tokens_total").await, tokens + 1.0);
    assert_eq!(lookups(&scene, "memory", "hit").await, 2);
    assert_eq!(lookups(&scene, "memory", "miss").await, 3);
}

#[tokio::test]
async fn jobs_and_requests_share_answers() {
    let scene = keeping().start().await;
    let socket = scene.socket();
    let reply = rows(&socket, &["classify"], &["grain", "grain", "water"]).await;
    assert_eq!(reply.tokens, 2, "the same text is computed once");
    assert_eq!(reply.rows[0], reply.rows[1]);
    let online = classify(&socket, &["water"]).await;
    assert_eq!(online["totals"]["cached"], 1);
    let again = rows(&socket, &["classify"], &["water", "grain"]).await;
    assert_eq!(again.tokens, 0);
    assert_eq!(again.rows[1], reply.rows[0]);
}

#[tokio::test]
async fn without_a_cache_in_the_service_nothing_is_kept() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    for _ in 0..2 {
        let reply = classify(&socket, &["grain"]).await;
        assert_eq!(reply["totals"]["tokens"], 1);
    }
    assert_eq!(lookups(&scene, "memory", "miss").await, 0);
}

#[tokio::test]
async fn identical_texts_at_the_same_time_are_computed_once() {
    let setup = Setup {
        fake: SLOW,
        ..keeping()
    };
    let scene = setup.start().await;
    let socket = scene.socket();
    let before = scene.metric("millrace_tokens_total").await;
    let asking = (0..20).map(|_| classify(&socket, &["grain"]));
    let replies = futures::future::join_all(asking).await;
    assert!(
        replies
            .iter()
            .all(|it| it["results"] == replies[0]["results"])
    );
    assert_eq!(scene.metric("millrace_tokens_total").await, before + 1.0);
}

#[tokio::test]
async fn a_client_who_goes_takes_nobody_along_who_waits_for_the_same() {
    let setup = Setup {
        fake: SLOW,
        batch_items_max: 1,
        ..keeping()
    };
    let scene = setup.start().await;
    let socket = scene.socket();
    let texts = (0..20).map(|i| format!("text{i}")).collect::<Vec<_>>();
    let texts = texts.iter().map(String::as_str).collect::<Vec<_>>();
    let leader = classify(&socket, &texts);
    let follower = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        classify(&socket, &texts[15..]).await
    };
    let leader = tokio::time::timeout(Duration::from_millis(200), leader);
    let (leader, reply) = futures::future::join(leader, follower).await;
    assert!(leader.is_err(), "it went");
    assert_eq!(reply["totals"]["succeeded"], 5);
}

#[tokio::test]
async fn errors_are_not_kept() {
    let setup = Setup {
        fake: MISBEHAVING,
        ..keeping()
    };
    let scene = setup.start().await;
    let socket = scene.socket();
    for _ in 0..2 {
        let reply = classify(&socket, &["[nan]", ""]).await;
        assert_eq!(reply["totals"]["failed"], 2);
        assert_eq!(reply["totals"]["cached"], 0);
    }
}

#[tokio::test]
async fn servers_share_answers_through_redis_without_their_models() {
    let redis = RedisServer::start();
    let one = sharing(&redis).start().await;
    let first = rows(&one.socket(), &["classify"], &["grain"]).await;
    until("the answer is written", async || {
        redis.command::<u64>(&["DBSIZE"]) == 1
    })
    .await;
    let other = sharing(&redis).start().await;
    let tokens = other.metric("millrace_tokens_total").await;
    let second = rows(&other.socket(), &["classify"], &["grain"]).await;
    assert_eq!(second.rows, first.rows);
    assert!(matches!(second.rows[0][0], ModelReply::Ok(_)));
    assert_eq!(other.metric("millrace_tokens_total").await, tokens);
    assert_eq!(lookups(&other, "redis", "hit").await, 1);
}

#[tokio::test]
async fn a_redis_that_stalls_or_is_away_costs_a_moment_and_no_answer() {
    let mut redis = RedisServer::start();
    let scene = sharing(&redis).start().await;
    let socket = scene.socket();
    classify(&socket, &["grain"]).await;
    redis.freeze();
    let started = std::time::Instant::now();
    for text in 0..20 {
        if text == 10 {
            redis.thaw();
            redis.stop();
        }
        let reply = classify(&socket, &[&format!("text{text}"), "grain"]).await;
        assert_eq!(reply["totals"]["succeeded"], 2);
        assert_eq!(reply["totals"]["cached"], 1, "this process knows it");
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_server_that_starts_again_knows_what_the_disk_kept() {
    let folder = tempfile::tempdir().unwrap();
    let on_disk = || Setup {
        cache_disk: Some(DiskOptions {
            folder: folder.path().to_owned(),
            bytes_max: 1 << 20,
        }),
        ..keeping()
    };
    let mut one = on_disk().start().await;
    let first = rows(&one.socket(), &["classify"], &["grain"]).await;
    one.begin_shutdown();
    (&mut one.running).await.unwrap().unwrap();
    let other = on_disk().start().await;
    let tokens = other.metric("millrace_tokens_total").await;
    let second = rows(&other.socket(), &["classify"], &["grain", "water"]).await;
    assert_eq!(second.rows[0], first.rows[0]);
    assert_eq!(other.metric("millrace_tokens_total").await, tokens + 1.0);
    assert_eq!(lookups(&other, "disk", "hit").await, 1);
    let info: Value = get(&other.socket(), "/info").await.json();
    assert_eq!(info["cache"], json!({"hits": 1, "misses": 1}));
}
