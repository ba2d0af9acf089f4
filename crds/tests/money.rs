//! What is refused of prices and budgets.

use millrace_crds::check::{check, check_update};
use millrace_crds::manifest::Kind;
use serde_json::{Value, json};

fn job(max_cost: Value) -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": "comments"},
        "spec": {
            "serviceRef": {"name": "writer"},
            "input": {"uris": ["posts.jsonl"]},
            "output": {"uri": "out"},
            "budget": {"maxCost": max_cost},
        },
    })
}

fn service(api: &str, pricing: Value) -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "writer"},
        "spec": {"remote": {
            "baseUrl": "https://api.example.com/v1", "api": api, "model": "m", "pricing": pricing,
        }},
    })
}

/// Exactly one problem, which begins with `expected`; none if that is empty.
fn expect(kind: Kind, object: &Value, expected: &str) {
    let problems = check(kind, object).err().unwrap_or_default();
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    match expected {
        "" => assert_eq!(problems, [""; 0], "{object}"),
        _ => assert!(
            problems.len() == 1 && problems[0].starts_with(expected),
            "{problems:#?} instead of {expected}"
        ),
    }
}

#[test]
fn amounts_of_money_are_decimal_numbers_in_strings() {
    for good in ["0", "0.15", "12.50", "999999.999999"] {
        expect(Kind::BatchJob, &job(json!(good)), "");
    }
    for bad in [
        json!("-1"),
        json!("1e3"),
        json!("0.1234567"),
        json!("1,5"),
        json!(12.5),
    ] {
        expect(Kind::BatchJob, &job(bad), "spec.budget.maxCost: ");
    }
}

#[test]
fn prices_are_those_of_prompts_and_of_answers() {
    let both = json!({"inputPerMillionTokens": "1", "outputPerMillionTokens": "2"});
    let input = json!({"inputPerMillionTokens": "1"});
    let mut dollars = both.clone();
    dollars["currency"] = json!("dollars");
    for (api, pricing, expected) in [
        ("Chat", both, ""),
        (
            "Chat",
            input.clone(),
            "spec.remote: pricing needs outputPerMillionTokens",
        ),
        ("Embeddings", input, ""),
        ("Chat", dollars, "spec.remote.pricing.currency: "),
    ] {
        expect(Kind::InferenceService, &service(api, pricing), expected);
    }
}

#[test]
fn a_budget_can_be_changed_while_the_job_is_there() {
    let budget = |max: &str| job(json!(max));
    for (old, new) in [("1", "2"), ("2", "1")] {
        check_update(Kind::BatchJob, &budget(old), &budget(new)).unwrap();
    }
}
