//! Receipts: what was paid for and said, one for each call, kept in the output until their shard is
//! committed. Whoever takes a shard up again pays for nothing that lies there, and knows what it cost.
//!
//! What a receipt cost stands in its name, and the arm whose call it was where the job has routes, so
//! that a listing says what was paid.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::commit::Commit;
use millrace_protocol::cost::Cost;
use millrace_protocol::layout;
use millrace_protocol::plan::{RunNumber, ShardIndex};
use millrace_protocol::routes::ArmIndex;
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
    /// The same for each arm.
    paid_by: Vec<(ArmIndex, Tally)>,
}

/// The receipts of one shard's calls of one API.
#[derive(Clone, Copy)]
pub struct ReceiptsOf<'a> {
    receipts: &'a Receipts,
    arm: Option<ArmIndex>,
}

/// A receipt in a listing.
struct Listed {
    path: Path,
    arm: Option<ArmIndex>,
    cost: Cost,
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
            paid_by: Vec::new(),
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
        let read: Vec<(Listed, Receipt)> = futures::stream::iter(listed)
            .map(|listed| read(output, listed))
            .buffer_unordered(READS_MAX)
            .try_collect()
            .await?;
        for (Listed { path: _, arm, cost }, Receipt { tokens, said }) in read {
            let paid = Tally {
                tokens,
                cost,
                ..Tally::default()
            };
            receipts.paid += paid;
            receipts.paid_by.extend(arm.map(|arm| (arm, paid)));
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

    /// The same by arms, each of which may come more than once.
    pub fn paid_by_arms(&self) -> &[(ArmIndex, Tally)] {
        &self.paid_by
    }

    /// Those of calls for one arm of a job with routes, or of all calls of one without.
    pub fn of(&self, arm: Option<ArmIndex>) -> ReceiptsOf<'_> {
        ReceiptsOf {
            receipts: self,
            arm,
        }
    }
}

impl ReceiptsOf<'_> {
    /// What was said before to this prompt of this step.
    pub fn find(&self, step: usize, prompt: &str) -> Option<Prediction> {
        let said = &self.receipts.said;
        if said.is_empty() {
            return None;
        }
        said.get(&asked(self.arm, step, prompt)).cloned()
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
            asked: asked(self.arm, step, prompt),
            prediction: prediction.clone(),
        });
        let said = said.collect();
        let bytes = serde_json::to_vec(&Receipt { tokens, said }).expect("a receipt serialises");
        let Receipts { output, folder, .. } = self.receipts;
        let name = layout::receipt(folder, rand::random(), self.arm, cost);
        store::replace(&output.store, &output.below(&name), bytes).await
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
            for Listed { path, .. } in listed {
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
    let paid = paid_by_arms(output, run, committed).await?;
    Ok(paid.into_iter().map(|(_, cost)| cost).sum())
}

/// The same for each receipt, with the arm whose call it was.
pub async fn paid_by_arms(
    output: &Location,
    run: RunNumber,
    committed: &[Commit],
) -> Result<Vec<(Option<ArmIndex>, Cost)>, StoreError> {
    let committed: HashSet<ShardIndex> = committed.iter().map(|commit| commit.shard).collect();
    let open = list(output, &layout::receipts(run)).await?.into_iter();
    let open = open.filter(|listed| {
        let shard = layout::shard_of_receipt(listed.path.as_ref());
        shard.is_some_and(|shard| !committed.contains(&shard))
    });
    Ok(open.map(|listed| (listed.arm, listed.cost)).collect())
}

/// Reads a receipt. One that cannot be read was paid all the same, and its rows are asked again.
async fn read(output: &Location, listed: Listed) -> Result<(Listed, Receipt), StoreError> {
    let bytes = store::read(&output.store, &listed.path).await?;
    let receipt = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok((listed, receipt.unwrap_or_default()))
}

/// The receipts below a folder.
async fn list(output: &Location, folder: &str) -> Result<Vec<Listed>, StoreError> {
    let folder = output.below(folder);
    let listed = output.store.list(Some(&folder)).map_ok(|object| Listed {
        arm: layout::arm_of_receipt(object.location.as_ref()),
        cost: layout::cost_of_receipt(object.location.as_ref()).unwrap_or_default(),
        path: object.location,
    });
    let listed = listed.try_collect().await;
    listed.map_err(|source| StoreError::at(&folder, source))
}

/// Tells a prompt of a step from all others of a run, whose spec decides everything else that is asked.
fn asked(arm: Option<ArmIndex>, step: usize, prompt: &str) -> String {
    let mut hash = Sha256::new();
    if let Some(arm) = arm {
        hash.update(arm.to_le_bytes());
    }
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
            (receipts.paid(), receipts.of(None).find(0, "a")),
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
        let of = |arm| receipts.of(arm);
        of(None).keep(0, said, taken(5, 30)).await.unwrap();
        of(Some(3)).keep(1, vec![], taken(2, 12)).await.unwrap();
        let again = Receipts::open(&output, 1, 7).await.unwrap();
        assert_eq!((again.paid().tokens, again.paid().cost), (7, cost(42)));
        let of = |arm| again.of(arm);
        assert_eq!(of(None).find(0, "a"), Some(answer));
        assert_eq!(of(None).find(1, "a"), None);
        assert_eq!(of(None).find(0, "b"), None);
        assert_eq!(of(Some(3)).find(0, "a"), None, "another was asked");
        assert_eq!(again.paid_by_arms(), [(3, taken(2, 12))]);
        assert_eq!(paid(&output, 1, &[]).await.unwrap(), cost(42));
        assert_eq!(paid(&output, 2, &[]).await.unwrap(), cost(0));
        discard_all(&output, 1, Some(6)).await;
        assert_eq!(paid(&output, 1, &[]).await.unwrap(), cost(42));
        discard_all(&output, 1, Some(7)).await;
        assert_eq!(paid(&output, 1, &[]).await.unwrap(), cost(0));
    }
}
