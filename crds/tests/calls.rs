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
