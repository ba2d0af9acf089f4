//! Gets an answer for every row of a window from the service that the row's route names, and asks
//! another about rows whose answer is not good enough.
//!
//! All services are asked at one time, each within its own limits. Which one a row comes to is decided
//! by the row and its answers alone, so that whoever takes a shard up again asks the same ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use millrace_protocol::ledger::ContentHash;
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::routes::{ArmIndex, RouteTally};
use millrace_protocol::row::ReadRow;
use millrace_protocol::tally::{Rows, Tally};
use serde_json::{Map, Value};

use super::call::receipts::Receipts;
use super::carried::EarlierRow;
use super::lines::PendingRow;
use super::listed::{Laid, Listed};
use super::progress::Progress;
use super::shard::{Asker, ShardContext, ShardError};
use super::submit::{Answered, RowOutcome, SubmitError, Submitter};
use super::window::{Window, WindowRows, chunks};
use super::windows::{CHUNK_LIMITS, answered_tally};
use crate::job::{Arm, CheckedJob, Routing};

/// Asks the services of a job with routes.
pub struct Router {
    routing: Arc<Routing>,
    /// In the order of the routing's services.
    askers: Vec<Asker>,
    /// Field that holds the text, where rows travel as the fields that prompts are made of.
    text_field: Option<String>,
}

/// Rows that one arm is asked about together, by their indices in the window.
struct Group {
    arm: Arc<Arm>,
    rows: Vec<usize>,
}

/// What becomes of a row that an arm was asked about.
enum Decided {
    /// It has its end.
    Ended(RowOutcome),
    /// This arm is asked next.
    Next(Arc<Arm>),
}

impl Router {
    /// Asks the services of `routing` about rows of `job`, by `askers` in their order.
    pub fn new(job: &CheckedJob, routing: Arc<Routing>, askers: Vec<Asker>) -> Self {
        let fields = &job.input.fields;
        Self {
            routing,
            askers,
            text_field: (!fields.prompted.is_empty()).then(|| fields.text.clone()),
        }
    }

    /// Answers the rows of a window.
    pub(super) async fn answer(
        &self,
        ctx: &ShardContext,
        shard: ShardIndex,
        window: WindowRows,
        receipts: &Receipts,
    ) -> Result<Window, ShardError> {
        let (mut rows, texts, laid) = self.laid(ctx, shard, window).await?;
        let asked: Vec<usize> = (0..rows.len())
            .filter(|&row| texts[row].is_some())
            .collect();
        let bad = (rows.len() - asked.len()) as u64 - laid.all;
        let Laid {
            all,
            failed,
            carried,
            copied,
        } = laid;
        ctx.progress
            .answered(shard, answered_tally(all - failed, bad + failed, 0));
        let mut arms = ArmTallies(self.routing.tallies());
        let mut taken = Tally::default();
        let mut asking = FuturesUnordered::new();
        let ask = |group| self.ask(group, &texts, receipts, (shard, &*ctx.progress));
        asking.extend(groups(&rows, &asked).into_iter().map(ask));
        while let Some(ended) = asking.next().await {
            let (Group { arm, rows: group }, answered) = ended?;
            let Answered {
                outcomes,
                tokens,
                cost,
            } = answered;
            taken.tokens += tokens;
            taken.cost += cost;
            let contents = group.iter().map(|&row| rows[row].content()).collect();
            let decided = self.decided(&arm, outcomes, contents).await;
            let (ended, again) = give(&mut rows, group.into_iter().zip(decided));
            let Rows {
                succeeded, failed, ..
            } = ended;
            ctx.progress
                .answered(shard, answered_tally(succeeded, failed, 0));
            let tally = &mut arms.0[arm.index as usize];
            tally.escalated += again.len() as u64;
            tally.tokens += tokens;
            tally.cost += cost;
            asking.extend(groups(&rows, &again).into_iter().map(ask));
        }
        Ok(Window {
            rows,
            tokens: taken.tokens,
            cost: taken.cost,
            carried,
            copied,
            arms,
        })
    }

