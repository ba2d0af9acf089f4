//! Where results go besides the output, and who is told.

use serde_json::{Value, json};

use crate::{job, problems, refused, with};

#[test]
fn a_table_has_a_name_that_needs_no_quotes_and_a_secret() {
    let to = |postgres: Value| with(job(), "/spec/output/postgres", postgres);
    let secret = json!({"name": "db"});
    let fine = json!({"secretRef": secret, "table": "texts_2026", "schema": "nlp"});
    assert!(problems(&to(fine)).is_empty());
    for table in ["a-b", "1st", "a.b", "a\"; drop table b"] {
        let bad = json!({"secretRef": secret, "table": table});
        refused(&to(bad), "spec.output.postgres.table: ");
    }
    refused(&to(json!({"table": "texts"})), "spec.output.postgres");
    let bad = json!({"secretRef": {"name": "Db"}, "table": "texts"});
    refused(&to(bad), "spec.output.postgres.secretRef.name: ");
}

#[test]
fn a_receiver_is_a_url_without_credentials() {
    let to = |url: &str| with(job(), "/spec/notify", json!({"url": url}));
    for url in [
        "https://example.com",
        "http://hooks.tenant.svc:8080/millrace?team=nlp",
    ] {
        assert!(problems(&to(url)).is_empty(), "{url}");
    }
    for url in [
        "ftp://example.com",
        "https://user:secret@example.com/",
        "example.com",
        "https://example.com/#a",
    ] {
        refused(&to(url), "spec.notify: ");
        let text = problems(&to(url)).join("\n");
        assert!(!text.contains("secret"), "{text}");
    }
}
