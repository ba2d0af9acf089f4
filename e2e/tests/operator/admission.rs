//! What the API server itself refuses, with the words that users read.

use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use crate::control_plane::control_plane;

/// A namespace that is always there.
const NAMESPACE: &str = "default";

fn job() -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
        "metadata": {"name": "embed"},
        "spec": {
            "serviceRef": {"name": "minilm"},
            "input": {"uris": ["s3://bucket/rows.jsonl"]},
            "output": {"uri": "s3://bucket/out"},
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": "minilm"},
        "spec": {"models": [
            {"name": "minilm", "task": "Embedding", "source": {"uri": "s3://bucket/minilm"}},
        ]},
    })
}

/// The object with the value at a JSON pointer replaced; its fields may be new.
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let steps = pointer.split('/').skip(1);
    let place = steps.fold(&mut object, |at, step| match step.parse::<usize>() {
        Ok(index) => &mut at[index],
        Err(_) => &mut at[step],
    });
    *place = value;
    object
}

/// A service that asks an API elsewhere.
fn remote(more: Value) -> Value {
    let mut remote = json!({"baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m"});
    for (name, value) in more.as_object().expect("fields") {
        remote[name] = value.clone();
    }
    let mut service = service();
    service["spec"] = json!({"remote": remote});
    service
}

/// What users do with an object.
enum Verb {
    Create,
    Replace,
}

/// An API server, as kubectl speaks with it: unknown fields are errors.
struct Api(Client);

impl Api {
    async fn new() -> Option<Self> {
        Some(Self(control_plane()?.client().await))
    }

    /// What the server says: its message where it refuses.
    async fn send(&self, verb: Verb, object: &Value, options: &str) -> Result<Value, String> {
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        let path = format!("/apis/millrace.dev/v1alpha1/namespaces/{NAMESPACE}/{kind}s");
        let name = object["metadata"]["name"].as_str().unwrap();
        let request = match verb {
            Verb::Create => http::Request::post(format!("{path}?{options}")),
            Verb::Replace => http::Request::put(format!("{path}/{name}?{options}")),
        };
        let request = request.header("content-type", "application/json");
        let request = request.body(Body::from(object.to_string().into_bytes()));
        let answer = self.0.send(request.unwrap()).await.unwrap();
        let is_success = answer.status().is_success();
        let body = answer.into_body().collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        if is_success {
            return Ok(body);
        }
        Err(body["message"].as_str().unwrap().to_owned())
    }

    /// Creates the object in thought alone, which must be refused with these words.
    async fn refuses(&self, object: Value, expected: &str) -> String {
        let options = "dryRun=All&fieldValidation=Strict";
        let said = self.send(Verb::Create, &object, options).await;
        let said = said.expect_err(&format!("admitted: {object}"));
        assert!(said.contains(expected), "{said}\ninstead of {expected}");
        said
    }
}

#[tokio::test]
async fn counts_out_of_range_are_refused_with_the_name_of_the_field() {
    let Some(api) = Api::new().await else { return };
    let of_job = [
        "sharding/targetBytes",
        "retry/maxAttempts",
        "input/maxRowBytes",
    ];
    let of_service = [
        "autoscaling/maxReplicas",
        "batching/maxBatchTokens",
        "batching/maxBatchSize",
        "batching/queue/maxItems",
        "models/0/maxLength",
    ];
    let objects = of_job.map(|field| (job(), field)).into_iter();
    for (object, field) in objects.chain(of_service.map(|field| (service(), field))) {
        let path = field.replace("models/0/", "models[0].").replace('/', ".");
        for (value, bound) in [
            (json!(0), "greater than or equal to"),
            (json!(-1), "greater than or equal to"),
            (json!(2_147_483_648_u32), "less than or equal to"),
        ] {
            let object = with(object.clone(), &format!("/spec/{field}"), value);
            let said = api
                .refuses(object, &format!("spec.{path}: Invalid value"))
                .await;
            assert!(said.contains(bound), "{said}");
        }
    }
    for (field, object) in [
        (
            "backoffLimitPerIndex",
            with(job(), "/spec/backoffLimitPerIndex", json!(-1)),
        ),
        (
            "priority",
            with(job(), "/spec/priority", json!(2_147_483_648_u32)),
        ),
        (
            "autoscaling.minReplicas",
            with(service(), "/spec/autoscaling/minReplicas", json!(-1)),
        ),
    ] {
        let expected = format!("spec.{field}: Invalid value");
        api.refuses(object, &expected).await;
    }
    let fewer = json!({"minReplicas": 3, "maxReplicas": 2});
    api.refuses(
        with(service(), "/spec/autoscaling", fewer),
        "maxReplicas must be at least minReplicas",
    )
    .await;
}

