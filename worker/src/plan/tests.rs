//! Listing, planning and the preflight, on a local disk.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use millrace_protocol::{
    plan::{Compression, Format, ShardRange, SpecField},
    row::{Place, Position},
};

use super::*;
use crate::{
    job::{Fields, Input, Output, Retry, Step},
    read::ReadError,
    store::StoreOptions,
};

fn stores() -> Stores {
    Stores::new(StoreOptions::default())
}

/// Writes files into a new folder.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

/// The smallest job over files of `folder`.
fn job(folder: &Path, uris: &[&str], output: &str) -> CheckedJob {
    let uri = |path: &&str| format!("file://{}/{path}", folder.display());
    CheckedJob {
        namespace: "default".into(),
        name: "job".into(),
        uid: None,
        run: FIRST_RUN,
        steps: vec![Step {
            name: "step".into(),
            model: "model".into(),
            prompt: None,
        }],
        runtime: None,
        remote: None,
        routing: None,
        input: Input {
            uris: uris.iter().map(uri).collect(),
            inline: None,
            format: None,
            compression: None,
            fields: Fields {
                id: None,
                text: "text".into(),
                join: Vec::new(),
                prompted: Vec::new(),
                filtered: Vec::new(),
                normalize: None,
            },
            filter: None,
            order: None,
            chunking: None,
            row_bytes_max: 1 << 20,
        },
        output: Output {
            uri: uri(&output),
            zstd: false,
            merge: false,
            postgres: None,
        },
        shard_bytes_target: 64,
        retry: Retry {
            attempts_max: 1,
            backoff_initial: Duration::from_millis(1),
            backoff_max: Duration::from_millis(1),
        },
        deliveries_max: 1,
        failed_rows_max: None,
        failed_shards_max: None,
        cost_max: None,
        notify: None,
        spec_sha256: "spec".into(),
        answers_sha256: "answers".into(),
        spec_fields: vec![],
        incremental_from: None,
        dedup: None,
    }
}

async fn list(folder: &Path, uris: &[&str]) -> Result<Vec<String>, PlanError> {
    let inputs = list_inputs(&stores(), &job(folder, uris, "out").input).await?;
    let root = format!("file://{}/", folder.display());
    Ok(inputs
        .iter()
        .map(|input| input.uri.strip_prefix(&root).unwrap().to_owned())
        .collect())
}

async fn refused(folder: &Path, uris: &[&str]) -> String {
    list(folder, uris).await.unwrap_err().to_string()
}

#[tokio::test]
async fn patterns_match_as_in_a_shell() {
    let names = [
        "b.jsonl",
        "a.jsonl",
        "c.csv",
        "d/e.jsonl",
        "d/f/g.jsonl",
        ".h.jsonl",
        ".i/j.jsonl",
    ];
    let folder = folder(&names.map(|name| (name, "x")));
    let check = async |pattern: &str, expected: &[&str]| {
        assert_eq!(
            list(folder.path(), &[pattern]).await.unwrap(),
            expected,
            "{pattern}"
        );
    };
    check("*.jsonl", &["a.jsonl", "b.jsonl"]).await;
    check(
        "**/*.jsonl",
        &["a.jsonl", "b.jsonl", "d/e.jsonl", "d/f/g.jsonl"],
    )
    .await;
    check("d/**", &["d/e.jsonl", "d/f/g.jsonl"]).await;
    check("{a,c}.{jsonl,csv}", &["a.jsonl", "c.csv"]).await;
    check("[ab].jsonl", &["a.jsonl", "b.jsonl"]).await;
    check("?.csv", &["c.csv"]).await;
    check(".h.*", &[".h.jsonl"]).await;
    check("d/../a.jsonl", &["d/../a.jsonl"]).await;
}

