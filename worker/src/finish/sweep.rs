//! Removes the files of attempts that never won: every shard is decided, so no later commit can
//! name them.

use std::collections::HashSet;

use futures::TryStreamExt;
use millrace_protocol::manifest::LivePart;
use millrace_protocol::plan::RunNumber;
use object_store::ObjectStore;

use super::FinishError;
use crate::store::{Location, StoreError};
use crate::work::part::discard;

/// Removes parts and error files of `run` that no live commit names.
pub async fn sweep(
    output: &Location,
    run: RunNumber,
    live: &[LivePart],
) -> Result<(), FinishError> {
    let named: HashSet<&str> = live
        .iter()
        .flat_map(|part| [&part.commit.part, &part.commit.errors])
        .flatten()
        .map(String::as_str)
        .collect();
    let prefix = format!("{run:04}-");
    for folder in ["parts", "errors"] {
        let path = output.below(folder);
        let failed = |source| StoreError::at(&path, source);
        let mut files = output.store.list(Some(&path));
        while let Some(file) = files.try_next().await.map_err(failed)? {
            let Some(name) = file.location.filename() else {
                continue;
            };
            let relative_path = format!("{folder}/{name}");
            if name.starts_with(&prefix) && !named.contains(relative_path.as_str()) {
                discard(output, &relative_path).await;
            }
        }
    }
    Ok(())
}
