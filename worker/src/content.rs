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
    // Fields may be there for the filter or the order alone.
    let routing = routing.filter(|routing| !routing.fields().is_empty());
    if let (Some(routing), Some(fields)) = (routing, &row.filtered) {
        hash.update([0]);
        hash.update(routing.decisive(fields.get()));
    }
    shortened(hash)
}

/// The content that a row has for a job that asks about its text alone.
pub fn text_content(row: &Row) -> ContentHash {
    shortened(Sha256::new().chain_update(&row.text))
}

fn shortened(hash: Sha256) -> ContentHash {
    let hash: [u8; 32] = hash.finalize().into();
    *hash.first_chunk().expect("it is longer than that")
}
