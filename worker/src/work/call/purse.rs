//! Who pays for the calls of a job, and what of it is known whatever the limiter forgets: commits and
//! receipts lie in the output.

use millrace_leases::limits::Bill;
use millrace_protocol::commit::Commit;
use millrace_protocol::cost::{Cost, Prices};
use millrace_protocol::manifest::LivePart;
use millrace_protocol::plan::RunNumber;

use super::receipts;
use crate::commits::{self, CommitsError};
use crate::finish::{self, FinishError};
use crate::plan::{self, PlanError};
use crate::store::{Location, StoreError};
use crate::work::client::remote::Usage;

/// Pays for the calls of a job whose service names prices.
#[derive(Debug, Clone)]
pub struct Purse {
    /// Name of the job's account.
    pub account: String,
    /// What calls cost.
    pub prices: Prices,
    /// Most that the job may pay.
    pub max: Option<Cost>,
    /// Where its commits are.
    pub output: Location,
    /// Its run.
    pub run: RunNumber,
}

/// It is not known what the job has paid.
#[derive(Debug, thiserror::Error)]
pub enum PaidError {
    /// Commits.
    #[error(transparent)]
    Commits(#[from] CommitsError),
    /// Those of earlier runs.
    #[error(transparent)]
    Manifest(#[from] FinishError),
    /// Which shards the commits are of.
    #[error(transparent)]
    Plan(#[from] Box<PlanError>),
    /// Receipts.
    #[error("the receipts could not be listed")]
    Receipts(#[from] StoreError),
}

impl Purse {
    /// The price of a call.
    pub fn price(&self, usage: Usage) -> Cost {
        let Usage { input, output } = usage;
        self.prices.of(1, input, output)
    }

    /// The bill for a call that takes about so much.
    pub fn bill(&self, guessed: Usage) -> Bill {
        Bill {
            job: self.account.clone(),
            price: self.price(guessed),
            max: self.max,
            paid: None,
        }
    }

    /// What the job has paid at least, over all its runs.
    pub async fn paid(&self) -> Result<Cost, PaidError> {
        let manifest = finish::read_manifest(&self.output).await?;
        let earlier = manifest.iter().flat_map(|manifest| &manifest.parts);
        let earlier = earlier.filter(|part: &&LivePart| part.run < self.run);
        let earlier: Cost = earlier.map(|part| part.commit.cost).sum();
        let Some(plan) = plan::read(&self.output, self.run).await.map_err(Box::new)? else {
            return Ok(earlier);
        };
        let committed = commits::list(&self.output, self.run).await?;
        let now: Cost = committed.iter().map(|commit: &Commit| commit.cost).sum();
        let settled = receipts::settled(&plan, &committed, manifest.as_ref());
        let open = receipts::paid_by_arms(&self.output, self.run, &settled).await?;
        Ok(earlier + now + open.into_iter().map(|(_, cost)| cost).sum())
    }
}
