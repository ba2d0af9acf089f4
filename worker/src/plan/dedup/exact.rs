//! Tells rows that are asked from their duplicates, by content. Pure: what is kept where is decided
//! elsewhere.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use millrace_protocol::ledger::{ContentHash, DuplicateRow};
use millrace_protocol::plan::ShardIndex;

/// A row in its shard, taken for a duplicate of its own content.
pub(super) const ROW_BYTES: usize = 4 + DuplicateRow::BYTES;

/// A content, the one that it is almost the same as, and how similar they are.
pub(super) const NEAR_BYTES: usize = 16 + 16 + 4;

pub(super) fn row_bytes(shard: ShardIndex, row: DuplicateRow) -> [u8; ROW_BYTES] {
    let mut bytes = [0; ROW_BYTES];
    bytes[..4].copy_from_slice(&shard.to_le_bytes());
    bytes[4..].copy_from_slice(&row.to_bytes());
    bytes
}

fn row(bytes: &[u8; ROW_BYTES]) -> (ShardIndex, DuplicateRow) {
    let (shard, row) = bytes.split_first_chunk().expect("it is longer than that");
    let row = row.try_into().expect("a row is what follows");
    (
        ShardIndex::from_le_bytes(*shard),
        DuplicateRow::from_bytes(row),
    )
}

/// A content that is almost the same as an earlier one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NearContent {
    /// The content.
    pub(super) content: ContentHash,
    /// The earlier one, which no other stands for.
    pub(super) like: ContentHash,
    /// How similar both are.
    pub(super) similarity: f32,
}

impl NearContent {
    pub(super) fn to_bytes(self) -> [u8; NEAR_BYTES] {
        let mut bytes = [0; NEAR_BYTES];
        bytes[..16].copy_from_slice(&self.content);
        bytes[16..32].copy_from_slice(&self.like);
        bytes[32..].copy_from_slice(&self.similarity.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; NEAR_BYTES]) -> Self {
        let (content, rest) = bytes.split_first_chunk().expect("it is longer than that");
        let (like, rest) = rest.split_first_chunk().expect("it is longer than that");
        let similarity = rest.try_into().expect("a similarity is what follows");
        Self {
            content: *content,
            like: *like,
            similarity: f32::from_le_bytes(similarity),
        }
    }
}

/// Hands out the duplicates among `rows` in their order, each with the content whose answer it gets: the
/// one that `near` says for its content, or its own for all but the first row that has it. Returns how
/// many there are. Holds the contents alone in memory.
pub(super) fn duplicates<E>(
    near: impl Iterator<Item = Result<[u8; NEAR_BYTES], E>>,
    rows: impl Iterator<Item = Result<[u8; ROW_BYTES], E>>,
    mut found: impl FnMut([u8; ROW_BYTES]) -> Result<(), E>,
) -> Result<u64, E> {
    let mut known: HashMap<ContentHash, Option<NearContent>> = HashMap::new();
    for near in near {
        let near = NearContent::from_bytes(&near?);
        known.entry(near.content).or_insert(Some(near));
    }
    let mut count = 0;
    for bytes in rows {
        let (shard, mut duplicate) = row(&bytes?);
        let near = match known.entry(duplicate.content) {
            Entry::Vacant(first) => {
                first.insert(None);
                continue;
            }
            Entry::Occupied(known) => *known.get(),
        };
        if let Some(near) = near {
            duplicate.content = near.like;
            duplicate.similarity = Some(near.similarity);
        }
        count += 1;
        found(row_bytes(shard, duplicate))?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use millrace_protocol::row::Place;

    use super::*;

    fn at(shard: ShardIndex, offset: u64, content: u8) -> (ShardIndex, DuplicateRow) {
        let place = Place::Offset { offset };
        let row = DuplicateRow {
            place,
            content: [content; 16],
            similarity: None,
        };
        (shard, row)
    }

    #[test]
    fn the_first_row_of_a_content_is_asked_and_a_near_content_has_duplicates_alone() {
        let rows = [
            at(0, 0, 1),
            at(0, 9, 2),
            at(1, 3, 1),
            at(1, 5, 2),
            at(2, 0, 3),
        ];
        let near = NearContent {
            content: [2; 16],
            like: [1; 16],
            similarity: 0.9,
        };
        let near: [Result<_, ()>; 1] = [Ok(near.to_bytes())];
        let rows = rows.map(|(shard, row)| Ok(row_bytes(shard, row)));
        let mut found = Vec::new();
        let count = duplicates(near.into_iter(), rows.into_iter(), |bytes| {
            found.push(row(&bytes));
            Ok(())
        });
        let like_one = |(shard, mut row): (ShardIndex, DuplicateRow)| {
            row.content = [1; 16];
            row.similarity = Some(0.9);
            (shard, row)
        };
        let expected = [like_one(at(0, 9, 2)), at(1, 3, 1), like_one(at(1, 5, 2))];
        assert_eq!(found, expected);
        assert_eq!(count, Ok(3));
    }
}
