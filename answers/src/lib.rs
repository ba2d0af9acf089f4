//! Answers that were given before: in this process, then on disk, then in Redis.
//!
//! An answer belongs to what decides it and to nothing else ([`Key`]), so pods, jobs and online
//! requests share them. Identical texts that are asked about at the same time are asked about once.
//! Nothing here is needed: whatever a tier does not know is found out, by a model of one's own or by an API
//! elsewhere, of which nothing is known here.

pub mod disk;
mod flight;
mod key;
mod lookups;
mod shared;
mod writes;

use std::{sync::Arc, time::Duration};

use millrace_leases::LeaseError;
use millrace_protocol::priority::Priority;
use millrace_protocol::wire::Prediction;

use self::{disk::Disk, flight::Flights, shared::Shared};
pub use self::{
    flight::{Lead, Role},
    key::{Key, Keys},
    lookups::Lookups,
};

/// What an entry costs beside its numbers and names: key, pointers and the cache's own books.
const ENTRY_BYTES: usize = 256;

/// How answers are kept.
pub struct CacheOptions {
    /// How long an answer is kept.
    pub ttl: Duration,
    /// Most bytes in this process.
    pub bytes_max: u64,
    /// Redis to share answers with other processes; not printable, since it may hold a password.
    pub redis_url: Option<String>,
    /// Answers on disk, which outlive the process. Caches of one process may share them.
    pub disk: Option<Arc<Disk>>,
    /// Whose answers they are: namespaces share none.
    pub namespace: String,
}

/// Answers that were given before.
pub struct Cache {
    memory: moka::sync::Cache<Key, Arc<Prediction>>,
    disk: Option<Arc<Disk>>,
    shared: Option<Shared>,
    flights: Flights,
    lookups: Lookups,
}

impl Cache {
    /// An empty cache in this process, before what Redis has. Needs a runtime.
    pub fn new(options: CacheOptions, lookups: Lookups) -> Result<Arc<Self>, LeaseError> {
        let CacheOptions {
            ttl,
            bytes_max,
            redis_url,
            disk,
            namespace,
        } = options;
        let memory = moka::sync::Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_, prediction: &Arc<Prediction>| {
                u32::try_from(bytes(prediction)).unwrap_or(u32::MAX)
            })
            .time_to_live(ttl)
            .build();
        let shared = redis_url
            .map(|url| Shared::new(url, &namespace, ttl, lookups.clone()))
            .transpose()?;
        Ok(Arc::new(Self {
            memory,
            disk,
            shared,
            flights: Flights::default(),
            lookups,
        }))
    }

    /// What this process knows.
    pub fn get(&self, key: &Key) -> Option<Arc<Prediction>> {
        let known = self.memory.get(key);
        self.lookups.note("memory", known.is_some());
        known
    }

    /// What the slower tiers know of each key: the disk, and of the others Redis; nothing where there is
    /// none or where it does not answer soon.
    pub async fn get_slower(&self, keys: &[Key]) -> Vec<Option<Arc<Prediction>>> {
        let mut found = match &self.disk {
            Some(disk) => disk.get(keys).await,
            None => vec![None; keys.len()],
        };
        if let Some(shared) = &self.shared {
            let mut open: Vec<_> = keys.iter().zip(&mut found).collect();
            open.retain(|(_, found)| found.is_none());
            let asked: Vec<Key> = open.iter().map(|(key, _)| **key).collect();
            for ((_, found), answer) in open.into_iter().zip(shared.get(&asked).await) {
                *found = answer;
            }
        }
        found
    }

    /// Waits until the slower tiers have what they were given, as far as they take it.
    pub async fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush().await;
        }
        if let Some(shared) = &self.shared {
            shared.flush().await;
        }
    }

    /// Makes the caller the one who finds the answer out, unless somebody of the same priority is
    /// at it already. Nothing online waits for a job's turn.
    pub fn join(self: &Arc<Self>, key: Key, priority: Priority) -> Role {
        let role = Lead::or_follow(self.clone(), key, priority);
        match role {
            // Whoever was at it may have ended since the caller looked.
            Role::Lead(lead) => match self.memory.get(&key) {
                Some(known) => {
                    lead.deliver(&known);
                    Role::Known(known)
                }
                None => Role::Lead(lead),
            },
            role => role,
        }
    }
}

/// Roughly what an answer takes in memory.
fn bytes(prediction: &Prediction) -> usize {
    let numbers = match prediction {
        Prediction::Embedding(values) | Prediction::Values(values) => values.len() * 4,
        Prediction::Labels(labels) => labels.iter().map(|it| it.label.len() + 32).sum(),
        Prediction::Entities(entities) => entities
            .iter()
            .map(|it| it.entity.len() + it.word.len() + 64)
            .sum(),
        Prediction::Answer(answer) => answer.to_string().len(),
    };
    ENTRY_BYTES + numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(ttl: Duration, bytes_max: u64) -> Arc<Cache> {
        let options = CacheOptions {
            ttl,
            bytes_max,
            redis_url: None,
            disk: None,
            namespace: "default".into(),
        };
        Cache::new(options, Lookups::default()).unwrap()
    }

    fn key(text: &str) -> Key {
        Keys::new(&[[0; 32]], true, &[text.to_owned()]).get(0)
    }

    fn lead(cache: &Arc<Cache>, text: &str) -> Lead {
        match cache.join(key(text), Priority::Online) {
            Role::Lead(lead) => lead,
            _ => panic!("nobody else asks about {text}"),
        }
    }

    fn answer(numbers: usize) -> Arc<Prediction> {
        Arc::new(Prediction::Embedding(vec![0.5; numbers]))
    }

    #[test]
    fn an_answer_is_known_until_its_time_is_over() {
        let cache = cache(Duration::from_millis(50), 1 << 20);
        lead(&cache, "grain").computed(&answer(8));
        assert_eq!(cache.get(&key("grain")), Some(answer(8)));
        assert_eq!(cache.get(&key("water")), None);
        std::thread::sleep(Duration::from_millis(80));
        assert_eq!(cache.get(&key("grain")), None);
    }

    #[test]
    fn answers_stay_within_their_bytes() {
        let cache = cache(Duration::from_secs(60), 100_000);
        for text in 0..1_000 {
            lead(&cache, &text.to_string()).computed(&answer(256));
        }
        cache.memory.run_pending_tasks();
        assert!(cache.memory.weighted_size() <= 100_000);
        assert!(cache.memory.entry_count() > 10);
    }

    #[tokio::test]
    async fn whoever_asks_meanwhile_waits_for_the_one_who_leads() {
        let cache = cache(Duration::from_secs(60), 1 << 20);
        let first = lead(&cache, "grain");
        let Role::Follow(coming) = cache.join(key("grain"), Priority::Online) else {
            panic!("somebody leads");
        };
        let batch = cache.join(key("grain"), Priority::Batch);
        assert!(
            matches!(batch, Role::Lead(_)),
            "jobs have flights of their own"
        );
        first.computed(&answer(8));
        assert_eq!(coming.await.unwrap(), answer(8));
        let later = cache.join(key("grain"), Priority::Online);
        assert!(matches!(later, Role::Known(_)));
    }

    #[tokio::test]
    async fn whoever_waits_is_let_go_when_the_one_who_leads_gives_up() {
        let cache = cache(Duration::from_secs(60), 1 << 20);
        let first = lead(&cache, "grain");
        let Role::Follow(coming) = cache.join(key("grain"), Priority::Online) else {
            panic!("somebody leads");
        };
        drop(first);
        assert!(coming.await.is_err());
        drop(lead(&cache, "grain"));
    }
}
