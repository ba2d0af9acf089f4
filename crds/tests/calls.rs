//! What is refused of how an API is asked.

use millrace_crds::check::check;
use millrace_crds::manifest::Kind;
use serde_json::json;

#[test]
fn only_what_is_written_comes_piece_by_piece() {
    for (api, stream, is_fine) in [
        ("Chat", true, true),
        ("Responses", true, true),
        ("Embeddings", false, true),
        ("Embeddings", true, false),
    ] {
        let service = json!({
            "apiVersion": "millrace.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": "writer"},
            "spec": {"remote": {
                "baseUrl": "https://api.example.com/v1", "api": api, "model": "m", "stream": stream,
            }},
        });
        let problems = check(Kind::InferenceService, &service).err();
        let problems = problems.unwrap_or_default();
        assert_eq!(problems.is_empty(), is_fine, "{api} {stream}: {problems:?}");
    }
}

#[test]
fn limits_that_say_nothing_together_are_refused_by_name() {
    for (limits, refused) in [
        (json!({"requestsPerDay": 5, "tokensPerDay": 1_000}), None),
        (
            json!({"algorithm": "TokenBucket", "tokensPerMinute": 9}),
            None,
        ),
        (
            json!({"algorithm": "TokenBucket", "requestsPerMinute": 9, "requestsBurst": 9}),
            None,
        ),
        (
            json!({"algorithm": "TokenBucket", "tokensPerDay": 9}),
            Some("algorithm TokenBucket needs"),
        ),
        (
            json!({"requestsPerMinute": 9, "requestsBurst": 3}),
            Some("need algorithm TokenBucket"),
        ),
        (
            json!({"algorithm": "TokenBucket", "tokensPerMinute": 9, "requestsBurst": 3}),
            Some("requestsBurst needs requestsPerMinute"),
        ),
        (
            json!({"algorithm": "TokenBucket", "tokensPerMinute": 9, "tokensBurst": 10}),
            Some("tokensBurst needs tokensPerMinute, and can be at most as much"),
        ),
        (json!({"algorithm": "LeakyBucket"}), Some("algorithm")),
    ] {
        let service = json!({
            "apiVersion": "millrace.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": "writer"},
            "spec": {"remote": {
                "baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m",
                "limits": limits,
            }},
        });
        let problems = check(Kind::InferenceService, &service).err();
        let problems = format!("{:?}", problems.unwrap_or_default());
        match refused {
            None => assert_eq!(problems, "[]", "{limits}"),
            Some(words) => assert!(problems.contains(words), "{limits}: {problems}"),
        }
    }
}
