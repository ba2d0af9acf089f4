//! Who of several operators acts: the one that holds a Lease.
//!
//! A leader that cannot renew ends its process before its time is over, so that two never act.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Resource};

use crate::config::Options;
use crate::term::Term;

/// How long a Lease holds without renewal.
const TTL: Duration = Duration::from_secs(15);

/// How often it is renewed, and asked for.
const INTERVAL: Duration = Duration::from_secs(4);

/// Name of the Lease.
const NAME: &str = "millrace-operator";

/// Stands for election, by a name of its own.
pub struct Election {
    leases: Api<Lease>,
    identity: String,
    /// For how long this process leads, extended with each renewal.
    term: Term,
    deployment: Option<(Api<Deployment>, String)>,
    /// What the Lease belongs to, once that was asked: it goes with the operator's Deployment.
    belongs_to: Option<ObjectMeta>,
    /// The holder that was seen last, with its renewal, and since when: times are measured by our
    /// own clock, since the holder's may be another.
    seen: Option<(String, Instant)>,
}

impl Election {
    /// An election in the operator's own namespace, whose winner may act within `term`. The client is one
    /// that may write at any time, since the Lease is written before there is a term.
    pub fn new(client: Client, term: Term, options: &Options) -> Self {
        let namespace = &options.namespace;
        let deployment = options.deployment.clone();
        let deployment = deployment.map(|name| (Api::namespaced(client.clone(), namespace), name));
        Self {
            leases: Api::namespaced(client, namespace),
            identity: options.identity.clone(),
            term,
            deployment,
            belongs_to: None,
            seen: None,
        }
    }

    /// Waits until this process leads.
    pub async fn win(&mut self) {
        while !self.try_win().await {
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Says whether this process leads from now on.
    pub async fn try_win(&mut self) -> bool {
        self.try_hold().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the election cannot be held");
            false
        })
    }

    /// Keeps the Lease; returns when it is lost or could not be renewed in time.
    pub async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let patience = (TTL - INTERVAL).saturating_sub(renewed.elapsed());
            let begun = Instant::now();
            match tokio::time::timeout(patience, self.try_hold()).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be renewed"),
                Err(_) => return,
            }
            if renewed.elapsed() >= TTL - INTERVAL {
                return;
            }
        }
    }

    /// Gives the Lease up, so that the next one need not wait.
    pub async fn resign(&self) {
        let released = async {
            let mut lease = self.leases.get(NAME).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                self.leases
                    .replace(NAME, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Err(error) = released.await {
            tracing::debug!(%error, "the Lease was not given up");
        }
    }

    /// Takes or renews the Lease if nobody else holds it. A conflict means that somebody did first.
    async fn try_hold(&mut self) -> Result<bool, kube::Error> {
        let begun = Instant::now();
        let params = PostParams::default();
        let held = match self.leases.get_opt(NAME).await? {
            None => {
                let mut metadata = self.belongs_to().await;
                metadata.name = Some(NAME.to_owned());
                let lease = Lease {
                    metadata,
                    spec: Some(self.spec(0)),
                };
                self.leases.create(&params, &lease).await
            }
            Some(mut lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                if !self.is_free(&spec) {
                    return Ok(false);
                }
                let changes = spec.lease_transitions.unwrap_or(0);
                let is_ours = spec.holder_identity.as_deref() == Some(&self.identity);
                lease.spec = Some(self.spec(changes + i32::from(!is_ours)));
                let ObjectMeta {
                    labels,
                    owner_references,
                    ..
                } = self.belongs_to().await;
                lease.metadata.labels = labels;
                lease.metadata.owner_references = owner_references;
                self.leases.replace(NAME, &params, &lease).await
            }
        };
        match held {
            Ok(_) => {
                self.term.extend(begun + TTL - INTERVAL);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Labels and owner of the Lease. Without a Deployment, and while it cannot be read, it has none: that
    /// keeps nobody from leading.
    async fn belongs_to(&mut self) -> ObjectMeta {
        if let Some(known) = &self.belongs_to {
            return known.clone();
        }
        let Some((deployments, name)) = &self.deployment else {
            return ObjectMeta::default();
        };
        match deployments.get_metadata(name).await {
            Ok(deployment) => {
                let found = belongs_to(&deployment.metadata);
                self.belongs_to = Some(found.clone());
                found
            }
            Err(error) => {
                tracing::warn!(%error, name, "the Lease gets no owner, and stays when the operator goes");
                ObjectMeta::default()
            }
        }
    }

    /// Whether the Lease is ours, nobody's, or was not renewed for its whole time.
    fn is_free(&mut self, spec: &LeaseSpec) -> bool {
        let Some(holder) = spec.holder_identity.as_deref().filter(|it| !it.is_empty()) else {
            return true;
        };
        if holder == self.identity {
            return true;
        }
        let renewal = format!("{holder} {:?}", spec.renew_time);
        match &self.seen {
            Some((seen, since)) if *seen == renewal => since.elapsed() > TTL,
            _ => {
                self.seen = Some((renewal, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, changes: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(TTL.as_secs() as i32),
            lease_transitions: Some(changes),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }
    }
}

/// What an object has that goes with a Deployment. Pure.
fn belongs_to(deployment: &ObjectMeta) -> ObjectMeta {
    let owner = OwnerReference {
        api_version: Deployment::api_version(&()).into_owned(),
        kind: Deployment::kind(&()).into_owned(),
        name: deployment.name.clone().unwrap_or_default(),
        uid: deployment.uid.clone().unwrap_or_default(),
        // Nothing of the Deployment waits for the Lease.
        controller: None,
        block_owner_deletion: None,
    };
    ObjectMeta {
        labels: deployment.labels.clone(),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_lease_goes_with_the_deployment_and_is_found_by_its_labels() {
        let labels = json!({"app.kubernetes.io/instance": "millrace"});
        let deployment = json!({
            "name": "millrace-operator", "uid": "u", "labels": labels, "resourceVersion": "7",
        });
        let found = belongs_to(&serde_json::from_value(deployment).unwrap());
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "millrace-operator", "uid": "u",
        });
        let expected = json!({"labels": labels, "ownerReferences": [owner]});
        assert_eq!(json!(found), expected, "and nothing else of it");
    }
}
