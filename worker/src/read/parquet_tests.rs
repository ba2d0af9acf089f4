//! Parquet files: ranges of rows, types, and what is wrong with a file.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, types::Int32Type,
};
use millrace_protocol::row::ReadRow;
use parquet::{
    arrow::ArrowWriter,
    file::properties::{EnabledStatistics, WriterProperties},
};

use super::{
    ReadError,
    tests::{File, brief},
};

/// A file with these columns, four rows to a row group.
fn parquet(columns: Vec<(&str, ArrayRef)>, page_index: bool) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    let statistics = if page_index {
        EnabledStatistics::Page
    } else {
        EnabledStatistics::None
    };
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(4))
        .set_data_page_row_count_limit(2)
        .set_write_batch_size(2)
        .set_offset_index_disabled(!page_index)
        .set_statistics_enabled(statistics)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn strings(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn ten() -> Vec<(&'static str, ArrayRef)> {
    let texts: Vec<_> = (0..10).map(|n| Some(format!("t{n}"))).collect();
    vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..10))),
        ("unused", strings(&[Some("u"); 10])),
        ("text", Arc::new(StringArray::from(texts))),
    ]
}

#[tokio::test]
async fn every_row_is_read_exactly_once_however_it_is_cut() {
    let expected: Vec<_> = (0..10)
        .map(|n| format!("{n}@{}.{} t{n}", n / 4, n % 4))
        .collect();
    for page_index in [true, false] {
        let file = File::new("a.parquet", parquet(ten(), page_index));
        for shard_bytes in [1, 60, 100, 1 << 20] {
            let rows = file.rows(shard_bytes).await.unwrap();
            assert_eq!(
                rows.iter().map(brief).collect::<Vec<_>>(),
                expected,
                "{shard_bytes}"
            );
        }
    }
}

#[tokio::test]
async fn joined_columns_become_json() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), None]), None]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", strings(&[Some("a"), Some("b")])),
        ("s", strings(&[Some("say \"é\""), None])),
        ("f", Arc::new(Float64Array::from(vec![1.5, f64::NAN]))),
        ("b", Arc::new(BooleanArray::from(vec![true, false]))),
        ("l", Arc::new(list)),
    ];
    let mut file = File::new("a.parquet", parquet(columns, true));
    file.fields.id = Some("b".into());
    file.fields.join = ["l", "s", "f"].map(String::from).to_vec();
    let rows = file.rows(1 << 20).await.unwrap();
    let expected = [
        r#"true@0.0 a {"l":[1,null],"s":"say \"é\"","f":1.5}"#,
        r#"false@0.1 b {"l":null,"s":null,"f":null}"#,
    ];
    assert_eq!(rows.iter().map(brief).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_bad_cell_is_a_row_error() {
    let long = "x".repeat(2000);
    let texts = strings(&[
        None,
        Some(""),
        Some("\n"),
        Some(&long),
        Some("ok"),
        Some("ok"),
    ]);
    let ids = strings(&[Some("a"), Some("b"), Some("c"), Some("d"), None, Some("f")]);
    let file = File::new(
        "a.parquet",
        parquet(vec![("id", ids), ("text", texts)], true),
    );
    let rows = file.rows(1 << 20).await.unwrap();
    let expected = [
        "a@0.0 !missing_field",
        "b@0.1 !empty_text",
        "c@0.2 !empty_text",
        "-@0.3 !row_too_long",
        "-@1.0 !missing_field",
        "f@1.1 ok",
    ];
    assert_eq!(rows.iter().map(brief).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_value_that_repeats_a_hundred_thousand_times_is_read_in_chunks() {
    let text = "y".repeat(1000);
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(vec![&text[..]; 100_000]));
    let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let bytes = writer.into_inner().unwrap();
    assert!(bytes.len() < 100_000);
    let mut file = File::new("a.parquet", bytes);
    file.fields.id = None;
    let rows = file.rows(1 << 20).await.unwrap();
    assert_eq!(rows.len(), 100_000);
    assert!(
        rows.iter()
            .all(|row| matches!(row, ReadRow::Row(row) if row.text == text))
    );
}

#[tokio::test]
async fn a_truncated_file_fails_for_good() {
    let bytes = parquet(ten(), true);
    for left in [bytes.len() - 1, bytes.len() / 2, 5] {
        let error = File::new("a.parquet", &bytes[..left]).plan_error().await;
        let truncated = matches!(error, ReadError::Truncated { .. });
        assert!(truncated && error.is_permanent(), "{left}: {error}");
    }
    let error = File::new("a.parquet", "this is no Parquet file")
        .plan_error()
        .await;
    assert!(matches!(error, ReadError::Decode { .. }), "{error}");
}

#[tokio::test]
async fn a_broken_file_never_takes_the_process_down() {
    let bytes = parquet(ten(), true);
    for at in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[at] ^= 0x55;
        // Some bits matter to nobody; whatever else happens must be a permanent error.
        if let Err(error) = File::new("a.parquet", broken).try_rows().await {
            assert!(error.is_permanent(), "byte {at}: {error}");
        }
    }
}

#[tokio::test]
async fn a_column_that_cannot_be_used_is_named_with_its_type() {
    let blob: ArrayRef = Arc::new(BinaryArray::from(vec![&b"a"[..]]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let check = async |columns: Vec<(&str, ArrayRef)>, expected: &str| {
        let error = File::new("a.parquet", parquet(columns, true))
            .plan_error()
            .await;
        assert!(error.to_string().contains(expected), "{error}");
    };
    let text = || strings(&[Some("a")]);
    check(vec![("id", text()), ("text", number.clone())], "\"text\"").await;
    check(vec![("id", text()), ("text", number)], "Int64").await;
    check(vec![("id", text()), ("text", blob.clone())], "Binary").await;
    check(vec![("id", blob), ("text", text())], "\"id\"").await;
    check(vec![("id", text()), ("body", text())], "it has id, body").await;
}

#[tokio::test]
async fn an_id_counts_towards_the_length_of_its_row() {
    // Together longer than the 1,024 bytes that a row may have here; each alone is not.
    let ids = strings(&[Some(&"i".repeat(600)), Some("short")]);
    let texts = strings(&[Some(&"t".repeat(600)), Some("ok")]);
    let file = File::new(
        "a.parquet",
        parquet(vec![("id", ids), ("text", texts)], true),
    );
    let rows = file.rows(1 << 20).await.unwrap();
    let briefs: Vec<_> = rows.iter().map(brief).collect();
    assert_eq!(briefs, ["-@0.0 !row_too_long", "short@0.1 ok"]);
}
