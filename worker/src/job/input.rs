//! What a job says of its input, as the worker takes it. Pure.

use bytes::Bytes;
use millrace_crds::batch_job;
use millrace_protocol::plan::{Compression, Format};

/// The rows that a manifest holds, as a file with one JSON object per line, its fields named as the
/// job names them.
pub fn inline_rows(texts: &[String], id_field: Option<&str>, text_field: &str) -> Bytes {
    let mut lines = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let mut row = serde_json::Map::new();
        if let Some(id_field) = id_field {
            row.insert(id_field.to_owned(), index.into());
        }
        row.insert(text_field.to_owned(), text.as_str().into());
        serde_json::to_writer(&mut lines, &row).expect("a row is plain data");
        lines.push(b'\n');
    }
    lines.into()
}

/// The layout of rows that a job names.
pub fn format(format: batch_job::InputFormat) -> Format {
    match format {
        batch_job::InputFormat::Jsonl => Format::Jsonl,
        batch_job::InputFormat::Csv => Format::Csv,
        batch_job::InputFormat::Parquet => Format::Parquet,
        batch_job::InputFormat::Text => Format::Text,
    }
}

/// The compression of files that a job names.
pub fn compression(compression: batch_job::Compression) -> Compression {
    match compression {
        batch_job::Compression::None => Compression::None,
        batch_job::Compression::Gzip => Compression::Gzip,
        batch_job::Compression::Zstd => Compression::Zstd,
    }
}
