//! Users per namespace: what one may not do, and that they come back.

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::{
    Claim, JobRegistry, LeaseError, LeaseOptions, LeaseStore, NamespaceUsers, RedisLeaseStore,
    RedisOptions, RunKey, UsersError,
};
use millrace_protocol::registry::RegisteredJob;

/// The users of a server, and the options with which each of two namespaces reaches it.
async fn two_namespaces(server: &RedisServer) -> (NamespaceUsers, [RedisOptions; 2]) {
    server.command::<()>(&[
        "ACL", "SETUSER", "admin", "on", ">secret", "~*", "&*", "+@all",
    ]);
    let url = server.url().replace("redis://", "redis://admin:secret@");
    let users = NamespaceUsers::new(&RedisOptions::new(url)).unwrap();
    let mut options = Vec::new();
    for namespace in ["tenant", "tenant-2"] {
        users.admit(namespace).await.unwrap();
        options.push(RedisOptions::new(users.url(namespace)));
    }
    (users, options.try_into().ok().expect("two"))
}

fn leases(redis: &RedisOptions, namespace: &str) -> RedisLeaseStore {
    let run = RunKey {
        namespace: namespace.to_owned(),
        job: "job".to_owned(),
        uid: None,
        run: 1,
    };
    RedisLeaseStore::new(redis, &run, LeaseOptions::default()).unwrap()
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, LeaseError>) {
    let error = answer.expect_err("the user has no right");
    assert!(matches!(error, LeaseError::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn a_namespace_works_with_its_own_keys_and_sees_no_others() {
    let server = RedisServer::start();
    let (_users, [own, other]) = two_namespaces(&server).await;
    let mine = leases(&own, "tenant");
    mine.push(&[0, 1]).await.unwrap();
    let Claim::Lease(lease) = mine.claim("a").await.unwrap() else {
        panic!("a shard is open");
    };
    mine.renew(&lease).await.unwrap();
    mine.fail(&lease, "broken", false).await.unwrap();
    let Claim::Lease(lease) = mine.claim("a").await.unwrap() else {
        panic!("a shard is open");
    };
    mine.acknowledge(&lease, &Default::default()).await.unwrap();
    mine.snapshot().await.unwrap();
    mine.dead_letters(0, 10).await.unwrap();

    let registry = JobRegistry::new(&own, "tenant", "service").unwrap();
    let job = RegisteredJob {
        priority: 0,
        manifests: String::new(),
        credentials: None,
    };
    registry.put("job", &job).await.unwrap();
    assert_eq!(registry.list().await.unwrap().len(), 1);
    registry.workers().await.unwrap();
    registry.remove("job").await.unwrap();

    assert_refused(leases(&other, "tenant").snapshot().await);
    assert_refused(leases(&other, "tenant").claim("thief").await);
    let registry = JobRegistry::new(&other, "tenant", "service").unwrap();
    assert_refused(registry.put("job", &job).await);
    mine.forget().await.unwrap();
}

#[tokio::test]
async fn a_namespace_keeps_answers_that_no_other_reads_or_changes() {
    let server = RedisServer::start();
    let (_users, [own, other]) = two_namespaces(&server).await;
    let key = "millrace:{tenant/cache}:a";
    for (words, expected) in [
        (&["SET", key, "answer", "PX", "60000"][..], "OK"),
        (&["GET", key], "answer"),
    ] {
        let said = server.command_as::<String>(&own.url, words);
        assert_eq!(said.expect("it is its own"), expected);
        let refused = server.command_as::<String>(&other.url, words);
        let refused = refused.expect_err("it is another's").to_string();
        assert!(refused.to_lowercase().contains("permission"), "{refused}");
    }
    let many = ["MGET", key, "millrace:{tenant/cache}:b"];
    let said = server.command_as::<Vec<Option<String>>>(&own.url, &many);
    assert_eq!(said.unwrap(), [Some("answer".to_owned()), None]);
    let refused = server.command_as::<Vec<Option<String>>>(&other.url, &many);
    assert!(refused.is_err());
}

#[tokio::test]
async fn a_namespace_cannot_look_around_or_stop_others() {
    let server = RedisServer::start();
    let (_users, [own, _]) = two_namespaces(&server).await;
    for words in [
        &["KEYS", "*"][..],
        &["SCAN", "0"],
        &["RANDOMKEY"],
        &["FLUSHALL"],
        &["CONFIG", "GET", "*"],
        &["CLIENT", "LIST"],
        &["ACL", "LIST"],
        &["SCRIPT", "FLUSH"],
        &["SHUTDOWN"],
        &["MONITOR"],
        &["EVAL", "return redis.call('KEYS', '*')", "0"],
    ] {
        let refused = server.command_as::<()>(&own.url, words);
        let refused = refused.expect_err("the user has no right").to_string();
        let says = |words: &str| refused.to_lowercase().contains(words);
        assert!(
            says("permission") || says("can't run"),
            "{words:?}: {refused}"
        );
    }
}

#[tokio::test]
async fn users_that_the_server_lost_come_back_with_the_same_password() {
    let server = RedisServer::start();
    let (users, [own, _]) = two_namespaces(&server).await;
    server.command::<()>(&["ACL", "DELUSER", "millrace-tenant"]);
    let patient = RedisOptions {
        refusals_pass: true,
        ..own.clone()
    };
    assert_refused(leases(&own, "tenant").snapshot().await);
    let away = leases(&patient, "tenant").snapshot().await.unwrap_err();
    assert!(away.is_unavailable(), "{away:?}");
    users.keep().await.unwrap();
    leases(&patient, "tenant").snapshot().await.unwrap();
    leases(&own, "tenant").snapshot().await.unwrap();
}

#[tokio::test]
async fn without_a_password_there_is_nothing_to_derive_one_from() {
    let refused = NamespaceUsers::new(&RedisOptions::new("redis://127.0.0.1:1")).map(drop);
    assert!(matches!(refused, Err(UsersError::NoPassword)));
}
