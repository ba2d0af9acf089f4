//! The seam between batching and computing.
//!
//! A backend takes *packed* batches: the token ids of all sequences end to end, and where each
//! sequence begins. Padding, masks and memory layout are its private matter. It knows nothing of
//! text, labels, queues or time.

/// Sequences to compute, packed without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    /// Token ids of all sequences end to end, `[tokens]`.
    pub token_ids: Vec<u32>,
    /// Sequence `i` is `token_ids[offsets[i]..offsets[i + 1]]`; `[sequences + 1]`, starting at 0.
    pub offsets: Vec<u32>,
}

impl PackedBatch {
    /// Packs sequences in the given order. No sequence may be empty.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self {
            token_ids: Vec::new(),
            offsets: vec![0],
        };
        for sequence in sequences {
            assert!(!sequence.is_empty(), "a sequence has at least one token");
            batch.token_ids.extend_from_slice(sequence);
            let end = u32::try_from(batch.token_ids.len()).expect("a batch is far below 2^32");
            batch.offsets.push(end);
        }
        batch
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens, without padding: the cost of the batch.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Tokens of sequence `index`.
    pub fn sequence(&self, index: usize) -> &[u32] {
        &self.token_ids[self.offsets[index] as usize..self.offsets[index + 1] as usize]
    }

    /// Length of sequence `index` in tokens.
    pub fn length(&self, index: usize) -> usize {
        (self.offsets[index + 1] - self.offsets[index]) as usize
    }
}

/// What a model can be asked to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Head {
    /// One pooled vector per sequence.
    Pooled,
    /// One row of class logits per sequence.
    SequenceLogits,
    /// One row of class logits per token, in packed order.
    TokenLogits,
}

/// What one head returned.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadOutput {
    /// Numbers per row: the hidden size or the number of labels.
    pub width: usize,
    /// `[sequences, width]` for pooled vectors and sequence logits, `[tokens, width]` for token
    /// logits; row-major.
    pub values: Vec<f32>,
}

impl HeadOutput {
    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }
}

/// How a backend likes to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appetite {
    /// Tokens per batch above which it gains nothing more.
    pub batch_tokens: usize,
    /// How many threads may call [`Backend::forward`] at a time and be faster for it.
    pub callers: usize,
}

/// Why a batch could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The device has too little memory for this batch; a smaller one may pass.
    #[error("the device ran out of memory on {sequences} sequences with {tokens} tokens")]
    OutOfMemory {
        /// Sequences in the batch.
        sequences: usize,
        /// Tokens in the batch.
        tokens: usize,
    },
    /// The device fails every computation from now on; only another process may do better.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    /// The model cannot answer this head.
    #[error("the model has no head {0:?}")]
    NoSuchHead(Head),
    /// The computation failed.
    #[error("the model failed: {0}")]
    Failed(String),
}

/// What is said of a model that panicked: the words of a panic may quote the text.
pub const MODEL_PANICKED: &str = "the model panicked; the server's log names the place";

/// Runs a model on packed batches.
pub trait Backend: Send + Sync {
    /// How this backend likes to be called.
    fn appetite(&self) -> Appetite;

    /// Computes the heads asked for, one output per entry of `heads`, in that order. Blocks; never
    /// called from an async runtime's thread.
    fn forward(&self, batch: &PackedBatch, heads: &[Head])
    -> Result<Vec<HeadOutput>, BackendError>;
}
