//! Receipts: what was paid for and said, one for each call, kept in the output until their shard is
//! committed. Whoever takes a shard up again pays for nothing that lies there, and knows what it cost.
//!
//! What a receipt cost stands in its name, so that a listing says what was paid.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::commit::Commit;
use millrace_protocol::cost::Cost;
use millrace_protocol::layout;
use millrace_protocol::plan::{RunNumber, ShardIndex};
use millrace_protocol::tally::Tally;
use millrace_protocol::wire::Prediction;
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::{self, Location, StoreError};
use crate::work::part::remove;

/// Receipts read at a time.
const READS_MAX: usize = 32;

/// The receipts of one shard.
pub struct Receipts {
    output: Location,
    folder: String,
    /// What was said before, by what was asked.
    said: HashMap<String, Prediction>,
    /// What was paid before.
    paid: Tally,
}

/// One receipt.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Receipt {
    tokens: u64,
    said: Vec<Said>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Said {
    asked: String,
    prediction: Prediction,
}

impl Receipts {
    /// None, for a shard whose rows nobody is paid for.
    pub fn none(output: &Location, run: RunNumber, shard: ShardIndex) -> Self {
        Self {
            output: output.clone(),
            folder: layout::receipts_of(run, shard),
            said: HashMap::new(),
            paid: Tally::default(),
        }
    }

    /// Reads the receipts of a shard.
    pub async fn open(
        output: &Location,
        run: RunNumber,
        shard: ShardIndex,
    ) -> Result<Self, StoreError> {
        let mut receipts = Self::none(output, run, shard);
        let listed = list(output, &receipts.folder).await?;
        receipts.paid.cost = listed.iter().map(|(_, cost)| *cost).sum();
        let read: Vec<Receipt> = futures::stream::iter(listed)
            .map(|(path, _)| read(output, path))
            .buffer_unordered(READS_MAX)
            .try_collect()
            .await?;
        for Receipt { tokens, said } in read {
            receipts.paid.tokens += tokens;
            let said = said.into_iter();
            let said = said.map(|Said { asked, prediction }| (asked, prediction));
            receipts.said.extend(said);
        }
        Ok(receipts)
    }

    /// What was paid before; counts no rows.
    pub fn paid(&self) -> Tally {
        self.paid
    }

    /// What was said before to this prompt of this step.
    pub fn find(&self, step: usize, prompt: &str) -> Option<Prediction> {
        if self.said.is_empty() {
            return None;
        }
        self.said.get(&asked(step, prompt)).cloned()
    }

    /// Keeps what a call cost, and what was said to its prompts.
    pub async fn keep(
        &self,
        step: usize,
        said: Vec<(&str, &Prediction)>,
        taken: Tally,
    ) -> Result<(), StoreError> {
        let Tally {
            rows: _,
            tokens,
            cost,
        } = taken;
        let said = said.into_iter().map(|(prompt, prediction)| Said {
            asked: asked(step, prompt),
            prediction: prediction.clone(),
        });
        let said = said.collect();
        let bytes = serde_json::to_vec(&Receipt { tokens, said }).expect("a receipt serialises");
        let name = layout::receipt(&self.folder, rand::random(), cost);
        store::replace(&self.output.store, &self.output.below(&name), bytes).await
    }
}

/// Removes the receipts of a shard that has a commit, or, without a shard, those of a whole run.
pub async fn discard_all(output: &Location, run: RunNumber, shard: Option<ShardIndex>) {
    let folder = match shard {
        Some(shard) => layout::receipts_of(run, shard),
        None => layout::receipts(run),
    };
    match list(output, &folder).await {
        Ok(listed) => {
            for (path, _) in listed {
                remove(output, &path).await;
            }
        }
        Err(error) => tracing::debug!(folder, %error, "receipts could not be removed"),
    }
}

/// What was paid for shards of a run that are not among the `committed`.
pub async fn paid(
    output: &Location,
    run: RunNumber,
    committed: &[Commit],
) -> Result<Cost, StoreError> {
    let committed: HashSet<ShardIndex> = committed.iter().map(|commit| commit.shard).collect();
    let open = list(output, &layout::receipts(run)).await?.into_iter();
    let open = open.filter(|(path, _)| {
        let shard = layout::shard_of_receipt(path.as_ref());
        shard.is_some_and(|shard| !committed.contains(&shard))
    });
    Ok(open.map(|(_, cost)| cost).sum())
}

/// Reads a receipt. One that cannot be read was paid all the same, and its rows are asked again.
async fn read(output: &Location, path: Path) -> Result<Receipt, StoreError> {
    let bytes = store::read(&output.store, &path).await?;
    let receipt = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(receipt.unwrap_or_default())
}

/// The receipts below a folder, and what each cost.
async fn list(output: &Location, folder: &str) -> Result<Vec<(Path, Cost)>, StoreError> {
    let folder = output.below(folder);
    let listed = output.store.list(Some(&folder)).map_ok(|object| {
        let cost = layout::cost_of_receipt(object.location.as_ref());
        (object.location, cost.unwrap_or_default())
    });
    let listed = listed.try_collect().await;
    listed.map_err(|source| StoreError::at(&folder, source))
}

/// Tells a prompt of a step from all others of a run, whose spec decides everything else that is asked.
fn asked(step: usize, prompt: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(step.to_le_bytes());
    hash.update(prompt);
    data_encoding::HEXLOWER.encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::{StoreOptions, Stores};

    #[tokio::test]
    async fn what_was_paid_and_said_is_found_again_until_it_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("file://{}/out", folder.path().display());
        let output = Stores::new(StoreOptions::default()).open(&uri).unwrap();
        let receipts = Receipts::open(&output, 1, 7).await.unwrap();
        assert_eq!(
            (receipts.paid(), receipts.find(0, "a")),
            (Tally::default(), None)
        );
        let cost = Cost::of_parts;
        let answer = Prediction::Answer(json!({"mood": "good"}));
        let taken = |tokens, parts| Tally {
            tokens,
            cost: cost(parts),
            ..Tally::default()
        };
        let said = vec![("a", &answer)];
        receipts.keep(0, said, taken(5, 30)).await.unwrap();
        receipts.keep(1, vec![], taken(2, 12)).await.unwrap();
        let again = Receipts::open(&output, 1, 7).await.unwrap();
        assert_eq!((again.paid().tokens, again.paid().cost), (7, cost(42)));
        assert_eq!(again.find(0, "a"), Some(answer));
        assert_eq!((again.find(1, "a"), again.find(0, "b")), (None, None));
        assert_eq!(paid(&output, 1, &[]).await.unwrap(), cost(42));
        assert_eq!(paid(&output, 2, &[]).await.unwrap(), cost(0));
        discard_all(&output, 1, Some(6)).await;
        assert_eq!(paid(&output, 1, &[]).await.unwrap(), cost(42));
        discard_all(&output, 1, Some(7)).await;
        assert_eq!(paid(&output, 1, &[]).await.unwrap(), cost(0));
    }
}
