use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use millrace_crds::InferenceService;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Options;
use crate::context::Context;
use crate::objects::Objects;

/// What an API server was asked, and how often.
type Asked = Arc<Mutex<BTreeMap<String, usize>>>;

/// Answers reviews: a token is its user's name, and each user may get what is in the namespace of that
/// name; `root` may get everything.
async fn api_server(asked: Asked) -> SocketAddr {
    let note = move |what: String| {
        *asked.lock().unwrap().entry(what).or_default() += 1;
    };
    let noted = note.clone();
    let tokens = move |Json(mut review): Json<Value>| {
        let token = review["spec"]["token"].as_str().unwrap().to_owned();
        noted(format!("token {token}"));
        let is_known = ["tenant", "other", "root"].contains(&token.as_str());
        review["status"] = json!({"authenticated": is_known, "user": {"username": token}});
        std::future::ready(Json(review))
    };
    let rights = move |Json(mut review): Json<Value>| {
        let asked = &review["spec"]["resourceAttributes"];
        let words = ["verb", "group", "resource"].map(|word| asked[word].as_str().unwrap());
        assert_eq!(words, ["get", "millrace.dev", "batchjobs"]);
        let (user, namespace) = (&review["spec"]["user"], &asked["namespace"]);
        note(format!("right {user} {namespace} {}", asked["name"]));
        let allowed = user == "root" || user == namespace;
        review["status"] = json!({"allowed": allowed});
        std::future::ready(Json(review))
    };
    let routes = Router::new()
        .route(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            axum::routing::post(tokens),
        )
        .route(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            axum::routing::post(rights),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, routes).into_future());
    address
}

