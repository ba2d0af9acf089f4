//! Objects as the API server has them. Tests ask for them over and over, and a kubectl takes a tenth of a
//! second of the cores that the pods need, each time.

use std::path::Path;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

use crate::network::Network;

/// What tests look at: group, version, kind and plural.
const KINDS: [(&str, &str, &str, &str); 5] = [
    ("", "v1", "Pod", "pods"),
    ("apps", "v1", "Deployment", "deployments"),
    (
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
    ),
    ("millrace.dev", "v1alpha1", "BatchJob", "batchjobs"),
    (
        "millrace.dev",
        "v1alpha1",
        "InferenceService",
        "inferenceservices",
    ),
];

/// How long the API server may take; a test that waits for something asks again.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// The objects of a cluster.
pub struct Objects {
    config: Config,
    network: Network,
}

impl Objects {
    /// Those that a kubeconfig leads to from a network.
    pub fn new(kubeconfig: &Path, network: Network) -> Self {
        let config = blocking(async {
            let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            let mut config = config.expect("it names a cluster");
            config.read_timeout = Some(ANSWERED_WITHIN);
            config
        });
        Self { config, network }
    }

    /// An object by kind and name, if it is there.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> kube::Result<Option<Value>> {
        let found = self.ask(namespace, kind, async |api| api.get_opt(name).await);
        Ok(found?.map(json))
    }

    /// The objects of a kind that have these labels.
    pub fn list(&self, namespace: &str, kind: &str, selector: &str) -> kube::Result<Vec<Value>> {
        let labelled = ListParams::default().labels(selector);
        let found = self.ask(namespace, kind, async |api| api.list(&labelled).await);
        Ok(found?.items.into_iter().map(json).collect())
    }

    /// Each time by a client of its own: a connection belongs to the thread that is in the network.
    fn ask<T: Send>(
        &self,
        namespace: &str,
        kind: &str,
        ask: impl AsyncFnOnce(Api<DynamicObject>) -> kube::Result<T> + Send,
    ) -> kube::Result<T> {
        let resource = resource(kind);
        self.network.within(|| {
            blocking(async {
                let client = Client::try_from(self.config.clone())?;
                ask(Api::namespaced_with(client, namespace, &resource)).await
            })
        })
    }
}

/// A kind by its singular or plural, with or without its group.
fn resource(named: &str) -> ApiResource {
    let name = named.split('.').next().expect("it has a first part");
    let is_named = |(_, _, kind, plural): &&(_, _, &str, &str)| {
        *plural == name || kind.eq_ignore_ascii_case(name)
    };
    let found = KINDS.iter().find(is_named);
    let (group, version, kind, plural) = found.unwrap_or_else(|| panic!("tests know no {named}"));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

fn json(object: DynamicObject) -> Value {
    serde_json::to_value(object).expect("an object is JSON")
}

fn blocking<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
