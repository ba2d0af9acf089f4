//! The pod that serves the results of a job over HTTP, and how it is reached.
//!
//! It reads the output with the job's own credentials, in the job's namespace; the operator reads none of
//! it. Its fate is nothing to the job.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::runtime::events::EventType;
use millrace_crds::batch_job::Reader;
use millrace_crds::{BatchJob, InferenceService, SecretKeyRef};
use serde::Serialize;
use serde_json::json;

use super::build::{self, metadata};
use crate::apply::{digest, object};
use crate::config::Options;
use crate::context::Context;
use crate::names::{JOB_LABEL, child, labels};
use crate::pods;
use crate::visit::VisitError;

/// What its objects and its step are called.
const READER: &str = "reader";

/// Where it listens.
const PORT: u16 = 8083;

/// Key of the token in its Secret, where the job names none.
const TOKEN_KEY: &str = "token";

/// Pause before one that was refused is tried again; each refusal doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(10);

/// Longest such pause: nothing tells that a quota was raised.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What a reader consists of.
#[derive(Debug, PartialEq, Serialize)]
struct Objects {
    deployment: Deployment,
    service: Service,
    network_policy: NetworkPolicy,
}

/// How the reader of a job was tried to be made.
#[derive(Debug, Default)]
pub struct ReaderTries {
    last: Mutex<Option<Tried>>,
}

/// One try.
#[derive(Debug, Clone)]
struct Tried {
    /// Digest of the objects.
    objects: String,
    ended: Ended,
}

/// How a try ended.
#[derive(Debug, Clone)]
enum Ended {
    /// They are there, as they were when the job's children had been touched so often.
    There { touches: u64 },
    /// The API server will not have them.
    Refused {
        why: String,
        again_at: Instant,
        pause: Duration,
    },
}

/// What to do about a reader.
#[derive(Debug, PartialEq)]
enum Due {
    /// To look, and to make what is not as it should be.
    Now,
    /// Nothing before this time; or before something changes.
    Later(Option<Duration>),
}

impl ReaderTries {
    /// What to do about these objects. Pure.
    fn due(&self, objects: &str, touches: u64, now: Instant) -> Due {
        let last = self.last();
        let Some(tried) = last.as_ref().filter(|tried| tried.objects == objects) else {
            return Due::Now;
        };
        match tried.ended {
            Ended::There { touches: then } if then == touches => Due::Later(None),
            Ended::Refused { again_at, .. } if now < again_at => Due::Later(Some(again_at - now)),
            Ended::There { .. } | Ended::Refused { .. } => Due::Now,
        }
    }

    /// Notes that they are there.
    fn note_there(&self, objects: String, touches: u64) {
        let ended = Ended::There { touches };
        *self.last() = Some(Tried { objects, ended });
    }

    /// Notes a refusal. Returns whether it says what the last one did not, and the pause after it.
    fn note_refused(&self, objects: String, why: &str, now: Instant) -> (bool, Duration) {
        let mut last = self.last();
        let before = last
            .take()
            .map(|tried| (tried.objects == objects, tried.ended));
        let (is_new, pause) = match before {
            Some((
                is_same,
                Ended::Refused {
                    why: then, pause, ..
                },
            )) => {
                let pause = if is_same { pause * 2 } else { PAUSE_MIN };
                (then != why, pause.min(PAUSE_MAX))
            }
            Some((_, Ended::There { .. })) | None => (true, PAUSE_MIN),
        };
        let ended = Ended::Refused {
            why: why.to_owned(),
            again_at: now + pause,
            pause,
        };
        *last = Some(Tried { objects, ended });
        (is_new, pause)
    }

