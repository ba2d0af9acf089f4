//! Rows of a Parquet row group, page by page.
//!
//! The decoder blocks, so it runs on a thread of its own and hands over rows through a channel of
//! one chunk. Strings are read as views into their pages: a page that names one long value a
//! million times takes the memory of one.

use std::{borrow::Cow, collections::VecDeque, ops::Range, sync::Arc};

use arrow_array::{Array, RecordBatch, StringViewArray, cast::AsArray, new_empty_array};
use arrow_json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use arrow_schema::{DataType, Field, FieldRef, Schema};
use millrace_protocol::row::{Place, ReadRow, RowError, RowErrorCode};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
        },
    },
    file::metadata::{ColumnChunkMask, PageIndexPolicy},
};
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};

use super::{
    ReadError,
    parquet_file::ParquetFile,
    pinned::PinnedFile,
    view::{self, Refused, RowView, Wanted},
};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;
/// A chunk of rows is handed over once it has this many rows or bytes.
const CHUNK_ROWS: usize = 256;
const CHUNK_BYTES: usize = 1 << 20;

/// The rows of one range of a row group.
pub(crate) struct ParquetRows {
    uri: String,
    chunks: mpsc::Receiver<Vec<(usize, ReadRow)>>,
    /// Rows that arrived and were not handed out.
    waiting: VecDeque<(usize, ReadRow)>,
    /// Ends by itself when the last chunk was sent or nobody receives any more.
    decoder: Option<JoinHandle<Result<(), ReadError>>>,
}

/// Which rows to read, and how.
pub(crate) struct ParquetRange {
    /// Index of the row group.
    pub(crate) row_group: u32,
    /// Rows of the group.
    pub(crate) rows: Range<u64>,
    /// The columns that the job names.
    pub(crate) wanted: Wanted,
    /// Longest row in bytes.
    pub(crate) row_bytes_max: usize,
}

impl ParquetRows {
    /// Starts decoding.
    pub(crate) fn open(file: PinnedFile, range: ParquetRange) -> Self {
        let uri = file.uri.clone();
        let (sender, chunks) = mpsc::channel(1);
        let runtime = Handle::current();
        let decoder = tokio::task::spawn_blocking(move || {
            decode(&ParquetFile::new(file, runtime), &range, &sender)
        });
        Self {
            uri,
            chunks,
            waiting: VecDeque::new(),
            decoder: Some(decoder),
        }
    }

    /// Owned rows; empty at the end.
    pub(crate) async fn next_batch(
        &mut self,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<ReadRow>, ReadError> {
        let (mut rows, mut bytes) = (Vec::new(), 0_usize);
        while rows.len() < rows_max.max(1) && (rows.is_empty() || bytes < bytes_max) {
            if let Some((row_bytes, row)) = self.waiting.pop_front() {
                bytes += row_bytes;
                rows.push(row);
            } else if let Some(chunk) = self.chunks.recv().await {
                self.waiting = chunk.into();
            } else {
                self.join().await?;
                break;
            }
        }
        Ok(rows)
    }

    /// What became of the decoder.
    async fn join(&mut self) -> Result<(), ReadError> {
        let Some(decoder) = self.decoder.take() else {
            return Ok(());
        };
        let decoded = decoder.await;
        decoded.unwrap_or_else(|_| Err(panicked(self.uri.clone())))
    }
}

/// A row group, as far as cutting it needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowGroup {
    /// Rows in the group.
    pub(crate) rows: u64,
    /// Stored size of the columns that the job names.
    pub(crate) bytes: u64,
}

/// Reads the footer, checks that the wanted columns can be used, and gives the row groups.
pub(crate) async fn row_groups(
    file: PinnedFile,
    wanted: Wanted,
) -> Result<Vec<RowGroup>, ReadError> {
    let (uri, runtime) = (file.uri.clone(), Handle::current());
    let read = tokio::task::spawn_blocking(move || {
        let file = ParquetFile::new(file, runtime);
        let footer = file.footer(options())?;
        let columns = Columns::find(file.uri(), footer.schema(), &wanted)?;
        let mask = ProjectionMask::roots(footer.parquet_schema(), columns.roots());
        let groups = footer.metadata().row_groups().iter().map(|group| {
            let wanted = group.columns().iter().enumerate();
            let wanted = wanted.filter(|(index, _)| mask.leaf_included(*index));
            RowGroup {
                rows: group.num_rows().try_into().unwrap_or(0),
                bytes: wanted
                    .map(|(_, c)| u64::try_from(c.compressed_size()).unwrap_or(0))
                    .sum(),
            }
        });
        Ok(groups.collect())
    });
    read.await.unwrap_or_else(|_| Err(panicked(uri)))
}

