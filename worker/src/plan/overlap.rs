//! Makes sure that results are never written over input, nor read as input by a later run.

use millrace_protocol::{layout, plan::InputFile};

use super::{PlanError, list::Pattern};
use crate::{job::CheckedJob, store::Stores};

/// Refuses an output that holds an input file, is one, or is matched by an input's pattern.
pub(super) fn check(
    stores: &Stores,
    job: &CheckedJob,
    inputs: &[InputFile],
) -> Result<(), PlanError> {
    let output = stores.open(&job.output.uri)?;
    let scheme = |uri: &str| uri.split('/').take(3).collect::<Vec<_>>().join("/");
    let output_scheme = scheme(&job.output.uri);
    let overlaps = |input: &str| PlanError::OutputOverlapsInput {
        output: job.output.uri.clone(),
        input: input.into(),
    };
    for input in inputs {
        if scheme(&input.uri) != output_scheme {
            continue;
        }
        let path = stores.open(&input.uri)?.path;
        if path.prefix_matches(&output.path) || output.path.prefix_matches(&path) {
            return Err(overlaps(&input.uri));
        }
    }
    for uri in &job.input.uris {
        let Some(pattern) = Pattern::new(uri)? else {
            continue;
        };
        if scheme(pattern.root()) != output_scheme {
            continue;
        }
        let root = stores.open(pattern.root())?.path;
        for written in written(job) {
            let path = output.below(&written);
            let Some(parts) = path.prefix_match(&root) else {
                continue;
            };
            let relative = parts
                .map(|part| part.as_ref().to_owned())
                .collect::<Vec<_>>()
                .join("/");
            if pattern.matches(&relative) {
                return Err(overlaps(uri));
            }
        }
    }
    Ok(())
}

/// One of each kind of file that a run writes below its output.
fn written(job: &CheckedJob) -> Vec<String> {
    let (run, shard, attempt) = (1, 0, "0");
    vec![
        layout::plan(run),
        layout::commit(run, shard),
        layout::part(run, shard, attempt, job.output.zstd),
        layout::errors(run, shard, attempt),
        layout::ledger(run, shard, attempt),
        layout::carried(run, attempt, shard),
        layout::duplicates(run, attempt, shard),
        layout::copies(run),
        layout::merged(job.output.zstd),
        layout::MANIFEST.to_owned(),
    ]
}
