//! What a namespace looks like, without what differs from one run to the next: ids, times and counts
//! of changes. Two pictures are equal where nothing of meaning differs.

use std::collections::BTreeMap;

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, Client};
use millrace_leases::{JobRegistry, LeaseOptions, LeaseStore, RedisLeaseStore, RedisOptions};
use serde_json::{Value, json};

use crate::tenant::SERVICE;
use crate::world::run_key;

/// Kinds that say what happened, not what is; and what a namespace is given besides.
const LEFT_OUT: [&str; 4] = ["Event", "Lease", "ServiceAccount", "Endpoints"];

/// Takes pictures.
pub struct Painter {
    client: Client,
    kinds: Vec<ApiResource>,
    redis: RedisOptions,
}

impl Painter {
    /// Asks the API server which kinds there are.
    pub async fn new(client: Client, redis_url: &str) -> Self {
        let discovery = Discovery::new(client.clone()).run().await.unwrap();
        let kinds = discovery
            .groups()
            .flat_map(|group| group.recommended_resources())
            .filter(|(_, can)| {
                can.scope == Scope::Namespaced && can.supports_operation(verbs::LIST)
            })
            .map(|(kind, _)| kind)
            .filter(|kind| !LEFT_OUT.contains(&kind.kind.as_str()));
        Self {
            kinds: kinds.collect(),
            client,
            redis: RedisOptions::new(redis_url),
        }
    }

    /// Every object of a namespace, with its kind and name.
    async fn objects(&self, namespace: &str) -> Vec<(String, Value)> {
        let mut objects = Vec::new();
        for kind in &self.kinds {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), namespace, kind);
            for object in api.list(&ListParams::default()).await.unwrap() {
                let name = format!("{}/{}", kind.kind, object.metadata.name.clone().unwrap());
                objects.push((name, json!(object)));
            }
        }
        objects
    }

    /// The version of every object of a namespace by kind and name: what is written has another.
    pub async fn versions(&self, namespace: &str) -> BTreeMap<String, Value> {
        let objects = self.objects(namespace).await.into_iter();
        objects
            .map(|(name, object)| (name, object["metadata"]["resourceVersion"].clone()))
            .collect()
    }

    /// Every object of a namespace by kind and name, and what the workers are told.
    pub async fn picture(&self, namespace: &str) -> BTreeMap<String, Value> {
        let objects = self.objects(namespace).await;
        let mut picture: BTreeMap<String, Value> = BTreeMap::new();
        for (name, object) in &objects {
            let mut text = object.to_string();
            for (other, of) in &objects {
                let uid = of["metadata"]["uid"].as_str().unwrap();
                text = text.replace(uid, &format!("uid of {other}"));
            }
            let mut object: Value =
                serde_json::from_str(&text.replace(namespace, "NAMESPACE")).unwrap();
            still(&mut object);
            if name.starts_with("Deployment/") {
                // How often it was scaled is counted by its generation.
                object["metadata"]["generation"] = Value::Null;
                object["status"]["observedGeneration"] = Value::Null;
            }
            let twice = picture.insert(name.clone(), object);
            assert!(twice.is_none(), "{name} is there twice");
        }
        picture.insert(
            "the workers".to_owned(),
            self.workers(namespace, &objects).await,
        );
        picture
    }

    /// The jobs that the workers are told of, and what the leases count.
    async fn workers(&self, namespace: &str, objects: &[(String, Value)]) -> Value {
        let registry = JobRegistry::new(&self.redis, namespace, SERVICE).unwrap();
        let registered = registry.list().await.unwrap();
        let names: Vec<String> = registered.into_iter().map(|(name, _)| name).collect();
        let mut counts = Vec::new();
        let jobs = objects
            .iter()
            .filter(|(name, _)| name.starts_with("BatchJob/"));
        for (_, job) in jobs {
            let run = run_key(&job["metadata"]).unwrap();
            let leases = RedisLeaseStore::new(&self.redis, &run, LeaseOptions::default());
            let snapshot = leases.unwrap().snapshot().await.unwrap();
            counts.push(format!("{snapshot:?}"));
        }
        json!({"registered": names, "leases": counts})
    }
}

/// Takes out what moves.
fn still(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in [
                "resourceVersion",
                // A job that goes on and ends within a second has no rate.
                "rowsPerSecond",
                "f:rowsPerSecond",
                "clusterIP",
                "clusterIPs",
            ] {
                fields.remove(name);
            }
            // It holds ids.
            if let Some(hash) = fields.get_mut("millrace.dev/applied") {
                *hash = json!("HASH");
            }
            if let Some(Value::String(message)) = fields.get_mut("message") {
                without_when_it_was_planned(message);
            }
            // Who manages fields is listed by time.
            if let Some(Value::Array(managers)) = fields.get_mut("managedFields") {
                managers.iter_mut().for_each(still);
                managers.sort_by_key(Value::to_string);
            }
            fields.values_mut().for_each(still);
        }
        Value::Array(items) => items.iter_mut().for_each(still),
        Value::String(text) if text.parse::<k8s_openapi::jiff::Timestamp>().is_ok() => {
            *text = "TIME".to_owned();
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Takes out of a plan's report what was committed by then: planning again after a fault is sound at
/// any time, and finds more the later it comes.
fn without_when_it_was_planned(message: &mut String) {
    if let Ok(Value::Object(mut report)) = serde_json::from_str(message)
        && report.get("step") == Some(&json!("planned"))
    {
        report.remove("committed");
        *message = json!(report).to_string();
    }
}

/// Where two pictures differ, a line each.
pub fn differences(expected: &BTreeMap<String, Value>, found: &BTreeMap<String, Value>) -> String {
    let mut lines = Vec::new();
    compare("", &json!(expected), &json!(found), &mut lines);
    lines.join("\n")
}

fn compare(at: &str, expected: &Value, found: &Value, lines: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let names = expected.keys().chain(found.keys());
            for name in names.collect::<std::collections::BTreeSet<_>>() {
                let of = |fields: &serde_json::Map<String, Value>| {
                    fields.get(name).cloned().unwrap_or_default()
                };
                compare(&format!("{at} {name}"), &of(expected), &of(found), lines);
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&format!("{at} {index}"), expected, found, lines);
            }
        }
        _ if expected == found => {}
        _ => lines.push(format!("{at}: {found} instead of {expected}")),
    }
}