#[tokio::test]
async fn a_file_that_is_named_twice_is_read_once() {
    let folder = folder(&[("a.jsonl", "x"), ("b.jsonl", "x")]);
    std::os::unix::fs::symlink(folder.path().join("a.jsonl"), folder.path().join("c.jsonl"))
        .unwrap();
    let uris = ["a.jsonl", "*.jsonl", "./b.jsonl"];
    assert_eq!(
        list(folder.path(), &uris).await.unwrap(),
        ["a.jsonl", "b.jsonl"]
    );
}

#[tokio::test]
async fn a_uri_that_matches_nothing_is_named() {
    let folder = folder(&[("a.jsonl", "x"), ("d/b.jsonl", "x")]);
    for uri in ["b.jsonl", "*.csv", "missing/*.jsonl"] {
        assert!(
            refused(folder.path(), &["a.jsonl", uri])
                .await
                .contains(uri)
        );
    }
    for uri in ["d", "d/"] {
        assert!(refused(folder.path(), &[uri]).await.contains("/**"));
    }
    assert!(
        refused(folder.path(), &["[a.jsonl"])
            .await
            .contains("pattern")
    );
}

#[tokio::test]
async fn the_name_tells_format_and_compression() {
    let names = ["a.ndjson", "b.CSV.gz", "c.txt.zst", "d.parquet"];
    let folder = folder(&names.map(|name| (name, "x")));
    let input = job(folder.path(), &names, "out").input;
    let inputs = list_inputs(&stores(), &input).await.unwrap();
    let layouts: Vec<_> = inputs
        .iter()
        .map(|input| (input.format, input.compression))
        .collect();
    let expected = [
        (Format::Jsonl, Compression::None),
        (Format::Csv, Compression::Gzip),
        (Format::Text, Compression::Zstd),
        (Format::Parquet, Compression::None),
    ];
    assert_eq!(layouts, expected);
}

#[tokio::test]
async fn a_name_that_tells_no_format_says_which_field_to_set() {
    let folder = folder(&[("a.log", "x"), ("b", "x"), ("c.parquet.gz", "x")]);
    for name in ["a.log", "b"] {
        let message = refused(folder.path(), &[name]).await;
        assert!(
            message.contains(name) && message.contains("input.format"),
            "{message}"
        );
    }
    let mut input = job(folder.path(), &["a.log"], "out").input;
    input.format = Some(Format::Text);
    assert_eq!(
        list_inputs(&stores(), &input).await.unwrap()[0].format,
        Format::Text
    );
    assert!(
        refused(folder.path(), &["c.parquet.gz"])
            .await
            .contains("input.compression")
    );
}

#[tokio::test]
async fn an_output_that_overlaps_the_input_is_refused() {
    let folder = folder(&[("in/a.jsonl", "x"), ("in/deep/b.jsonl", "x")]);
    std::os::unix::fs::symlink(folder.path().join("in"), folder.path().join("link")).unwrap();
    let check = async |input: &str, output: &str, overlaps: bool| {
        let result = plan(&stores(), &job(folder.path(), &[input], output), None).await;
        let refused = matches!(result, Err(PlanError::OutputOverlapsInput { .. }));
        assert_eq!(refused, overlaps, "{input} to {output}: {result:?}");
    };
    check("in/a.jsonl", "in", true).await;
    check("in/a.jsonl", "link", true).await;
    check("in/deep/b.jsonl", "in", true).await;
    check("in/**", "in/out", true).await;
    check("in/**/*.jsonl", "in/out", true).await;
    check("in/*.jsonl", "link/out", false).await;
    check("in/a.jsonl", "out", false).await;
}

#[tokio::test]
async fn whoever_plans_second_reads_the_plan_that_is_there() {
    let folder = folder(&[("a.jsonl", &"{\"text\":\"x\"}\n".repeat(100))]);
    let job = job(folder.path(), &["a.jsonl"], "out");
    let racers = (0..8).map(|_| async { plan(&stores(), &job, None).await.unwrap() });
    let plans = futures::future::join_all(racers).await;
    assert!(plans[0].shards.len() > 10);
    assert!(plans.iter().all(|plan| plan == &plans[0]));
    std::fs::remove_file(folder.path().join("a.jsonl")).unwrap();
    assert_eq!(
        plan(&stores(), &job, None).await.unwrap(),
        plans[0],
        "the inputs are not listed again"
    );
}

