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
use millrace_protocol::manifest::Manifest;
use millrace_protocol::plan::{FIRST_RUN, Plan, RunNumber, ShardOfRun};
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

/// Receipts removed at a time.
const REMOVALS_MAX: usize = 32;

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
    pub fn none(output: &Location, of: ShardOfRun) -> Self {
        Self {
            output: output.clone(),
            folder: layout::receipts_of(of),
            said: HashMap::new(),
            paid: Tally::default(),
            paid_by: Vec::new(),
        }
    }

    /// Reads the receipts that lie with a shard.
    pub async fn open(output: &Location, of: ShardOfRun) -> Result<Self, StoreError> {
        let mut receipts = Self::none(output, of);
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

/// Removes the receipts that lie with a shard whose commit counts them.
pub async fn discard(output: &Location, of: ShardOfRun) {
    discard_below(output, &layout::receipts_of(of)).await;
}

/// Removes the receipts of all runs up to this one.
pub async fn discard_all(output: &Location, last: RunNumber) {
    for run in FIRST_RUN..=last {
        discard_below(output, &layout::receipts(run)).await;
    }
}

async fn discard_below(output: &Location, folder: &str) {
    match list(output, folder).await {
        Ok(listed) => {
            futures::stream::iter(listed)
                .for_each_concurrent(REMOVALS_MAX, async |listed| {
                    remove(output, &listed.path).await;
                })
                .await;
        }
        Err(error) => tracing::debug!(folder, %error, "receipts could not be removed"),
    }
}

/// What was paid in all runs up to this one and is counted by no commit: those are counted already that
/// lie with the `settled` shards. For each receipt, with the arm whose call it was.
pub async fn paid_by_arms(
    output: &Location,
    last: RunNumber,
    settled: &HashSet<ShardOfRun>,
) -> Result<Vec<(Option<ArmIndex>, Cost)>, StoreError> {
    let mut paid = Vec::new();
    for run in FIRST_RUN..=last {
        let open = list(output, &layout::receipts(run)).await?.into_iter();
        let open = open.filter(|listed| {
            let shard = layout::shard_of_receipt(listed.path.as_ref());
            shard.is_some_and(|shard| !settled.contains(&ShardOfRun { run, shard }))
        });
        paid.extend(open.map(|listed| (listed.arm, listed.cost)));
    }
    Ok(paid)
}

/// The shards whose receipts the commits of a run and of the manifest before it count.
pub fn settled(
    plan: &Plan,
    committed: &[Commit],
    earlier: Option<&Manifest>,
) -> HashSet<ShardOfRun> {
    let now = committed.iter().map(|commit| {
        let shard = &plan.shards[commit.shard as usize];
        shard.receipts(plan.run, commit.shard)
    });
    let earlier = earlier.into_iter().flat_map(|manifest| &manifest.parts);
    let earlier = earlier.map(|part| part.range.receipts(part.run, part.commit.shard));
    now.chain(earlier).collect()
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

    fn of_run(run: RunNumber) -> ShardOfRun {
        ShardOfRun { run, shard: 7 }
    }

    #[tokio::test]
    async fn what_was_paid_and_said_is_found_again_until_it_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("file://{}/out", folder.path().display());
        let output = Stores::new(StoreOptions::default()).open(&uri).unwrap();
        let receipts = Receipts::open(&output, of_run(1)).await.unwrap();
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
        let again = Receipts::open(&output, of_run(1)).await.unwrap();
        assert_eq!((again.paid().tokens, again.paid().cost), (7, cost(42)));
        let of = |arm| again.of(arm);
        assert_eq!(of(None).find(0, "a"), Some(answer));
        assert_eq!(of(None).find(1, "a"), None);
        assert_eq!(of(None).find(0, "b"), None);
        assert_eq!(of(Some(3)).find(0, "a"), None, "another was asked");
        assert_eq!(again.paid_by_arms(), [(3, taken(2, 12))]);
        let paid = async |settled: &[ShardOfRun]| {
            let settled = settled.iter().copied().collect();
            let paid = paid_by_arms(&output, 2, &settled).await.unwrap();
            paid.into_iter().map(|(_, cost)| cost).sum::<Cost>()
        };
        assert_eq!(paid(&[]).await, cost(42), "that of earlier runs as well");
        assert_eq!(paid(&[of_run(2)]).await, cost(42));
        assert_eq!(paid(&[of_run(1)]).await, cost(0), "a commit counts it");
        discard(&output, of_run(2)).await;
        assert_eq!(paid(&[]).await, cost(42));
        discard(&output, of_run(1)).await;
        assert_eq!(paid(&[]).await, cost(0));
    }
}
