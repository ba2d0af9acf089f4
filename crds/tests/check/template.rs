//! What the pods of a service get.

use serde_json::{Value, json};

use crate::{problems, refused, service, with};

#[test]
fn labels_by_which_the_operator_finds_pods_are_its_own() {
    let labelled = |name: &str| {
        let labels = json!({name: "search"});
        with(service(), "/spec/template", json!({"podLabels": labels}))
    };
    assert_eq!(
        problems(&labelled("example.com/team")),
        Vec::<String>::new()
    );
    refused(
        &labelled("millrace.dev/inference-service"),
        "spec: template.podLabels: labels of millrace.dev",
    );
}

#[test]
fn pods_spread_over_places_that_are_named() {
    let spread = |constraint: Value| {
        let constraints = json!({"topologySpreadConstraints": [constraint]});
        with(service(), "/spec/template", constraints)
    };
    let zone = json!({"topologyKey": "topology.kubernetes.io/zone"});
    assert_eq!(problems(&spread(zone)), Vec::<String>::new());
    refused(
        &spread(json!({"maxSkew": 1})),
        "spec.template.topologySpread",
    );
    let wrong = json!({"topologyKey": "zone", "whenUnsatisfiable": "Never"});
    refused(&spread(wrong), "spec.template.topologySpread");
}