/// The decoder panicked on a file. What it said may quote that.
fn panicked(uri: String) -> ReadError {
    ReadError::Decode {
        uri,
        encoding: "Parquet",
        reason: "the decoder panicked; the log names the place".to_owned(),
    }
}

/// The types that Parquet itself has: what a writer noted about its own types is not needed.
fn options() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true)
}

/// Where the wanted columns stand among those of the file.
struct Columns {
    id: Option<usize>,
    text: usize,
    join: Vec<usize>,
}

impl Columns {
    fn find(uri: &str, schema: &Schema, wanted: &Wanted) -> Result<Self, ReadError> {
        let place = |name: &String| {
            schema.index_of(name).map_err(|_| ReadError::MissingColumn {
                uri: uri.into(),
                column: name.clone(),
                columns: schema
                    .fields()
                    .iter()
                    .take(50)
                    .map(|f| f.name().clone())
                    .collect(),
            })
        };
        let columns = Self {
            id: wanted.id.as_ref().map(place).transpose()?,
            text: place(&wanted.text)?,
            join: wanted
                .join
                .iter()
                .map(|field| place(&field.name))
                .collect::<Result<_, _>>()?,
        };
        let check = |index: usize, is_usable: fn(&DataType) -> bool, expected: &'static str| {
            let field = schema.field(index);
            if is_usable(field.data_type()) {
                return Ok(());
            }
            let (uri, column) = (uri.into(), field.name().clone());
            Err(ReadError::ColumnType {
                uri,
                column,
                found: field.data_type().to_string(),
                expected,
            })
        };
        check(columns.text, is_text, "a string")?;
        if let Some(id) = columns.id {
            check(
                id,
                |kind| is_text(kind) || is_plain(kind),
                "a string, number or boolean",
            )?;
        }
        for index in &columns.join {
            check(*index, has_json, "one that has a JSON form")?;
        }
        Ok(columns)
    }

    fn roots(&self) -> impl Iterator<Item = usize> + '_ {
        self.id
            .into_iter()
            .chain([self.text])
            .chain(self.join.iter().copied())
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(
        kind,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
    )
}

fn is_plain(kind: &DataType) -> bool {
    kind.is_primitive() || *kind == DataType::Boolean
}

fn has_json(kind: &DataType) -> bool {
    let field: FieldRef = Arc::new(Field::new("column", kind.clone(), true));
    make_encoder(&field, &new_empty_array(kind), &EncoderOptions::default()).is_ok()
}

