//! The checker: reads an output the way a reader would and holds it against the input.

use std::collections::BTreeMap;
use std::path::Path;

use millrace_protocol::commit::Commit;
use millrace_protocol::layout;
use millrace_protocol::manifest::Manifest;
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::result::{ErrorLine, ResultLine};
use millrace_protocol::row::{Place, RowErrorCode};

/// How a row ended: the result's JSON, or the error's code.
pub type Outcome = Result<String, RowErrorCode>;

/// How each row ended, by position.
pub type Outcomes = BTreeMap<(String, Place), Outcome>;

/// The manifest of an output.
pub fn manifest(output: &Path) -> Manifest {
    let bytes = std::fs::read(output.join(layout::MANIFEST))
        .unwrap_or_else(|error| panic!("no manifest in {}: {error}", output.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// What a finished output shows. Panics where a row is visible twice, where counts and lines
/// disagree, or where a file lies about that no commit names.
pub fn outcomes(output: &Path) -> Outcomes {
    let manifest = manifest(output);
    let commits: Vec<Commit> = manifest.parts.into_iter().map(|live| live.commit).collect();
    let outcomes = outcomes_of(output, &commits);
    let total = manifest.totals.rows.succeeded + manifest.totals.rows.failed;
    assert_eq!(outcomes.len() as u64, total, "the manifest's totals");
    if manifest.complete {
        assert_no_leftovers(output, &commits);
    }
    outcomes
}

/// What an output shows while its run is not finished: the lines that its commits name.
pub fn outcomes_so_far(output: &Path) -> Outcomes {
    let records = commit_records(output);
    let commits = records.values().map(|bytes| {
        serde_json::from_slice(bytes).expect("a commit record is whole once it is there")
    });
    outcomes_of(output, &commits.collect::<Vec<_>>())
}

/// The bytes of the commit records of an output's first run, by shard.
pub fn commit_records(output: &Path) -> BTreeMap<ShardIndex, Vec<u8>> {
    let entries = std::fs::read_dir(output.join(layout::commits(1)));
    let entries = entries.into_iter().flatten().map(Result::unwrap);
    let records = entries.filter_map(|entry| {
        // A process leaves a half-written file beside the records, under another name, until it is whole.
        let shard = layout::shard_of_commit(&entry.file_name().to_string_lossy())?;
        Some((shard, std::fs::read(entry.path()).unwrap()))
    });
    records.collect()
}

fn outcomes_of(output: &Path, commits: &[Commit]) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for commit in commits {
        let results = lines(output, &commit.part);
        let errors = lines(output, &commit.errors);
        let counts = (results.len() as u64, errors.len() as u64);
        let counted = (commit.rows.succeeded, commit.rows.failed);
        assert_eq!(counts, counted, "shard {}", commit.shard);
        let results = results.iter().map(|line| {
            let line: ResultLine = serde_json::from_str(line).unwrap();
            (line.position, Ok(line.result.get().to_owned()))
        });
        let errors = errors.iter().map(|line| {
            let line: ErrorLine = serde_json::from_str(line).unwrap();
            (line.position, Err(line.error.code))
        });
        for (position, outcome) in results.chain(errors) {
            let key = (position.file.clone(), position.place);
            let twice = outcomes.insert(key, outcome);
            assert!(twice.is_none(), "a second visible outcome at {position}");
        }
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

fn assert_no_leftovers(output: &Path, commits: &[Commit]) {
    let named = commits
        .iter()
        .flat_map(|commit| [&commit.part, &commit.errors]);
    let named: Vec<&String> = named.flatten().collect();
    for folder in ["parts", "errors"] {
        let Ok(entries) = std::fs::read_dir(output.join(folder)) else {
            continue;
        };
        for entry in entries.map(Result::unwrap) {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            assert!(named.contains(&&path), "{path} is named by no commit");
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
