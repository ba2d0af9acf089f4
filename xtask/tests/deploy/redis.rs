//! The Redis servers of the leases and of the cache: who has them, and how they are reached.

use serde_json::{Value, json};

use crate::chart::{EXTERNAL, named, render, variable};
use crate::programs::of_kubernetes;

#[test]
fn there_is_a_cache_only_where_it_is_asked_for() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let without = render(&helm, &[]);
    assert!(named(&without, "Deployment", "millrace-cache").is_none());
    assert!(variable(&without, "MILLRACE_CACHE_REDIS_URL").is_none());
    let with = render(&helm, &["cache.enabled=true", "cache.redis.maxmemory=1gb"]);
    let cache = named(&with, "Deployment", "millrace-cache").expect("a cache");
    assert_told(
        cache,
        &[
            ["--maxmemory", "1gb"],
            ["--maxmemory-policy", "allkeys-lru"],
        ],
    );
    let external = render(&helm, EXTERNAL);
    assert!(named(&external, "Deployment", "millrace-cache").is_none());
}

/// Checks that the Redis of an object is started with these options.
fn assert_told(object: &Value, options: &[[&str; 2]]) {
    let args = &object["spec"]["template"]["spec"]["containers"][0]["args"];
    let args = args.as_array().expect("arguments").iter();
    let args: Vec<&str> = args.filter_map(Value::as_str).collect();
    for option in options {
        assert!(args.windows(2).any(|it| it == option), "{args:?}");
    }
}

#[test]
fn the_redis_of_the_leases_refuses_to_write_before_it_forgets_or_is_killed() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let told = |sets: &[&str], maxmemory: &str| {
        let objects = render(&helm, sets);
        let leases = named(&objects, "StatefulSet", "millrace-leases").expect("leases");
        assert_told(
            leases,
            &[
                ["--maxmemory", maxmemory],
                ["--maxmemory-policy", "noeviction"],
                ["--appendonly", "yes"],
            ],
        );
        let limits = &leases["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"];
        assert_eq!(limits["memory"], "512Mi");
    };
    told(&[], "384mb");
    told(&["leases.redis.maxmemory=100mb"], "100mb");
}

#[test]
fn a_url_in_a_secret_stands_nowhere_else() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let objects = render(&helm, EXTERNAL);
    assert!(named(&objects, "StatefulSet", "millrace-leases").is_none());
    let secret = named(&objects, "Secret", "millrace-operator").expect("the URL of the cache");
    assert!(secret["stringData"].get("redis-url").is_none());
    let expected = json!({"secretKeyRef": {"name": "redis", "key": "url"}});
    let of_operator = variable(&objects, "MILLRACE_LEASES_REDIS_URL").expect("a variable");
    assert_eq!(of_operator["valueFrom"], expected);
    let test = named(&objects, "Pod", "millrace-test").expect("a test");
    assert_eq!(
        test["spec"]["containers"][0]["env"][0]["valueFrom"],
        expected
    );
    let both = [
        "leases.redis.urlSecret.name=a",
        "cache.redis.urlSecret.name=b",
        "cache.enabled=true",
    ];
    assert!(named(&render(&helm, &both), "Secret", "millrace-operator").is_none());
}

#[test]
fn a_bundled_redis_has_a_password_and_a_user_for_each_namespace() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let value = |objects: &[Value], name: &str| {
        let variable = variable(objects, name).expect("a variable");
        variable["value"].as_str().expect("a value").to_owned()
    };
    let bundled = render(&helm, &["cache.enabled=true"]);
    for (kind, component) in [("StatefulSet", "leases"), ("Deployment", "cache")] {
        let name = format!("millrace-{component}");
        let prefix = format!("MILLRACE_{}", component.to_uppercase());
        let secret = named(&bundled, "Secret", &name).expect("a Secret");
        let password = secret["stringData"]["password"].as_str().expect("one");
        assert_eq!(password.len(), 32);
        assert_eq!(
            value(&bundled, &format!("{prefix}_NAMESPACE_USERS")),
            "true"
        );
        let url = format!("redis://default:$({prefix}_PASSWORD)@{name}.system.svc:6379");
        assert_eq!(value(&bundled, &format!("{prefix}_REDIS_URL")), url);
        let redis = named(&bundled, kind, &name).expect("a Redis");
        let redis = &redis["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(
            [&redis["args"][0], &redis["args"][1]],
            ["--requirepass", "$(PASSWORD)"]
        );
        let source = json!({"secretKeyRef": {"name": name, "key": "password"}});
        assert_eq!(redis["env"][0]["valueFrom"], source);
        let of_operator = variable(&bundled, &format!("{prefix}_PASSWORD")).expect("a variable");
        assert_eq!(of_operator["valueFrom"], source);
    }

    let given = render(&helm, &["leases.redis.passwordSecret.name=mine"]);
    assert!(named(&given, "Secret", "millrace-leases").is_none());
    let source = json!({"secretKeyRef": {"name": "mine", "key": "password"}});
    let of_operator = variable(&given, "MILLRACE_LEASES_PASSWORD").expect("a variable");
    assert_eq!(of_operator["valueFrom"], source);

    let external = render(&helm, EXTERNAL);
    assert_eq!(value(&external, "MILLRACE_LEASES_NAMESPACE_USERS"), "false");
    let asked = [EXTERNAL, &["leases.redis.namespaceUsers=true"]].concat();
    assert_eq!(
        value(&render(&helm, &asked), "MILLRACE_LEASES_NAMESPACE_USERS"),
        "true"
    );
}
