//! Commits a shard: the moment its results become visible, exactly once.

use bytes::Bytes;
use millrace_protocol::commit::Commit;
use millrace_protocol::layout;
use millrace_protocol::plan::{RunNumber, ShardIndex};

use super::part::discard;
use crate::store::{self, Created, Location, StoreError};

/// What a commit came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Ours is the record that stands.
    Won,
    /// Another attempt's record stands; our files are discarded.
    Lost(Box<Commit>),
}

/// Why a commit could not be decided.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store failed.
    #[error("the commit record of shard {shard} could not be written or read")]
    Store {
        /// The shard.
        shard: ShardIndex,
        /// The store's error.
        source: StoreError,
    },
    /// The record that stands cannot be read.
    #[error("the commit record of shard {shard} is not one: {message}")]
    Unreadable {
        /// The shard.
        shard: ShardIndex,
        /// What is wrong with it.
        message: String,
    },
}

/// Writes `commit` if no other attempt has, else discards the attempt's files.
///
/// A create whose answer was lost finds its own record on the second try, which is why the record
/// that stands decides and not the store's answer.
pub async fn commit(
    output: &Location,
    run: RunNumber,
    commit: &Commit,
) -> Result<Verdict, CommitError> {
    let shard = commit.shard;
    let path = output.below(&layout::commit(run, shard));
    let record = Bytes::from(serde_json::to_vec_pretty(commit).expect("a commit serialises"));
    let created = store::create(&output.store, &path, record)
        .await
        .map_err(|source| CommitError::Store { shard, source })?;
    if created == Created::New {
        return Ok(Verdict::Won);
    }
    let standing = read(output, run, shard)
        .await?
        .ok_or_else(|| CommitError::Unreadable {
            shard,
            message: "the store said it exists, then that it does not".to_owned(),
        })?;
    if standing.attempt == commit.attempt {
        return Ok(Verdict::Won);
    }
    let files = [
        &commit.part,
        &commit.errors,
        &commit.ledger,
        &commit.error_ledger,
    ];
    for file in files.into_iter().flatten() {
        discard(output, file).await;
    }
    Ok(Verdict::Lost(Box::new(standing)))
}

/// The commit record of a shard, if there is one.
pub async fn read(
    output: &Location,
    run: RunNumber,
    shard: ShardIndex,
) -> Result<Option<Commit>, CommitError> {
    let path = output.below(&layout::commit(run, shard));
    let found = store::read(&output.store, &path).await;
    let Some(bytes) = found.map_err(|source| CommitError::Store { shard, source })? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| CommitError::Unreadable {
            shard,
            message: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use millrace_protocol::tally::Rows;

    use super::super::part::PartWriter;
    use super::*;
    use crate::store::{StoreOptions, Stores};

    fn output(folder: &tempfile::TempDir) -> Location {
        let uri = format!("file://{}/out", folder.path().display());
        Stores::new(StoreOptions::default()).open(&uri).unwrap()
    }

    /// An attempt whose part is written and whose commit is still to be made.
    async fn attempt(output: &Location, attempt: &str, epoch: u64) -> Commit {
        let mut part = PartWriter::new(output, layout::part(1, 0, attempt, false));
        part.write(Bytes::from(format!("{attempt}\n")))
            .await
            .unwrap();
        let part = part.finish().await.unwrap().unwrap();
        Commit {
            shard: 0,
            epoch,
            attempt: attempt.to_owned(),
            part: Some(part.relative_path),
            errors: None,
            ledger: None,
            error_ledger: None,
            carried: 0,
            duplicates: 0,
            rows: Rows {
                succeeded: 1,
                failed: 0,
                skipped: 0,
            },
            tokens: 1,
            cost: Default::default(),
            routes: Vec::new(),
            sha256: Some(part.sha256),
            models: Default::default(),
        }
    }

    #[tokio::test]
    async fn the_first_commit_wins_whatever_its_epoch_and_the_loser_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let output = output(&folder);
        let mut newer = attempt(&output, "newer", 2).await;
        let ledger = layout::error_ledger(1, 0, "newer");
        let path = output.below(&ledger);
        store::create(&output.store, &path, Vec::new())
            .await
            .unwrap();
        newer.error_ledger = Some(ledger);
        let stalled = attempt(&output, "stalled", 1).await;
        assert_eq!(commit(&output, 1, &stalled).await.unwrap(), Verdict::Won);
        let verdict = commit(&output, 1, &newer).await.unwrap();
        assert_eq!(verdict, Verdict::Lost(Box::new(stalled.clone())));
        assert_eq!(read(&output, 1, 0).await.unwrap(), Some(stalled.clone()));
        let exists = |part: Option<String>| folder.path().join("out").join(part.unwrap()).exists();
        assert!(exists(stalled.part), "the winner's part stays");
        assert!(!exists(newer.part), "the loser's part is gone");
        assert!(!exists(newer.error_ledger), "and its other files");
    }

    #[tokio::test]
    async fn a_commit_whose_answer_was_lost_is_won_on_the_second_try() {
        let folder = tempfile::tempdir().unwrap();
        let output = output(&folder);
        let ours = attempt(&output, "ours", 1).await;
        assert_eq!(commit(&output, 1, &ours).await.unwrap(), Verdict::Won);
        assert_eq!(commit(&output, 1, &ours).await.unwrap(), Verdict::Won);
        let part = folder.path().join("out").join(ours.part.unwrap());
        assert!(part.exists(), "its own part is not taken for a loser's");
    }
}
