//! What is known of the prompts of one step before anybody is asked, and who asks of those with the
//! same prompt.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use millrace_answers::{Cache, Keys, Lead, Role};
use millrace_protocol::priority::Priority;
use millrace_protocol::row::RowError;
use millrace_protocol::wire::Prediction;

/// The answers that are kept of one step's prompts.
pub struct Recall {
    /// Absent where answers are not kept.
    kept: Option<(Arc<Cache>, Keys)>,
    /// The rows that are asked, for themselves and for all who wait for the same answer.
    leads: HashMap<usize, Lead>,
    /// The rows that wait.
    waiting: FuturesUnordered<BoxFuture<'static, Waited>>,
}

/// A row that has waited, and its answer, which is absent where whoever was asking gave up.
pub type Waited = (usize, Option<Arc<Prediction>>);

/// What is done about a row.
#[derive(Debug, PartialEq)]
pub enum Sought {
    /// It has its answer.
    Known(usize, Prediction),
    /// It is to be asked, and [`Recall::ended`] told of its end.
    Open(usize),
}

impl Recall {
    /// Before `cache`, for the prompts of a step that `fingerprint` stands for.
    pub fn new(cache: Option<&Arc<Cache>>, fingerprint: [u8; 32], prompts: &[String]) -> Self {
        let keys = |cache: &Arc<Cache>| (cache.clone(), Keys::new(&[fingerprint], false, prompts));
        Self {
            kept: cache.map(keys),
            leads: HashMap::new(),
            waiting: FuturesUnordered::new(),
        }
    }

    /// Looks for the answers to rows. Those that are not told of wait for another one with the same
    /// prompt.
    pub async fn seek(&mut self, rows: Vec<usize>) -> Vec<Sought> {
        let Some((cache, keys)) = &self.kept else {
            return rows.into_iter().map(Sought::Open).collect();
        };
        let known = |row, answer: &Arc<Prediction>| Sought::Known(row, Prediction::clone(answer));
        let (mut sought, mut leading) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            let key = keys.get(row);
            if let Some(answer) = cache.get(&key) {
                sought.push(known(row, &answer));
                continue;
            }
            match cache.join(key, Priority::Batch) {
                Role::Known(answer) => sought.push(known(row, &answer)),
                Role::Lead(lead) => leading.push((row, lead)),
                Role::Follow(coming) => {
                    let coming = async move { (row, coming.await.ok()) };
                    self.waiting.push(Box::pin(coming));
                }
            }
        }
        let asked: Vec<_> = leading.iter().map(|(_, lead)| lead.key()).collect();
        let found = cache.get_slower(&asked).await;
        for ((row, lead), found) in leading.into_iter().zip(found) {
            match found {
                Some(answer) => {
                    lead.found(&answer);
                    sought.push(known(row, &answer));
                }
                None => {
                    self.leads.insert(row, lead);
                    sought.push(Sought::Open(row));
                }
            }
        }
        sought
    }

    /// Whether rows wait.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Waits until a row need not wait any more; nothing if none does. Whoever stops waiting loses
    /// nothing.
    pub async fn waited(&mut self) -> Option<Waited> {
        self.waiting.next().await
    }

    /// What is done about a row that has waited.
    pub async fn resume(&mut self, waited: Waited) -> Vec<Sought> {
        match waited {
            (row, Some(answer)) => vec![Sought::Known(row, Prediction::clone(&answer))],
            (row, None) => self.seek(vec![row]).await,
        }
    }

    /// A row that was open has its end. An answer is kept; after an error each that waited asks for
    /// itself.
    pub fn ended(&mut self, row: usize, end: &Result<Prediction, RowError>) {
        if let (Some(lead), Ok(answer)) = (self.leads.remove(&row), end) {
            lead.computed(&Arc::new(answer.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millrace_answers::{CacheOptions, Lookups};
    use millrace_protocol::row::RowErrorCode;
    use serde_json::json;

    use super::*;

    fn cache(redis_url: Option<&str>) -> Arc<Cache> {
        let options = CacheOptions {
            ttl: Duration::from_secs(60),
            bytes_max: 1 << 20,
            redis_url: redis_url.map(str::to_owned),
            disk: None,
            namespace: "default".into(),
        };
        Cache::new(options, Lookups::default()).unwrap()
    }

    fn recall(cache: &Arc<Cache>, prompts: &[&str]) -> Recall {
        let prompts: Vec<String> = prompts.iter().map(|&prompt| prompt.to_owned()).collect();
        Recall::new(Some(cache), [1; 32], &prompts)
    }

    fn answer() -> Prediction {
        Prediction::Answer(json!({"mood": "good"}))
    }

    #[tokio::test]
    async fn what_was_said_is_not_asked_again() {
        let cache = cache(None);
        let mut first = recall(&cache, &["a", "b"]);
        let open = [Sought::Open(0), Sought::Open(1)];
        assert_eq!(first.seek(vec![0, 1]).await, open);
        first.ended(0, &Ok(answer()));
        first.ended(1, &Err(RowError::new(RowErrorCode::Refused, "no")));
        let mut next = recall(&cache, &["b", "a"]);
        let sought = [Sought::Known(1, answer()), Sought::Open(0)];
        assert_eq!(next.seek(vec![0, 1]).await, sought, "errors are not kept");
    }

    #[tokio::test]
    async fn of_equal_prompts_one_is_asked_and_the_others_wait() {
        let cache = cache(None);
        let (mut one, mut other) = (recall(&cache, &["a", "a"]), recall(&cache, &["a"]));
        assert_eq!(one.seek(vec![0, 1]).await, [Sought::Open(0)]);
        assert_eq!(other.seek(vec![0]).await, []);
        assert!(one.is_waiting() && other.is_waiting());
        one.ended(0, &Ok(answer()));
        for (recall, row) in [(&mut one, 1), (&mut other, 0)] {
            let waited = recall.waited().await.unwrap();
            let known = [Sought::Known(row, answer())];
            assert_eq!(recall.resume(waited).await, known);
            assert_eq!(recall.waited().await, None);
        }
    }

    #[tokio::test]
    async fn whoever_waited_asks_when_the_other_gave_up() {
        let cache = cache(None);
        let (mut one, mut other) = (recall(&cache, &["a"]), recall(&cache, &["a"]));
        assert_eq!(one.seek(vec![0]).await, [Sought::Open(0)]);
        assert_eq!(other.seek(vec![0]).await, []);
        drop(one);
        let waited = other.waited().await.unwrap();
        assert_eq!(other.resume(waited).await, [Sought::Open(0)]);
    }

    #[tokio::test]
    async fn a_redis_that_is_away_keeps_nobody_from_asking() {
        let cache = cache(Some("redis://127.0.0.1:1"));
        let mut recall = recall(&cache, &["a"]);
        assert_eq!(recall.seek(vec![0]).await, [Sought::Open(0)]);
    }
}
