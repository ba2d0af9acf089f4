//! Removes the files of attempts that never won, once every shard is decided, so that no later commit can name
//! them; and what attempts began to upload.

use std::collections::HashSet;

use futures::TryStreamExt;
use millrace_protocol::layout;
use millrace_protocol::manifest::LivePart;
use millrace_protocol::plan::{Plan, RunNumber};
use millrace_telemetry::chain;
use object_store::ObjectStore;

use super::FinishError;
use crate::store::{Location, StoreError};
use crate::work::part::discard;

/// Removes parts, error files and ledgers of the plan's run that no live commit names, and the lists of
/// what its shards were to copy. `is_local` says that the output lies on a local disk. The lists of
/// duplicates stay, since a run of failed rows builds on them; those of planners that lost go.
pub async fn sweep(
    output: &Location,
    is_local: bool,
    plan: &Plan,
    live: &[LivePart],
) -> Result<(), FinishError> {
    let run = plan.run;
    let dedup = plan.dedup.as_ref();
    let of_planner = dedup.map(|dedup| format!("{}-", dedup.planner));
    let is_list = |name: &str| of_planner.as_ref().is_some_and(|it| name.starts_with(it));
    let named: HashSet<&str> = live
        .iter()
        .flat_map(|part| {
            let commit = &part.commit;
            let ledgers = [&commit.ledger, &commit.error_ledger];
            [&commit.part, &commit.errors].into_iter().chain(ledgers)
        })
        .flatten()
        .map(String::as_str)
        .collect();
    let of_run = layout::of_run(run);
    for (folder, prefix) in [
        ("parts".to_owned(), &*of_run),
        ("errors".to_owned(), &of_run),
        (layout::ledgers(run), ""),
        (layout::carried_lists(run), ""),
        (layout::duplicates_lists(run), ""),
    ] {
        let path = output.below(&folder);
        let failed = |source| StoreError::at(&path, source);
        let mut files = output.store.list(Some(&path));
        while let Some(file) = files.try_next().await.map_err(failed)? {
            let Some(name) = file.location.filename() else {
                continue;
            };
            let relative_path = format!("{folder}/{name}");
            let stays = named.contains(relative_path.as_str()) || is_list(name);
            if name.starts_with(prefix) && !stays {
                discard(output, &relative_path).await;
            }
        }
        if is_local {
            remove_staged(&std::path::Path::new("/").join(path.as_ref()), prefix).await;
        }
    }
    if dedup.is_some() {
        discard(output, &layout::copies(run)).await;
    }
    Ok(())
}

/// Aborts what killed workers and finishers of a run began to upload and nobody ends. That it cannot be done
/// costs money and no result, so it is a warning.
pub async fn abort_uploads(output: &Location, run: RunNumber) {
    let Some(uploads) = &output.uploads else {
        return;
    };
    let of_run = layout::of_run(run);
    for begins in [
        &*format!("parts/{of_run}"),
        &format!("errors/{of_run}"),
        layout::MERGED,
    ] {
        let prefix = output.below(begins);
        match uploads.abort(&prefix).await {
            Ok(0) => {}
            Ok(aborted) => {
                tracing::info!(%prefix, aborted, "uploads that nobody ends were aborted")
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "uploads that killed processes left cannot be aborted; a lifecycle rule of the bucket \
                     can (AbortIncompleteMultipartUpload)"
                );
                return;
            }
        }
    }
}

/// Removes what killed processes left of files they were writing. The local store writes below
/// `<name>#<number>` and renames when the file is whole; its listings hide such names.
async fn remove_staged(folder: &std::path::Path, prefix: &str) {
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else {
        return;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let staged = name.to_str().is_some_and(|name| {
            let number = name.rsplit_once('#').map(|(_, number)| number);
            name.starts_with(prefix) && number.is_some_and(|n| n.parse::<u64>().is_ok())
        });
        if staged && let Err(error) = tokio::fs::remove_file(entry.path()).await {
            tracing::debug!(?name, %error, "a half-written file could not be removed");
        }
    }
}
