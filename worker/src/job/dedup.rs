//! Which rows are not asked, as the worker takes it. Pure.

use millrace_crds::batch_job::{self, NearMethod};

use super::JobError;

/// Which rows are not asked because an earlier row has the answer: those that are equal to one always.
#[derive(Debug, Clone, PartialEq)]
pub struct Dedup {
    /// How rows are compared that are almost the same, if they count too.
    pub near: Option<Near>,
}

/// How rows are compared that are almost the same.
#[derive(Debug, Clone, PartialEq)]
pub enum Near {
    /// By their words.
    MinHash {
        /// How similar two rows must be at least, from 0 to 1.
        threshold: f64,
    },
    /// By vectors that an earlier job made of their texts.
    Embedding {
        /// Absolute URI of that job's output.
        from: String,
        /// Its step.
        step: String,
        /// The least cosine between two vectors.
        threshold: f64,
    },
}

impl Dedup {
    /// What a job says, with the URI of an output made absolute.
    pub(super) fn new(
        spec: &batch_job::Dedup,
        absolute: impl Fn(&str) -> String,
    ) -> Result<Self, JobError> {
        let batch_job::Dedup { near } = spec;
        let near = near.as_ref().map(|near| {
            let batch_job::Near {
                method,
                threshold,
                from,
                step,
            } = near;
            let threshold = *threshold;
            match (method, from, step) {
                (NearMethod::MinHash, ..) => Ok(Near::MinHash { threshold }),
                (NearMethod::Embedding, Some(from), Some(step)) => Ok(Near::Embedding {
                    from: absolute(from),
                    step: step.clone(),
                    threshold,
                }),
                (NearMethod::Embedding, ..) => Err(JobError::NearWithoutVectors),
            }
        });
        Ok(Self {
            near: near.transpose()?,
        })
    }
}
