//! Where everything lies in an output. The only place that builds or parses these paths.

use crate::cost::Cost;
use crate::plan::{RunNumber, ShardIndex, ShardOfRun};
use crate::routes::ArmIndex;

/// Written last and replaced whole.
pub const MANIFEST: &str = "manifest.json";

/// Holds everything that belongs to runs rather than to readers.
pub const RUNS: &str = "_millrace/runs";

/// `_millrace/runs/0001/plan.json`
pub fn plan(run: RunNumber) -> String {
    format!("{RUNS}/{run:04}/plan.json")
}

/// `_millrace/runs/0001/commits`
pub fn commits(run: RunNumber) -> String {
    format!("{RUNS}/{run:04}/commits")
}

/// `_millrace/runs/0001/commits/00012.json`
pub fn commit(run: RunNumber, shard: ShardIndex) -> String {
    format!("{}/{shard:05}.json", commits(run))
}

/// `_millrace/runs/0001/receipts`
pub fn receipts(run: RunNumber) -> String {
    format!("{RUNS}/{run:04}/receipts")
}

/// `_millrace/runs/0001/receipts/00012`
pub fn receipts_of(of: ShardOfRun) -> String {
    format!("{}/{:05}", receipts(of.run), of.shard)
}

/// What stands on a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiptForm {
    /// JSON: what was said in words, or nothing but what it cost.
    Json,
    /// Vectors, as they lie in memory.
    Vectors,
}

impl ReceiptForm {
    fn suffix(self) -> &'static str {
        match self {
            ReceiptForm::Json => "json",
            ReceiptForm::Vectors => "vectors",
        }
    }
}

/// `<folder>/<random>[-<arm>]-<cost>.json` or `….vectors`: the name of a receipt says what it cost, and
/// of which arm it is where the job has routes.
pub fn receipt(
    folder: &str,
    random: u64,
    arm: Option<ArmIndex>,
    cost: Cost,
    form: ReceiptForm,
) -> String {
    let arm = arm.map(|arm| format!("-{arm}")).unwrap_or_default();
    let (cost, suffix) = (cost.parts(), form.suffix());
    format!("{folder}/{random:016x}{arm}-{cost}.{suffix}")
}

/// The form of a receipt, by its path.
pub fn form_of_receipt(path: &str) -> Option<ReceiptForm> {
    let (_, suffix) = path.rsplit_once('.')?;
    [ReceiptForm::Json, ReceiptForm::Vectors]
        .into_iter()
        .find(|form| form.suffix() == suffix)
}

/// The arm of a receipt, by its path.
pub fn arm_of_receipt(path: &str) -> Option<ArmIndex> {
    let (name, _cost) = path.rsplit('/').next()?.rsplit_once('-')?;
    let (_random, arm) = name.rsplit_once('-')?;
    arm.parse().ok()
}

/// What a receipt cost, by its path.
pub fn cost_of_receipt(path: &str) -> Option<Cost> {
    form_of_receipt(path)?;
    let (_, cost) = path.rsplit_once('.')?.0.rsplit_once('-')?;
    cost.parse().ok().map(Cost::of_parts)
}

/// The shard of a receipt, by its path.
pub fn shard_of_receipt(path: &str) -> Option<ShardIndex> {
    path.rsplit('/').nth(1)?.parse().ok()
}

/// `0001-`, with which the names of a run's files begin.
pub fn of_run(run: RunNumber) -> String {
    format!("{run:04}-")
}

/// `parts/0001-00012-<attempt>.jsonl[.zst]`
pub fn part(run: RunNumber, shard: ShardIndex, attempt: &str, zstd: bool) -> String {
    format!(
        "parts/{run:04}-{shard:05}-{attempt}.jsonl{}",
        if zstd { ".zst" } else { "" }
    )
}

/// `errors/0001-00012-<attempt>.jsonl`
pub fn errors(run: RunNumber, shard: ShardIndex, attempt: &str) -> String {
    format!("errors/{run:04}-{shard:05}-{attempt}.jsonl")
}

/// `_millrace/runs/0001/ledger`
pub fn ledgers(run: RunNumber) -> String {
    format!("{RUNS}/{run:04}/ledger")
}

/// `_millrace/runs/0001/ledger/00012-<attempt>`
pub fn ledger(run: RunNumber, shard: ShardIndex, attempt: &str) -> String {
    format!("{}/{shard:05}-{attempt}", ledgers(run))
}

/// `_millrace/runs/0001/ledger/00012-<attempt>-errors`
pub fn error_ledger(run: RunNumber, shard: ShardIndex, attempt: &str) -> String {
    format!("{}-errors", ledger(run, shard, attempt))
}

/// `_millrace/runs/0001/carried`
pub fn carried_lists(run: RunNumber) -> String {
    format!("{RUNS}/{run:04}/carried")
}

/// `_millrace/runs/0001/carried/<planner>-00012`
pub fn carried(run: RunNumber, planner: &str, shard: ShardIndex) -> String {
    format!("{}/{planner}-{shard:05}", carried_lists(run))
}

/// `_millrace/runs/0001/duplicates`
pub fn duplicates_lists(run: RunNumber) -> String {
    format!("{RUNS}/{run:04}/duplicates")
}

/// `_millrace/runs/0001/duplicates/<planner>-00012`
pub fn duplicates(run: RunNumber, planner: &str, shard: ShardIndex) -> String {
    format!("{}/{planner}-{shard:05}", duplicates_lists(run))
}

/// `_millrace/runs/0001/copies.json`: where the answers stand that duplicates get.
pub fn copies(run: RunNumber) -> String {
    format!("{RUNS}/{run:04}/copies.json")
}

/// What the name of the merged results begins with.
pub const MERGED: &str = "results.jsonl";

/// The merged results, if the job asks for them: `results.jsonl[.zst]`
pub fn merged(zstd: bool) -> String {
    format!("{MERGED}{}", if zstd { ".zst" } else { "" })
}

/// The shard that a commit's file name (`00012.json`) speaks of.
pub fn shard_of_commit(file_name: &str) -> Option<ShardIndex> {
    file_name.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_path_names_its_shard() {
        for shard in [0, 12, 99_999, 100_000, u32::MAX] {
            let path = commit(1, shard);
            let name = path.rsplit('/').next().unwrap();
            assert_eq!(shard_of_commit(name), Some(shard));
        }
        assert_eq!(shard_of_commit("00012.json#1"), None);
    }

    #[test]
    fn a_receipt_path_names_its_shard_and_its_cost() {
        let cost = Cost::of_parts(1_234_567_890_123);
        let of = ShardOfRun { run: 3, shard: 12 };
        let path = receipt(&receipts_of(of), 7, None, cost, ReceiptForm::Json);
        assert_eq!(cost_of_receipt(&path), Some(cost));
        assert_eq!(form_of_receipt(&path), Some(ReceiptForm::Json));
        assert_eq!(arm_of_receipt(&path), None);
        let routed = receipt(&receipts_of(of), 7, Some(4), cost, ReceiptForm::Vectors);
        assert_eq!(form_of_receipt(&routed), Some(ReceiptForm::Vectors));
        assert_eq!(cost_of_receipt(&routed), Some(cost));
        assert_eq!(arm_of_receipt(&routed), Some(4));
        assert_eq!(shard_of_receipt(&path), Some(12));
        assert_eq!(cost_of_receipt("receipts/00012/half#1"), None);
    }
}
