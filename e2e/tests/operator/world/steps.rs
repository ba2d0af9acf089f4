//! The Job controller and the kubelet, and the program of a step's pod.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, PodSpec, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Resource, ResourceExt};
use millrace_leases::LeaseStore;
use millrace_protocol::indexes::Indexes;
use millrace_protocol::report::Report;
use serde_json::{Value, json};

use super::store::{commits_key, forecast, lock, route_of};
use super::{Failure, Players, SHARDS, run_of};

impl Players {
    /// The Job controller and the kubelet: one pod per Job, which runs once what it mounts is there.
    pub(super) async fn run_step(&mut self, job: &Job, pod: Option<&Pod>) -> Result<(), Failure> {
        let spec = job.spec.clone().unwrap_or_default().template.spec;
        let spec = spec.unwrap_or_default();
        let Some(pod) = pod else {
            let made = pod_of(job);
            let (pods, params) = (self.api::<Pod>(), PostParams::default());
            match pods.create(&params, &made).await {
                Err(kube::Error::Api(refused)) if refused.code == 403 => {
                    return self.say_failed(job, "FailedCreate", &refused.message).await;
                }
                created => created?,
            };
            let status = json!({"startTime": Timestamp::now(), "active": 1, "ready": 0});
            return self.set_status::<Job>(&job.name_any(), status).await;
        };
        if let Some(waiting) = self.waits_for(pod, &spec).await? {
            let state = json!({"waiting": waiting});
            return self.set_container(pod, "Pending", state).await;
        }
        let uid = job.uid().unwrap_or_default();
        if lock(&self.store).is_away {
            return Ok(());
        }
        if !self.reports.contains_key(&uid) {
            let report = self.step(&spec).await?;
            self.reports.insert(uid.clone(), report);
        }
        let message = self.reports[&uid].clone().to_message();
        let times = json!({"startedAt": Timestamp::now(), "finishedAt": Timestamp::now()});
        let mut ended = json!({"exitCode": 0, "reason": "Completed", "message": message});
        ended["startedAt"] = times["startedAt"].clone();
        ended["finishedAt"] = times["finishedAt"].clone();
        self.set_container(pod, "Succeeded", json!({"terminated": ended}))
            .await?;
        let condition = |kind: &str| {
            let now = Timestamp::now();
            json!({"type": kind, "status": "True", "lastProbeTime": now, "lastTransitionTime": now})
        };
        let status = json!({
            "active": 0, "succeeded": 1, "completionTime": Timestamp::now(),
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
            "uncountedTerminatedPods": {},
        });
        self.set_status::<Job>(&job.name_any(), status).await?;
        self.ended.insert(uid);
        Ok(())
    }

    /// What a kubelet says of a pod whose Secrets are not there.
    async fn waits_for(&self, pod: &Pod, spec: &PodSpec) -> Result<Option<Value>, Failure> {
        let secrets = self.api::<Secret>();
        for variable in spec.containers[0].env.iter().flatten() {
            let source = variable.value_from.as_ref();
            let Some(key) = source.and_then(|source| source.secret_key_ref.as_ref()) else {
                continue;
            };
            if secrets.get_opt(&key.name).await?.is_none() {
                let message = format!("secret {:?} not found", key.name);
                let reason = "CreateContainerConfigError";
                return Ok(Some(json!({"reason": reason, "message": message})));
            }
        }
        for volume in spec.volumes.iter().flatten() {
            let Some(name) = volume.secret.as_ref().and_then(|it| it.secret_name.clone()) else {
                continue;
            };
            if secrets.get_opt(&name).await?.is_none() {
                let why = format!("MountVolume.SetUp failed: secret {name:?} not found");
                self.say_failed(pod, "FailedMount", &why).await?;
                return Ok(Some(json!({"reason": "ContainerCreating"})));
            }
        }
        Ok(None)
    }

    /// The Event by which a controller or a kubelet says what it could not do, once.
    async fn say_failed<K>(&self, object: &K, reason: &str, why: &str) -> Result<(), Failure>
    where
        K: Resource<DynamicType = ()>,
    {
        let name = format!("{}.{}", object.name_any(), reason.to_lowercase());
        if self.api::<Event>().get_opt(&name).await?.is_some() {
            return Ok(());
        }
        let event = json!({
            "metadata": {"name": name}, "involvedObject": object.object_ref(&()),
            "type": "Warning", "reason": reason, "lastTimestamp": Timestamp::now(), "message": why,
        });
        let event = serde_json::from_value(event)?;
        let events = self.api::<Event>();
        events.create(&PostParams::default(), &event).await?;
        Ok(())
    }

