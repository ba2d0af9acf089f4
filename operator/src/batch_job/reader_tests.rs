use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use kube::{Client, Config};
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;

fn job() -> BatchJob {
    serde_json::from_value(json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
        "metadata": {"name": "embed", "namespace": "tenant", "uid": "u"},
        "spec": {
            "serviceRef": {"name": "minilm"}, "input": {"uris": ["s3://bucket/in"]},
            "output": {"uri": "s3://bucket/out"}, "credentials": {"name": "bucket"},
            "reader": {"secretRef": {"name": "readers", "key": "embed"}},
        },
    }))
    .unwrap()
}

fn options() -> Options {
    Options::of_tests(&["--redis-url=redis://127.0.0.1:1"])
}

/// What an API server has, what it was asked, and why it refuses Deployments, if it does.
#[derive(Default)]
struct ApiServer {
    objects: BTreeMap<String, Value>,
    asked: Vec<String>,
    refuses: Option<&'static str>,
}

type Shared = Arc<Mutex<ApiServer>>;

/// Answers one request: an object is what was applied last.
async fn answer(
    State(server): State<Shared>,
    method: Method,
    uri: Uri,
    body: axum::body::Bytes,
) -> Response {
    let mut server = server.lock().unwrap();
    let path = uri.path().to_owned();
    let kind = path
        .split('/')
        .nth_back(if method == Method::POST { 0 } else { 1 });
    let kind = kind.unwrap().to_owned();
    server.asked.push(format!("{method} {kind}"));
    let status = |code: StatusCode, reason: &str, message: &str| {
        let status = json!({
            "kind": "Status", "code": code.as_u16(), "reason": reason, "message": message,
        });
        (code, Json(status)).into_response()
    };
    match method {
        Method::GET => match server.objects.get(&path) {
            Some(object) => Json(object).into_response(),
            None => status(StatusCode::NOT_FOUND, "NotFound", ""),
        },
        Method::PATCH if kind == "deployments" && server.refuses.is_some() => {
            status(StatusCode::FORBIDDEN, "Forbidden", server.refuses.unwrap())
        }
        _ => {
            let object: Value = serde_json::from_slice(&body).unwrap();
            server.objects.insert(path, object.clone());
            Json(object).into_response()
        }
    }
}

/// An operator that has one job, and an API server.
struct Scene {
    server: Shared,
    ctx: Context,
}

impl Scene {
    async fn new(refuses: Option<&'static str>) -> Self {
        let server = Shared::default();
        server.lock().unwrap().refuses = refuses;
        let routes = Router::new().fallback(answer).with_state(server.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, routes).into_future());
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let ctx = Context::new(Client::try_from(config).unwrap(), options()).unwrap();
        let mut jobs = Writer::default();
        jobs.apply_watcher_event(&Event::Apply(job()));
        let objects = crate::objects::Objects {
            jobs: jobs.as_reader(),
            services: Writer::default().as_reader(),
        };
        ctx.objects.set(objects).unwrap();
        Self { server, ctx }
    }

    /// Visits the reader so often. Returns what was asked, and the pause of the last visit.
    async fn visit(&self, times: usize) -> (Vec<String>, Option<Duration>) {
        let mut pause = None;
        for _ in 0..times {
            pause = keep(&self.ctx, &job(), None).await.unwrap();
        }
        (
            std::mem::take(&mut self.server.lock().unwrap().asked),
            pause,
        )
    }

    fn touch(&self) {
        self.ctx.jobs.touch(&ObjectRef::from_obj(&job()));
    }
}

/// What one look at all of a reader's objects asks.
const LOOK: [&str; 3] = ["GET networkpolicies", "GET services", "GET deployments"];

#[tokio::test]
async fn a_reader_costs_nothing_while_nothing_changes() {
    let scene = Scene::new(None).await;
    let (asked, _) = scene.visit(1).await;
    assert_eq!(asked.len(), 6, "each was looked for and made: {asked:?}");
    let nothing = (Vec::new(), None);
    assert_eq!(scene.visit(10).await, nothing);
    scene.touch();
    assert_eq!(
        scene.visit(10).await.0,
        LOOK,
        "once, since all is as it was"
    );
    scene.server.lock().unwrap().objects.clear();
    scene.touch();
    assert_eq!(
        scene.visit(10).await.0.len(),
        6,
        "what was taken away is back"
    );
}

