//! What is around an operator: the Job controller, the kubelet, the Deployment controller, the pods
//! of steps and the workers, with a garbage collector, played in one namespace. What they would leave in the output store is
//! kept here; leases are in a real Redis.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, PodSpec, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use millrace_leases::{
    Claim, JobRegistry, LeaseOptions, LeaseStore, RedisLeaseStore, RedisOptions, RunKey,
};
use millrace_protocol::cost::Cost;
use millrace_protocol::forecast::Forecast;
use millrace_protocol::indexes::Indexes;
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use millrace_protocol::report::Report;
use millrace_protocol::routes::RouteTally;
use millrace_protocol::tally::{Rows, Tally};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use crate::garbage::GarbageCollector;
use crate::watched::Watched;

/// Shards of every job.
pub const SHARDS: u32 = 3;

/// How long each player waits between two looks.
const PAUSE: Duration = Duration::from_millis(30);

/// What goes wrong for a player.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where a world is.
pub struct WorldOptions {
    /// A client with all rights.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
    /// Where the leases are.
    pub redis_url: String,
}

/// A world that goes on until dropped.
pub struct World {
    store: Arc<Mutex<Store>>,
    _turning: AbortOnDropHandle<()>,
}

/// What lies in the output store, and what the world has to say.
#[derive(Default)]
struct Store {
    /// Committed shards by [`commits_key`] of their run.
    commits: BTreeMap<String, BTreeMap<u32, Tally>>,
    /// How often a manifest was written.
    manifests: usize,
    /// Commits after which the workers pause.
    commits_max: Option<usize>,
    /// Whether it cannot be reached, so that no step ends.
    is_away: bool,
    /// What went wrong last.
    trouble: Option<String>,
}

impl Store {
    fn count(&self) -> usize {
        self.commits.values().map(BTreeMap::len).sum()
    }

    fn may_commit(&self) -> bool {
        self.commits_max.is_none_or(|most| self.count() < most)
    }

    /// Commits a shard, unless it is: the first commit wins.
    fn commit(&mut self, run: &RunKey, shard: u32) -> Tally {
        let commits = self.commits.entry(commits_key(run)).or_default();
        *commits.entry(shard).or_insert(tally_of(shard))
    }
}

impl World {
    /// Lets it begin.
    pub fn start(options: WorldOptions) -> Self {
        let store = Arc::new(Mutex::new(Store::default()));
        let WorldOptions {
            client,
            namespace,
            redis_url,
        } = options;
        let redis = RedisOptions::new(redis_url);
        let players = Players {
            garbage: GarbageCollector::start(client.clone(), &namespace),
            jobs: Watched::start(Api::namespaced(client.clone(), &namespace)),
            pods: Watched::start(Api::namespaced(client.clone(), &namespace)),
            deployments: Watched::start(Api::namespaced(client.clone(), &namespace)),
            client,
            namespace,
            redis,
            reports: BTreeMap::new(),
            ended: BTreeSet::new(),
            registries: BTreeMap::new(),
            runs: BTreeMap::new(),
            store: store.clone(),
        };
        let turning = tokio::spawn(players.turn_for_ever());
        Self {
            store,
            _turning: AbortOnDropHandle::new(turning),
        }
    }

    /// Lets the workers pause once there are so many commits.
    pub fn pause_after(&self, commits: usize) {
        lock(&self.store).commits_max = Some(commits);
    }

    /// Lets the workers go on.
    pub fn go_on(&self) {
        lock(&self.store).commits_max = None;
    }

    /// Takes the output store away, or brings it back: steps try for as long as it is away.
    pub fn take_store_away(&self, is_away: bool) {
        lock(&self.store).is_away = is_away;
    }

    /// How many shards are committed, over all jobs.
    pub fn commits(&self) -> usize {
        lock(&self.store).count()
    }

    /// How many shards are committed in the first run of the job with this uid.
    pub fn commits_of(&self, uid: &str) -> usize {
        lock(&self.store).commits.get(uid).map_or(0, BTreeMap::len)
    }

    /// How often a manifest was written.
    pub fn manifests(&self) -> usize {
        lock(&self.store).manifests
    }

    /// What went wrong last, for whoever waits in vain.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.store).trouble.clone()
    }
}

