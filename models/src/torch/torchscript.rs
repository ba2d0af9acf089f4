//! TorchScript modules: code of the model's author, run as it is. Loaded only where the
//! administrator allows it.

use std::path::Path;

use tch::{CModule, Kind, Tensor};

use super::device::Placement;
use super::error::TorchLoadError;
use super::head::to_host;
use super::runtime::{Threads, guarded};
use crate::backend::{Appetite, Backend, BackendError, Head, HeadOutput, PackedBatch};
use crate::config::ModelConfig;

/// A module called with `input_ids` and `attention_mask`, both `[sequences, longest]` of 64-bit
/// integers, that returns a tensor `[sequences, …]`.
pub struct TorchScript {
    module: CModule,
    placement: Placement,
    threads: Threads,
    batch_tokens: usize,
    pad_token_id: i64,
    vocab_size: usize,
    tokens_max: usize,
}

impl TorchScript {
    /// Loads the module at `path`.
    pub fn load(
        path: &Path,
        config: &ModelConfig,
        placement: Placement,
        threads: Threads,
        batch_tokens: usize,
    ) -> Result<Self, TorchLoadError> {
        let mut module = CModule::load_on_device(path, placement.torch_device())?;
        module.f_set_eval()?;
        Ok(Self {
            module,
            placement,
            threads,
            batch_tokens,
            pad_token_id: config.pad_token_id as i64,
            vocab_size: config.vocab_size,
            tokens_max: config.tokens_max(),
        })
    }

    fn check(&self, batch: &PackedBatch) -> Result<(), BackendError> {
        if batch
            .token_ids
            .iter()
            .any(|&id| id as usize >= self.vocab_size)
        {
            let message = format!(
                "a token id is outside the vocabulary of {}",
                self.vocab_size
            );
            return Err(BackendError::Failed(message));
        }
        if (0..batch.sequences()).any(|index| batch.length(index) > self.tokens_max) {
            let message = format!("a sequence is longer than {} tokens", self.tokens_max);
            return Err(BackendError::Failed(message));
        }
        Ok(())
    }

    fn compute(&self, batch: &PackedBatch) -> Result<HeadOutput, tch::TchError> {
        let sequences = batch.sequences();
        let longest = (0..sequences)
            .map(|index| batch.length(index))
            .max()
            .unwrap_or(0);
        let mut ids = vec![self.pad_token_id; sequences * longest];
        let mut mask = vec![0_i64; sequences * longest];
        for index in 0..sequences {
            for (position, &id) in batch.sequence(index).iter().enumerate() {
                ids[index * longest + position] = i64::from(id);
                mask[index * longest + position] = 1;
            }
        }
        let tensor = |values: &[i64]| {
            Tensor::f_from_slice(values)?
                .f_view([sequences as i64, longest as i64])?
                .f_to_device(self.placement.torch_device())
        };
        let output = self.module.forward_ts(&[tensor(&ids)?, tensor(&mask)?])?;
        let size = output.size();
        if size.first() != Some(&(sequences as i64)) {
            return Err(tch::TchError::Shape(format!(
                "the module returned {size:?} for {sequences} sequences"
            )));
        }
        let values = to_host(&output.f_to_kind(Kind::Float)?)?;
        Ok(HeadOutput {
            width: values.len() / sequences,
            values,
        })
    }
}

impl Backend for TorchScript {
    fn appetite(&self) -> Appetite {
        Appetite {
            batch_tokens: self.batch_tokens,
            callers: self.threads.callers,
        }
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        heads: &[Head],
    ) -> Result<Vec<HeadOutput>, BackendError> {
        if let Some(&head) = heads.iter().find(|&&head| head != Head::SequenceLogits) {
            return Err(BackendError::NoSuchHead(head));
        }
        self.check(batch)?;
        let output = match batch.sequences() {
            0 => HeadOutput {
                width: 0,
                values: Vec::new(),
            },
            _ => guarded(self.threads, batch, || self.compute(batch))?,
        };
        Ok(vec![output; heads.len()])
    }
}
