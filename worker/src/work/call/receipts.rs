//! Receipts: what was paid for and said, one for each call, kept in the output until their shard is
//! committed. Whoever takes a shard up again pays for nothing that lies there, and knows what it cost.
//! Vectors are large, so that of them only what was asked is kept in memory: they are read with the rows
//! that they belong to.
//!
//! What a receipt cost stands in its name, and the arm whose call it was where the job has routes, so
//! that a listing says what was paid.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::commit::Commit;
use millrace_protocol::cost::Cost;
use millrace_protocol::layout::{self, ReceiptForm};
use millrace_protocol::manifest::Manifest;
use millrace_protocol::plan::{FIRST_RUN, Plan, RunNumber, ShardOfRun};
use millrace_protocol::routes::ArmIndex;
use millrace_protocol::tally::Tally;
use millrace_protocol::wire::Prediction;
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::vectors::{self, Asked, HEAD_BYTES_MAX, Head};
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
    said: HashMap<Asked, Prediction>,
    /// The vectors that were said, on which receipt and in which place there.
    said_in_vectors: HashMap<Asked, (usize, usize)>,
    /// Receipts with vectors.
    vectors: Vec<Vectors>,
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

/// A receipt with vectors.
struct Vectors {
    path: Path,
    /// Numbers of a vector.
    size: u32,
    range: Range<u64>,
}

/// A receipt in a listing.
struct ListedReceipt {
    path: Path,
    form: Option<ReceiptForm>,
    bytes: u64,
    arm: Option<ArmIndex>,
    cost: Cost,
}