#[tokio::test]
async fn what_decides_the_results_cannot_be_changed_and_the_rest_can() {
    let Some(api) = Api::new().await else { return };
    let created = with(job(), "/metadata/name", json!("fixed"));
    let created = api.send(Verb::Create, &created, "").await.unwrap();
    for (field, value) in [
        ("serviceRef/name", json!("other")),
        ("steps", json!([{"name": "a", "model": "minilm"}])),
        ("input/uris/0", json!("s3://bucket/others.jsonl")),
        ("input/idField", json!("id")),
        ("output/uri", json!("s3://bucket/elsewhere")),
        ("output/join", json!(["text"])),
        ("sharding/targetBytes", json!(65_536)),
        ("managedBy", json!("example.com/another")),
    ] {
        let changed = with(created.clone(), &format!("/spec/{field}"), value);
        let said = api.send(Verb::Replace, &changed, "").await.unwrap_err();
        let (top, _) = field.split_once('/').unwrap_or((field, ""));
        let expected = format!("{top} cannot be changed; create a new BatchJob instead");
        assert!(said.contains(&expected), "{said}");
    }
    let mut changed = created;
    for (field, value) in [
        ("suspend", json!(true)),
        ("priority", json!(7)),
        ("backoffLimitPerIndex", json!(1)),
        ("maxFailedIndexes", json!(1)),
    ] {
        changed = with(changed, &format!("/spec/{field}"), value);
        changed = api.send(Verb::Replace, &changed, "").await.unwrap();
    }
}

#[tokio::test]
async fn what_answers_the_rows_of_a_job_cannot_be_changed_where_the_job_brings_it() {
    let Some(api) = Api::new().await else { return };
    let runtime = json!({
        "image": "server:1", "port": 8000, "protocol": "TEI",
        "models": [{"name": "bge", "task": "Embedding"}],
    });
    let remote = json!({"baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m"});
    for (kind, brought, changes) in [
        (
            "runtime",
            runtime,
            vec![("image", json!("server:2")), ("args", json!(["--fast"]))],
        ),
        (
            "remote",
            remote,
            vec![
                ("baseUrl", json!("https://api.example.com/v2")),
                ("api", json!("Responses")),
                ("model", json!("other")),
            ],
        ),
    ] {
        let mut created = with(job(), "/metadata/name", json!(format!("bringing-{kind}")));
        created["spec"]
            .as_object_mut()
            .unwrap()
            .remove("serviceRef");
        let created = with(created, "/spec/serviceTemplate", json!({kind: brought}));
        let created = api.send(Verb::Create, &created, "").await.unwrap();
        for (field, value) in changes {
            let pointer = format!("/spec/serviceTemplate/{kind}/{field}");
            let changed = with(created.clone(), &pointer, value);
            let said = api.send(Verb::Replace, &changed, "").await.unwrap_err();
            let expected =
                format!("serviceTemplate.{kind} cannot be changed; create a new BatchJob instead");
            assert!(said.contains(&expected), "{said}");
        }
        let resting = with(created, "/spec/suspend", json!(true));
        api.send(Verb::Replace, &resting, "").await.unwrap();
    }
}

#[tokio::test]
async fn only_stores_that_are_known_can_be_named_whatever_form_an_address_has() {
    let Some(api) = Api::new().await else { return };
    for uri in [
        "http://169.254.169.254/latest/meta-data",
        "https://127.0.0.1/rows.jsonl",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://[::ffff:169.254.169.254]/",
        "gopher://169.254.169.254/",
        "S3://bucket/rows.jsonl",
        "file://169.254.169.254/rows.jsonl",
    ] {
        for (field, object) in [
            ("input", with(job(), "/spec/input/uris/0", json!(uri))),
            ("output", with(job(), "/spec/output/uri", json!(uri))),
            (
                "models[0].source",
                with(service(), "/spec/models/0/source/uri", json!(uri)),
            ),
        ] {
            api.refuses(object, &format!("spec.{field}")).await;
        }
    }
}