    /// The rows of a window and what is asked about them: nothing about those whose answers stand
    /// somewhere.
    async fn laid(
        &self,
        ctx: &ShardContext,
        shard: ShardIndex,
        window: WindowRows,
    ) -> Result<(Vec<PendingRow>, Vec<Option<String>>, Laid), ShardError> {
        let WindowRows {
            rows,
            carried,
            duplicates,
        } = window;
        let (mut rows, mut texts) = self.offered(rows).await;
        let listed = Listed {
            rows: &carried,
            duplicates: &duplicates,
        };
        let lay = |row: usize, earlier: EarlierRow, duplicate_of| {
            let route = earlier.route.as_deref().unwrap_or_default();
            if let Some(arm) = self.routing.named(route, earlier.arm.as_deref()) {
                rows[row].offer(arm);
            }
            rows[row].carry(earlier.outcome, duplicate_of);
            texts[row] = None;
        };
        let laid = listed.lay(ctx, shard, lay).await?;
        Ok((rows, texts, laid))
    }

    /// The rows with the arm to which each comes first, and what is asked about them. Computes away
    /// from the runtime's threads, as conditions do.
    async fn offered(&self, rows: Vec<ReadRow>) -> (Vec<PendingRow>, Vec<Option<String>>) {
        let routing = self.routing.clone();
        let offering = move || {
            let offered = rows.into_iter().map(|row| {
                let fields = match &row {
                    ReadRow::Row(row) => row.filtered.clone(),
                    ReadRow::Bad { .. } => None,
                };
                let (mut row, asked) = PendingRow::split(row, Some(routing.as_ref()));
                if asked.is_none() {
                    return (row, None);
                }
                let fields = fields.as_ref().map_or("{}", |fields| fields.get());
                match routing.first(fields, row.content()) {
                    Ok(arm) => {
                        row.offer(arm);
                        (row, asked)
                    }
                    Err(error) => {
                        row.answer(Err(error));
                        (row, None)
                    }
                }
            });
            offered.unzip()
        };
        let offered = tokio::task::spawn_blocking(offering).await;
        offered.expect("conditions do not panic")
    }

    /// What becomes of rows that an arm was asked about.
    async fn decided(
        &self,
        arm: &Arc<Arm>,
        outcomes: Vec<RowOutcome>,
        contents: Vec<ContentHash>,
    ) -> Vec<Decided> {
        let (routing, arm) = (self.routing.clone(), arm.clone());
        let decide = move |(outcome, content): (RowOutcome, ContentHash)| {
            let answer = match outcome {
                Ok(answer) => answer,
                Err(error) => return Decided::Ended(Err(error)),
            };
            match routing.next(&arm, &answer, content) {
                Ok(Some(next)) => Decided::Next(next.clone()),
                Ok(None) => Decided::Ended(Ok(answer)),
                Err(error) => Decided::Ended(Err(error)),
            }
        };
        let deciding = move || outcomes.into_iter().zip(contents).map(decide).collect();
        let decided = tokio::task::spawn_blocking(deciding).await;
        decided.expect("conditions do not panic")
    }

    /// Asks the service of an arm about some rows. `tell` hears of tokens and money; rows are counted
    /// once it is known that they have their end.
    async fn ask(
        &self,
        group: Group,
        texts: &[Option<String>],
        receipts: &Receipts,
        tell: (ShardIndex, &Progress),
    ) -> Result<(Group, Answered), SubmitError> {
        let (shard, progress) = tell;
        let tell = |tally: Tally| {
            let rows = Rows::default();
            progress.answered(shard, Tally { rows, ..tally });
        };
        let Group { arm, rows } = &group;
        let asked = rows.iter().map(|&row| texts[row].clone());
        let asked: Vec<String> = asked.map(|it| it.expect("it is asked about")).collect();
        let answered = match &self.askers[arm.service] {
            Asker::Remote(caller) => {
                let receipts = receipts.of(Some(arm.index));
                caller.answer(&asked, receipts, tell).await?
            }
            Asker::Server(submitter) => {
                let texts = asked.into_iter().map(|asked| self.text_of(asked)).collect();
                submit(submitter, texts, tell).await?
            }
        };
        Ok((group, answered))
    }

    /// The text of a row about which `asked` is asked.
    fn text_of(&self, asked: String) -> String {
        let Some(field) = &self.text_field else {
            return asked;
        };
        let fields: Map<String, Value> =
            serde_json::from_str(&asked).expect("the reader made it of fields");
        let text = fields.get(field).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    }
}

