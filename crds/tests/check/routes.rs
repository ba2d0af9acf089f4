//! What is refused of routes.

use millrace_crds::check::check_update;
use millrace_crds::manifest::Kind;
use serde_json::{Value, json};

use super::{assert_stays_within, job, problems, refused, with};

/// A job with these routes and one step.
fn routed(routes: Value) -> Value {
    let mut job = job();
    let spec = job["spec"].as_object_mut().unwrap();
    spec.remove("serviceRef");
    spec.insert("steps".to_owned(), json!([{"name": "mood"}]));
    spec.insert("routes".to_owned(), routes);
    job
}

fn routes() -> Value {
    json!([
        {
            "name": "cheap", "when": "text|length < 400",
            "arms": [
                {"serviceRef": {"name": "mini"}, "weight": 9},
                {"serviceRef": {"name": "nano"}, "weight": 1},
            ],
            "escalate": {"when": "mood.confidence < 0.7", "to": "strong"},
        },
        {"name": "strong", "serviceRef": {"name": "large"}},
    ])
}

#[test]
fn routes_stand_in_the_place_of_a_service() {
    assert_eq!(problems(&routed(routes())), Vec::<String>::new());
    let both = with(
        routed(routes()),
        "/spec/serviceRef",
        json!({"name": "mini"}),
    );
    refused(&both, "spec: give exactly one of serviceRef");
    let in_chunks = with(routed(routes()), "/spec/input/chunking", json!({}));
    refused(
        &in_chunks,
        "spec: input.chunking cannot be used with routes",
    );
    let without_steps = with(routed(routes()), "/spec/steps", json!(null));
    refused(&without_steps, "spec: routes needs steps");
    let without_model = with(job(), "/spec/steps", json!([{"name": "mood"}]));
    refused(&without_model, "spec: each step needs model");
}

#[test]
fn a_route_leads_to_no_other_namespace() {
    let job = routed(routes());
    for service in ["/spec/routes/0/arms/0", "/spec/routes/1"] {
        assert_stays_within(&job, &format!("{service}/serviceRef"));
    }
}

#[test]
fn a_route_that_cannot_be_followed_is_refused() {
    for (pointer, value, expected) in [
        (
            "/1/when",
            json!("true"),
            "spec: one of routes must be without `when`",
        ),
        (
            "/0/serviceRef",
            json!({"name": "mini"}),
            "spec.routes[0]: give either serviceRef",
        ),
        (
            "/0/arms/1/serviceRef/name",
            json!("mini"),
            "spec.routes[0]: arms must be of different",
        ),
        (
            "/0/arms/0/weight",
            json!(0),
            "spec.routes[0].arms[0].weight: ",
        ),
        (
            "/0/escalate/to",
            json!("cheap"),
            "spec.routes[0]: escalate.to is the route itself",
        ),
        (
            "/0/escalate/to",
            json!("nowhere"),
            "spec: escalate.to must be the name",
        ),
        ("/1/name", json!("cheap"), "spec.routes"),
        ("/1/name", json!("a route"), "spec.routes[1].name: "),
    ] {
        // Nobody escalates to a route that is called otherwise.
        let mut routes = routes();
        if pointer == "/1/name" {
            routes[0].as_object_mut().unwrap().remove("escalate");
        }
        refused(&routed(with(routes, pointer, value)), expected);
    }
    let many: Vec<Value> = (0..11)
        .map(|route| json!({"name": format!("r{route}"), "serviceRef": {"name": "mini"}}))
        .collect();
    refused(&routed(json!(many)), "spec.routes: ");
}

#[test]
fn routes_cannot_be_changed() {
    let other = with(routes(), "/0/when", json!("text|length < 500"));
    let problems = check_update(Kind::BatchJob, &routed(routes()), &routed(other)).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0]
            .to_string()
            .starts_with("spec: routes cannot be changed")
    );
}
