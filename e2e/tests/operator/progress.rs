//! How far a job is, as service accounts of tenants ask over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::jobs::Stage;
use crate::tenant::{JOB, SERVICE};
use crate::world::{SHARDS, tally_of};

/// How often is asked for what must come.
const PAUSE: Duration = Duration::from_millis(100);

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A token of an account that may get the jobs of its namespace.
async fn token(client: &Client, namespace: &str) -> String {
    let params = PostParams::default();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let account = object(json!({"metadata": {"name": "reader"}}));
    accounts.create(&params, &account).await.unwrap();
    let roles: Api<Role> = Api::namespaced(client.clone(), namespace);
    let rule = json!({"apiGroups": ["millrace.dev"], "resources": ["batchjobs"], "verbs": ["get"]});
    let role = object(json!({"metadata": {"name": "reader"}, "rules": [rule]}));
    roles.create(&params, &role).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    let binding = object(json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
    }));
    bindings.create(&params, &binding).await.unwrap();
    let request: TokenRequest = object(json!({"spec": {"audiences": []}}));
    let made = accounts.create_token_request("reader", &params, &request);
    made.await
        .unwrap()
        .status
        .expect("an answer")
        .token
        .expect("a token")
}

/// Asks for something; the answer is still to come.
async fn send(api: SocketAddr, path: &str, token: Option<&str>, accepted: &str) -> TcpStream {
    let mut stream = TcpStream::connect(api).await.unwrap();
    let token = token.map_or(String::new(), |token| {
        format!("authorization: Bearer {token}\r\n")
    });
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: api\r\nconnection: close\r\naccept: {accepted}\r\n{token}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Status, and the body as JSON.
async fn get(api: SocketAddr, path: &str, token: Option<&str>) -> (u16, Value) {
    let mut answer = String::new();
    let mut stream = send(api, path, token, "*/*").await;
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_told_how_far_its_own_jobs_are_and_of_no_others() {
    let Some(stage) = Stage::new("told").await else {
        return;
    };
    let (tenant, api) = (&stage.tenant, stage.operator.api);
    let elsewhere = object(json!({"metadata": {"name": "told-nothing"}}));
    let namespaces: Api<Namespace> = Api::all(tenant.client.clone());
    let created = namespaces.create(&PostParams::default(), &elsewhere).await;
    created.unwrap();
    let own = token(&tenant.client, "told").await;
    let others = token(&tenant.client, "told-nothing").await;
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    let path = format!("/api/v1/namespaces/told/jobs/{JOB}/progress");

    let moving = async {
        loop {
            let (status, told) = get(api, &path, Some(&own)).await;
            if status == 200 && told["progress"]["shardsCommitted"] == 1 {
                return told;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let told = stage.expect("progress", moving).await;
    assert_eq!(told["phase"], "Running");
    assert_eq!(told["progress"]["shardsTotal"], SHARDS);
    let uid = told["uid"].as_str().unwrap();

    let by_uid = format!("/api/v1/jobs/{uid}/progress");
    let there = "/api/v1/namespaces/told-nothing/jobs/embed/progress";
    let missing = "/api/v1/namespaces/told/jobs/missing/progress";
    for (path, token, expected) in [
        (by_uid.as_str(), Some(own.as_str()), 200),
        (missing, Some(&own), 404),
        (there, Some(&own), 403),
        (&path, Some(&others), 403),
        (&by_uid, Some(&others), 403),
        (missing, Some(&others), 403),
        (&path, Some("garbage"), 401),
        (&path, None, 401),
    ] {
        let (status, said) = get(api, path, token).await;
        assert_eq!(status, expected, "{path}: {said}\n{}", stage.operator.log());
    }

    let stays = async {
        let stream = send(api, &path, Some(&own), "text/event-stream").await;
        let mut events = String::new();
        let mut lines = BufReader::new(stream).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("data: ") {
                // Once it is known how far the job was, it goes on.
                tenant.world.go_on();
            }
            events += &format!("{line}\n");
        }
        events
    };
    let events = stage.expect("the end of the stream", stays).await;
    let news: Vec<Value> = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert!(events.contains("event: progress"), "{events}");
    assert!(events.contains("event: end"), "{events}");
    let (first, last) = (&news[0]["progress"], news.last().unwrap());
    assert_eq!(first["shardsCommitted"], 1, "{events}");
    assert_eq!(last["phase"], "Succeeded", "{events}");
    assert_eq!(last["progress"]["shardsCommitted"], SHARDS, "{events}");
    let succeeded: u64 = (0..SHARDS)
        .map(|shard| tally_of(shard).rows.succeeded)
        .sum();
    assert_eq!(last["progress"]["rowsSucceeded"], succeeded, "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_has_its_reader_while_it_runs_and_after_it_is_over() {
    let Some(stage) = Stage::new("read").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    let over = tenant.wait_for_reason(JOB, "Completed");
    stage.expect("the end of the job", over).await;
    let reader = json!({"spec": {"reader": {"secretRef": {"name": "readers"}}}});
    let (jobs, params) = (tenant.jobs(), PatchParams::default());
    let patched = jobs.patch(JOB, &params, &Patch::Merge(reader)).await;
    let uid = patched.unwrap().metadata.uid;
    let deployments: Api<Deployment> = Api::namespaced(tenant.client.clone(), "read");
    let name = format!("{JOB}-reader");
    let is_there = |it: Option<&Deployment>| it.is_some();
    let made = stage.expect("the reader", await_condition(deployments, &name, is_there));
    let made = made.await.unwrap().unwrap();
    assert_eq!(made.owner_references()[0].uid, uid.unwrap());
    let taken_back = json!({"spec": {"reader": null}});
    let refused = jobs.patch(JOB, &params, &Patch::Merge(taken_back)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("reader cannot be taken back"), "{refused}");
}
