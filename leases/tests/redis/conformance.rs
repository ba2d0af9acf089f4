//! What every lease store promises. Each claim is a test of the memory store and of the Redis store.

use std::time::Duration;

use futures::future::join_all;
use millrace_leases::{Acknowledgement, Claim, ERROR_BYTES_MAX, FailOutcome, Renewal, Snapshot};
use millrace_protocol::lease::{DeadLetter, Lease};
use millrace_protocol::tally::Tally;

use crate::subject::{OPTIONS, Subject, tally};

macro_rules! tests {
    ($($claim:ident)*) => {
        mod in_memory {
            $(#[test] fn $claim() { crate::subject::in_memory(super::$claim) })*
        }
        mod on_redis {
            $(#[test] fn $claim() { crate::subject::on_redis(super::$claim) })*
        }
    };
}

tests! {
    a_run_that_was_never_pushed_is_unknown
    a_run_with_nothing_to_do_is_drained
    open_shards_are_claimed_lowest_first
    the_last_leased_shard_makes_others_wait
    a_lease_names_the_worker_that_claimed_it
    pushing_again_leaves_known_shards_alone
    a_hundred_thousand_shards_can_be_pushed
    an_expired_lease_is_reclaimed
    a_renewed_lease_outlives_its_first_ttl
    a_reclaimed_lease_can_do_nothing_any_more
    an_expired_lease_is_refused_before_anybody_reclaims_it
    the_epoch_alone_is_no_lease
    an_acknowledgement_counts_once
    concurrent_acknowledgements_count_once
    a_found_commit_is_counted_once_from_every_state
    a_released_delivery_does_not_count_against_the_shard
    a_shard_that_keeps_failing_becomes_a_dead_letter
    a_shard_whose_workers_fall_silent_becomes_a_dead_letter
    a_permanent_failure_is_dead_at_once
    a_failure_reported_twice_counts_once
    a_long_error_is_cut
    dead_letters_are_listed_by_index_up_to_the_limit
    dead_letters_can_be_read_page_by_page
    a_done_shard_whose_commit_is_gone_can_be_opened_and_is_counted_once
    a_dead_shard_can_be_revived_with_all_its_deliveries
    opening_again_leaves_live_leases_and_unknown_shards_alone
    a_lease_of_before_a_shard_was_done_stays_powerless_when_it_is_opened_again
}

/// A little more than a lease lives.
fn past_ttl() -> Duration {
    OPTIONS.lease_ttl + Duration::from_secs(1)
}

async fn a_run_that_was_never_pushed_is_unknown(subject: &dyn Subject) {
    let leases = subject.leases();
    assert_eq!(leases.claim("a").await.unwrap(), Claim::Unknown);
    assert_eq!(leases.snapshot().await.unwrap(), Snapshot::default());
    // Counting what was committed is the first half of planning again, not all of it.
    leases.mark_committed(0, tally(0)).await.unwrap();
    assert_eq!(leases.claim("a").await.unwrap(), Claim::Unknown);
}

async fn a_run_with_nothing_to_do_is_drained(subject: &dyn Subject) {
    subject.leases().push(&[]).await.unwrap();
    assert_eq!(subject.leases().claim("a").await.unwrap(), Claim::Drained);
    let known = Snapshot {
        known: true,
        ..Snapshot::default()
    };
    assert_eq!(subject.leases().snapshot().await.unwrap(), known);
}

async fn open_shards_are_claimed_lowest_first(subject: &dyn Subject) {
    subject.leases().push(&[100, 9, 20]).await.unwrap();
    for expected in [9, 20, 100] {
        let lease = subject.lease("a").await;
        assert_eq!((lease.shard, lease.epoch), (expected, 1));
    }
}

async fn the_last_leased_shard_makes_others_wait(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    let lease = subject.lease("a").await;
    assert_eq!(leases.claim("b").await.unwrap(), Claim::Wait);
    assert_eq!(
        leases.acknowledge(&lease, &tally(0)).await.unwrap(),
        Acknowledgement::Counted
    );
    assert_eq!(leases.claim("b").await.unwrap(), Claim::Drained);
}

async fn a_lease_names_the_worker_that_claimed_it(subject: &dyn Subject) {
    subject.leases().push(&[0, 1]).await.unwrap();
    for owner in ["pod-a", "pod-b"] {
        assert!(subject.lease(owner).await.owner.starts_with(owner));
    }
}

async fn pushing_again_leaves_known_shards_alone(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0, 1, 2, 3]).await.unwrap();
    let done = subject.lease("a").await;
    leases.acknowledge(&done, &tally(done.shard)).await.unwrap();
    let dead = subject.lease("a").await;
    leases.fail(&dead, "broken", true).await.unwrap();
    let held = subject.lease("a").await;
    let before = leases.snapshot().await.unwrap();
    assert_eq!(
        (before.open, before.leased, before.done, before.dead),
        (1, 1, 1, 1)
    );

    leases.push(&[0, 1, 2, 3]).await.unwrap();
    assert_eq!(leases.snapshot().await.unwrap(), before);
    assert_eq!(leases.renew(&held).await.unwrap(), Renewal::Renewed);
    leases.push(&[3, 4]).await.unwrap();
    assert_eq!(
        leases.snapshot().await.unwrap(),
        Snapshot { open: 2, ..before }
    );
}

