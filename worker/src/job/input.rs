//! What a job says of its input, as the worker takes it. Pure.

use std::path::Path;

use bytes::Bytes;
use millrace_crds::batch_job::{self, BatchJobSpec};
use millrace_protocol::plan::{Compression, Format};

use super::answering::Answering;
use super::{Fields, Input, JobError, absolute};
use crate::filter::{BadFilter, Filter};
use crate::normalize::Normalizer;
use crate::order::{BadOrder, Order};
use crate::store::INLINE_ROWS;

/// The dataset of a job whose rows are asked this. Relative paths are taken from `base`.
pub fn checked(spec: &BatchJobSpec, answering: &Answering, base: &Path) -> Result<Input, JobError> {
    let input = &spec.input;
    let Answering {
        routing,
        text_field,
        prompted,
        chunking,
        steps: _,
        postgres: _,
        answers_sha256: _,
    } = answering;
    let filter = input.filter.as_ref().map(Filter::new).transpose();
    let filter =
        filter.map_err(|BadFilter { field, message }| JobError::Filter { field, message })?;
    let order = Order::new(input.order.as_deref().unwrap_or_default());
    let order = order.map_err(|BadOrder { index, message }| JobError::Order { index, message })?;
    let filtered = filter.iter().flat_map(|filter| filter.fields().to_vec());
    let filtered = filtered.chain(routing.iter().flat_map(|it| it.fields().to_vec()));
    let uris = input.uris.iter().flatten();
    let uris: Vec<String> = match &input.inline {
        Some(_) => vec![INLINE_ROWS.to_owned()],
        None => uris.map(|uri| absolute(uri, base)).collect(),
    };
    Ok(Input {
        uris,
        inline: (input.inline.as_ref())
            .map(|texts| inline_rows(texts, input.id_field.as_deref(), text_field)),
        format: input.format.map(format),
        compression: input.compression.map(compression),
        fields: Fields {
            id: input.id_field.clone(),
            text: text_field.clone(),
            join: spec.output.join.clone(),
            prompted: prompted.clone(),
            filtered: filtered.collect(),
            normalize: (input.normalize.as_ref())
                .map(|spec| Normalizer::new(spec, input.max_row_bytes as usize)),
        },
        filter,
        order,
        chunking: chunking.clone(),
        row_bytes_max: input.max_row_bytes as usize,
    })
}

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
