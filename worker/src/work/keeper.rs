//! Keeps a lease alive while its shard is worked off, and tells when it is lost.

use std::time::Duration;

use millrace_protocol::lease::Lease;
use tokio::time::Instant;

use millrace_leases::{LeaseStore, Renewal};

/// Why a lease is no longer ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The lease store refused the renewal: somebody else may hold the shard.
    Refused,
    /// The lease store could not be asked in time, so the lease may have expired there.
    Unreachable,
}

/// Renews `lease` every third of `ttl`; returns when it is lost, at the latest a heartbeat before
/// the TTL since the last successful renewal is over, by this process's monotonic clock. `claimed_at`
/// is the moment before the lease was asked for: it may have begun at any time since then.
pub async fn keep(
    leases: &dyn LeaseStore,
    lease: &Lease,
    ttl: Duration,
    claimed_at: Instant,
) -> Lost {
    let heartbeat = ttl / 3;
    let (mut renewed_at, mut next) = (claimed_at, claimed_at + heartbeat);
    loop {
        tokio::time::sleep_until(next).await;
        let asked_at = Instant::now();
        next = asked_at + heartbeat;
        let deadline = renewed_at + ttl - heartbeat / 2;
        match tokio::time::timeout_at(deadline, leases.renew(lease)).await {
            Ok(Ok(Renewal::Renewed)) => renewed_at = asked_at,
            Ok(Ok(Renewal::Lost)) => return Lost::Refused,
            Ok(Err(error)) => {
                tracing::warn!(shard = lease.shard, %error, "the lease could not be renewed");
                if Instant::now() + heartbeat >= deadline {
                    return Lost::Unreachable;
                }
            }
            Err(_) => return Lost::Unreachable,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use millrace_protocol::lease::DeadLetter;
    use millrace_protocol::plan::ShardIndex;
    use millrace_protocol::tally::Tally;

    use super::*;
    use millrace_leases::{Acknowledgement, Claim, FailOutcome, LeaseError, Snapshot};

    const TTL: Duration = Duration::from_secs(30);

    /// Answers renewals from a script; `None` hangs for ever, as a stalled connection does.
    struct Scripted(Mutex<Vec<Option<Renewal>>>);

    #[async_trait]
    impl LeaseStore for Scripted {
        async fn renew(&self, _lease: &Lease) -> Result<Renewal, LeaseError> {
            let next = self.0.lock().unwrap().pop();
            match next.flatten() {
                Some(renewal) => Ok(renewal),
                None => std::future::pending().await,
            }
        }
        async fn push(&self, _: &[ShardIndex]) -> Result<(), LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn reopen(&self, _: &[ShardIndex]) -> Result<(), LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn mark_committed(
            &self,
            _: ShardIndex,
            _: Tally,
        ) -> Result<Acknowledgement, LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn claim(&self, _: &str) -> Result<Claim, LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn acknowledge(&self, _: &Lease, _: &Tally) -> Result<Acknowledgement, LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn release(&self, _: &Lease) -> Result<(), LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn fail(&self, _: &Lease, _: &str, _: bool) -> Result<FailOutcome, LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn snapshot(&self) -> Result<Snapshot, LeaseError> {
            unreachable!("a keeper only renews")
        }
        async fn dead_letters(
            &self,
            _: ShardIndex,
            _: usize,
        ) -> Result<Vec<DeadLetter>, LeaseError> {
            unreachable!("a keeper only renews")
        }
    }

    async fn keep_with(script: Vec<Option<Renewal>>) -> (Lost, Duration) {
        keep_after(Duration::ZERO, script).await
    }

    /// Keeps a lease whose claim took a while.
    async fn keep_after(
        claim_took: Duration,
        mut script: Vec<Option<Renewal>>,
    ) -> (Lost, Duration) {
        script.reverse();
        let leases = Scripted(Mutex::new(script));
        let lease = Lease {
            shard: 0,
            epoch: 1,
            owner: "o".to_owned(),
        };
        let claimed_at = Instant::now();
        tokio::time::advance(claim_took).await;
        let started = Instant::now();
        let lost = keep(&leases, &lease, TTL, claimed_at).await;
        (lost, started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_renewal_loses_the_lease_at_once() {
        let (lost, after) = keep_with(vec![Some(Renewal::Renewed), Some(Renewal::Lost)]).await;
        assert_eq!((lost, after), (Lost::Refused, TTL / 3 * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_cannot_renew_stops_before_its_lease_ends() {
        let (lost, after) = keep_with(vec![Some(Renewal::Renewed), None]).await;
        assert_eq!(lost, Lost::Unreachable);
        let since_last_renewal = after - TTL / 3;
        assert!(since_last_renewal < TTL, "{since_last_renewal:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_a_claim_took_is_time_of_the_lease() {
        let claim_took = TTL * 2 / 3;
        let (lost, after) = keep_after(claim_took, vec![None]).await;
        assert_eq!(lost, Lost::Unreachable);
        assert!(claim_took + after < TTL, "{after:?}");
    }
}
