//! The jobs a service's worker knows, and whose turn it is.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use millrace_protocol::registry::RegisteredJob;
use millrace_telemetry::chain;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::open::{OpenError, open};
use super::{JOB_PAUSE, ServeOptions};
use crate::work::Worker;

type Opening = AbortOnDropHandle<Result<Worker, OpenError>>;

/// The jobs of the service, by name.
#[derive(Default)]
pub struct Jobs {
    known: BTreeMap<String, Job>,
    /// Shards claimed so far, of all jobs.
    claims: u64,
}

struct Job {
    registered: RegisteredJob,
    /// Cancelled when the job is taken away: its shards in hand are given back.
    stop: CancellationToken,
    state: State,
    /// Shards of the job in this worker's hand.
    in_hand: usize,
    /// The worker's count of claims when it last claimed a shard of the job.
    claimed_at: u64,
    paused_until: Option<Instant>,
}

enum State {
    Opening(Opening),
    Open(Arc<Worker>),
    /// It could not be opened, or its stores fail; it is opened after the pause, with the credentials
    /// that are there then.
    Closed,
}

impl Jobs {
    /// Takes over what the registry says now.
    pub fn update(&mut self, registered: Vec<(String, RegisteredJob)>, options: &ServeOptions) {
        let registered: BTreeMap<String, RegisteredJob> = registered.into_iter().collect();
        self.known.retain(|name, job| {
            // Another priority changes the line; anything else is another job of the same name.
            let stays = registered.get(name).is_some_and(|now| {
                now.manifests == job.registered.manifests
                    && now.credentials == job.registered.credentials
            });
            if !stays {
                tracing::info!(job = name, "the job is taken away");
                job.stop.cancel();
            }
            stays
        });
        let now = Instant::now();
        for (name, registered) in registered {
            let job = self.known.entry(name.clone()).or_insert_with(|| {
                tracing::info!(job = name, "a job is given to this service");
                Job {
                    registered: registered.clone(),
                    stop: options.stop.child_token(),
                    state: State::Closed,
                    in_hand: 0,
                    claimed_at: 0,
                    paused_until: None,
                }
            });
            job.registered.priority = registered.priority;
            if matches!(job.state, State::Closed) && !job.is_paused(now) {
                job.state = State::Opening(open(&name, &job.registered, options));
            }
        }
    }

    /// Looks which jobs are open by now.
    pub fn take_opened(&mut self) {
        for (name, job) in &mut self.known {
            let State::Opening(opening) = &mut job.state else {
                continue;
            };
            if !opening.is_finished() {
                continue;
            }
            let opened = futures::FutureExt::now_or_never(opening).expect("it is finished");
            job.state = match opened.expect("opening neither panics nor is aborted") {
                Ok(worker) => State::Open(Arc::new(worker)),
                Err(error) => {
                    tracing::warn!(job = name, error = %chain(&error), "the job cannot be opened yet");
                    job.paused_until = Some(Instant::now() + JOB_PAUSE);
                    State::Closed
                }
            };
        }
    }

    /// The open jobs in the order in which they are asked for a shard.
    pub fn in_line(&self, now: Instant) -> Vec<String> {
        let open = self
            .known
            .iter()
            .filter(|(_, job)| matches!(job.state, State::Open(_)) && !job.is_paused(now));
        let turns = open.map(|(name, job)| Turn {
            name,
            priority: job.registered.priority,
            in_hand: job.in_hand,
            claimed_at: job.claimed_at,
        });
        line(turns.collect())
    }

    /// The job's worker and the token that gives its shards back.
    pub fn worker(&self, name: &str) -> Option<(Arc<Worker>, CancellationToken)> {
        let job = self.known.get(name)?;
        match &job.state {
            State::Open(worker) => Some((worker.clone(), job.stop.clone())),
            State::Opening(_) | State::Closed => None,
        }
    }

    /// A shard of the job was claimed.
    pub fn pick_up(&mut self, name: &str) {
        self.claims += 1;
        if let Some(job) = self.known.get_mut(name) {
            job.in_hand += 1;
            job.claimed_at = self.claims;
        }
    }

    /// A shard of the job is out of hand.
    pub fn put_down(&mut self, name: &str) {
        if let Some(job) = self.known.get_mut(name) {
            job.in_hand = job.in_hand.saturating_sub(1);
        }
    }

    /// Closes the job until then, unless it was opened again since `failed` was its worker.
    pub fn close(&mut self, name: &str, failed: &Arc<Worker>, until: Instant) {
        let Some(job) = self.known.get_mut(name) else {
            return;
        };
        if matches!(&job.state, State::Open(worker) if Arc::ptr_eq(worker, failed)) {
            job.state = State::Closed;
            job.paused_until = Some(until);
        }
    }

    /// Asks the job for nothing until then.
    pub fn pause(&mut self, name: &str, until: Instant) {
        if let Some(job) = self.known.get_mut(name) {
            job.paused_until = Some(until);
        }
    }
}

impl Job {
    fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }
}

/// What decides a job's place in the line.
struct Turn<'a> {
    name: &'a str,
    priority: i32,
    in_hand: usize,
    claimed_at: u64,
}

/// By priority; within one, who holds the fewest shards goes first, and of those who has waited
/// longest: with more jobs than shards in hand each gets its turn.
fn line(mut turns: Vec<Turn>) -> Vec<String> {
    turns.sort_by_key(|turn| {
        (
            Reverse(turn.priority),
            turn.in_hand,
            turn.claimed_at,
            turn.name,
        )
    });
    turns.into_iter().map(|turn| turn.name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_stand_in_line_by_priority_and_then_by_shards_in_hand() {
        let turn = |name, priority, in_hand, claimed_at| Turn {
            name,
            priority,
            in_hand,
            claimed_at,
        };
        let turns = vec![
            turn("a", 0, 1, 7),
            turn("b", 0, 0, 6),
            turn("c", 0, 0, 5),
            turn("urgent", 5, 2, 8),
        ];
        assert_eq!(line(turns), ["urgent", "c", "b", "a"]);
    }
}
