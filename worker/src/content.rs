//! What decides the answer to a row, hashed: rows of the same content have the same answer.

use millrace_protocol::ledger::ContentHash;
use millrace_protocol::row::Row;
use sha2::{Digest, Sha256};

use crate::job::Routing;

/// The content of a row: what is asked about it, which is its text or the fields that prompts are made
/// of, and, with routes, the fields that decide who is asked. Long enough that no two contents meet by
/// chance or on purpose.
pub fn content(row: &Row, routing: Option<&Routing>) -> ContentHash {
    let mut hash = Sha256::new().chain_update(row.asked());
    if let (Some(routing), Some(fields)) = (routing, &row.filtered) {
        hash.update([0]);
        hash.update(routing.decisive(fields.get()));
    }
    let hash: [u8; 32] = hash.finalize().into();
    *hash.first_chunk().expect("it is longer than that")
}
