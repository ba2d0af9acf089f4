//! What the store on Redis does when the server loses its data, stops, stalls or is full.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use millrace_leases::{
    Acknowledgement, Claim, LeaseError, LeaseOptions, LeaseStore, RedisLeaseStore, RedisOptions,
    Renewal,
};
use millrace_protocol::{lease::Lease, plan::ShardIndex};

use crate::proxy::Proxy;
use crate::subject::{OPTIONS, OnRedis, Subject, connect, run, tally};
use millrace_e2e::redis_server::RedisServer;

/// How long a store may need until it works again after the server does.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// A store that gives up on a command soon, for tests in which the server does not answer.
fn impatient(port: u16) -> RedisLeaseStore {
    let url = format!("redis://127.0.0.1:{port}");
    let redis = RedisOptions {
        command_timeout: Duration::from_millis(500),
        ..RedisOptions::new(url)
    };
    RedisLeaseStore::new(&redis, &run(), OPTIONS).unwrap()
}

fn expect_lease(claim: Claim) -> Lease {
    match claim {
        Claim::Lease(lease) => lease,
        other => panic!("a lease was expected, not {other:?}"),
    }
}

/// Claims as a worker does: waits while the store is unavailable.
async fn claim_patiently(leases: &dyn LeaseStore, owner: &str) -> Claim {
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    loop {
        match leases.claim(owner).await {
            Ok(claim) => return claim,
            Err(error) if error.is_unavailable() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("the store does not recover: {error:?}"),
        }
    }
}

/// Expects that a call fails for now, and in bounded time.
async fn assert_unavailable<T: std::fmt::Debug>(call: impl Future<Output = Result<T, LeaseError>>) {
    let started = Instant::now();
    let error = call.await.expect_err("the store is away");
    assert!(error.is_unavailable(), "{error:?}");
    assert!(
        started.elapsed() < RECOVERY_TIMEOUT,
        "took {:?}",
        started.elapsed()
    );
}

/// Works off what is left, planning again where the store lost the run: marks what the test knows
/// as committed and pushes the rest.
async fn drain(leases: &dyn LeaseStore, shards: u32, committed: &mut BTreeSet<ShardIndex>) {
    for _ in 0..10 * shards {
        match claim_patiently(leases, "drainer").await {
            Claim::Lease(lease) => {
                leases
                    .acknowledge(&lease, &tally(lease.shard))
                    .await
                    .unwrap();
                committed.insert(lease.shard);
            }
            Claim::Unknown => {
                for shard in committed.iter() {
                    leases.mark_committed(*shard, tally(*shard)).await.unwrap();
                }
                let open: Vec<u32> = (0..shards).filter(|s| !committed.contains(s)).collect();
                leases.push(&open).await.unwrap();
            }
            Claim::Wait => panic!("nobody else works"),
            Claim::Drained => return,
        }
    }
    panic!("the run does not drain");
}

#[tokio::test]
async fn after_flushall_the_run_is_unknown_and_can_be_rebuilt() {
    let server = RedisServer::start();
    let leases = connect(&server, &run());
    leases.push(&[0, 1, 2, 3]).await.unwrap();
    let done = expect_lease(leases.claim("a").await.unwrap());
    leases.acknowledge(&done, &tally(done.shard)).await.unwrap();
    let held = expect_lease(leases.claim("a").await.unwrap());

    server.command::<()>(&["FLUSHALL"]);
    assert_eq!(leases.renew(&held).await.unwrap(), Renewal::Lost);
    let lost = leases.acknowledge(&held, &tally(held.shard)).await.unwrap();
    assert_eq!(lost, Acknowledgement::Lost);
    assert!(!leases.snapshot().await.unwrap().known);
    assert_eq!(leases.claim("a").await.unwrap(), Claim::Unknown);

    let mut committed = BTreeSet::from([done.shard]);
    drain(&leases, 4, &mut committed).await;
    assert_eq!(committed, BTreeSet::from([0, 1, 2, 3]));
    let snapshot = leases.snapshot().await.unwrap();
    assert_eq!(
        (snapshot.done, snapshot.tally),
        (4, (0..4).map(tally).sum())
    );
}

