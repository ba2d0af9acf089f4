//! What the chart makes of the operator: its rights, its place, and what it is told.

use serde_json::{Value, json};

use crate::chart::{EVERYTHING, EXTERNAL, named, render, variable};
use crate::programs::of_kubernetes;

#[test]
fn the_operator_may_do_nothing_that_it_does_not_do() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let objects = render(&helm, &[]);
    let verbs = |role: &str, name: &str, resource: &str| -> Vec<String> {
        let role = named(&objects, role, name).expect("a role");
        let rules = role["rules"].as_array().expect("rules").iter();
        let of_resource = rules.filter(|rule| {
            let resources = rule["resources"].as_array().expect("resources");
            resources.iter().any(|it| it == resource)
        });
        let verbs = of_resource.flat_map(|rule| rule["verbs"].as_array().expect("verbs"));
        verbs
            .map(|it| it.as_str().expect("a verb").to_owned())
            .collect()
    };
    let everywhere = |resource| verbs("ClusterRole", "millrace", resource);
    assert_eq!(everywhere("batchjobs"), ["list", "watch", "delete"]);
    assert_eq!(everywhere("batchjobs/status"), ["patch"]);
    assert_eq!(everywhere("batchjobs/finalizers"), [""; 0]);
    assert_eq!(everywhere("pods"), ["list", "patch"]);
    let kept = ["get", "list", "watch", "create", "patch"];
    let deleted_as_well = [&kept[..], &["delete"]].concat();
    assert_eq!(everywhere("jobs"), deleted_as_well);
    assert_eq!(everywhere("configmaps"), deleted_as_well);
    for kind in ["services", "deployments", "networkpolicies"] {
        assert_eq!(everywhere(kind), kept, "{kind}");
    }
    assert_eq!(everywhere("leases"), [""; 0], "only at home");
    let at_home = |resource| verbs("Role", "millrace-election", resource);
    assert_eq!(at_home("leases"), ["create", "get", "update"]);
    assert_eq!(at_home("deployments"), ["get"]);
    let told = variable(&objects, "MILLRACE_DEPLOYMENT").expect("the operator is told");
    assert!(
        named(
            &objects,
            "Deployment",
            told["value"].as_str().expect("a name")
        )
        .is_some()
    );
}

#[test]
fn the_operator_runs_where_and_as_the_values_say() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let objects = render(&helm, EVERYTHING);
    let operator = named(&objects, "Deployment", "millrace-operator").expect("an operator");
    let template = &operator["spec"]["template"];
    let pod = &template["spec"];
    assert_eq!(pod["nodeSelector"], json!({"pool": "system"}));
    assert_eq!(pod["tolerations"], json!([{"key": "system"}]));
    assert_eq!(pod["priorityClassName"], "important");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    let spread = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
    }]);
    assert_eq!(pod["topologySpreadConstraints"], spread);
    assert_eq!(template["metadata"]["labels"]["team"], "search");
    assert_eq!(template["metadata"]["annotations"]["team"], "search");
    let log = variable(&objects, "MILLRACE_LOG").expect("a further variable");
    assert_eq!(log["value"], "debug");
}

#[test]
fn the_operator_is_told_who_reaches_pods_and_what_they_reach() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let told = |set: &[&str], name: &str| -> Option<Value> {
        let objects = render(&helm, set);
        let text = variable(&objects, name)?["value"].as_str()?.to_owned();
        Some(serde_json::from_str(&text).expect("JSON"))
    };
    assert_eq!(told(&[], "MILLRACE_POD_INGRESS_FROM"), None);
    assert_eq!(told(&[], "MILLRACE_POD_EGRESS"), None, "the usual one");
    let monitoring = json!([{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]);
    assert_eq!(
        told(EVERYTHING, "MILLRACE_POD_INGRESS_FROM"),
        Some(monitoring)
    );
    let narrow = "networkPolicy.pods.egress[0].to[0].ipBlock.cidr=10.0.0.0/8";
    let rules = told(&[EVERYTHING, &[narrow]].concat(), "MILLRACE_POD_EGRESS");
    let rules = rules.expect("rules");
    let component = |rule: usize| {
        let peer = &rules[rule]["to"][0];
        assert!(
            peer["namespaceSelector"].is_object(),
            "the pods are elsewhere"
        );
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"].clone()
    };
    assert_eq!(rules[0]["ports"][0]["port"], 53, "names");
    assert_eq!(
        (component(1), component(2)),
        (json!("leases"), json!("cache"))
    );
    assert_eq!(rules[3]["ports"][0]["port"], 4318, "traces");
    assert_eq!(
        rules[4],
        json!({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]})
    );
    let rules = told(&[EXTERNAL, &[narrow]].concat(), "MILLRACE_POD_EGRESS").expect("rules");
    let ports = [&rules[1], &rules[2]].map(|rule| rule["ports"][0]["port"].clone());
    assert_eq!(ports, [json!(6379), json!(6390)], "Redis of one's own");
}
