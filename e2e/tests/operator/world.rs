//! What is around an operator: the Job controller, the kubelet, the Deployment controller, the pods
//! of steps and the workers, with a garbage collector, played in one namespace. What they would leave in the
//! output store is kept here; leases are in a real Redis.

mod steps;
mod store;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use millrace_leases::{JobRegistry, LeaseOptions, RedisLeaseStore, RedisOptions, RunKey};
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use millrace_protocol::report::Report;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use self::steps::is_over;
pub use self::steps::owner;
use self::store::{Store, lock};
pub use self::store::{forecast, route_of, tally_of};
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

    fn leases(&mut self, run: &RunKey) -> Result<&RedisLeaseStore, Failure> {
        let key = run.key("");
        if !self.runs.contains_key(&key) {
            let leases = RedisLeaseStore::new(&self.redis, run, LeaseOptions::default())?;
            self.runs.insert(key.clone(), leases);
        }
        Ok(&self.runs[&key])
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
