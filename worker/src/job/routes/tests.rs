//! Which route and which arm a row gets, and what routes cannot do.

use serde_json::json;

use super::*;
use crate::job::{CheckedJob, check_all};

fn manifest<K: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: Value) -> K {
    let manifest = json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(manifest).unwrap()
}

fn api(name: &str, more: Value) -> InferenceService {
    let mut remote = json!({"baseUrl": "https://api.example.com/v1", "api": "Chat", "model": name});
    for (key, value) in more.as_object().unwrap() {
        remote[key] = value.clone();
    }
    manifest("InferenceService", name, json!({"remote": remote}))
}

fn own(name: &str) -> InferenceService {
    let model =
        json!({"name": "m", "task": "SequenceClassification", "source": {"uri": "hf://a/b"}});
    manifest("InferenceService", name, json!({"models": [model]}))
}

fn check(services: &[InferenceService], more: Value) -> Result<CheckedJob, JobError> {
    let mut spec = json!({
        "routes": [
            {
                "name": "cheap", "when": "text|length < 9", "serviceRef": {"name": "mini"},
                "escalate": {"when": "mood.confidence < 0.7", "to": "strong"},
            },
            {"name": "strong", "arms": [
                {"serviceRef": {"name": "large"}, "weight": 3},
                {"serviceRef": {"name": "other"}, "weight": 1},
            ]},
        ],
        "steps": [{"name": "mood", "prompt": {"template": "{{ title }}"}}],
        "input": {"uris": ["a.jsonl"], "textField": "text"}, "output": {"uri": "out"},
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let job = manifest("BatchJob", "job", spec);
    check_all(
        &job,
        &services[0],
        &services[1..],
        std::path::Path::new("/"),
    )
}

fn three(first: InferenceService) -> [InferenceService; 3] {
    [first, api("large", json!({})), api("other", json!({}))]
}

fn routing(services: &[InferenceService]) -> Arc<Routing> {
    check(services, json!({})).unwrap().routing.unwrap()
}

fn hash_of(row: u32) -> ContentHash {
    *Sha256::digest(row.to_le_bytes()).first_chunk().unwrap()
}

#[test]
fn the_first_route_whose_condition_holds_takes_a_row() {
    let routing = routing(&three(api("mini", json!({}))));
    assert_eq!(routing.fields(), ["text"]);
    let first = |fields: &str| {
        let arm = routing.first(fields, hash_of(0)).unwrap();
        arm.route_name.clone()
    };
    assert_eq!(first(r#"{"text": "short"}"#), "cheap");
    assert_eq!(first(r#"{"text": "longer than that"}"#), "strong");
    assert_eq!(first("{}"), "strong", "a row that lacks the field");
}

#[test]
fn an_answer_that_is_not_good_enough_goes_to_the_route_that_is_named() {
    let routing = routing(&three(api("mini", json!({}))));
    let cheap = routing.named("cheap", None).unwrap();
    let next = |answer: Value| {
        let answer = [Prediction::Answer(answer)];
        let next = routing.next(cheap, &answer, hash_of(0)).unwrap();
        next.map(|arm| arm.route_name.clone())
    };
    assert_eq!(next(json!({"confidence": 0.9})), None);
    assert_eq!(next(json!({"confidence": 0.3})).as_deref(), Some("strong"));
    assert_eq!(next(json!({"mood": "good"})).as_deref(), Some("strong"));
    let strong = routing.first("{}", hash_of(0)).unwrap();
    let answer = [Prediction::Answer(json!({}))];
    assert_eq!(routing.next(strong, &answer, hash_of(0)), Ok(None));
}

#[test]
fn arms_get_their_shares_and_a_row_gets_the_same_one_every_time() {
    let services = three(api("mini", json!({})));
    let (once, again) = (routing(&services), routing(&services));
    let arm = |routing: &Routing, row| {
        let arm = routing.first("{}", hash_of(row)).unwrap();
        arm.name.clone().unwrap()
    };
    let of_large = (0..4_000).filter(|&row| arm(&once, row) == "large").count();
    assert!((2_900..3_100).contains(&of_large), "{of_large} of 4000");
    assert!((0..100).all(|row| arm(&once, row) == arm(&again, row)));
}

#[test]
fn each_service_does_the_steps_with_its_own_model_and_a_server_gets_no_prompt() {
    let routes = json!([
        {
            "name": "cheap", "when": "text|length < 9", "serviceRef": {"name": "mini"},
            "escalate": {"when": "mood[0].score < 0.7", "to": "strong"},
        },
        {"name": "strong", "serviceRef": {"name": "large"}},
    ]);
    let job = check(&three(own("mini")), json!({"routes": routes})).unwrap();
    let routing = job.routing.as_ref().unwrap();
    let steps = |index: usize| routing.services()[index].steps[0].clone();
    assert_eq!((steps(0).model.as_str(), steps(0).prompt), ("m", None));
    assert_eq!(steps(1).model, "large");
    assert!(steps(1).prompt.is_some());
    assert_eq!(job.input.fields.prompted, ["title", "text"]);
    assert_eq!(job.remotes().count(), 1);
}

#[test]
fn routes_decide_answers_and_so_does_each_of_their_services() {
    let hash = |services: &[InferenceService], more| {
        let job = check(services, more).unwrap();
        (job.answers_sha256, job.spec_sha256)
    };
    let services = three(api("mini", json!({})));
    let plain = hash(&services, json!({}));
    let limits = json!({"limits": {"requestsPerMinute": 5}});
    assert_eq!(plain, hash(&three(api("mini", limits)), json!({})));
    let responses = three(api("mini", json!({"api": "Responses"})));
    assert_ne!(plain, hash(&responses, json!({})));
    let one = json!({"routes": [{"name": "cheap", "serviceRef": {"name": "mini"}}]});
    assert_ne!(plain, hash(&services, one));
}

#[test]
fn what_routes_cannot_do_is_said_with_their_field() {
    let route = |more: Value| {
        let mut route = json!({"name": "cheap", "serviceRef": {"name": "mini"}});
        for (key, value) in more.as_object().unwrap() {
            route[key] = value.clone();
        }
        json!({"routes": [route, {"name": "strong", "serviceRef": {"name": "large"}}]})
    };
    let to_strong = |when: &str| json!({"escalate": {"when": when, "to": "strong"}});
    let mini = || three(api("mini", json!({})));
    let priced = |currency: &str| {
        let pricing = json!({
            "inputPerMillionTokens": "1", "outputPerMillionTokens": "1", "currency": currency,
        });
        json!({"pricing": pricing})
    };
    let two = |first, second| [first, second, api("other", json!({}))];
    let models = json!([
        {"name": "m", "task": "Embedding", "source": {"uri": "hf://a/b"}},
        {"name": "n", "task": "Embedding", "source": {"uri": "hf://a/b"}},
    ]);
    let several = manifest("InferenceService", "mini", json!({"models": models}));
    for (services, more, expected) in [
        (
            mini(),
            route(json!({"when": "a =="})),
            "spec.routes[0].when: ",
        ),
        (
            mini(),
            route(json!({})),
            "spec.routes[1]: no row comes to it",
        ),
        (
            mini(),
            route(to_strong("tone < 1")),
            "spec.routes[0].escalate.when: names \"tone\", which is no step",
        ),
        (
            two(own("mini"), own("large")),
            route(to_strong("mood < 1")),
            "spec.routes[1]: InferenceService \"large\" has a server",
        ),
        (
            two(api("mini", priced("EUR")), api("large", priced("USD"))),
            route(to_strong("mood < 1")),
            "spec.routes: the services name prices in EUR and in USD",
        ),
        (
            three(several),
            json!({}),
            "spec.steps[0].model: InferenceService \"mini\" has 2 models",
        ),
        (
            mini(),
            json!({"steps": [{"name": "mood", "model": "mini"}]}),
            "spec.steps[0].model: InferenceService \"large\" has no model \"mini\"",
        ),
        (
            mini(),
            json!({"budget": {"maxCost": "1"}}),
            "spec.budget.maxCost: InferenceService \"mini\" names no prices",
        ),
    ] {
        let error = check(&services, more).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error} instead of {expected}");
    }
}

#[test]
fn a_condition_on_what_no_answer_has_is_refused_as_far_as_that_is_known() {
    let schema = |more: Value| {
        let mut schema = json!({
            "type": "object",
            "properties": {
                "team": {"type": "string"},
                "marks": {"type": "array", "items": {"type": "number"}},
            },
        });
        for (key, value) in more.as_object().unwrap() {
            schema[key] = value.clone();
        }
        json!({"template": "{{ text }}", "outputSchema": schema})
    };
    let (closed, open) = (json!({"additionalProperties": false}), json!({}));
    let check = |service: InferenceService, prompt: Value, when: &str| {
        let routes = json!([
            {
                "name": "cheap", "serviceRef": {"name": "mini"},
                "escalate": {"when": when, "to": "strong"},
            },
            {"name": "strong", "serviceRef": {"name": "large"}},
        ]);
        let steps = json!([{"name": "mood", "prompt": prompt}]);
        let checked = check(&three(service), json!({"routes": routes, "steps": steps}));
        checked.map(|_| ()).map_err(|error| error.to_string())
    };
    let api = || api("mini", json!({}));
    let plain = json!({"template": "{{ text }}"});
    for (service, prompt, when) in [
        (
            own("mini"),
            plain.clone(),
            "mood[0].score < 0.7 and mood|length > 1",
        ),
        (
            api(),
            schema(closed.clone()),
            "mood.team == 'a' or mood.marks[1] < 2",
        ),
        (api(), schema(open), "mood.confidence < 0.7"),
        (api(), plain.clone(), "mood.confidence < 0.7"),
    ] {
        assert_eq!(check(service, prompt, when), Ok(()), "{when}");
    }
    for (service, prompt, when, expected) in [
        (
            own("mini"),
            plain.clone(),
            "mood[0].scor < 0.7",
            "mood[0].scor is in no answer; mood[0] has label, score",
        ),
        (
            own("mini"),
            plain,
            "mood.score < 0.7",
            "mood is a list, so that mood.score is in no answer; write mood[0]",
        ),
        (
            api(),
            schema(closed.clone()),
            "mood.teem == 'a'",
            "mood.teem is in no answer; mood has marks, team",
        ),
        (
            api(),
            schema(closed),
            "mood.team.name == 'a'",
            "mood.team has no fields",
        ),
    ] {
        let error = check(service, prompt, when).unwrap_err();
        assert_eq!(error, format!("spec.routes[0].escalate.when: {expected}"));
    }
}