#[tokio::test]
async fn losing_any_single_key_loses_no_shard() {
    let server = RedisServer::start();
    for lost in [
        "open",
        "leased",
        "owners",
        "claims",
        "epochs",
        "deliveries",
        "errors",
        "dead",
        "done",
        "records",
        "counters",
    ] {
        server.command::<()>(&["FLUSHALL"]);
        let subject = OnRedis::new(&server, run());
        let leases = subject.leases();
        leases.push(&[0, 1, 2, 3, 4, 5]).await.unwrap();
        let done = subject.lease("a").await;
        leases.acknowledge(&done, &tally(done.shard)).await.unwrap();
        let dead = subject.lease("a").await;
        leases.fail(&dead, "broken", true).await.unwrap();
        subject.lease("a").await;
        subject.lease("b").await;

        assert_eq!(
            server.command::<u32>(&["DEL", &run().key(lost)]),
            1,
            "{lost} existed"
        );
        subject.advance(OPTIONS.lease_ttl * 2).await;
        let mut committed = BTreeSet::from([done.shard]);
        drain(leases, 6, &mut committed).await;
        // The dead letter is done only where that it was dead is what was lost.
        committed.insert(dead.shard);
        assert_eq!(
            committed,
            BTreeSet::from([0, 1, 2, 3, 4, 5]),
            "after {lost} was lost"
        );
    }
}

#[tokio::test]
async fn leases_survive_a_restart_of_the_server() {
    let mut server = RedisServer::start();
    let leases = connect(&server, &run());
    leases.push(&[0, 1, 2]).await.unwrap();
    let done = expect_lease(leases.claim("a").await.unwrap());
    leases.acknowledge(&done, &tally(0)).await.unwrap();
    let held = expect_lease(leases.claim("a").await.unwrap());
    let before = leases.snapshot().await.unwrap();

    server.stop();
    assert_unavailable(leases.renew(&held)).await;
    assert_unavailable(leases.claim("a")).await;
    server.start_again();

    assert_eq!(expect_lease(claim_patiently(&leases, "a").await).shard, 2);
    assert_eq!(leases.renew(&held).await.unwrap(), Renewal::Renewed);
    let counted = leases.acknowledge(&held, &tally(held.shard)).await.unwrap();
    assert_eq!(counted, Acknowledgement::Counted);
    let after = leases.snapshot().await.unwrap();
    assert_eq!((after.done, after.leased), (before.done + 1, before.leased));
    assert_eq!(after.tally, tally(0) + tally(held.shard));
}

#[tokio::test]
async fn a_full_server_goes_on_with_what_it_has_and_takes_nothing_new() {
    let server = RedisServer::start();
    let leases = connect(&server, &run());
    leases.push(&[0, 1, 2]).await.unwrap();
    let [first, second] = [
        expect_lease(leases.claim("a").await.unwrap()),
        expect_lease(leases.claim("b").await.unwrap()),
    ];

    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_unavailable(leases.push(&[3])).await;
    assert_eq!(leases.renew(&first).await.unwrap(), Renewal::Renewed);
    let counted = leases.acknowledge(&first, &tally(0)).await.unwrap();
    assert_eq!(counted, Acknowledgement::Counted);
    leases.release(&second).await.unwrap();
    let snapshot = leases.snapshot().await.unwrap();
    assert_eq!((snapshot.open, snapshot.leased, snapshot.done), (2, 0, 1));
    assert_eq!(expect_lease(leases.claim("c").await.unwrap()).shard, 1);

    server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    leases.push(&[3]).await.unwrap();
    assert_eq!(leases.snapshot().await.unwrap().open, 2);
}

#[tokio::test]
async fn a_frozen_server_is_unavailable_and_gives_no_second_shard() {
    let server = RedisServer::start();
    let leases = impatient(server.port());
    claim_patiently(&leases, "a").await;
    connect(&server, &run()).push(&[0, 1, 2]).await.unwrap();

    server.freeze();
    for _ in 0..3 {
        assert_unavailable(leases.claim("a")).await;
    }
    server.thaw();
    let lease = expect_lease(claim_patiently(&leases, "a").await);
    assert_eq!(lease.shard, 0);
    let snapshot = connect(&server, &run()).snapshot().await.unwrap();
    assert_eq!((snapshot.open, snapshot.leased), (2, 1));
}