async fn a_hundred_thousand_shards_can_be_pushed(subject: &dyn Subject) {
    let leases = subject.leases();
    let shards: Vec<u32> = (0..100_000).collect();
    leases.push(&shards).await.unwrap();
    leases.push(&shards).await.unwrap();
    assert_eq!(leases.snapshot().await.unwrap().open, 100_000);
    assert_eq!(subject.lease("a").await.shard, 0);
}

async fn an_expired_lease_is_reclaimed(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0, 1]).await.unwrap();
    let first = subject.lease("a").await;
    subject.advance(past_ttl()).await;
    let second = subject.lease("b").await;
    assert_eq!((second.shard, second.epoch), (first.shard, first.epoch + 1));
    assert_eq!(subject.lease("b").await.shard, 1);
    assert_eq!(leases.claim("b").await.unwrap(), Claim::Wait);
}

async fn a_renewed_lease_outlives_its_first_ttl(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    let lease = subject.lease("a").await;
    for _ in 0..4 {
        subject.advance(OPTIONS.lease_ttl * 2 / 3).await;
        assert_eq!(leases.claim("b").await.unwrap(), Claim::Wait);
        assert_eq!(leases.renew(&lease).await.unwrap(), Renewal::Renewed);
    }
    let counted = leases.acknowledge(&lease, &tally(0)).await.unwrap();
    assert_eq!(counted, Acknowledgement::Counted);
    assert_eq!(leases.renew(&lease).await.unwrap(), Renewal::Lost);
}

/// Expects that a lease has no effect on anything.
async fn assert_powerless(subject: &dyn Subject, lease: &Lease) {
    let leases = subject.leases();
    let before = leases.snapshot().await.unwrap();
    assert_eq!(leases.renew(lease).await.unwrap(), Renewal::Lost);
    assert_eq!(
        leases.acknowledge(lease, &tally(9)).await.unwrap(),
        Acknowledgement::Lost
    );
    assert_eq!(
        leases.fail(lease, "late", true).await.unwrap(),
        FailOutcome::Lost
    );
    leases.release(lease).await.unwrap();
    assert_eq!(leases.snapshot().await.unwrap(), before);
}

async fn a_reclaimed_lease_can_do_nothing_any_more(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    let stale = subject.lease("a").await;
    subject.advance(past_ttl()).await;
    let live = subject.lease("a").await;
    assert_powerless(subject, &stale).await;
    assert_eq!(leases.renew(&live).await.unwrap(), Renewal::Renewed);
    leases.acknowledge(&live, &tally(0)).await.unwrap();
    // Its own commit may be the one that won: the shard is done, and counted.
    let late = leases.acknowledge(&stale, &tally(0)).await.unwrap();
    assert_eq!(late, Acknowledgement::AlreadyDone);
    assert_eq!(leases.snapshot().await.unwrap().tally, tally(0));
}

async fn an_expired_lease_is_refused_before_anybody_reclaims_it(subject: &dyn Subject) {
    subject.leases().push(&[0]).await.unwrap();
    let lease = subject.lease("a").await;
    subject.advance(past_ttl()).await;
    assert_powerless(subject, &lease).await;
}

async fn the_epoch_alone_is_no_lease(subject: &dyn Subject) {
    subject.leases().push(&[0]).await.unwrap();
    let lease = subject.lease("a").await;
    assert_powerless(
        subject,
        &Lease {
            owner: "b".into(),
            ..lease.clone()
        },
    )
    .await;
    assert_powerless(
        subject,
        &Lease {
            epoch: lease.epoch + 1,
            ..lease.clone()
        },
    )
    .await;
    assert_powerless(
        subject,
        &Lease {
            shard: 7,
            ..lease.clone()
        },
    )
    .await;
    assert_eq!(
        subject.leases().renew(&lease).await.unwrap(),
        Renewal::Renewed
    );
}

async fn an_acknowledgement_counts_once(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0, 1]).await.unwrap();
    for shard in [0, 1] {
        let lease = subject.lease("a").await;
        let replies = [
            leases.acknowledge(&lease, &tally(shard)).await.unwrap(),
            leases.acknowledge(&lease, &tally(shard)).await.unwrap(),
        ];
        assert_eq!(
            replies,
            [Acknowledgement::Counted, Acknowledgement::AlreadyDone]
        );
    }
    let tally = tally(0) + tally(1);
    let expected = Snapshot {
        known: true,
        done: 2,
        tally,
        ..Snapshot::default()
    };
    assert_eq!(leases.snapshot().await.unwrap(), expected);
}

