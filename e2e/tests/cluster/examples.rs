//! The examples of the five systems, as their Kustomizations take them to a cluster. Classifiers are
//! stand-ins of the trained ones, and the API is the stand-in of a paid one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use millrace_e2e::files::{copy, make_models, repository};
use millrace_e2e::postgres_server::PostgresServer;

use crate::api::{Api, KEY};
use crate::cluster::{Cluster, OF_TESTS};
use crate::tenant::{Tenant, copy_model, secret};
use crate::turn::turn_at_own;

/// The API that the examples ask in a cluster.
const PAID_API: &str = "https://api.openai.com/v1";

/// Examples, which are named like their jobs, and the rows of each.
const EXAMPLES: [(&str, u64); 5] = [
    ("comments", 2 * POSTS as u64),
    ("transcripts", 400),
    ("analysis", 8),
    ("symptoms", 10),
    ("sentiment-to-postgres", 16),
];

/// Posts of each project of the comments: as many as its limit lets through at once. A test need not see
/// the minute pass after which there may be more.
const POSTS: usize = 30;

/// The classifiers, where the stand-ins are made, below the folder of the example that has them.
const CLASSIFIERS: [&str; 4] = [
    "analysis/models/sentiment",
    "analysis/models/toxicity",
    "symptoms/models/symptoms",
    "sentiment-to-postgres/models/emotion",
];

/// Copies what the examples say that the bucket must hold.
fn fill(bucket: &Path) {
    let made = tempfile::tempdir().unwrap();
    make_models(made.path());
    let models = bucket.join("models");
    for classifier in CLASSIFIERS {
        let from = made.path().join(classifier);
        copy(&from, &models.join(from.file_name().unwrap()));
    }
    copy_model(&models.join("all-MiniLM-L6-v2"));
    for (example, _) in EXAMPLES {
        let rows = match example {
            "comments" => "posts",
            "transcripts" => "chunks.jsonl",
            _ => "texts.jsonl",
        };
        let to = bucket.join(example);
        std::fs::create_dir(&to).unwrap();
        let from = repository().join("examples").join(example);
        copy(&from.join(rows), &to.join(rows));
    }
    for project in std::fs::read_dir(bucket.join("comments/posts")).unwrap() {
        let file = project.unwrap().path();
        let posts = std::fs::read_to_string(&file).unwrap();
        let posts: String = posts.split_inclusive('\n').take(POSTS).collect();
        std::fs::write(file, posts).unwrap();
    }
}

/// The Secrets that the examples ask for, but for the bucket's.
fn secrets(namespace: &str, postgres: &str) -> String {
    [
        secret(namespace, "comment-writer", "apiKey", KEY),
        secret(namespace, "extractor", "apiKey", KEY),
        secret(
            namespace,
            "symptoms-clients",
            "me",
            "a-key-of-a-client-that-is-long-enough",
        ),
        secret(namespace, "texts-db", "url", postgres),
    ]
    .concat()
}

#[test]
fn the_examples_of_the_five_systems_run_in_a_cluster() {
    let Some(cluster) = turn_at_own("its pods reach a table on this machine") else {
        return;
    };
    let tenant = Tenant::new(&cluster, "examples");
    let namespace = tenant.namespace();
    fill(&tenant.bucket());
    let api = Api::start(&cluster, 20);
    let address = cluster.address();
    let postgres = cluster
        .network()
        .within(|| PostgresServer::start_at(address));
    cluster.apply(&secrets(namespace, &postgres.url()));
    for (example, _) in EXAMPLES {
        let folder = repository().join("examples").join(example);
        let built = cluster.kubectl(&["kustomize", folder.to_str().unwrap()]);
        let built = built.replace(PAID_API, &format!("http://{}/v1", api.address()));
        let made = built.replace(
            "\nmetadata:\n",
            &format!("\nmetadata:\n  namespace: {namespace}\n"),
        );
        cluster.apply(&made);
    }
    for (example, rows) in EXAMPLES {
        tenant.wait_for_reason(example, "Completed", 240);
        let counts = tenant.job(example)["status"]["rows"].clone();
        assert_eq!(counts["succeeded"], rows, "{example}: {counts}");
        assert_eq!(counts["failed"], 0, "{example}: {counts}");
    }
    let loaded: i64 = cluster.network().within(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = postgres.connect().await;
            let count = "select count(distinct id) from texts where sentiment is not null \
                         and emotion is not null and array_length(embedding, 1) = 384";
            client.query_one(count, &[]).await.unwrap().get(0)
        })
    });
    assert_eq!(loaded, 16);
}

/// The server of the example of a bucket, in the namespace that the example expects.
const SERVER: &str = "s3.default.svc";

/// Puts what is in a folder into the example's bucket, as docs/cluster.md says.
fn put(cluster: &Cluster, namespace: &str, from: &Path, to: &str) {
    let mut tar = Command::new("tar");
    let tar = tar.arg("-C").arg(from).args(["-ch", "."]);
    let mut tar = tar.stdout(Stdio::piped()).spawn().expect("tar is there");
    let unpack =
        format!("busybox mkdir -p /objects/bucket/{to} && busybox tar -xC /objects/bucket/{to}");
    let mut exec = cluster.inside("kubectl");
    exec.args(["-n", namespace, "exec", "-i", "deployment/s3", "--"]);
    exec.args(["busybox", "sh", "-c", &unpack]);
    let exec = exec.stdin(tar.stdout.take().expect("it is piped"));
    assert!(
        exec.status().unwrap().success(),
        "{to} is not in the bucket"
    );
    assert!(tar.wait().unwrap().success());
}

#[test]
fn the_smallest_example_runs_on_the_bucket_of_the_examples() {
    let Some(cluster) = turn_at_own("it runs a server of this machine in a pod") else {
        return;
    };
    let namespace = format!("bucket-{}", std::process::id());
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Namespace\n\
         metadata: {{name: {namespace}, labels: {{{OF_TESTS}: 'true'}}}}\n"
    ));
    let apply = |example: &str| {
        let manifest = std::fs::read_to_string(repository().join("examples").join(example));
        let manifest = manifest
            .unwrap()
            .replace(SERVER, &format!("s3.{namespace}.svc"));
        let made = manifest.replace(
            "\nmetadata:\n",
            &format!("\nmetadata:\n  namespace: {namespace}\n"),
        );
        cluster.apply(&made);
    };
    apply("bucket/bucket.yaml");
    let rollout = [
        "-n",
        &namespace,
        "rollout",
        "status",
        "deployment/s3",
        "--timeout=60s",
    ];
    cluster.kubectl(&rollout);
    let models = PathBuf::from(std::env::var_os("MILLRACE_MODEL_CACHE").unwrap());
    let model = models.join("sentence-transformers/all-MiniLM-L6-v2");
    put(&cluster, &namespace, &model, "models/all-MiniLM-L6-v2");
    put(
        &cluster,
        &namespace,
        &repository().join("examples/embed"),
        "rows",
    );
    apply("cluster/service.yaml");
    apply("cluster/job.yaml");
    let rows = cluster.wait(&namespace, 120, "the example is done", || {
        let status = cluster.get(&namespace, "batchjob/embed")?["status"].clone();
        let conditions = status["conditions"].as_array()?.clone();
        let is_done = conditions
            .iter()
            .any(|it| it["type"] == "Succeeded" && it["status"] == "True");
        is_done.then(|| status["rows"].clone())
    });
    cluster.kubectl(&["delete", "namespace", &namespace, "--wait=false"]);
    assert_eq!(
        (&rows["succeeded"], &rows["failed"]),
        (&500.into(), &0.into())
    );
}
