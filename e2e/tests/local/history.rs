//! The checker: reads an output the way a reader would and holds it against the input.

use std::collections::BTreeMap;
use std::path::Path;

use millrace_protocol::layout;
use millrace_protocol::manifest::Manifest;
use millrace_protocol::result::{ErrorLine, ResultLine};
use millrace_protocol::row::{Place, RowErrorCode};

/// How each row ended, by position: the result's JSON, or the error's code.
pub type Outcomes = BTreeMap<(String, Place), Result<String, RowErrorCode>>;

/// The manifest of an output.
pub fn manifest(output: &Path) -> Manifest {
    let bytes = std::fs::read(output.join(layout::MANIFEST))
        .unwrap_or_else(|error| panic!("no manifest in {}: {error}", output.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// Reads every visible line; panics where a row is visible twice, where counts and lines disagree,
/// or where a file lies about that no commit names.
pub fn outcomes(output: &Path) -> Outcomes {
    let manifest = manifest(output);
    let mut outcomes = Outcomes::new();
    let mut named = Vec::new();
    for live in &manifest.parts {
        let commit = &live.commit;
        let results = lines(output, &commit.part);
        let errors = lines(output, &commit.errors);
        assert_eq!(
            results.len() as u64,
            commit.rows.succeeded,
            "shard {}",
            commit.shard
        );
        assert_eq!(
            errors.len() as u64,
            commit.rows.failed,
            "shard {}",
            commit.shard
        );
        for line in results {
            let line: ResultLine = serde_json::from_str(&line).unwrap();
            let key = (line.position.file.clone(), line.position.place);
            let twice = outcomes.insert(key, Ok(line.result.get().to_owned()));
            assert!(
                twice.is_none(),
                "a second visible result at {}",
                line.position
            );
        }
        for line in errors {
            let line: ErrorLine = serde_json::from_str(&line).unwrap();
            let key = (line.position.file.clone(), line.position.place);
            let twice = outcomes.insert(key, Err(line.error.code));
            assert!(
                twice.is_none(),
                "a second visible outcome at {}",
                line.position
            );
        }
        named.extend(
            [&commit.part, &commit.errors]
                .into_iter()
                .flatten()
                .cloned(),
        );
    }
    let total = manifest.totals.rows.succeeded + manifest.totals.rows.failed;
    assert_eq!(outcomes.len() as u64, total, "the manifest's totals");
    if manifest.complete {
        assert_no_leftovers(output, &named);
    }
    outcomes
}

/// Asserts that exactly the rows at `offsets` of `file` ended, each once.
pub fn assert_every_row_once(outcomes: &Outcomes, file: &str, offsets: &[u64]) {
    let seen: Vec<_> = outcomes.keys().cloned().collect();
    let expected: Vec<_> = offsets
        .iter()
        .map(|&offset| (file.to_owned(), Place::Offset { offset }))
        .collect();
    assert_eq!(seen.len(), expected.len(), "rows with an outcome");
    assert!(seen == expected, "the positions differ from the input's");
}

fn assert_no_leftovers(output: &Path, named: &[String]) {
    for folder in ["parts", "errors"] {
        let Ok(entries) = std::fs::read_dir(output.join(folder)) else {
            continue;
        };
        for entry in entries.map(Result::unwrap) {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            assert!(named.contains(&path), "{path} is named by no commit");
        }
    }
}

fn lines(output: &Path, relative: &Option<String>) -> Vec<String> {
    let Some(relative) = relative else {
        return Vec::new();
    };
    let bytes = std::fs::read(output.join(relative)).unwrap();
    let bytes = match relative.ends_with(".zst") {
        true => zstd::stream::decode_all(&bytes[..]).unwrap(),
        false => bytes,
    };
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.ends_with('\n'), "{relative} ends inside a line");
    text.lines().map(str::to_owned).collect()
}