async fn concurrent_acknowledgements_count_once(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    let lease = subject.lease("a").await;
    let replies = join_all((0..32).map(|_| async {
        match leases.acknowledge(&lease, &tally(0)).await.unwrap() {
            Acknowledgement::Counted => 1,
            Acknowledgement::AlreadyDone => 0,
            Acknowledgement::Lost => panic!("the lease is live or the shard done"),
        }
    }));
    assert_eq!(replies.await.into_iter().sum::<u32>(), 1);
    assert_eq!(leases.snapshot().await.unwrap().tally, tally(0));
}

async fn a_found_commit_is_counted_once_from_every_state(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0, 1, 2]).await.unwrap();
    let dead = subject.lease("a").await;
    leases.fail(&dead, "broken", true).await.unwrap();
    let held = subject.lease("a").await;
    let mut expected = Tally::default();
    // Dead, leased, open, and never pushed.
    for shard in 0..4 {
        let marked = leases.mark_committed(shard, tally(shard)).await.unwrap();
        assert_eq!(marked, Acknowledgement::Counted);
        let again = leases.mark_committed(shard, tally(shard)).await.unwrap();
        assert_eq!(again, Acknowledgement::AlreadyDone);
        expected += tally(shard);
    }
    assert_eq!(leases.renew(&held).await.unwrap(), Renewal::Lost);
    assert_eq!(leases.claim("a").await.unwrap(), Claim::Drained);
    assert_eq!(leases.dead_letters(0, 10).await.unwrap(), []);
    let done = Snapshot {
        known: true,
        done: 4,
        tally: expected,
        ..Snapshot::default()
    };
    assert_eq!(leases.snapshot().await.unwrap(), done);
}

async fn a_released_delivery_does_not_count_against_the_shard(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    for epoch in 1..=10 {
        let lease = subject.lease("a").await;
        assert_eq!(lease.epoch, epoch);
        leases.release(&lease).await.unwrap();
        leases.release(&lease).await.unwrap();
    }
    let lease = subject.lease("a").await;
    assert_eq!(
        leases.fail(&lease, "once", false).await.unwrap(),
        FailOutcome::Requeued
    );
}

async fn a_shard_that_keeps_failing_becomes_a_dead_letter(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[5]).await.unwrap();
    for (error, expected) in [
        ("first", FailOutcome::Requeued),
        ("second", FailOutcome::Requeued),
        ("third", FailOutcome::Dead),
    ] {
        let lease = subject.lease("a").await;
        assert_eq!(leases.fail(&lease, error, false).await.unwrap(), expected);
    }
    assert_eq!(leases.claim("a").await.unwrap(), Claim::Drained);
    let expected = DeadLetter {
        shard: 5,
        deliveries: 3,
        error: "third".into(),
    };
    assert_eq!(leases.dead_letters(0, 10).await.unwrap(), [expected]);
}

async fn a_shard_whose_workers_fall_silent_becomes_a_dead_letter(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[5]).await.unwrap();
    for _ in 0..OPTIONS.deliveries_max {
        subject.lease("a").await;
        subject.advance(past_ttl()).await;
    }
    assert_eq!(leases.claim("a").await.unwrap(), Claim::Drained);
    let letters = leases.dead_letters(0, 10).await.unwrap();
    assert_eq!((letters[0].shard, letters[0].deliveries), (5, 3));
    assert!(letters[0].error.contains("ran out"), "{}", letters[0].error);
}

async fn a_permanent_failure_is_dead_at_once(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    let lease = subject.lease("a").await;
    assert_eq!(
        leases.fail(&lease, "truncated", true).await.unwrap(),
        FailOutcome::Dead
    );
    let expected = DeadLetter {
        shard: 0,
        deliveries: 1,
        error: "truncated".into(),
    };
    assert_eq!(leases.dead_letters(0, 10).await.unwrap(), [expected]);
}

async fn a_failure_reported_twice_counts_once(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    for expected in [
        FailOutcome::Requeued,
        FailOutcome::Requeued,
        FailOutcome::Dead,
    ] {
        let lease = subject.lease("a").await;
        assert_eq!(leases.fail(&lease, "again", false).await.unwrap(), expected);
        assert_eq!(
            leases.fail(&lease, "again", false).await.unwrap(),
            FailOutcome::Lost
        );
    }
}

