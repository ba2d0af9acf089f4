//! Which files the URIs of a job name, and what they hold.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use globset::{GlobBuilder, GlobMatcher};
use millrace_protocol::plan::{Compression, Format, InputFile};
use object_store::{Error, ObjectMeta, ObjectStoreExt};

use super::PlanError;
use crate::{
    job::Input,
    store::{StoreError, StoreUri, Stores},
};

const GLOB_CHARACTERS: [char; 5] = ['*', '?', '[', '{', '\\'];

/// The entity tag that a listing gives. Some servers list files that were put beside them with an empty
/// one, and give none when the file is read.
fn entity_tag(listed: Option<String>) -> Option<String> {
    listed.filter(|etag| !etag.is_empty())
}

/// Lists the files that the job's URIs name: sorted by URI, each once, pinned to their entity tags.
/// A URI that names nothing is an error.
///
/// `*`, `?`, `[…]`, `{a,b}` and `**` match as in a shell: only `**` crosses slashes, and names that
/// begin with a dot match only where the pattern spells the dot.
pub async fn list_inputs(stores: &Stores, input: &Input) -> Result<Vec<InputFile>, PlanError> {
    // The place where a file really lies: two names of one file are one input.
    let mut files = BTreeMap::new();
    for (index, uri) in input.uris.iter().enumerate() {
        let found = match Pattern::new(uri)? {
            None => vec![file(stores, index, uri).await?],
            Some(pattern) => pattern.list(stores).await?,
        };
        if found.is_empty() {
            return Err(PlanError::NoMatch {
                index,
                uri: uri.clone(),
                hint: "",
            });
        }
        for (uri, meta) in found {
            let place = match StoreUri::parse(&uri)? {
                StoreUri::File(_) => format!("file:///{}", stores.open(&uri)?.path),
                StoreUri::S3 { .. } | StoreUri::Inline => uri.clone(),
            };
            files.entry(place).or_insert((uri, meta));
        }
    }
    let mut inputs = files
        .into_values()
        .map(|(uri, meta)| {
            let (format, compression) = layout(&uri, input)?;
            let columns = None;
            let (size_bytes, etag) = (meta.size, entity_tag(meta.e_tag));
            Ok(InputFile {
                uri,
                size_bytes,
                etag,
                format,
                compression,
                columns,
            })
        })
        .collect::<Result<Vec<_>, PlanError>>()?;
    inputs.sort_by(|a, b| a.uri.cmp(&b.uri));
    Ok(inputs)
}

/// Refuses an id field for lines of text, which have no fields.
pub(super) fn check_ids(input: &Input, inputs: &[InputFile]) -> Result<(), PlanError> {
    let text = inputs.iter().find(|file| file.format == Format::Text);
    match (text, &input.fields.id) {
        (Some(file), Some(_)) => Err(PlanError::IdOfText {
            uri: file.uri.clone(),
        }),
        (None, _) | (_, None) => Ok(()),
    }
}

/// A file that is named without glob characters.
async fn file(stores: &Stores, index: usize, uri: &str) -> Result<(String, ObjectMeta), PlanError> {
    let no_match = |hint| PlanError::NoMatch {
        index,
        uri: uri.into(),
        hint,
    };
    if uri.ends_with('/') {
        return Err(no_match("; to read a whole folder, end it with /**"));
    }
    let location = stores.open(uri)?;
    match location.store.head(&location.path).await {
        Ok(meta) => Ok((uri.into(), meta)),
        Err(Error::NotFound { .. }) => {
            let inside = location
                .store
                .list_with_delimiter(Some(&location.path))
                .await;
            let is_folder =
                inside.is_ok_and(|l| !l.objects.is_empty() || !l.common_prefixes.is_empty());
            let hint = "; it is a folder: to read all of it, end it with /**";
            Err(no_match(if is_folder { hint } else { "" }))
        }
        Err(error) => Err(StoreError::at(uri, error).into()),
    }
}

/// A URI with glob characters.
pub(super) struct Pattern {
    /// The URI up to the last slash before the first glob character, with that slash.
    root: String,
    /// Matches what follows `root`.
    rest: GlobMatcher,
    /// Whether the pattern spells a name with a leading dot.
    spells_dot: bool,
}

impl Pattern {
    /// Parses a URI; `None` if it has no glob characters.
    pub(super) fn new(uri: &str) -> Result<Option<Self>, PlanError> {
        let Some(first) = uri.find(GLOB_CHARACTERS) else {
            return Ok(None);
        };
        let root = uri[..first].rfind('/').map_or(0, |slash| slash + 1);
        let (root, rest) = uri.split_at(root);
        let glob = GlobBuilder::new(rest)
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|source| PlanError::Pattern {
                uri: uri.into(),
                source,
            })?;
        Ok(Some(Self {
            root: root.into(),
            rest: glob.compile_matcher(),
            spells_dot: rest.starts_with('.') || rest.contains("/."),
        }))
    }

    /// Whether `relative`, a path below the pattern's root, matches.
    pub(super) fn matches(&self, relative: &str) -> bool {
        let hidden = relative.split('/').any(|name| name.starts_with('.'));
        (!hidden || self.spells_dot) && self.rest.is_match(relative)
    }

    /// The root's URI, with a slash at its end.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    async fn list(&self, stores: &Stores) -> Result<Vec<(String, ObjectMeta)>, PlanError> {
        // The scheme and the bucket cannot be patterns.
        let root = stores.open(&self.root)?;
        let mut listing = root.store.list(Some(&root.path));
        let mut found = Vec::new();
        loop {
            let next = listing
                .try_next()
                .await
                .map_err(|error| StoreError::at(&self.root, error))?;
            let Some(meta) = next else { break };
            let Some(parts) = meta.location.prefix_match(&root.path) else {
                continue;
            };
            let relative = parts
                .map(|part| part.as_ref().to_owned())
                .collect::<Vec<_>>()
                .join("/");
            if self.matches(&relative) {
                found.push((format!("{}{relative}", self.root), meta));
            }
        }
        Ok(found)
    }
}

/// Format and compression of a file: what the job says, else what the name says.
fn layout(uri: &str, input: &Input) -> Result<(Format, Compression), PlanError> {
    let name = uri
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let (stem, named) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
        (Some(stem), _) => (stem, Compression::Gzip),
        (_, Some(stem)) => (stem, Compression::Zstd),
        _ => (&name[..], Compression::None),
    };
    let format = match (
        input.format,
        stem.rsplit_once('.').map(|(_, extension)| extension),
    ) {
        (Some(format), _) => format,
        (None, Some("jsonl" | "ndjson")) => Format::Jsonl,
        (None, Some("csv")) => Format::Csv,
        (None, Some("parquet")) => Format::Parquet,
        (None, Some("txt")) => Format::Text,
        (None, _) => return Err(PlanError::UnknownFormat { uri: uri.into() }),
    };
    let compression = input.compression.unwrap_or(named);
    if format == Format::Parquet && compression != Compression::None {
        return Err(PlanError::CompressedParquet { uri: uri.into() });
    }
    Ok((format, compression))
}

#[cfg(test)]
mod tests {
    use super::entity_tag;

    #[test]
    fn an_empty_entity_tag_is_none() {
        assert_eq!(entity_tag(Some(String::new())), None);
        let tag = Some("\"a\"".to_owned());
        assert_eq!(entity_tag(tag.clone()), tag);
        assert_eq!(entity_tag(None), None);
    }
}