#[tokio::test]
async fn nothing_of_another_namespace_can_be_named() {
    let Some(api) = Api::new().await else { return };
    for (field, object) in [
        (
            "serviceRef",
            with(job(), "/spec/serviceRef/namespace", json!("other")),
        ),
        (
            "credentials",
            with(
                job(),
                "/spec/credentials",
                json!({"name": "keys", "namespace": "other"}),
            ),
        ),
    ] {
        let unknown = format!("unknown field \"spec.{field}.namespace\"");
        api.refuses(object.clone(), &unknown).await;
        // Whoever does not ask for strictness gets an object without it.
        let options = "dryRun=All&fieldValidation=Ignore";
        let made = api.send(Verb::Create, &object, options).await.unwrap();
        assert_eq!(made["spec"][field].get("namespace"), None);
    }
    let elsewhere = || json!({"name": "keys", "namespace": "other"});
    let of_job = |field: &str, value: Value| with(job(), &format!("/spec/{field}"), value);
    for (field, object) in [
        (
            "reader.secretRef",
            of_job("reader", json!({"secretRef": elsewhere()})),
        ),
        (
            "notify.secretRef",
            of_job(
                "notify",
                json!({"url": "https://a/b", "secretRef": elsewhere()}),
            ),
        ),
        (
            "output.postgres.secretRef",
            of_job(
                "output/postgres",
                json!({"table": "t", "secretRef": elsewhere()}),
            ),
        ),
        (
            "remote.apiKeySecretRef",
            remote(json!({"apiKeySecretRef": elsewhere()})),
        ),
        (
            "auth.secretRef",
            with(service(), "/spec/auth", json!({"secretRef": elsewhere()})),
        ),
    ] {
        let unknown = format!("unknown field \"spec.{field}.namespace\"");
        api.refuses(object, &unknown).await;
    }
}

#[tokio::test]
async fn credentials_in_a_uri_are_refused_and_never_repeated() {
    let Some(api) = Api::new().await else { return };
    for uri in [
        "s3://AKIAKEY:hunter2@bucket/x",
        "s3://AKIAKEY:hun/ter2@bucket/x",
        "https://user:hunter2@host/x",
        "hf://hunter2@acme/minilm",
    ] {
        for object in [
            with(job(), "/spec/input/uris/0", json!(uri)),
            with(job(), "/spec/output/uri", json!(uri)),
            with(service(), "/spec/models/0/source/uri", json!(uri)),
        ] {
            let said = api.refuses(object, "a URI cannot carry credentials").await;
            for secret in ["hunter2", "hun/ter2", "AKIAKEY"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn credentials_in_the_url_of_an_api_are_refused_and_never_repeated() {
    let Some(api) = Api::new().await else { return };
    for url in [
        "https://user:hunter2@api.example.com/v1",
        "https://api.example.com/v1?key=hunter2",
        "https://api.example.com/v1#hunter2",
        "gopher://hunter2/",
    ] {
        let said = api
            .refuses(remote(json!({"baseUrl": url})), "baseUrl must be")
            .await;
        assert!(said.contains("apiKeySecretRef"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn a_uri_cannot_climb() {
    let Some(api) = Api::new().await else { return };
    for uri in [
        "s3://bucket/a/../b",
        "s3://bucket/..",
        "s3://bucket/../../x",
    ] {
        for object in [
            with(
                job(),
                "/spec/input/uris/0",
                json!(format!("{uri}/rows.jsonl")),
            ),
            with(job(), "/spec/output/uri", json!(uri)),
            with(service(), "/spec/models/0/source/uri", json!(uri)),
        ] {
            api.refuses(object, "a URI cannot climb with `..`").await;
        }
    }
    // Dots in names are no climbing.
    let dotted = with(
        job(),
        "/spec/input/uris/0",
        json!("s3://bucket/a..b/...jsonl"),
    );
    let options = "dryRun=All&fieldValidation=Strict";
    api.send(Verb::Create, &dotted, options).await.unwrap();
}

#[tokio::test]
async fn an_output_that_overlaps_its_input_is_refused_where_the_text_shows_it() {
    let Some(api) = Api::new().await else { return };
    for (input, output) in [
        ("s3://bucket/rows.jsonl", "s3://bucket"),
        ("s3://bucket/rows.jsonl", "s3://bucket/"),
        ("s3://bucket/a/rows.jsonl", "s3://bucket/a"),
        ("s3://bucket/a/*.jsonl", "s3://bucket/a/"),
        ("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl"),
        ("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl/out"),
    ] {
        let object = with(job(), "/spec/input/uris/0", json!(input));
        let object = with(object, "/spec/output/uri", json!(output));
        api.refuses(
            object,
            "output overlaps input; write results to another folder",
        )
        .await;
    }
    let beside = with(job(), "/spec/output/uri", json!("s3://bucket/rows"));
    let options = "dryRun=All&fieldValidation=Strict";
    api.send(Verb::Create, &beside, options).await.unwrap();
}

#[tokio::test]
async fn a_name_may_have_253_characters_and_no_more() {
    let Some(api) = Api::new().await else { return };
    let named = |length| with(job(), "/metadata/name", json!("n".repeat(length)));
    let options = "dryRun=All&fieldValidation=Strict";
    api.send(Verb::Create, &named(253), options).await.unwrap();
    api.refuses(named(254), "metadata.name: Invalid value")
        .await;
}
