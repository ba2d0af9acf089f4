//! The `openai` Python client is content with the stand-in: it is faithful to what it stands in for.

use std::path::PathBuf;
use std::process::Stdio;

use millrace_stand_in::{StandIn, StandInOptions};

/// The client's Python, which `cargo xtask setup` installs.
fn python() -> PathBuf {
    let named = std::env::var_os("MILLRACE_OPENAI_PYTHON").map(PathBuf::from);
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let python = named.unwrap_or_else(|| home.join(".cache/millrace/openai/bin/python"));
    assert!(
        python.exists(),
        "{} is missing: run `cargo xtask setup`",
        python.display()
    );
    python
}

async fn check(script: &str, options: StandInOptions) -> StandIn {
    let stand_in = StandIn::start(options).await.unwrap();
    let path = std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap())
        .join("tests/python")
        .join(script);
    let child = tokio::process::Command::new(python())
        .arg(path)
        .env("OPENAI_API_KEY", "sk-stand-in")
        .env("OPENAI_BASE_URL", stand_in.base_url())
        .stdin(Stdio::null())
        .output();
    let output = child.await.unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    stand_in
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_reads_every_kind_of_answer() {
    let stand_in = check("answers.py", StandInOptions::default()).await;
    let record = stand_in.record();
    let mut let_in = record.calls.iter().filter(|call| call.is_let_in);
    assert!(let_in.all(|call| call.status == Some(200)));
    assert_eq!(
        record.with_status(400).count(),
        1,
        "a request without input"
    );
    assert!(record.calls.iter().all(|call| call.key == "sk-stand-in"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_obeys_the_limits_that_it_is_told_of() {
    let options = StandInOptions {
        requests_per_minute: Some(5),
        // Sixty seconds pass in two.
        time_factor: 30.0,
        ..StandInOptions::default()
    };
    let record = check("limits.py", options).await.record();
    assert_eq!(record.peak().requests, 5);
    assert!(record.with_status(429).count() > 0);
}