    /// The program of a step's pod.
    async fn step(&mut self, spec: &PodSpec) -> Result<Report, Failure> {
        let mut volumes = spec.volumes.iter().flatten();
        let manifests = volumes.find_map(|volume| Some(volume.config_map.as_ref()?.name.clone()));
        let manifests = manifests.ok_or("the step mounts no manifests")?;
        let manifests = self.api::<ConfigMap>().get(&manifests).await?;
        let manifests = manifests.data.unwrap_or_default();
        let manifests = manifests.get("manifests.yaml").ok_or("no manifests")?;
        let run = run_of(manifests)?;
        let commits = lock(&self.store).commits.get(&commits_key(&run)).cloned();
        let commits = commits.unwrap_or_default();
        let leases = self.leases(&run)?;
        let open: Vec<u32> = (0..SHARDS).filter(|it| !commits.contains_key(it)).collect();
        let step = spec.containers[0].args.clone().unwrap_or_default();
        match step.first().map(String::as_str) {
            Some("plan") => {
                leases.push(&open).await?;
                leases.reopen(&open).await?;
                for (&shard, &tally) in &commits {
                    leases.mark_committed(shard, tally).await?;
                }
                Ok(Report::Planned {
                    shards: SHARDS,
                    committed: commits.len() as u32,
                    forecast: asks_api(manifests).then(forecast),
                })
            }
            Some("finish") if open.is_empty() || gives_up(spec) => {
                lock(&self.store).manifests += 1;
                let tally = commits.into_values().sum();
                Ok(Report::Finished {
                    complete: open.is_empty(),
                    shards: SHARDS,
                    failed_shards: open.len() as u32,
                    failed_indexes: open.iter().copied().collect::<Indexes>().into_text(),
                    tally,
                    routes: vec![route_of(tally)],
                    sample_errors: Vec::new(),
                    warning: None,
                })
            }
            Some("finish") => {
                leases.reopen(&open).await?;
                Ok(Report::Incomplete {
                    shards: open.len() as u32,
                })
            }
            other => Err(format!("no such step: {other:?}").into()),
        }
    }

    async fn set_container(&self, pod: &Pod, phase: &str, state: Value) -> Result<(), Failure> {
        let status = pod.status.clone().unwrap_or_default();
        let before = status.container_statuses.unwrap_or_default();
        let is_said = before.first().is_some_and(|it| json!(it.state) == state);
        if is_said {
            return Ok(());
        }
        let status = json!({
            "phase": phase,
            "startTime": pod.creation_timestamp(),
            "containerStatuses": [{
                "name": "step", "image": "worker", "imageID": "", "ready": false,
                "restartCount": 0, "state": state,
            }],
        });
        self.set_status::<Pod>(&pod.name_any(), status).await
    }
}

/// Whether nothing of a Job is run any more.
pub fn is_over(job: &Job) -> bool {
    let status = job.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.unwrap_or_default().into_iter();
    job.metadata.deletion_timestamp.is_some()
        || conditions.any(|it| it.type_ == "Complete" && it.status == "True")
}

/// Whether a step is told to give up what is not done.
fn gives_up(spec: &PodSpec) -> bool {
    let mut variables = spec.containers[0].env.iter().flatten();
    variables.any(|variable| variable.name == "MILLRACE_GIVE_UP")
}

/// Whether the manifests of a step have a service that asks an API.
fn asks_api(manifests: &str) -> bool {
    manifests.contains("\"remote\":{")
}

/// The uid of the Job that a pod belongs to.
pub fn owner(pod: &Pod) -> String {
    let owners = pod.owner_references();
    owners.first().map_or(String::new(), |it| it.uid.clone())
}

/// The name that a Job's pod has here, one at a time.
fn pod_of(job: &Job) -> Pod {
    let template = job.spec.clone().unwrap_or_default().template;
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = Some(format!("{}-0", job.name_any()));
    metadata.owner_references = Some(job.controller_owner_ref(&()).into_iter().collect());
    Pod {
        metadata,
        spec: template.spec,
        status: None,
    }
}
