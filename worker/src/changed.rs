//! Input files that are not what they were when a run was planned.

use std::collections::HashSet;
use std::fmt;

use millrace_protocol::commit::Commit;
use millrace_protocol::plan::{InputFile, Plan, ShardIndex};

use crate::job::{CheckedJob, Input};
use crate::plan;
use crate::store::Stores;

/// An input file that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// URI of the file.
    pub uri: String,
    /// What differs.
    pub how: Difference,
}

/// What differs of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It was not there.
    New,
    /// Its size in bytes.
    Size {
        /// When the run was planned.
        before: u64,
        /// As it is.
        now: u64,
    },
    /// Its entity tag alone, if the store has tags.
    Tag {
        /// When the run was planned.
        before: Option<String>,
        /// As it is.
        now: Option<String>,
    },
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uri, how } = self;
        write!(f, "{uri} is not what it was when this job ran: ")?;
        match how {
            Difference::New => write!(f, "it was not there"),
            Difference::Size { before, now } => {
                write!(f, "its size is {now} bytes instead of {before}")
            }
            Difference::Tag { .. } if uri.starts_with("file://") => write!(
                f,
                "it is as long as it was, but was written or replaced since, and the time of that counts \
                 though its bytes may be the same"
            ),
            Difference::Tag { before, now } => {
                let [now, before] = [now, before].map(|tag| tag.as_deref().unwrap_or("none"));
                write!(f, "its entity tag is {now} instead of {before}")
            }
        }
    }
}

/// The first input file that is not what it is among those that were `planned`, or is new. Files that
/// cannot be listed any more are nobody's business once a run is finished.
pub async fn input(stores: &Stores, input: &Input, planned: &[InputFile]) -> Option<Changed> {
    changes(stores, input, planned).await.into_iter().next()
}

/// The first input file of a shard without a commit that is not what it was when `plan` was made.
pub async fn open_shards(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
    committed: &[Commit],
) -> Option<Changed> {
    let committed: HashSet<ShardIndex> = committed.iter().map(|commit| commit.shard).collect();
    let open = (0..).zip(&plan.shards);
    let open = open.filter(|(index, _)| !committed.contains(index));
    let open: HashSet<&str> = open
        .map(|(_, shard)| plan.input_of(shard).uri.as_str())
        .collect();
    let changes = changes(stores, &job.input, &plan.inputs).await;
    changes
        .into_iter()
        .find(|it| it.how != Difference::New && open.contains(it.uri.as_str()))
}

async fn changes(stores: &Stores, input: &Input, planned: &[InputFile]) -> Vec<Changed> {
    if input.inline.is_some() {
        return Vec::new();
    }
    let listed = plan::list_inputs(stores, input).await.unwrap_or_default();
    let changes = listed.into_iter().filter_map(|now| {
        let before = planned.iter().find(|before| before.uri == now.uri);
        let how = difference(before, &now)?;
        Some(Changed { uri: now.uri, how })
    });
    changes.collect()
}

/// What differs between the two states of a file, if anything does.
fn difference(before: Option<&InputFile>, now: &InputFile) -> Option<Difference> {
    let Some(before) = before else {
        return Some(Difference::New);
    };
    if before.size_bytes != now.size_bytes {
        return Some(Difference::Size {
            before: before.size_bytes,
            now: now.size_bytes,
        });
    }
    (before.etag != now.etag).then(|| Difference::Tag {
        before: before.etag.clone(),
        now: now.etag.clone(),
    })
}

#[cfg(test)]
mod tests {
    use millrace_protocol::plan::{Compression, Format};

    use super::*;

    fn file(size_bytes: u64, etag: &str) -> InputFile {
        InputFile {
            uri: "s3://bucket/rows.jsonl".to_owned(),
            size_bytes,
            etag: Some(etag.to_owned()),
            format: Format::Jsonl,
            compression: Compression::None,
            columns: None,
        }
    }

    #[test]
    fn a_file_that_changed_is_told_by_what_differs() {
        let said = |uri: &str, before: Option<&InputFile>, now: &InputFile| {
            let uri = uri.to_owned();
            difference(before, now).map(|how| Changed { uri, how }.to_string())
        };
        let before = file(10, "a");
        let of = |uri, now: &InputFile| said(uri, Some(&before), now).unwrap_or_default();
        assert_eq!(of("s3://b/a", &file(10, "a")), "");
        let longer = of("s3://b/a", &file(12, "b"));
        assert!(longer.ends_with("12 bytes instead of 10"), "{longer}");
        let tag = of("s3://b/a", &file(10, "b"));
        assert!(tag.ends_with("entity tag is b instead of a"), "{tag}");
        let touched = of("file:///a", &file(10, "b"));
        assert!(touched.contains("the time of that counts"), "{touched}");
        let new = said("s3://b/a", None, &file(10, "a")).unwrap();
        assert!(new.ends_with("it was not there"), "{new}");
    }
}