#[tokio::test]
async fn calls_whose_replies_are_lost_can_be_repeated_on_a_new_connection() {
    let server = RedisServer::start();
    connect(&server, &run()).push(&[0, 1, 2]).await.unwrap();
    let proxy = Proxy::start(server.port()).await;
    let leases = impatient(proxy.port);
    let held = expect_lease(claim_patiently(&leases, "a").await);
    // The server knows the scripts from now on, so that one request is all a call needs.
    connect(&server, &run())
        .mark_committed(2, tally(2))
        .await
        .unwrap();

    proxy.lose_replies();
    assert_unavailable(leases.claim("a")).await;
    wait_for_leased(&server, 2).await;
    proxy.heal();
    // The silent connection is never used again, and the claim that had its effect is repeated.
    let repeated = expect_lease(claim_patiently(&leases, "a").await);
    assert_eq!((repeated.shard, repeated.epoch), (1, 1));
    assert_eq!(connect(&server, &run()).snapshot().await.unwrap().leased, 2);

    proxy.lose_replies();
    assert_unavailable(leases.acknowledge(&held, &tally(0))).await;
    wait_for_leased(&server, 1).await;
    proxy.heal();
    let mut again = leases.acknowledge(&held, &tally(0)).await;
    while again.as_ref().is_err_and(LeaseError::is_unavailable) {
        again = leases.acknowledge(&held, &tally(0)).await;
    }
    assert_eq!(again.unwrap(), Acknowledgement::AlreadyDone);
    assert_eq!(leases.snapshot().await.unwrap().tally, tally(0) + tally(2));
}