#[tokio::test]
async fn a_draft_is_written_nowhere_until_it_is_settled() {
    let folder = folder(&[("a.jsonl", "{\"text\":\"x\"}\n")]);
    let job = job(folder.path(), &["a.jsonl"], "out");
    let new = drafted(&stores(), &job, None).await.unwrap();
    assert!(matches!(new, Drafted::New(_)), "{new:?}");
    assert!(!folder.path().join("out").exists());
    let plan = settled(&stores(), &job, new).await.unwrap();
    let standing = drafted(&stores(), &job, None).await.unwrap();
    assert!(
        matches!(&standing, Drafted::Standing(it) if *it == plan),
        "{standing:?}"
    );
}

#[tokio::test]
async fn an_output_of_another_spec_is_refused() {
    let folder = folder(&[("a.jsonl", "{\"text\":\"x\"}\n")]);
    let mut job = job(folder.path(), &["a.jsonl"], "out");
    job.spec_fields = vec![SpecField {
        path: "spec.input.idField".into(),
        value: "\"id\"".into(),
    }];
    plan(&stores(), &job, None).await.unwrap();
    job.spec_sha256 = "another".into();
    job.spec_fields = vec![];
    let error = plan(&stores(), &job, None).await.unwrap_err();
    assert!(matches!(error, PlanError::OtherSpec { .. }), "{error}");
    let said = error.to_string();
    let field = "(spec.input.idField was \"id\" and is absent now)";
    assert!(said.contains(field), "{said}");

    let path = folder.path().join("out/_millrace/runs/0001/plan.json");
    let mut earlier: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    earlier.as_object_mut().unwrap().remove("spec").unwrap();
    std::fs::write(&path, earlier.to_string()).unwrap();
    let said = plan(&stores(), &job, None).await.unwrap_err().to_string();
    let hashes = "(spec, now another)";
    assert!(said.contains(hashes), "of an earlier version: {said}");
}

#[tokio::test]
async fn ids_of_lines_of_text_are_refused_with_field_and_file() {
    let folder = folder(&[("a.jsonl", "{\"text\":\"x\"}\n"), ("b.txt", "x\n")]);
    let mut job = job(folder.path(), &["*.*"], "out");
    plan(&stores(), &job, None).await.unwrap();
    job.input.fields.id = Some("id".into());
    let error = draft(&stores(), &job).await.unwrap_err().to_string();
    assert!(error.starts_with("spec.input.idField "), "{error}");
    assert!(error.contains("b.txt"), "{error}");
}

#[tokio::test]
async fn empty_files_are_planned_without_shards() {
    let folder = folder(&[("a.jsonl", ""), ("b.csv", ""), ("c.txt", "")]);
    let job = job(folder.path(), &["*.*"], "out");
    let plan = plan(&stores(), &job, None).await.unwrap();
    assert_eq!((plan.inputs.len(), plan.shards.len()), (3, 0));
    let preflight = preflight(&stores(), &job, &plan, None).await.unwrap();
    assert_eq!(
        (
            preflight.rows,
            preflight.bad_rows.len(),
            preflight.longest_row
        ),
        (0, 0, None)
    );
}

#[tokio::test]
async fn a_csv_column_that_is_missing_or_ambiguous_is_named() {
    let folder = folder(&[("a.csv", "id,body\n1,x\n"), ("b.csv", "text,text\na,b\n")]);
    let error = |name| {
        let job = job(folder.path(), &[name], "out");
        async move { plan(&stores(), &job, None).await.unwrap_err() }
    };
    let missing = error("a.csv").await;
    assert!(
        matches!(&missing, PlanError::Read(ReadError::MissingColumn { column, .. }) if column == "text")
    );
    assert!(missing.to_string().contains("id, body"), "{missing}");
    assert!(error("b.csv").await.to_string().contains("more than once"));
}