/// The uid of a job, with the number of the run unless it is the first.
fn commits_key(run: &RunKey) -> String {
    let uid = run.uid.clone().unwrap_or_default();
    match run.run {
        FIRST_RUN => uid,
        run => format!("{uid}/{run}"),
    }
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

/// What a plan says that the calls of a job will take.
pub fn forecast() -> Forecast {
    Forecast {
        rows: 300,
        sampled_rows: 30,
        tokens: (2_000, 4_000),
        cost: Some((Cost::of_parts(1), Cost::of_parts(2))),
        currency: Some("EUR".to_owned()),
        max_cost: None,
    }
}

/// The tally that each shard's commit carries.
pub fn tally_of(shard: u32) -> Tally {
    Tally {
        rows: Rows {
            succeeded: 100 + u64::from(shard),
            failed: 1,
            skipped: 0,
        },
        tokens: 1000,
        cost: Cost::default(),
    }
}

/// What a step tells of routes, whatever the job: the operator looks at what it is told.
pub fn route_of(tally: Tally) -> RouteTally {
    let Tally { rows, tokens, cost } = tally;
    RouteTally {
        route: "everything".to_owned(),
        arm: None,
        succeeded: rows.succeeded,
        failed: rows.failed,
        escalated: 2,
        tokens,
        cost,
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Players {
    jobs: Watched<Job>,
    pods: Watched<Pod>,
    deployments: Watched<Deployment>,
    garbage: GarbageCollector,
    client: Client,
    namespace: String,
    /// What steps said, by the uid of their Job: each runs once.
    reports: BTreeMap<String, Report>,
    /// Jobs, by uid, whose end was said: watches lag.
    ended: BTreeSet<String>,
    redis: RedisOptions,
    registries: BTreeMap<String, JobRegistry>,
    runs: BTreeMap<String, RedisLeaseStore>,
    store: Arc<Mutex<Store>>,
}

impl Players {
    async fn turn_for_ever(mut self) {
        loop {
            // What fails now is tried again with the next turn, as all of them do.
            if let Err(error) = self.turn().await {
                lock(&self.store).trouble = Some(format!("{error:?}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn turn(&mut self) -> Result<(), Failure> {
        let (jobs, pods) = (self.jobs.all(), self.pods.all());
        self.garbage.collect(&jobs, &pods).await?;
        for job in jobs.iter().filter(|job| !is_over(job)) {
            let uid = job.uid().unwrap_or_default();
            let pod = pods.iter().find(|pod| owner(pod) == uid);
            if !self.ended.contains(&uid) {
                self.run_step(job, pod.map(|pod| &**pod)).await?;
            }
        }
        for deployment in self.deployments.all() {
            self.scale(&deployment).await?;
            self.work(&deployment).await?;
        }
        Ok(())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The Job controller and the kubelet: one pod per Job, which runs once what it mounts is there.
    async fn run_step(&mut self, job: &Job, pod: Option<&Pod>) -> Result<(), Failure> {
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

    /// The Deployment controller, the scheduler and the kubelet: as many pods as should be are.
    async fn scale(&self, deployment: &Deployment) -> Result<(), Failure> {
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let observed = status.observed_generation;
        if observed == deployment.metadata.generation {
            return Ok(());
        }
        let status = json!({
            "observedGeneration": deployment.metadata.generation,
            "replicas": wanted, "updatedReplicas": wanted,
            "readyReplicas": wanted, "availableReplicas": wanted,
        });
        self.set_status::<Deployment>(&deployment.name_any(), status)
            .await
    }

    /// The workers in the pods of a service: each turn one shard is committed, of the job with the
    /// highest priority that has one.
    async fn work(&mut self, deployment: &Deployment) -> Result<(), Failure> {
        let status = deployment.status.clone().unwrap_or_default();
        if status.ready_replicas.unwrap_or(0) == 0 {
            return Ok(());
        }
        // A reader of results serves none.
        let Some(service) = service_of(deployment) else {
            return Ok(());
        };
        if !self.registries.contains_key(&service) {
            let registry = JobRegistry::new(&self.redis, &self.namespace, &service)?;
            self.registries.insert(service.clone(), registry);
        }
        let mut jobs = self.registries[&service].list().await?;
        jobs.sort_by_key(|(_, job)| Reverse(job.priority));
        for (_, job) in jobs {
            let run = run_of(&job.manifests)?;
            if !lock(&self.store).may_commit() {
                continue;
            }
            let store = self.store.clone();
            let leases = self.leases(&run)?;
            if let Claim::Lease(lease) = leases.claim("worker").await? {
                let tally = lock(&store).commit(&run, lease.shard);
                leases.acknowledge(&lease, &tally).await?;
                return Ok(());
            }
        }
        Ok(())
    }

    fn leases(&mut self, run: &RunKey) -> Result<&RedisLeaseStore, Failure> {
        let key = run.key("");
        if !self.runs.contains_key(&key) {
            let leases = RedisLeaseStore::new(&self.redis, run, LeaseOptions::default())?;
            self.runs.insert(key.clone(), leases);
        }
        Ok(&self.runs[&key])
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

    async fn set_status<K>(&self, name: &str, status: Value) -> Result<(), Failure>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let params = PatchParams {
            field_manager: Some("world".to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(json!({"status": status}));
        self.api::<K>().patch_status(name, &params, &patch).await?;
        Ok(())
    }
}

fn is_over(job: &Job) -> bool {
    let status = job.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.unwrap_or_default().into_iter();
    job.metadata.deletion_timestamp.is_some()
        || conditions.any(|it| it.type_ == "Complete" && it.status == "True")
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

/// The service whose jobs the workers of a Deployment attend to.
fn service_of(deployment: &Deployment) -> Option<String> {
    let spec = deployment.spec.template.spec.as_ref()?;
    // Where an API elsewhere answers, the worker is no sidecar.
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let mut variables = containers.flat_map(|container| container.env.iter().flatten());
    let name = variables.find(|variable| variable.name == "MILLRACE_SERVICE_NAME")?;
    name.value.clone()
}

/// The run of a job, out of its manifests.
fn run_of(manifests: &str) -> Result<RunKey, Failure> {
    let job = manifests.lines().next().unwrap_or_default();
    let job: Value = serde_json::from_str(job)?;
    let reruns = job["spec"]["rerunFailed"].as_u64().unwrap_or_default();
    Ok(RunKey {
        run: FIRST_RUN + RunNumber::try_from(reruns)?,
        ..run_key(&job["metadata"])?
    })
}

/// The first run of the job with this metadata.
pub fn run_key(metadata: &Value) -> Result<RunKey, Failure> {
    let word = |name: &str| {
        let word = metadata[name].as_str();
        word.map(str::to_owned).ok_or("a job without a name")
    };
    Ok(RunKey {
        namespace: word("namespace")?,
        job: word("name")?,
        uid: Some(word("uid")?),
        run: FIRST_RUN,
    })
}