/// Sends texts to a server in chunks of similar length.
async fn submit(
    submitter: &Submitter,
    mut texts: Vec<String>,
    tell: impl Fn(Tally),
) -> Result<Answered, SubmitError> {
    let lengths: Vec<usize> = texts.iter().map(String::len).collect();
    let mut outcomes: Vec<Option<RowOutcome>> = texts.iter().map(|_| None).collect();
    let submitted = chunks(&lengths, CHUNK_LIMITS).into_iter().map(|chunk| {
        let chunk_texts = chunk
            .iter()
            .map(|&row| std::mem::take(&mut texts[row as usize]));
        let chunk_texts: Vec<String> = chunk_texts.collect();
        let tell = &tell;
        async move {
            let answered = submitter.submit(chunk_texts).await?;
            tell(answered_tally(0, 0, answered.tokens));
            Ok::<_, SubmitError>((chunk, answered))
        }
    });
    let submitted: Vec<_> = submitted.collect();
    let mut all = Answered::default();
    for (chunk, answered) in futures::future::try_join_all(submitted).await? {
        all.tokens += answered.tokens;
        for (row, outcome) in chunk.into_iter().zip(answered.outcomes) {
            outcomes[row as usize] = Some(outcome);
        }
    }
    let outcomes = outcomes.into_iter();
    all.outcomes = outcomes
        .map(|outcome| outcome.expect("each row is in a chunk"))
        .collect();
    Ok(all)
}

/// Gives rows, by their indices, what became of them. Returns how those ended that did, and which are
/// asked about again.
fn give(
    rows: &mut [PendingRow],
    decided: impl Iterator<Item = (usize, Decided)>,
) -> (Rows, Vec<usize>) {
    let (mut ended, mut again) = (Rows::default(), Vec::new());
    for (row, decided) in decided {
        match decided {
            Decided::Next(arm) => {
                rows[row].offer(&arm);
                again.push(row);
            }
            Decided::Ended(outcome) => {
                ended.succeeded += u64::from(outcome.is_ok());
                ended.failed += u64::from(outcome.is_err());
                rows[row].answer(outcome);
            }
        }
    }
    (ended, again)
}

/// Those of the `rows` at these indices, by the arms to which they were given.
fn groups(rows: &[PendingRow], indices: &[usize]) -> Vec<Group> {
    let mut groups: BTreeMap<ArmIndex, Group> = BTreeMap::new();
    for &row in indices {
        let arm = rows[row].arm().expect("it was given to an arm");
        let group = groups.entry(arm.index).or_insert_with(|| Group {
            arm: arm.clone(),
            rows: Vec::new(),
        });
        group.rows.push(row);
    }
    groups.into_values().collect()
}

/// What became of the rows of each arm, by its index; nothing for a job without routes.
#[derive(Debug, Default)]
pub struct ArmTallies(Vec<RouteTally>);

impl ArmTallies {
    /// Those of a shard of a job: what was paid before counts.
    pub fn new(job: &CheckedJob, receipts: &Receipts) -> Self {
        let tallies = job.routing.as_deref().map(Routing::tallies);
        let mut tallies = tallies.unwrap_or_default();
        for &(arm, Tally { tokens, cost, .. }) in receipts.paid_by_arms() {
            if let Some(tally) = tallies.get_mut(arm as usize) {
                tally.tokens += tokens;
                tally.cost += cost;
            }
        }
        Self(tallies)
    }

    /// Adds those of a window.
    pub fn add(&mut self, window: ArmTallies) {
        for (tally, more) in self.0.iter_mut().zip(&window.0) {
            tally.add(more);
        }
    }

    /// Counts how rows ended.
    pub fn end(&mut self, rows: &[(ArmIndex, Rows)]) {
        for &(
            arm,
            Rows {
                succeeded, failed, ..
            },
        ) in rows
        {
            let tally = &mut self.0[arm as usize];
            tally.succeeded += succeeded;
            tally.failed += failed;
        }
    }

    /// The tallies.
    pub fn tallies(self) -> Vec<RouteTally> {
        self.0
    }
}