/// A job of the namespace `tenant`, so many of whose four shards are committed.
fn job(committed: u32) -> BatchJob {
    let (status, reason) = match committed {
        4 => ("True", "Completed"),
        _ => ("Unknown", "Running"),
    };
    serde_json::from_value(json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
        "metadata": {"name": "embed", "namespace": "tenant", "uid": "0b5c"},
        "spec": {
            "serviceRef": {"name": "minilm"},
            "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
        },
        "status": {
            "run": 1, "shards": {"total": 4, "committed": committed, "failed": 0},
            "conditions": [{
                "type": "Succeeded", "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    }))
    .unwrap()
}

/// An operator that knows one job and answers.
struct Scene {
    address: SocketAddr,
    asked: Asked,
    jobs: Writer<BatchJob>,
    stop: CancellationToken,
    listening: JoinHandle<()>,
}

impl Scene {
    async fn new(limits: ApiLimits) -> Self {
        let asked = Asked::default();
        let server = api_server(asked.clone()).await;
        let config = kube::Config::new(format!("http://{server}").parse().unwrap());
        let options = Options::of_tests(&["--redis-url=redis://127.0.0.1:1"]);
        let client = kube::Client::try_from(config).unwrap();
        let shown = Shown::new(Arc::new(Context::new(client, options).unwrap()));
        let mut jobs = Writer::default();
        for event in [Event::Init, Event::InitApply(job(1)), Event::InitDone] {
            jobs.apply_watcher_event(&event);
        }
        let objects = Objects {
            jobs: jobs.as_reader(),
            services: Writer::<InferenceService>::default().as_reader(),
        };
        // A process that stands by answers as well.
        assert!(shown.standing_by.set(objects).is_ok());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        Self {
            address: listener.local_addr().unwrap(),
            listening: tokio::spawn(listen(listener, shown, limits, stop.clone())),
            asked,
            jobs,
            stop,
        }
    }

    /// Asks, and leaves the answer to be read.
    async fn ask(&self, path: &str, token: Option<&str>, accepted: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let token = token.map_or(String::new(), |token| {
            format!("authorization: Bearer {token}\r\n")
        });
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: operator\r\nconnection: close\r\naccept: {accepted}\r\n\
             {token}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Status and body.
    async fn get(&self, path: &str, token: Option<&str>) -> (u16, String) {
        split(&rest(self.ask(path, token, "*/*").await).await)
    }
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

const OWN: &str = "/api/v1/namespaces/tenant/jobs/embed/progress";
const BY_UID: &str = "/api/v1/jobs/0b5c/progress";
const EVENTS: &str = "text/event-stream";

#[tokio::test]
async fn whoever_may_not_look_does_not_learn_what_there_is() {
    let scene = Scene::new(ApiLimits::default()).await;
    let missing = "/api/v1/namespaces/tenant/jobs/missing/progress";
    let missing_uid = "/api/v1/jobs/ffff/progress";
    for (path, token, expected) in [
        (OWN, None, 401),
        (OWN, Some("garbage"), 401),
        (OWN, Some("other"), 403),
        (OWN, Some("tenant"), 200),
        (missing, Some("other"), 403),
        (missing, Some("tenant"), 404),
        (BY_UID, None, 401),
        (BY_UID, Some("other"), 403),
        (BY_UID, Some("tenant"), 200),
        (missing_uid, Some("garbage"), 401),
        (missing_uid, Some("tenant"), 403),
        (missing_uid, Some("root"), 404),
    ] {
        let (status, body) = scene.get(path, token).await;
        assert_eq!(status, expected, "{path} {token:?}: {body}");
        let is_told = body.contains("shardsCommitted");
        assert_eq!(is_told, expected == 200, "{path} {token:?}: {body}");
    }
    let (_, there) = scene.get(BY_UID, Some("other")).await;
    let (_, not_there) = scene.get(missing_uid, Some("other")).await;
    assert_eq!(there, not_there);
}

#[tokio::test]
async fn the_api_server_is_not_asked_the_same_again_and_again() {
    let scene = Scene::new(ApiLimits::default()).await;
    for _ in 0..5 {
        assert_eq!(scene.get(OWN, Some("tenant")).await.0, 200);
        assert_eq!(scene.get(OWN, Some("garbage")).await.0, 401);
        assert_eq!(scene.get(OWN, Some("other")).await.0, 403);
    }
    let asked = scene.asked.lock().unwrap();
    assert_eq!(asked.len(), 5, "{asked:?}");
    assert!(asked.values().all(|count| *count == 1), "{asked:?}");
}

#[tokio::test]
async fn a_stream_tells_of_every_change_up_to_the_end() {
    let mut scene = Scene::new(ApiLimits::default()).await;
    let mut stream = scene.ask(OWN, Some("tenant"), EVENTS).await;
    let mut told = String::new();
    for (committed, event) in [(1, "progress"), (2, "progress"), (4, "end")] {
        scene
            .jobs
            .apply_watcher_event(&Event::Apply(job(committed)));
        let expected = format!("event: {event}\n");
        let news = format!("\"shardsCommitted\":{committed},");
        while !(told.contains(&news) && told.contains(&expected)) {
            let mut read = [0; 4096];
            let count = stream.read(&mut read).await.unwrap();
            assert!(count > 0, "{told}");
            told += std::str::from_utf8(&read[..count]).unwrap();
        }
    }
    told += &rest(stream).await;
    assert_eq!(told.matches("event: end").count(), 1, "{told}");
}

#[tokio::test]
async fn streams_are_bounded_and_end_when_the_process_is_to_stop() {
    let limits = ApiLimits {
        streams_max: 1,
        ..ApiLimits::default()
    };
    let scene = Scene::new(limits).await;
    let mut first = scene.ask(OWN, Some("tenant"), EVENTS).await;
    first.read_exact(&mut [0; 64]).await.unwrap();
    let refused = rest(scene.ask(OWN, Some("tenant"), EVENTS).await).await;
    assert_eq!(split(&refused).0, 429, "{refused}");
    assert!(refused.contains("retry-after: "), "{refused}");
    assert_eq!(scene.get(OWN, Some("tenant")).await.0, 200);
    scene.stop.cancel();
    let told = rest(first).await;
    assert!(!told.contains("event: end"), "{told}");
    scene.listening.await.unwrap();
}

#[tokio::test]
async fn a_stream_ends_when_its_job_is_gone() {
    let mut scene = Scene::new(ApiLimits::default()).await;
    let mut stream = scene.ask(OWN, Some("tenant"), EVENTS).await;
    stream.read_exact(&mut [0; 64]).await.unwrap();
    scene.jobs.apply_watcher_event(&Event::Delete(job(1)));
    let told = rest(stream).await;
    assert!(!told.contains("event: end"), "{told}");
    assert_eq!(scene.get(OWN, Some("tenant")).await.0, 404);
}