#[tokio::test]
async fn a_csv_plan_notes_the_columns_and_covers_the_file() {
    let records: String = (0..100).map(|n| format!("{n},\"a\n{n}\"\n")).collect();
    let folder = folder(&[("a.csv", &format!("id,text\n{records}"))]);
    let plan = plan(&stores(), &job(folder.path(), &["a.csv"], "out"), None)
        .await
        .unwrap();
    assert_eq!(plan.inputs[0].columns.as_deref().unwrap(), ["id", "text"]);
    let mut next = 0;
    for shard in &plan.shards {
        let ShardRange::Bytes { start, end } = shard.range else {
            panic!("{shard:?}")
        };
        assert!(start == next && end > start);
        next = end;
    }
    assert_eq!(next, plan.inputs[0].size_bytes);
    assert!(plan.shards.len() > 10);
}

#[tokio::test]
async fn rows_longer_than_what_is_read_at_a_time_are_counted_about_right() {
    let row = |bytes: usize| format!("{{\"text\": \"{}\"}}\n", "x".repeat(bytes));
    let long = row(100 << 10);
    let folder = folder(&[("long.jsonl", &long.repeat(12)), ("one.jsonl", &long)]);
    for (file, shard_bytes, rows) in [
        ("long.jsonl", 1 << 20, 12),
        ("long.jsonl", 8 << 10, 12),
        ("one.jsonl", 1 << 20, 1),
    ] {
        let mut job = job(folder.path(), &[file], "out");
        job.shard_bytes_target = shard_bytes;
        let plan = draft(&stores(), &job).await.unwrap();
        let guessed = preflight::guess_rows(&stores(), &job, &plan).await.unwrap();
        assert_eq!(guessed, rows, "{file} in shards of {shard_bytes} bytes");
    }
}

#[tokio::test]
async fn the_preflight_says_what_a_run_would_meet() {
    let good: String = (0..300)
        .map(|n| format!("{{\"text\":\"word {}\"}}\n", n % 200))
        .collect();
    let folder = folder(&[
        ("a.jsonl", &good),
        ("b.jsonl", "{\"text\":\"\"}\nnonsense\n{}\n[]\n"),
    ]);
    let job = job(folder.path(), &["*.jsonl"], "out");
    let plan = plan(&stores(), &job, None).await.unwrap();
    let count: TokenCounter = Arc::new(|text| Counted {
        tokens: text.split(' ').count(),
        is_cut: true,
    });
    let found = preflight(&stores(), &job, &plan, Some(count))
        .await
        .unwrap();
    assert_eq!(found.rows, 300);
    let counts: BTreeMap<_, _> = found
        .bad_rows
        .iter()
        .map(|(k, bad)| (*k, bad.count))
        .collect();
    let expected = [("empty_text", 1), ("invalid_json", 2), ("missing_field", 1)];
    assert_eq!(counts, BTreeMap::from(expected));
    let file = plan.inputs[1].uri.clone();
    let position = |offset| Position {
        file: file.clone(),
        place: Place::Offset { offset },
    };
    assert_eq!(
        found.bad_rows["invalid_json"].first,
        [position(12), position(24)]
    );
    assert_eq!(
        found.duplicates.unwrap(),
        DuplicateEstimate {
            rows: 100,
            exact: true
        }
    );
    let tokens = found.tokens.unwrap();
    assert_eq!((tokens.sampled_rows, tokens.cut_rows), (300, 300));
    assert_eq!(found.tokens.unwrap().tokens, 600);
    let longest = found.longest_row.unwrap();
    assert_eq!(
        (longest.bytes, longest.position.file),
        (19, plan.inputs[0].uri.clone())
    );
}