/// One receipt.
#[derive(Debug, Serialize, Deserialize)]
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
            said_in_vectors: HashMap::new(),
            vectors: Vec::new(),
            paid: Tally::default(),
            paid_by: Vec::new(),
        }
    }

    /// Reads the receipts that lie with a shard.
    pub async fn open(output: &Location, of: ShardOfRun) -> Result<Self, StoreError> {
        let mut receipts = Self::none(output, of);
        let listed = list(output, &receipts.folder).await?;
        let read: Vec<(ListedReceipt, Content)> = futures::stream::iter(listed)
            .map(|listed| read(output, listed))
            .buffer_unordered(READS_MAX)
            .try_collect()
            .await?;
        for (listed, content) in read {
            receipts.add(listed, content);
        }
        Ok(receipts)
    }

    fn add(&mut self, listed: ListedReceipt, content: Content) {
        let ListedReceipt {
            path,
            form: _,
            bytes: _,
            arm,
            cost,
        } = listed;
        let tokens = match content {
            Content::Nothing => 0,
            Content::Words(Receipt { tokens, said }) => {
                let said = said.into_iter().filter_map(|Said { asked, prediction }| {
                    let asked = data_encoding::HEXLOWER.decode(asked.as_bytes()).ok()?;
                    Some((asked.try_into().ok()?, prediction))
                });
                self.said.extend(said);
                tokens
            }
            Content::Vectors(head) => {
                let (range, index) = (head.vectors(), self.vectors.len());
                let Head {
                    tokens,
                    asked,
                    size,
                } = head;
                self.vectors.push(Vectors { path, size, range });
                let asked = asked.into_iter().enumerate();
                let placed = asked.map(|(row, asked)| (asked, (index, row)));
                self.said_in_vectors.extend(placed);
                tokens
            }
        };
        let paid = Tally {
            tokens,
            cost,
            ..Tally::default()
        };
        self.paid += paid;
        self.paid_by.extend(arm.map(|arm| (arm, paid)));
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
    /// What was said before to these prompts of this step, by their indices. What cannot be read is
    /// asked again, and nothing else is wrong.
    pub async fn find(&self, step: usize, prompts: &[String]) -> HashMap<usize, Prediction> {
        let Receipts {
            output,
            said,
            said_in_vectors,
            vectors,
            ..
        } = self.receipts;
        if said.is_empty() && said_in_vectors.is_empty() {
            return HashMap::new();
        }
        let (mut found, mut placed) = (HashMap::new(), BTreeMap::<usize, Vec<_>>::new());
        for (index, prompt) in prompts.iter().enumerate() {
            let asked = asked(self.arm, step, prompt);
            if let Some(said) = said.get(&asked) {
                found.insert(index, said.clone());
            } else if let Some((receipt, row)) = said_in_vectors.get(&asked) {
                placed.entry(*receipt).or_default().push((index, *row));
            }
        }
        for (receipt, rows) in placed {
            let Vectors { path, size, range } = &vectors[receipt];
            match store::read_range(&output.store, path, range.clone()).await {
                Ok(bytes) => {
                    let bytes = bytes.unwrap_or_default();
                    let read = |(index, row)| Some((index, vectors::decode(&bytes, row, *size)?));
                    found.extend(rows.into_iter().filter_map(read));
                }
                Err(error) => tracing::warn!(%error, "a receipt could not be read"),
            }
        }
        found
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
        let said: Vec<(Asked, &Prediction)> = (said.into_iter())
            .map(|(prompt, prediction)| (asked(self.arm, step, prompt), prediction))
            .collect();
        let (form, bytes) = match vectors::encode(tokens, &said) {
            Some(bytes) => (ReceiptForm::Vectors, bytes),
            None => (ReceiptForm::Json, in_words(tokens, &said)),
        };
        let Receipts { output, folder, .. } = self.receipts;
        let name = layout::receipt(folder, rand::random(), self.arm, cost, form);
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

/// What stands on a receipt, as far as it is kept in memory.
enum Content {
    Nothing,
    Words(Receipt),
    Vectors(Head),
}

/// Reads a receipt. One that cannot be read was paid all the same, and its rows are asked again.
async fn read(
    output: &Location,
    listed: ListedReceipt,
) -> Result<(ListedReceipt, Content), StoreError> {
    let (store, path) = (&output.store, &listed.path);
    let content = match listed.form {
        Some(ReceiptForm::Json) => {
            let bytes = store::read(store, path).await?;
            let receipt = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            receipt.map(Content::Words)
        }
        Some(ReceiptForm::Vectors) if listed.bytes > 0 => {
            let head = 0..listed.bytes.min(HEAD_BYTES_MAX);
            let bytes = store::read_range(store, path, head).await?;
            let head = bytes.and_then(|bytes| Head::decode(&bytes));
            // One that is cut holds nothing.
            let whole = head.filter(|head| head.vectors().end == listed.bytes);
            whole.map(Content::Vectors)
        }
        Some(ReceiptForm::Vectors) | None => None,
    };
    Ok((listed, content.unwrap_or(Content::Nothing)))
}

fn in_words(tokens: u64, said: &[(Asked, &Prediction)]) -> Vec<u8> {
    let said = said.iter().map(|(asked, prediction)| Said {
        asked: data_encoding::HEXLOWER.encode(asked),
        prediction: (*prediction).clone(),
    });
    let said = said.collect();
    serde_json::to_vec(&Receipt { tokens, said }).expect("a receipt serialises")
}

/// The receipts below a folder.
async fn list(output: &Location, folder: &str) -> Result<Vec<ListedReceipt>, StoreError> {
    let folder = output.below(folder);
    let listed = output
        .store
        .list(Some(&folder))
        .map_ok(|object| ListedReceipt {
            form: layout::form_of_receipt(object.location.as_ref()),
            bytes: object.size,
            arm: layout::arm_of_receipt(object.location.as_ref()),
            cost: layout::cost_of_receipt(object.location.as_ref()).unwrap_or_default(),
            path: object.location,
        });
    let listed = listed.try_collect().await;
    listed.map_err(|source| StoreError::at(&folder, source))
}

/// Tells a prompt of a step from all others of a run, whose spec decides everything else that is asked.
fn asked(arm: Option<ArmIndex>, step: usize, prompt: &str) -> Asked {
    let mut hash = Sha256::new();
    if let Some(arm) = arm {
        hash.update(arm.to_le_bytes());
    }
    hash.update(step.to_le_bytes());
    hash.update(prompt);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::{StoreOptions, Stores};

    fn of_run(run: RunNumber) -> ShardOfRun {
        ShardOfRun { run, shard: 7 }
    }

    fn vector(numbers: &[f32]) -> Prediction {
        Prediction::Embedding(numbers.to_vec())
    }

    #[tokio::test]
    async fn what_was_paid_and_said_is_found_again_until_it_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("file://{}/out", folder.path().display());
        let output = Stores::new(StoreOptions::default()).open(&uri).unwrap();
        let find = async |receipts: &Receipts, arm, step, prompt: &str| {
            let found = receipts.of(arm).find(step, &[prompt.to_owned()]).await;
            found.into_values().next()
        };
        let receipts = Receipts::open(&output, of_run(1)).await.unwrap();
        assert_eq!(receipts.paid(), Tally::default());
        assert_eq!(find(&receipts, None, 0, "a").await, None);
        let cost = Cost::of_parts;
        let answer = Prediction::Answer(json!({"mood": "good"}));
        let (one, other) = (vector(&[0.5, 1.5]), vector(&[-2.0, 0.0]));
        let taken = |tokens, parts| Tally {
            tokens,
            cost: cost(parts),
            ..Tally::default()
        };
        let of = |arm| receipts.of(arm);
        let said = vec![("a", &answer)];
        of(None).keep(0, said, taken(5, 30)).await.unwrap();
        of(Some(3)).keep(1, vec![], taken(2, 12)).await.unwrap();
        let said = vec![("c", &one), ("d", &other)];
        of(None).keep(2, said, taken(4, 0)).await.unwrap();
        let again = Receipts::open(&output, of_run(1)).await.unwrap();
        assert_eq!((again.paid().tokens, again.paid().cost), (11, cost(42)));
        assert_eq!(find(&again, None, 0, "a").await, Some(answer));
        assert_eq!(find(&again, None, 1, "a").await, None);
        assert_eq!(find(&again, None, 0, "b").await, None);
        assert_eq!(
            find(&again, Some(3), 0, "a").await,
            None,
            "another was asked"
        );
        let asked = ["d", "e", "c"].map(str::to_owned);
        let found = again.of(None).find(2, &asked).await;
        assert_eq!(found, HashMap::from([(0, other), (2, one)]));
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
