//! Whose question goes first.

/// Which questions go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Someone waits for the answer.
    Online,
    /// Part of a job; runs when nothing online is waiting.
    Batch,
}