    fn last(&self) -> MutexGuard<'_, Option<Tried>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the reader that the job asks for. One that the API server will not have is said, and stops nothing.
/// Asks nobody while nothing changed. Returns after which pause to come again without an event.
pub async fn keep(
    ctx: &Context,
    job: &BatchJob,
    service: Option<&InferenceService>,
) -> Result<Option<Duration>, VisitError> {
    let Some(reader) = &job.spec.reader else {
        return Ok(None);
    };
    // A path of one machine would be one of the reader's own pod.
    if !job.local_paths().is_empty() {
        return Ok(None);
    }
    let namespace = job.namespace().unwrap_or_default();
    let objects = objects(job, reader, service, &ctx.options);
    let of_job = ctx.of_job(job);
    // Before anything is looked at: what is changed after that counts as a change.
    let touches = of_job.children.touches();
    let hash = digest(&objects).map_err(VisitError::Apply)?;
    if let Due::Later(pause) = of_job.reader.due(&hash, touches, Instant::now()) {
        return Ok(pause);
    }
    let Objects {
        deployment,
        service,
        network_policy,
    } = objects;
    let made = async {
        // Nobody reaches it before it is guarded.
        let (client, children) = (&ctx.client, &of_job.children);
        children.apply(client, &namespace, network_policy).await?;
        children.apply(client, &namespace, service).await?;
        children.apply(client, &namespace, deployment).await
    };
    match made.await.map_err(VisitError::Apply) {
        Err(ref error) if let Some(why) = error.rejection() => {
            let (is_new, pause) = of_job.reader.note_refused(hash, why, Instant::now());
            if is_new {
                let note = format!("spec.reader: the pod cannot be made: {why}");
                ctx.say(job, EventType::Warning, "ReaderRejected", &note)
                    .await;
            }
            Ok(Some(pause))
        }
        made => {
            made?;
            of_job.reader.note_there(hash, touches);
            Ok(None)
        }
    }
}

/// The objects of a reader. Pure.
fn objects(
    job: &BatchJob,
    reader: &Reader,
    service: Option<&InferenceService>,
    options: &Options,
) -> Objects {
    Objects {
        deployment: deployment(job, reader, service, options),
        service: kube_service(job),
        network_policy: network_policy(job),
    }
}

/// The Deployment of a reader, whose pod runs as and where the job's other pods do.
fn deployment(
    job: &BatchJob,
    reader: &Reader,
    service: Option<&InferenceService>,
    options: &Options,
) -> Deployment {
    let Reader {
        secret_ref: SecretKeyRef { name: secret, key },
    } = reader;
    let template = build::service_template(job, service);
    let key = key.as_deref().unwrap_or(TOKEN_KEY);
    let mut variables = pods::store_variables(options);
    variables.extend([
        json!({"name": "MILLRACE_JOB", "value": job.name_any()}),
        json!({"name": "MILLRACE_OUTPUT", "value": job.spec.output.uri}),
        json!({"name": "MILLRACE_READ_LISTEN", "value": format!("0.0.0.0:{PORT}")}),
        json!({"name": "MILLRACE_READ_TOKEN_FILE", "value": format!("/var/run/millrace/token/{key}")}),
    ]);
    let token = json!({"name": "reader-token", "secret": {
        "secretName": secret, "items": [{"key": key, "path": key}],
    }});
    let at =
        json!({"name": "reader-token", "mountPath": "/var/run/millrace/token", "readOnly": true});
    let (mut volumes, mut mounts) = (vec![token], vec![at]);
    if let Some(credentials) = &job.spec.credentials {
        let (volume, mount) = pods::credentials(&credentials.name);
        let folder = format!("{}/{}", pods::SECRETS, credentials.name);
        variables.push(json!({"name": "MILLRACE_CREDENTIALS", "value": folder}));
        volumes.push(volume);
        mounts.push(mount);
    }
    let container = json!({
        "name": READER,
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": ["read"],
        "env": variables,
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    });
    object(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(job, &name(job), READER),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector(job)},
            "template": build::pod_template(job, READER, &template, &container, &volumes),
        },
    }))
}

/// By which name the reader of a job is reached.
fn kube_service(job: &BatchJob) -> Service {
    object(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, &name(job), READER),
        "spec": {
            "selector": selector(job),
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }))
}

/// Who reaches the reader of a job: the pods of its namespace.
fn network_policy(job: &BatchJob) -> NetworkPolicy {
    object(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, &name(job), READER),
        "spec": {
            "podSelector": {"matchLabels": selector(job)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": PORT}]}],
        },
    }))
}

/// What the objects of a job's reader are called.
fn name(job: &BatchJob) -> String {
    child(&job.name_any(), READER)
}

/// The labels by which the pod of a job's reader is found.
fn selector(job: &BatchJob) -> BTreeMap<String, String> {
    labels(READER, JOB_LABEL, &job.name_any())
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