async fn a_long_error_is_cut(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    let lease = subject.lease("a").await;
    leases
        .fail(&lease, &"ü".repeat(ERROR_BYTES_MAX), true)
        .await
        .unwrap();
    let letters = leases.dead_letters(0, 1).await.unwrap();
    assert_eq!(letters[0].error, "ü".repeat(ERROR_BYTES_MAX / 2));
}

async fn dead_letters_are_listed_by_index_up_to_the_limit(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[10, 9, 100]).await.unwrap();
    for _ in 0..3 {
        let lease = subject.lease("a").await;
        leases
            .fail(&lease, &format!("shard {}", lease.shard), true)
            .await
            .unwrap();
    }
    for (limit, expected) in [(0, vec![]), (2, vec![9, 10]), (9, vec![9, 10, 100])] {
        let letters = leases.dead_letters(0, limit).await.unwrap();
        let shards: Vec<u32> = letters.iter().map(|letter| letter.shard).collect();
        assert_eq!(shards, expected);
        assert!(
            letters
                .iter()
                .all(|letter| letter.error == format!("shard {}", letter.shard))
        );
    }
}

async fn dead_letters_can_be_read_page_by_page(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[1, 2, 3, 4, 50]).await.unwrap();
    for _ in 0..5 {
        let lease = subject.lease("a").await;
        leases.fail(&lease, "broken", true).await.unwrap();
    }
    for (first, expected) in [
        (0, vec![1, 2]),
        (3, vec![3, 4]),
        (5, vec![50]),
        (51, vec![]),
    ] {
        let letters = leases.dead_letters(first, 2).await.unwrap();
        let shards: Vec<u32> = letters.iter().map(|letter| letter.shard).collect();
        assert_eq!(shards, expected);
    }
}

async fn a_done_shard_whose_commit_is_gone_can_be_opened_and_is_counted_once(
    subject: &dyn Subject,
) {
    let leases = subject.leases();
    leases.push(&[0, 1]).await.unwrap();
    let lease = subject.lease("a").await;
    leases.acknowledge(&lease, &tally(0)).await.unwrap();
    leases.mark_committed(1, tally(1)).await.unwrap();
    for _ in 0..2 {
        leases.reopen(&[0]).await.unwrap();
        let expected = Snapshot {
            known: true,
            open: 1,
            done: 1,
            tally: tally(1),
            ..Snapshot::default()
        };
        assert_eq!(leases.snapshot().await.unwrap(), expected);
    }
    let again = subject.lease("a").await;
    assert_eq!(again.shard, 0);
    leases.acknowledge(&again, &tally(0)).await.unwrap();
    let snapshot = leases.snapshot().await.unwrap();
    assert_eq!((snapshot.done, snapshot.tally), (2, tally(0) + tally(1)));
    assert_eq!(leases.claim("a").await.unwrap(), Claim::Drained);
}

async fn a_dead_shard_can_be_revived_with_all_its_deliveries(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[5]).await.unwrap();
    let mut last_epoch = 0;
    for _ in 0..2 {
        for delivery in 1..=OPTIONS.deliveries_max {
            let lease = subject.lease("a").await;
            assert!(lease.epoch > last_epoch, "epochs grow");
            last_epoch = lease.epoch;
            let failed = leases.fail(&lease, "again", false).await.unwrap();
            assert_eq!(
                failed == FailOutcome::Dead,
                delivery == OPTIONS.deliveries_max
            );
        }
        leases.reopen(&[5]).await.unwrap();
        leases.reopen(&[5]).await.unwrap();
        assert_eq!(leases.dead_letters(0, 10).await.unwrap(), []);
    }
    let expected = Snapshot {
        known: true,
        open: 1,
        ..Snapshot::default()
    };
    assert_eq!(leases.snapshot().await.unwrap(), expected);
}

async fn opening_again_leaves_live_leases_and_unknown_shards_alone(subject: &dyn Subject) {
    let leases = subject.leases();
    leases.push(&[0, 1]).await.unwrap();
    let held = subject.lease("a").await;
    let before = leases.snapshot().await.unwrap();
    leases.reopen(&[0, 1, 7]).await.unwrap();
    assert_eq!(leases.snapshot().await.unwrap(), before);
    assert_eq!(leases.renew(&held).await.unwrap(), Renewal::Renewed);
}

async fn a_lease_of_before_a_shard_was_done_stays_powerless_when_it_is_opened_again(
    subject: &dyn Subject,
) {
    let leases = subject.leases();
    leases.push(&[0]).await.unwrap();
    let stale = subject.lease("a").await;
    leases.mark_committed(0, tally(0)).await.unwrap();
    leases.reopen(&[0]).await.unwrap();
    let live = subject.lease("a").await;
    assert_eq!(live.epoch, stale.epoch + 1);
    assert_powerless(subject, &stale).await;
    assert_eq!(leases.renew(&live).await.unwrap(), Renewal::Renewed);
}
