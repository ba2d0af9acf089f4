//! What is asked about a row, hashed: rows of the same content have the same answer.

use millrace_protocol::ledger::ContentHash;
use sha2::{Digest, Sha256};

/// The content of a row about which `asked` is asked: its text, or the fields that prompts are made
/// of. Long enough that no two contents meet by chance or on purpose.
pub fn content(asked: &str) -> ContentHash {
    let hash: [u8; 32] = Sha256::digest(asked.as_bytes()).into();
    *hash.first_chunk().expect("it is longer than that")
}