/// Decodes a range and sends it; stops early when nobody receives.
fn decode(
    file: &ParquetFile,
    range: &ParquetRange,
    sender: &mpsc::Sender<Vec<(usize, ReadRow)>>,
) -> Result<(), ReadError> {
    let group = range.row_group as usize;
    // The index of the pages, where there is one, leads straight to the range.
    let options = options()
        .with_offset_index_policy(PageIndexPolicy::Optional)
        .with_offset_index_mask(ColumnChunkMask::row_groups([group]));
    let footer = file.footer(options.clone())?;
    let columns = Columns::find(file.uri(), footer.schema(), &range.wanted)?;
    let fields = footer.schema().fields().iter().map(|field| {
        let as_view = field.as_ref().clone().with_data_type(DataType::Utf8View);
        if is_text(field.data_type()) {
            Arc::new(as_view)
        } else {
            Arc::clone(field)
        }
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let metadata = Arc::clone(footer.metadata());
    let decoded = ArrowReaderMetadata::try_new(metadata, options.with_schema(schema));
    let decoded = decoded.map_err(|error| file.explain(error))?;
    let Some(group_rows) = footer
        .metadata()
        .row_groups()
        .get(group)
        .map(|g| g.num_rows())
    else {
        return Err(file.explain(format!("it has no row group {group}")));
    };
    let group_rows = usize::try_from(group_rows).unwrap_or(0);
    let rows = range.rows.start as usize..(range.rows.end as usize).min(group_rows);
    let mask = ProjectionMask::roots(footer.parquet_schema(), columns.roots());
    let selection = RowSelection::from_consecutive_ranges([rows].into_iter(), group_rows);
    let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(file.clone(), decoded)
        .with_row_groups(vec![group])
        .with_row_selection(selection)
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|error| file.explain(error))?;
    let mut row = range.rows.start;
    for batch in batches {
        let batch = batch.map_err(|error| file.explain(error))?;
        let place = |index: usize| Place::Group {
            row_group: range.row_group,
            row: row + index as u64,
        };
        let went_on = hand_over(&batch, range, place, sender);
        if !went_on.map_err(|error| file.explain(error))? {
            return Ok(());
        }
        row += batch.num_rows() as u64;
    }
    Ok(())
}

/// Sends the rows of a batch in chunks; `false` when nobody receives.
fn hand_over(
    batch: &RecordBatch,
    range: &ParquetRange,
    place: impl Fn(usize) -> Place,
    sender: &mpsc::Sender<Vec<(usize, ReadRow)>>,
) -> Result<bool, arrow_schema::ArrowError> {
    let ParquetRange {
        wanted,
        row_bytes_max,
        ..
    } = range;
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let schema = batch.schema();
    let encoder = |name: &str| {
        let index = schema.index_of(name)?;
        make_encoder(
            &schema.fields()[index],
            batch.column(index).as_ref(),
            &options,
        )
    };
    let mut id = wanted.id.as_deref().map(encoder).transpose()?;
    let joined = wanted.join.iter().map(|field| encoder(&field.name));
    let mut joined = joined.collect::<Result<Vec<_>, _>>()?;
    let texts: &StringViewArray = batch
        .column(schema.index_of(&wanted.text)?)
        .as_string_view();
    let (mut chunk, mut chunk_bytes) = (Vec::new(), 0);
    for index in 0..batch.num_rows() {
        let id = id.as_mut().map(|encoder| encode(encoder, index));
        let values: Vec<_> = joined
            .iter_mut()
            .map(|encoder| Some(encode(encoder, index)))
            .collect();
        let text = texts.is_valid(index).then(|| texts.value(index));
        let encoded = id.iter().chain(values.iter().flatten());
        let bytes = text.map_or(0, str::len) + encoded.map(String::len).sum::<usize>();
        let row = if bytes > *row_bytes_max {
            Err(Refused::too_long(*row_bytes_max))
        } else {
            view_of(id.as_deref(), text, &values, wanted)
        };
        chunk.push((bytes, view::owned(place(index), row)));
        chunk_bytes += bytes;
        if chunk.len() >= CHUNK_ROWS || chunk_bytes >= CHUNK_BYTES || index + 1 == batch.num_rows()
        {
            chunk_bytes = 0;
            if sender.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// A value of a column as JSON.
fn encode(encoder: &mut NullableEncoder<'_>, index: usize) -> String {
    let mut json = Vec::new();
    match encoder.is_null(index) {
        true => json.extend_from_slice(b"null"),
        false => encoder.encode(index, &mut json),
    }
    String::from_utf8(json).unwrap_or_else(|_| "null".into())
}

/// One row of a batch.
fn view_of<'a>(
    id: Option<&'a str>,
    text: Option<&'a str>,
    values: &[Option<String>],
    wanted: &Wanted,
) -> Result<RowView<'a>, Refused> {
    let id = match &wanted.id {
        None => None,
        Some(field) => {
            let id = view::id_of_json(field, id);
            Some(id.map_err(|error| Refused { id: None, error })?)
        }
    };
    let text = text.map(Cow::Borrowed).ok_or_else(|| {
        let message = format!("column {:?}, which holds the text, is null", wanted.text);
        RowError::new(RowErrorCode::MissingField, message)
    });
    wanted.row(id, text, |text| wanted.beside(values, text))
}
