//! What becomes of bad and odd files, format by format.

use std::{io::Write, path::PathBuf};

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use millrace_protocol::{
    plan::{InputFile, Shard, ShardRange},
    row::{Place, ReadRow},
};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::{ReadError, open_shard};
use crate::{
    job::{Fields, Input},
    plan::{CutOptions, PlanError, cut, list_inputs},
    store::{StoreOptions, Stores},
};

const ROW_BYTES_MAX: usize = 1 << 10;

/// One file in a folder of its own, read as a job would.
pub(crate) struct File {
    folder: TempDir,
    name: String,
    pub(crate) fields: Fields,
    pub(crate) stores: Stores,
}

impl File {
    pub(crate) fn new(name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let (text, join) = ("text".into(), Vec::new());
        let fields = Fields {
            id: Some("id".into()),
            text,
            join,
            ..Fields::default()
        };
        let stores = Stores::new(StoreOptions::default());
        Self {
            folder,
            name: name.into(),
            fields,
            stores,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    async fn plan(&self, shard_bytes_target: u64) -> (InputFile, Vec<Shard>) {
        self.try_plan(shard_bytes_target).await.unwrap()
    }

    /// Why the file cannot be cut.
    pub(crate) async fn plan_error(&self) -> ReadError {
        match self.try_plan(1).await {
            Err(PlanError::Read(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    /// All rows, or why there are none.
    pub(crate) async fn try_rows(&self) -> Result<Vec<ReadRow>, ReadError> {
        match self.try_plan(1 << 20).await {
            Ok((input, shards)) => self.rows_of(&input, &shards).await,
            Err(PlanError::Read(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    async fn try_plan(&self, target: u64) -> Result<(InputFile, Vec<Shard>), PlanError> {
        let input = Input {
            uris: vec![format!("file://{}", self.path().display())],
            inline: None,
            format: None,
            compression: None,
            fields: self.fields.clone(),
            filter: None,
            order: None,
            chunking: None,
            row_bytes_max: ROW_BYTES_MAX,
        };
        let mut inputs = list_inputs(&self.stores, &input).await.unwrap();
        let (fields, row_bytes_max) = (&self.fields, ROW_BYTES_MAX);
        let options = CutOptions {
            shard_bytes_target: target,
            fields,
            row_bytes_max,
        };
        let shards = cut(&self.stores, &mut inputs, options).await?;
        Ok((inputs.remove(0), shards))
    }

    /// All rows, over shards of about this size.
    pub(crate) async fn rows(&self, shard_bytes: u64) -> Result<Vec<ReadRow>, ReadError> {
        let (input, shards) = self.plan(shard_bytes).await;
        self.rows_of(&input, &shards).await
    }

    async fn rows_of(&self, file: &InputFile, shards: &[Shard]) -> Result<Vec<ReadRow>, ReadError> {
        let mut rows = Vec::new();
        for shard in shards {
            let mut stream =
                open_shard(&self.stores, file, shard, &self.fields, ROW_BYTES_MAX).await?;
            loop {
                let batch = stream.next_batch(3, 1 << 10).await?;
                assert!(batch.len() <= 3);
                if batch.is_empty() {
                    break;
                }
                rows.extend(batch);
            }
        }
        Ok(rows)
    }
}

/// A row in few words: `id@place text {input}` or `id@place !code`.
pub(crate) fn brief(row: &ReadRow) -> String {
    let place = match row.place() {
        Place::Offset { offset } => offset.to_string(),
        Place::Group { row_group, row } => format!("{row_group}.{row}"),
    };
    match row {
        ReadRow::Row(row) => {
            let input = row
                .input
                .as_ref()
                .map(|input| format!(" {input}"))
                .unwrap_or_default();
            format!(
                "{}@{place} {}{input}",
                row.id.as_deref().unwrap_or("-"),
                row.text
            )
        }
        ReadRow::Bad { id, error, .. } => {
            format!("{}@{place} !{}", id.as_deref().unwrap_or("-"), error.code)
        }
    }
}

async fn check(file: &File, expected: &[&str]) {
    for shard_bytes in [1, 7, 1 << 20] {
        let rows = file.rows(shard_bytes).await.unwrap();
        let found: Vec<_> = rows.iter().map(brief).collect();
        assert_eq!(
            found, expected,
            "{} in shards of {shard_bytes} bytes",
            file.name
        );
    }
}

/// A line of JSON that becomes this row error.
async fn check_json(line: &str, expected: &str) {
    let file = format!("{line}\n{{\"id\":\"next\",\"text\":\"ok\"}}\n");
    let next = format!("next@{} ok", line.len() + 1);
    check(&File::new("a.jsonl", file), &[expected, &next]).await;
}

#[tokio::test]
async fn an_empty_file_has_no_rows() {
    for name in ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz", "a.csv.zst"] {
        check(&File::new(name, ""), &[]).await;
    }
    check(&File::new("a.jsonl", "\n\r\n\n"), &[]).await;
    check(&File::new("a.csv", "id,text\n"), &[]).await;
    check(&File::new("a.jsonl.gz", gzip(b"").await), &[]).await;
    check(&File::new("a.csv.zst", zstd(b"").await), &[]).await;
}

#[tokio::test]
async fn json_rows_keep_id_text_and_joined_fields() {
    let mut file = File::new(
        "a.jsonl",
        concat!(
            "{\"id\":\"a\",\"text\":\"one\",\"n\":1.50,\"deep\":{\"x\":[1]}}\r\n",
            "{\"text\":\"tw\\u00f6\\n\",\"id\":12,\"other\":null}\n\n",
            "{\"id\":true,\"text\":\"old\",\"n\":1,\"text\":\"new\",\"n\":2}"
        ),
    );
    file.fields.join = ["n", "deep", "n"].map(String::from).to_vec();
    let expected = [
        "a@0 one {\"n\":1.50,\"deep\":{\"x\":[1]}}",
        "12@51 tw\u{f6}\n {}",
        "true@95 new {\"n\":2}",
    ];
    check(&file, &expected).await;
}

#[tokio::test]
async fn one_field_may_be_id_text_and_joined() {
    let mut file = File::new("a.jsonl", "{\"text\":\"a\\\"b\"}\n{\"text\":7}\n");
    file.fields = Fields {
        id: Some("text".into()),
        text: "text".into(),
        join: vec!["text".into()],
        ..Fields::default()
    };
    check(
        &file,
        &["a\"b@0 a\"b {\"text\":\"a\\\"b\"}", "7@16 !invalid_field"],
    )
    .await;
}

#[tokio::test]
async fn a_bad_json_row_is_an_error_and_the_next_row_is_read() {
    check_json("{\"id\":\"a\",\"text\":\"\"}", "a@0 !empty_text").await;
    check_json("{\"id\":\"a\",\"text\":\" \\n\\u00a0\"}", "a@0 !empty_text").await;
    check_json("{\"id\":\"a\",\"text\":5}", "a@0 !invalid_field").await;
    check_json("{\"id\":\"a\",\"text\":[\"x\"]}", "a@0 !invalid_field").await;
    check_json("{\"id\":\"a\",\"text\":null}", "a@0 !invalid_field").await;
    check_json("{\"id\":\"a\"}", "a@0 !missing_field").await;
    check_json("{\"text\":\"x\"}", "-@0 !missing_field").await;
    check_json("{\"id\":null,\"text\":\"x\"}", "-@0 !missing_field").await;
    check_json("{\"id\":[1],\"text\":\"x\"}", "-@0 !invalid_field").await;
    check_json(
        "{\"id\":\"a\",\"text\":\"nul\\u0000\"}",
        "a@0 !invalid_field",
    )
    .await;
    for line in [
        "[1]",
        "5",
        "\"x\"",
        "null",
        "nonsense",
        "{\"id\":\"a\"",
        "{} {}",
        " ",
        "{'a':1}",
    ] {
        check_json(line, "-@0 !invalid_json").await;
    }
    check_json("{\"id\":\"a\",\"text\":\"\\ud800\"}", "-@0 !invalid_json").await;
}

#[tokio::test]
async fn an_error_never_holds_the_rows_text() {
    for line in [
        "\"secret\"",
        "{\"text\":{\"secret\":1}}",
        "{\"secret\":secret}",
        "[\"secret\"]",
    ] {
        let mut file = File::new("a.jsonl", line);
        file.fields.id = None;
        match &file.rows(100).await.unwrap()[..] {
            [ReadRow::Bad { error, .. }] => assert!(!error.message.contains("secret"), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn invalid_utf8_nul_and_a_byte_order_mark_do_not_end_the_job() {
    let file = File::new("a.txt", b"\xEF\xBB\xBFone\n\xff\xfe\nn\0ul\ntwo");
    check(
        &file,
        &[
            "-@0 one",
            "-@7 !invalid_utf8",
            "-@10 !invalid_utf8",
            "-@15 two",
        ],
    )
    .await;
    let file = File::new(
        "a.jsonl",
        b"\xEF\xBB\xBF{\"id\":1,\"text\":\"x\"}\n{\"id\":1,\"text\":\"\xc3\"}",
    );
    check(&file, &["1@0 x", "-@23 !invalid_utf8"]).await;
    let file = File::new("a.csv", b"\xEF\xBB\xBFid,text\n1,\xff\n2,\xEF\xBB\xBFx\n");
    check(&file, &["-@11 !invalid_utf8", "2@15 \u{feff}x"]).await;
}

#[tokio::test]
async fn a_row_that_is_too_long_is_an_error_in_every_format() {
    let long = "x".repeat(ROW_BYTES_MAX + 1);
    check(
        &File::new("a.txt", format!("{long}\nb\n")),
        &["-@0 !row_too_long", "-@1026 b"],
    )
    .await;
    let file = File::new("a.csv", format!("id,text\n1,\"{long}\n\"\n2,b\n"));
    check(&file, &["-@8 !row_too_long", "2@1039 b"]).await;
}

#[tokio::test]
async fn json_nested_250_000_deep_is_a_row_error() {
    let deep = |open: &str, close: &str| (open.repeat(250_000), close.repeat(250_000));
    let (open, close) = deep("[", "]");
    let (open_map, close_map) = deep("{\"a\":", "}");
    for line in [
        open.clone(),
        format!("{{\"id\":\"a\",\"text\":\"x\",\"other\":{open}{close}}}"),
        format!("{{\"id\":\"a\",\"text\":{open}{close}}}"),
        format!("{{\"id\":\"a\",\"text\":\"x\",\"other\":{open_map}1{close_map}}}"),
    ] {
        let row = super::jsonl::parse(
            line.as_bytes(),
            &super::Wanted::new(&Fields {
                text: "text".into(),
                join: vec!["other".into()],
                ..Fields::default()
            }),
        );
        assert_eq!(row.unwrap_err().error.code.as_str(), "invalid_json");
    }
    // Many brackets side by side, or inside a string, are not deep.
    let line = format!(
        "{{\"text\":\"{open}\",\"other\":[{}1]}}",
        "[],{},".repeat(500)
    );
    let wanted = super::Wanted::new(&Fields {
        text: "text".into(),
        ..Fields::default()
    });
    assert!(super::jsonl::parse(line.as_bytes(), &wanted).is_ok());
}

#[tokio::test]
async fn duplicate_ids_stay_apart_by_position() {
    let line = "{\"id\":\"a\",\"text\":\"x\"}\n";
    check(&File::new("a.jsonl", line.repeat(2)), &["a@0 x", "a@22 x"]).await;
}

#[tokio::test]
async fn csv_cells_keep_their_bytes() {
    let mut file = File::new(
        "a.csv",
        concat!(
            "id,other,text\r\n",
            "1,=1+1,\"say \"\"hi\"\",\r\nthere\"\r\n",
            "\r\n",
            "2, 5\" disk ,b\n",
            "3,\"\",\"é\"",
        ),
    );
    file.fields.join = vec!["other".into()];
    let expected = [
        "1@15 say \"hi\",\r\nthere {\"other\":\"=1+1\"}",
        "2@46 b {\"other\":\" 5\\\" disk \"}",
        "3@60 é {\"other\":\"\"}",
    ];
    check(&file, &expected).await;
}

#[tokio::test]
async fn a_bad_csv_record_is_an_error_and_the_next_record_is_read() {
    let file = File::new("a.csv", "id,text\n1\n2,b,c\n3,\n4,d\n5,\"open\n6,e\n");
    let expected = [
        "1@8 !invalid_csv",
        "-@10 !invalid_csv",
        "3@16 !empty_text",
        "4@19 d",
        "-@23 !invalid_csv",
    ];
    check(&file, &expected).await;
}

#[tokio::test]
async fn several_members_and_frames_are_one_file() {
    let (one, two) = (
        b"{\"id\":1,\"text\":\"o",
        b"ne\"}\n{\"id\":2,\"text\":\"two\"}",
    );
    let expected = ["1@0 one", "2@22 two"];
    let gz = [gzip(one).await, gzip(two).await].concat();
    check(&File::new("a.jsonl.gz", gz), &expected).await;
    let zst = [zstd(one).await, zstd(two).await].concat();
    check(&File::new("a.jsonl.zst", zst), &expected).await;
    let csv = gzip(b"id,text\n1,one\n2,\"t\nwo\"\n").await;
    check(&File::new("a.csv.gz", csv), &["1@8 one", "2@14 t\nwo"]).await;
}

#[tokio::test]
async fn a_compression_bomb_is_one_row_error() {
    let mut bomb = zstd(&vec![b'a'; 64 << 20]).await;
    assert!(bomb.len() < 1 << 20);
    bomb.extend(zstd(b"\nb\n").await);
    check(
        &File::new("a.txt.zst", bomb),
        &["-@0 !row_too_long", "-@67108865 b"],
    )
    .await;
}

#[tokio::test]
async fn a_zstd_frame_that_wants_too_much_memory_is_refused() {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder
        .set_parameter(zstd::zstd_safe::CParameter::WindowLog(28))
        .unwrap();
    encoder.write_all(b"one\ntwo\n").unwrap();
    let file = File::new("a.txt.zst", encoder.finish().unwrap());
    let error = file.rows(1).await.unwrap_err();
    assert!(
        matches!(error, ReadError::Decode { .. }) && error.is_permanent(),
        "{error}"
    );
}

#[tokio::test]
async fn a_truncated_file_fails_for_good() {
    let lines: String = (0..2000)
        .map(|n| format!("{{\"id\":{n},\"text\":\"t{n}\"}}\n"))
        .collect();
    let (gz, zst) = (gzip(lines.as_bytes()).await, zstd(lines.as_bytes()).await);
    for (name, bytes) in [("a.jsonl.gz", gz), ("a.jsonl.zst", zst)] {
        for left in [bytes.len() - 1, bytes.len() / 2, 12] {
            let error = File::new(name, &bytes[..left]).rows(1).await.unwrap_err();
            let truncated = matches!(error, ReadError::Truncated { .. });
            assert!(
                truncated && error.is_permanent(),
                "{name} at {left}: {error}"
            );
        }
        // Only gzip always carries a checksum; a zstd frame may decode to other bytes.
        if name.ends_with(".gz") {
            let mut broken = bytes.clone();
            broken[bytes.len() / 2] ^= 0xFF;
            assert!(
                File::new(name, broken)
                    .rows(1)
                    .await
                    .unwrap_err()
                    .is_permanent()
            );
        }
    }
    let error = File::new("a.jsonl.gz", "not gzip")
        .rows(1)
        .await
        .unwrap_err();
    assert!(matches!(error, ReadError::Decode { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_changed_after_planning_is_not_read() {
    for name in ["a.jsonl", "a.jsonl.gz"] {
        let file = File::new(name, gzip(b"{\"id\":1,\"text\":\"one\"}\n").await);
        let (input, shards) = file.plan(8).await;
        std::fs::write(file.path(), gzip(b"{\"id\":1,\"text\":\"other\"}\n").await).unwrap();
        let error = file.rows_of(&input, &shards).await.unwrap_err();
        let changed = matches!(error, ReadError::InputChanged { .. });
        assert!(changed && error.is_permanent(), "{error}");
        std::fs::remove_file(file.path()).unwrap();
        let error = file.rows_of(&input, &shards).await.unwrap_err();
        assert!(matches!(error, ReadError::NotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_row_belongs_to_the_shard_it_begins_in() {
    let text = "x".repeat(ROW_BYTES_MAX - 20);
    let line = format!("{{\"id\":1,\"text\":\"{text}\"}}\n");
    let file = File::new("a.jsonl", line.repeat(3000));
    let (input, _) = file.plan(1 << 20).await;
    let shard = |start, end| Shard::of(0, ShardRange::Bytes { start, end });
    let middle = input.size_bytes / 2;
    let shards = [
        shard(0, 1),
        shard(1, middle),
        shard(middle, input.size_bytes),
    ];
    let rows = file.rows_of(&input, &shards).await.unwrap();
    let places: Vec<_> = rows.iter().map(ReadRow::place).collect();
    let expected: Vec<_> = (0..3000)
        .map(|n| Place::Offset {
            offset: n * line.len() as u64,
        })
        .collect();
    assert_eq!(places, expected);
}

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

async fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZstdEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}
