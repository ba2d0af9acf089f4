//! Stores, reading and planning against a real S3 server.

use std::{sync::Arc, time::Duration};

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use bytes::Bytes;
use millrace_crds::inference_service::{ModelSpec, Task};
use millrace_e2e::s3_server::{BUCKET, S3Server};
use millrace_leases::{LeaseOptions, MemoryLeaseStore};
use millrace_model_files::source::{self, SourceError};
use millrace_protocol::{
    plan::{FIRST_RUN, Plan, ShardRange},
    row::{Place, ReadRow},
};
use millrace_worker::{
    job::{CheckedJob, Fields, Input, Output, Retry, Step},
    models::{FetchError, fetch},
    plan::{PlanError, plan, preflight},
    read::{ReadError, open_shard},
    run::{conclude, prepare},
    store::{
        Created, LinkLocal, StoreError, StoreOptions, Stores, create, probe_create_only, read,
        replace,
    },
};
use object_store::{ObjectStoreExt, path::Path};
use parquet::arrow::ArrowWriter;

/// Stores that reach the server.
fn stores(server: &S3Server) -> Stores {
    stores_with(server.variables())
}

/// Stores whose secret key is wrong.
fn stores_without_access(server: &S3Server) -> Stores {
    let mut variables = server.variables();
    variables.push(("AWS_SECRET_ACCESS_KEY", "wrong".to_owned()));
    stores_with(variables)
}

fn stores_with(variables: Vec<(&str, String)>) -> Stores {
    let key = |name: &str| name.to_ascii_lowercase().parse().expect("a known variable");
    let s3 = variables
        .into_iter()
        .map(|(name, value)| (key(name), value));
    Stores::new(StoreOptions {
        s3: s3.collect(),
        file_roots: Vec::new(),
        link_local: LinkLocal::Blocked,
    })
}

const ROW_BYTES_MAX: usize = 1 << 20;

