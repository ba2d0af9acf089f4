//! What players leave in the output store.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use millrace_leases::RunKey;
use millrace_protocol::cost::Cost;
use millrace_protocol::forecast::Forecast;
use millrace_protocol::plan::FIRST_RUN;
use millrace_protocol::routes::RouteTally;
use millrace_protocol::tally::{Rows, Tally};

/// What lies in the output store, and what the world has to say.
#[derive(Default)]
pub struct Store {
    /// Committed shards by [`commits_key`] of their run.
    pub commits: BTreeMap<String, BTreeMap<u32, Tally>>,
    /// How often a manifest was written.
    pub manifests: usize,
    /// Commits after which the workers pause.
    pub commits_max: Option<usize>,
    /// Whether it cannot be reached, so that no step ends.
    pub is_away: bool,
    /// What went wrong last.
    pub trouble: Option<String>,
}

impl Store {
    /// How many shards are committed, over all runs.
    pub fn count(&self) -> usize {
        self.commits.values().map(BTreeMap::len).sum()
    }

    /// Whether the workers do not pause.
    pub fn may_commit(&self) -> bool {
        self.commits_max.is_none_or(|most| self.count() < most)
    }

    /// Commits a shard, unless it is: the first commit wins.
    pub fn commit(&mut self, run: &RunKey, shard: u32) -> Tally {
        let commits = self.commits.entry(commits_key(run)).or_default();
        *commits.entry(shard).or_insert(tally_of(shard))
    }
}

/// The uid of a job, with the number of the run unless it is the first.
pub fn commits_key(run: &RunKey) -> String {
    let uid = run.uid.clone().unwrap_or_default();
    match run.run {
        FIRST_RUN => uid,
        run => format!("{uid}/{run}"),
    }
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

/// What is there now.
pub fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}
