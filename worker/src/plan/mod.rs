//! Plans a run: lists the inputs, pins them, cuts them into shards and writes `plan.json`.
//!
//! Planning never writes more than the plan, lists of rows that are not asked and a probe, and never
//! keeps anything the size of the data. Whoever plans second reads the plan that is there.

mod compare;
pub(crate) mod copies;
mod csv;
mod cut;
mod dedup;
mod error;
mod estimate;
mod forecast;
mod incremental;
mod list;
mod overlap;
mod preflight;
mod rerun;
#[cfg(test)]
mod tests;
mod tokens;
mod unseen;

use millrace_protocol::{
    layout,
    manifest::Manifest,
    plan::{FIRST_RUN, Plan, RunNumber},
};

use crate::{
    job::CheckedJob,
    order,
    store::{self, Created, Location, Stores},
};

#[cfg(test)]
pub(crate) use csv::cuts_of as csv_cuts_of;
pub use cut::{CutOptions, SHARDS_MAX, cut};
pub use dedup::{VectorsError, count as count_duplicates};
pub use error::PlanError;
pub use estimate::share;
pub use forecast::{Lacking, forecast, lacking};
pub use incremental::count as count_unchanged;
pub use list::list_inputs;
pub use preflight::{
    BadRows, Counted, DuplicateEstimate, LongestRow, Preflight, TokenCounter, TokenEstimate,
    preflight,
};

pub use tokens::token_counter;

/// The plan that a run begins with.
#[derive(Debug, Clone)]
pub enum Drafted {
    /// The one that is there.
    Standing(Plan),
    /// A new one, for which nothing is written yet.
    New(Plan),
}

/// The plan of a job's run: the one that is there, or a new one. `earlier` is the manifest of the
/// output, if there is one.
pub async fn plan(
    stores: &Stores,
    job: &CheckedJob,
    earlier: Option<&Manifest>,
) -> Result<Plan, PlanError> {
    let drafted = drafted(stores, job, earlier).await?;
    settled(stores, job, drafted).await
}

/// The same, without writing anything.
pub async fn drafted(
    stores: &Stores,
    job: &CheckedJob,
    earlier: Option<&Manifest>,
) -> Result<Drafted, PlanError> {
    let output = stores.open(&job.output.uri)?;
    if let Some(plan) = existing(&output, job).await? {
        return Ok(Drafted::Standing(plan));
    }
    let plan = match job.run {
        FIRST_RUN => draft(stores, job).await?,
        run => {
            let before = read(&output, run - 1).await?;
            let before = before.map_or_else(Vec::new, |plan| plan.spec);
            rerun::draft(job, run, earlier, &before)?
        }
    };
    Ok(Drafted::New(plan))
}

/// Writes a plan that is new, with the lists of rows that are not asked. From then on the output is this
/// job's alone.
pub async fn settled(
    stores: &Stores,
    job: &CheckedJob,
    drafted: Drafted,
) -> Result<Plan, PlanError> {
    let mut plan = match drafted {
        Drafted::Standing(plan) => return Ok(plan),
        Drafted::New(plan) => plan,
    };
    let output = stores.open(&job.output.uri)?;
    store::probe_create_only(&output.store, &output.path).await?;
    if let (FIRST_RUN, Some(wanted)) = (job.run, &job.dedup) {
        dedup::leave_out(stores, job, wanted, &mut plan).await?;
    }
    if let (FIRST_RUN, Some(from)) = (job.run, &job.incremental_from) {
        incremental::carry(stores, job, from, &mut plan).await?;
    }
    let path = output.below(&layout::plan(job.run));
    let bytes = serde_json::to_vec(&plan).expect("a plan is plain data");
    match store::create(&output.store, &path, bytes).await? {
        Created::New => Ok(plan),
        // Another planner was faster, or this one's reply was lost: what is there counts.
        Created::Existed => existing(&output, job)
            .await?
            .ok_or_else(|| PlanError::BadPlan {
                path: path.to_string(),
                reason: "it was deleted while the job was planned".into(),
            }),
    }
}

/// The plan that the first planner would write. Writes nothing.
pub async fn draft(stores: &Stores, job: &CheckedJob) -> Result<Plan, PlanError> {
    let stores = &stores.with_inline_rows(&job.input);
    let mut inputs = list_inputs(stores, &job.input).await?;
    overlap::check(stores, job, &inputs)?;
    list::check_ids(&job.input, &inputs)?;
    let fields = order::fields(job.input.order.as_ref(), &job.input.fields);
    let options = CutOptions {
        shard_bytes_target: job.shard_bytes_target,
        fields: &fields,
        row_bytes_max: job.input.row_bytes_max,
    };
    let mut shards = cut(stores, &mut inputs, options).await?;
    let order = job.input.order.as_ref();
    if let Some(order) = order {
        shards = cut::by_class(&shards, order.classes())?;
    }
    let spec_sha256 = job.spec_sha256.clone();
    Ok(Plan {
        version: Plan::VERSION,
        run: FIRST_RUN,
        spec_sha256,
        answers_sha256: job.answers_sha256.clone(),
        spec: job.spec_fields.clone(),
        incremental_from: job.incremental_from.clone(),
        carried: None,
        dedup: None,
        inputs,
        shards,
        order: order.map_or_else(Vec::new, |order| order.expressions().to_vec()),
    })
}

/// The plan that is there, if it was made by the same spec.
pub async fn existing(output: &Location, job: &CheckedJob) -> Result<Option<Plan>, PlanError> {
    match read(output, job.run).await? {
        Some(plan) if plan.spec_sha256 != job.spec_sha256 => {
            Err(PlanError::other_spec(job, &plan.spec_sha256, &plan.spec))
        }
        Some(plan) if plan.run == FIRST_RUN && plan.incremental_from != job.incremental_from => {
            Err(PlanError::OtherIncremental {
                output: job.output.uri.clone(),
                found: plan
                    .incremental_from
                    .unwrap_or_else(|| "nothing".to_owned()),
            })
        }
        found => Ok(found),
    }
}

/// Whether there is a plan of a run, whatever spec it was made by.
pub async fn exists(output: &Location, run: RunNumber) -> Result<bool, PlanError> {
    Ok(store::exists(&output.store, &output.below(&layout::plan(run))).await?)
}

/// The plan of a run that is there, whatever spec it was made by.
pub async fn read(output: &Location, run: RunNumber) -> Result<Option<Plan>, PlanError> {
    let path = output.below(&layout::plan(run));
    let Some(bytes) = store::read(&output.store, &path).await? else {
        return Ok(None);
    };
    let bad = |reason: String| PlanError::BadPlan {
        path: path.to_string(),
        reason,
    };
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if plan.version != Plan::VERSION {
        return Err(bad(format!(
            "its version is {}, not {}",
            plan.version,
            Plan::VERSION
        )));
    }
    let inputs = plan.inputs.len();
    if plan
        .shards
        .iter()
        .any(|shard| shard.input as usize >= inputs)
    {
        return Err(bad("a shard names an input that is not listed".into()));
    }
    Ok(Some(plan))
}