/// Waits until a command whose reply was lost has had its effect.
async fn wait_for_leased(server: &RedisServer, leased: u64) {
    let leases = connect(server, &run());
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    while leases.snapshot().await.unwrap().leased != leased {
        assert!(Instant::now() < deadline, "{leased} leases were expected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_expired_leases_are_reclaimed_by_eight_workers_none_twice() {
    let server = RedisServer::start();
    let subject = OnRedis::new(&server, run());
    subject
        .leases()
        .push(&(0..200).collect::<Vec<_>>())
        .await
        .unwrap();
    for _ in 0..200 {
        subject.lease("dead").await;
    }
    subject.advance(OPTIONS.lease_ttl * 2).await;

    let stores: Vec<RedisLeaseStore> = (0..8).map(|_| connect(&server, &run())).collect();
    let workers = stores.iter().enumerate().map(|(index, leases)| async move {
        let mut claimed = Vec::new();
        while let Claim::Lease(lease) = leases.claim(&format!("worker-{index}")).await.unwrap() {
            claimed.push(lease);
        }
        claimed
    });
    let claimed: Vec<Lease> = join_all(workers).await.concat();
    let shards: BTreeSet<ShardIndex> = claimed.iter().map(|lease| lease.shard).collect();
    assert_eq!((claimed.len(), shards.len()), (200, 200));
    assert!(claimed.iter().all(|lease| lease.epoch == 2));
}

#[tokio::test]
async fn concurrent_acknowledgements_over_many_connections_count_once() {
    let server = RedisServer::start();
    let leases = connect(&server, &run());
    leases.push(&[0]).await.unwrap();
    let lease = expect_lease(leases.claim("a").await.unwrap());
    let stores: Vec<RedisLeaseStore> = (0..8).map(|_| connect(&server, &run())).collect();
    let tally = tally(0);
    let replies = join_all(
        stores
            .iter()
            .map(|leases| leases.acknowledge(&lease, &tally)),
    )
    .await;
    let is_counted = |reply: &&Result<_, _>| matches!(reply, Ok(Acknowledgement::Counted));
    assert_eq!(replies.iter().filter(is_counted).count(), 1);
    assert_eq!(leases.snapshot().await.unwrap().tally, tally);
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_runs_out_by_the_servers_clock() {
    let server = RedisServer::start();
    let ttl = Duration::from_millis(100);
    let options = LeaseOptions {
        lease_ttl: ttl,
        ..OPTIONS
    };
    let leases = RedisLeaseStore::new(&RedisOptions::new(server.url()), &run(), options).unwrap();
    leases.push(&[0]).await.unwrap();
    let stale = expect_lease(leases.claim("a").await.unwrap());
    tokio::time::sleep(ttl * 3).await;
    assert_eq!(leases.renew(&stale).await.unwrap(), Renewal::Lost);
    let lost = leases.acknowledge(&stale, &tally(0)).await.unwrap();
    assert_eq!(lost, Acknowledgement::Lost);
    assert_eq!(expect_lease(leases.claim("b").await.unwrap()).epoch, 2);
}

#[tokio::test]
async fn a_server_demoted_to_a_replica_is_unavailable_until_it_is_a_primary_again() {
    let server = RedisServer::start();
    let leases = connect(&server, &run());
    leases.push(&[0]).await.unwrap();
    server.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_unavailable(leases.claim("a")).await;
    server.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(expect_lease(leases.claim("a").await.unwrap()).shard, 0);
}

#[tokio::test]
async fn a_server_with_no_room_for_connections_is_unavailable() {
    let server = RedisServer::start();
    let (first, second) = (connect(&server, &run()), connect(&server, &run()));
    first.push(&[0]).await.unwrap();
    server.command::<()>(&["CONFIG", "SET", "maxclients", "1"]);
    assert_unavailable(second.claim("a")).await;
    assert_eq!(expect_lease(first.claim("a").await.unwrap()).shard, 0);
}

#[tokio::test]
async fn what_waiting_does_not_help_is_not_unavailable() {
    let server = RedisServer::start();
    let leases = connect(&server, &run());
    server.command::<()>(&["SET", &run().key("open"), "not ours"]);
    let error = leases.claim("a").await.unwrap_err();
    assert!(matches!(error, LeaseError::Corrupt(_)), "{error:?}");

    server.command::<()>(&["CONFIG", "SET", "requirepass", "secret"]);
    let error = connect(&server, &run()).claim("a").await.unwrap_err();
    assert!(matches!(error, LeaseError::Refused(_)), "{error:?}");

    let redis = RedisOptions::new(server.url().replace("//", "//default:wrong@"));
    let wrong = RedisLeaseStore::new(&redis, &run(), OPTIONS).unwrap();
    let error = wrong.claim("a").await.unwrap_err();
    assert!(matches!(error, LeaseError::Refused(_)), "{error:?}");

    let redis = RedisOptions::new("http://127.0.0.1/");
    let error = RedisLeaseStore::new(&redis, &run(), OPTIONS).err().unwrap();
    assert!(matches!(error, LeaseError::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn every_key_of_a_run_expires_when_nobody_touches_it() {
    let server = RedisServer::start();
    let leases = connect(&server, &run());
    leases.push(&[0, 1, 2, 3]).await.unwrap();
    for permanent in [true, false] {
        let lease = expect_lease(leases.claim("a").await.unwrap());
        leases.fail(&lease, "broken", permanent).await.unwrap();
    }
    let lease = expect_lease(leases.claim("a").await.unwrap());
    leases
        .acknowledge(&lease, &tally(lease.shard))
        .await
        .unwrap();
    expect_lease(leases.claim("a").await.unwrap());
    let keys: Vec<String> = server.command(&["KEYS", "*"]);
    assert_eq!(keys.len(), 11, "{keys:?}");
    for key in keys {
        assert!(
            key.starts_with("millrace:{default/reviews//0001}:"),
            "{key}"
        );
        assert!(server.command::<i64>(&["PTTL", &key]) > 0, "{key}");
    }
}

#[tokio::test]
async fn runs_on_one_server_do_not_meet() {
    let server = RedisServer::start();
    let one = connect(&server, &run());
    let two = connect(&server, &millrace_leases::RunKey { run: 2, ..run() });
    one.push(&[0]).await.unwrap();
    assert_eq!(two.claim("a").await.unwrap(), Claim::Unknown);
    assert_eq!(expect_lease(one.claim("a").await.unwrap()).shard, 0);
}