fn uri(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

async fn put(stores: &Stores, key: &str, content: &str) {
    let location = stores.open(&uri(key)).unwrap();
    replace(&location.store, &location.path, content.to_owned())
        .await
        .unwrap();
}

/// The smallest job over these keys.
fn job(keys: &[&str]) -> CheckedJob {
    CheckedJob {
        namespace: "default".into(),
        name: "job".into(),
        uid: None,
        run: FIRST_RUN,
        steps: vec![Step {
            name: "step".into(),
            model: "model".into(),
            prompt: None,
        }],
        runtime: None,
        remote: None,
        routing: None,
        input: Input {
            uris: keys.iter().map(|key| uri(key)).collect(),
            inline: None,
            format: None,
            compression: None,
            fields: Fields {
                id: Some("id".into()),
                text: "text".into(),
                join: Vec::new(),
                prompted: Vec::new(),
                filtered: Vec::new(),
                normalize: None,
            },
            filter: None,
            order: None,
            chunking: None,
            row_bytes_max: ROW_BYTES_MAX,
        },
        output: Output {
            uri: uri("out"),
            zstd: false,
            merge: false,
            postgres: None,
        },
        shard_bytes_target: 1 << 20,
        retry: Retry {
            attempts_max: 1,
            backoff_initial: Duration::from_millis(1),
            backoff_max: Duration::from_millis(1),
        },
        deliveries_max: 1,
        failed_rows_max: None,
        failed_shards_max: None,
        cost_max: None,
        notify: None,
        spec_sha256: "spec".into(),
        answers_sha256: "answers".into(),
        spec_fields: vec![],
        incremental_from: None,
        dedup: None,
    }
}

async fn rows(stores: &Stores, job: &CheckedJob, plan: &Plan) -> Result<Vec<ReadRow>, ReadError> {
    let mut rows = Vec::new();
    for shard in &plan.shards {
        let (input, fields) = (plan.input_of(shard), &job.input.fields);
        let mut stream = open_shard(stores, input, shard, fields, ROW_BYTES_MAX).await?;
        loop {
            let batch = stream.next_batch(1000, 1 << 20).await?;
            if batch.is_empty() {
                break;
            }
            rows.extend(batch);
        }
    }
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_list_a_bucket() {
    let server = S3Server::start();
    let stores = stores(&server);
    for key in [
        "in/a b.jsonl",
        "in/b.jsonl",
        "in/deep/c.jsonl",
        "in/d.csv",
        "other/e.jsonl",
    ] {
        put(&stores, key, "id,text\n").await;
    }
    let listed = async |keys: &[&str]| {
        let inputs = millrace_worker::plan::list_inputs(&stores, &job(keys).input).await?;
        Ok::<_, PlanError>(
            inputs
                .into_iter()
                .map(|input| input.uri)
                .collect::<Vec<_>>(),
        )
    };
    let two = [uri("in/a b.jsonl"), uri("in/b.jsonl")];
    assert_eq!(listed(&["in/*.jsonl", "in/b.jsonl"]).await.unwrap(), two);
    assert_eq!(listed(&["in/**"]).await.unwrap().len(), 4);
    assert_eq!(
        listed(&["{in,other}/**/[ce].jsonl"]).await.unwrap().len(),
        2
    );
    let missing = listed(&["in/*.jsonl", "nothing/*"]).await.unwrap_err();
    assert!(
        missing.to_string().contains("s3://bucket/nothing/*"),
        "{missing}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_a_bucket_is_read_exactly_once() {
    let server = S3Server::start();
    let stores = stores(&server);
    let filler = "é".repeat(400);
    let lines: Vec<_> = (0..6000)
        .map(|n| format!("{{\"id\":{n},\"text\":\"t{n}\",\"x\":\"{filler}\"}}\r\n"))
        .collect();
    put(&stores, "in/a.jsonl", &lines.concat()).await;
    let records: String = (0..40_000)
        .map(|n| format!("{n},\"line\nof {n}\"\n"))
        .collect();
    put(&stores, "in/b.csv", &format!("id,text\n{records}")).await;
    let job = job(&["in/*"]);
    let plan = plan(&stores, &job, None).await.unwrap();
    assert!(plan.shards.len() >= 6);
    let rows = rows(&stores, &job, &plan).await.unwrap();
    let ids = rows.iter().map(|row| match row {
        ReadRow::Row(row) => row.id.clone().unwrap(),
        ReadRow::Bad { error, .. } => panic!("{error}"),
    });
    let expected: Vec<_> = (0..6000).chain(0..40_000).map(|n| n.to_string()).collect();
    assert_eq!(ids.collect::<Vec<_>>(), expected);
    assert_eq!(
        rows[1].place(),
        Place::Offset {
            offset: lines[0].len() as u64
        }
    );
    let found = preflight(&stores, &job, &plan, None).await.unwrap();
    assert_eq!((found.rows, found.bad_rows.len()), (46_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_honours_put_if_absent() {
    let server = S3Server::start();
    let out = stores(&server).open(&uri("out")).unwrap();
    probe_create_only(&out.store, &out.path).await.unwrap();
    let left = out
        .store
        .list_with_delimiter(Some(&out.below("_millrace")))
        .await
        .unwrap();
    assert!(left.objects.is_empty(), "the probe is deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creators_exactly_one_wins() {
    let server = S3Server::start();
    let out = stores(&server).open(&uri("out")).unwrap();
    for race in 0..5 {
        let path = out.below(&format!("commits/{race}.json"));
        let racers = (0..32).map(|racer: u32| {
            let (store, path) = (Arc::clone(&out.store), path.clone());
            tokio::spawn(async move { create(&store, &path, racer.to_string()).await.unwrap() })
        });
        let results = futures::future::join_all(racers).await;
        let winners: Vec<_> = (0..32)
            .filter(|racer| *results[*racer].as_ref().unwrap() == Created::New)
            .collect();
        let content = read(&out.store, &path).await.unwrap().unwrap();
        assert_eq!(
            winners.iter().map(usize::to_string).collect::<Vec<_>>(),
            [content]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changed_after_planning_is_not_read() {
    let server = S3Server::start();
    let stores = stores(&server);
    put(&stores, "in/a.jsonl", "{\"id\":1,\"text\":\"one\"}\n").await;
    let job = job(&["in/a.jsonl"]);
    let plan = plan(&stores, &job, None).await.unwrap();
    assert!(plan.inputs[0].etag.is_some());
    assert!(matches!(
        plan.shards[0].range,
        ShardRange::Bytes { start: 0, .. }
    ));
    assert_eq!(rows(&stores, &job, &plan).await.unwrap().len(), 1);
    put(&stores, "in/a.jsonl", "{\"id\":1,\"text\":\"two\"}\n").await;
    let error = rows(&stores, &job, &plan).await.unwrap_err();
    assert!(
        matches!(&error, ReadError::InputChanged { .. }) && error.is_permanent(),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_a_permanent_error() {
    let server = S3Server::start();
    let out = stores_without_access(&server).open(&uri("out")).unwrap();
    let error = read(&out.store, &out.below("a")).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Denied { .. }) && error.is_permanent(),
        "{error:?}"
    );
    let said = millrace_telemetry::chain(&error);
    assert!(said.contains("403 Forbidden"), "{said}");
    assert!(
        !said.contains("<Error>") && !said.contains("RequestId"),
        "{said}"
    );
}

/// Puts a model at the key `model`, and returns it with the digest of its files.
async fn model(stores: &Stores, weights: &str) -> ModelSpec {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("model.safetensors", weights),
    ] {
        put(stores, &format!("model/{name}"), content).await;
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let files = source::open(folder.path(), Task::Embedding, None).unwrap();
    let source = serde_json::json!({"uri": uri("model"), "digest": files.digest});
    let spec = serde_json::json!({"name": "embed", "task": "Embedding", "source": source});
    serde_json::from_value(spec).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_files_are_not_those_of_its_digest_is_not_there() {
    let server = S3Server::start();
    let stores = stores(&server);
    let asked = model(&stores, "the weights that were asked for").await;
    model(&stores, "other weights").await;
    let cache = tempfile::tempdir().unwrap();
    let error = fetch(&stores, 0, &asked, cache.path()).await.unwrap_err();
    let FetchError::Files { index: 0, source } = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(source, SourceError::Digest { .. }), "{source}");
    assert!(!cache.path().join(asked.folder()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_model_is_fetched_anew_and_what_a_killed_fetch_left_is_gone() {
    let server = S3Server::start();
    let stores = stores(&server);
    let spec = model(&stores, "weights").await;
    let cache = tempfile::tempdir().unwrap();
    // What a process that was killed in the middle had fetched.
    let half = cache.path().join(format!(".{}.fetching", spec.folder()));
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("sentence_bert_config.json"), "of another time").unwrap();
    let place = fetch(&stores, 0, &spec, cache.path()).await.unwrap();
    assert!(!half.exists() && !place.join("sentence_bert_config.json").exists());
    let weights = place.join("model.safetensors");
    std::fs::write(&weights, "damaged").unwrap();
    fetch(&stores, 0, &spec, cache.path()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&weights).unwrap(), "weights");
    // What is whole is left alone: nothing is asked of the store.
    let none = stores_without_access(&server);
    assert_eq!(fetch(&none, 0, &spec, cache.path()).await.unwrap(), place);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_and_parquet_of_one_bucket_are_read_together() {
    let server = S3Server::start();
    let stores = stores(&server);
    put(&stores, "in/a.txt", "one\n\ntwo").await;
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..50_000).map(|n| format!("t{n}")),
    ));
    let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let location = stores.open(&uri("in/b.parquet")).unwrap();
    replace(
        &location.store,
        &location.path,
        writer.into_inner().unwrap(),
    )
    .await
    .unwrap();
    let mut job = job(&["in/*"]);
    job.input.fields.id = None;
    job.shard_bytes_target = 64 << 10;
    let plan = plan(&stores, &job, None).await.unwrap();
    assert!(plan.shards.len() > 3);
    let rows = rows(&stores, &job, &plan).await.unwrap();
    let found = rows.iter().map(|row| match row {
        ReadRow::Row(row) => row.text.clone(),
        ReadRow::Bad { error, .. } => panic!("{error}"),
    });
    let expected = ["one".into(), "two".into()].into_iter();
    let expected: Vec<_> = expected
        .chain((0..50_000).map(|n| format!("t{n}")))
        .collect();
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

/// Begins an upload as a worker that is killed in the middle of it.
async fn begin_upload(stores: &Stores, key: &str) {
    let location = stores.open(&uri(key)).unwrap();
    let mut upload = location.store.put_multipart(&location.path).await.unwrap();
    let piece = Bytes::from(vec![b'x'; 5 << 20]);
    upload.put_part(piece.into()).await.unwrap();
    std::mem::forget(upload);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finish_aborts_the_uploads_that_killed_workers_of_its_run_left_and_no_others() {
    // Of a job without a row, and of one that was cancelled with a shard that nobody committed.
    for (rows, give_up) in [
        ("", None),
        ("{\"id\":1,\"text\":\"one\"}\n", Some("cancelled")),
    ] {
        let server = S3Server::start();
        let stores = stores(&server);
        put(&stores, "in/a.jsonl", rows).await;
        let job = job(&["in/a.jsonl"]);
        let prepared = prepare(&stores, &job).await.unwrap();
        for key in [
            "out/parts/0001-00000-aa.jsonl",
            "out/parts/0001-00000-bb.jsonl",
            "out/errors/0001-00000-aa.jsonl",
            "out/results.jsonl",
            "out/parts/0002-00000-aa.jsonl",
            "other/parts/0001-00000-aa.jsonl",
        ] {
            begin_upload(&stores, key).await;
        }
        let leases = MemoryLeaseStore::new(LeaseOptions::default());
        conclude(&job, &prepared, &leases, give_up, None)
            .await
            .unwrap();
        let uploads = stores.open(&uri("")).unwrap().uploads.unwrap();
        let left = async |prefix: &str| uploads.abort(&Path::from(prefix)).await.unwrap();
        assert_eq!(left("out/parts/0001-").await, 0);
        assert_eq!(left("out/errors").await, 0);
        assert_eq!(left("out/results").await, 0);
        assert_eq!(left("out").await, 1, "a later run's go on");
        assert_eq!(left("other").await, 1, "another output's go on");
        assert_eq!(left("").await, 0);
    }
}