#[tokio::test]
async fn a_reader_that_is_refused_is_said_once_and_waits_before_it_is_tried_again() {
    let scene = Scene::new(Some("no rights here")).await;
    let (asked, pause) = scene.visit(10).await;
    let of = |what: &str| asked.iter().filter(|it| *it == what).count();
    assert_eq!(of("PATCH deployments"), 1, "{asked:?}");
    assert_eq!(of("POST events"), 1, "{asked:?}");
    assert!(pause.unwrap() <= PAUSE_MIN);
    scene.touch();
    assert_eq!(scene.visit(10).await.0, Vec::<String>::new());
}

#[test]
fn a_refusal_is_news_once_and_each_one_doubles_the_pause() {
    let (tries, start) = (ReaderTries::default(), Instant::now());
    let refused = |objects: &str, why| {
        let (is_new, pause) = tries.note_refused(objects.to_owned(), why, start);
        (is_new, pause.as_secs())
    };
    assert_eq!(refused("a", "a quota"), (true, 10));
    assert_eq!(refused("a", "a quota"), (false, 20));
    assert_eq!(refused("a", "a policy"), (true, 40));
    for _ in 0..10 {
        refused("a", "a policy");
    }
    assert_eq!(refused("a", "a policy"), (false, 300));
    let pause = Duration::from_secs(300);
    assert_eq!(tries.due("a", 1, start), Due::Later(Some(pause)));
    assert_eq!(tries.due("a", 1, start + pause), Due::Now);
    assert_eq!(tries.due("b", 1, start), Due::Now, "it was changed");
    assert_eq!(refused("b", "a policy"), (false, 10));
    tries.note_there("b".to_owned(), 1);
    assert_eq!(refused("b", "a policy"), (true, 10), "it had been there");
}

#[test]
fn a_reader_is_the_jobs_own_and_mounts_the_token_and_the_credentials_alone() {
    let job = job();
    let service = serde_json::from_value(json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": "minilm"},
        "spec": {"models": [], "template": {
            "serviceAccountName": "tenant-account",
            "imagePullSecrets": [{"name": "registry"}],
            "nodeSelector": {"pool": "cpu"},
            "tolerations": [{"key": "batch"}],
            "podLabels": {"team": "search"},
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
        }},
    }));
    let reader = job.spec.reader.as_ref().unwrap();
    let Objects {
        deployment,
        service,
        network_policy,
    } = objects(&job, reader, Some(&service.unwrap()), &options());
    let (deployment, service) = (json!(deployment), json!(service));
    let owner = &deployment["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("BatchJob"), &json!("u"))
    );
    let template = &deployment["spec"]["template"];
    let mut labels = json!(labels(READER, JOB_LABEL, "embed"));
    assert_eq!(service["spec"]["selector"], labels);
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], labels);
    let guarded = json!(network_policy);
    assert_eq!(guarded["spec"]["podSelector"]["matchLabels"], labels);
    labels["team"] = json!("search");
    assert_eq!(template["metadata"]["labels"], labels);
    let pod = &template["spec"];
    assert_eq!(pod.get("restartPolicy"), None, "it runs on");
    assert_eq!(pod["serviceAccountName"], "tenant-account");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(pod["nodeSelector"], json!({"pool": "cpu"}));
    assert_eq!(pod["tolerations"][0]["key"], "batch");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"], pods::pod_security());
    let container = &pod["containers"][0];
    let limits = json!({"memory": "256Mi"});
    assert_eq!(container["resources"]["limits"], limits, "and no GPU");
    assert_eq!(container["securityContext"], pods::container_security());
    let secrets = pod["volumes"].as_array().unwrap().iter();
    let secrets: Vec<_> = secrets.map(|it| &it["secret"]["secretName"]).collect();
    assert_eq!(secrets, ["readers", "bucket"]);
    let variables = container["env"].as_array().unwrap();
    let file = variables
        .iter()
        .find(|it| it["name"] == "MILLRACE_READ_TOKEN_FILE");
    assert_eq!(file.unwrap()["value"], "/var/run/millrace/token/embed");
}
