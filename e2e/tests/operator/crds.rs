//! An operator and CRDs of other versions.

use std::time::Duration;

use millrace_e2e::redis_server::RedisServer;

use crate::control_plane::{ControlPlane, apply_crds};
use crate::operator::{Operator, Options};

/// Longest until an operator gives up, or writes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_without_its_crds_ends_and_says_what_to_do() {
    // The others need theirs, so this API server is another.
    let Some(api) = ControlPlane::start() else {
        return;
    };
    let client = api.client().await;
    let redis = RedisServer::start();
    let start = async || {
        let options = Options {
            namespace: "default",
            redis_url: &redis.url(),
            identity: "operator",
            point: None,
        };
        Operator::start(client.clone(), options).await
    };
    let refused = async |expected: &str| {
        let mut operator = start().await;
        let ended = operator.ended(PATIENCE).await;
        assert_eq!(ended, Some(false), "{}", operator.log());
        let log = operator.log();
        assert!(log.contains(expected), "{log}");
        assert!(log.contains("upgrade the chart (helm upgrade)"), "{log}");
        assert_eq!(operator.proxy.requests(), 0);
    };
    refused("the API server knows no BatchJob of millrace.dev/v1alpha1").await;
    apply_crds(&api);
    let field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/suspend";
    let older = format!(r#"[{{"op": "remove", "path": "{field}"}}]"#);
    let crd = "crd/batchjobs.millrace.dev";
    api.kubectl(&["patch", crd, "--type=json", "-p", &older]);
    refused("the CRD of BatchJob is older than this operator, it lacks spec.suspend").await;
    let operator = start().await;
    apply_crds(&api);
    assert!(operator.leads(PATIENCE).await, "{}", operator.log());
}
