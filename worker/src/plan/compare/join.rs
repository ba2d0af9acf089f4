//! Compares rows with earlier answers by content. Pure: what is kept where is decided elsewhere.

use std::collections::HashMap;

use millrace_protocol::ledger::{CarriedRow, ContentHash, LedgerEntry, LineAt};
use millrace_protocol::plan::ShardIndex;

/// An answer of the earlier output: its ledger entry and the index of its part.
pub(in crate::plan) const ANSWER_BYTES: usize = LedgerEntry::BYTES + 4;

/// A row: its content, its shard, and what is known of it so far.
pub(in crate::plan) const ROW_BYTES: usize = 16 + PLACED_BYTES;

/// A row in its shard.
pub(in crate::plan) const PLACED_BYTES: usize = 4 + CarriedRow::BYTES;

/// How many rows compare how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::plan) struct Counts {
    /// Rows whose content has an answer.
    pub(in crate::plan) unchanged: u64,
    /// Rows whose content has none.
    pub(in crate::plan) fresh: u64,
    /// Contents with an answer that no row has.
    pub(in crate::plan) gone: u64,
}

pub(in crate::plan) fn answer_bytes(
    entry: &[u8; LedgerEntry::BYTES],
    part: u32,
) -> [u8; ANSWER_BYTES] {
    let mut bytes = [0; ANSWER_BYTES];
    bytes[..LedgerEntry::BYTES].copy_from_slice(entry);
    bytes[LedgerEntry::BYTES..].copy_from_slice(&part.to_le_bytes());
    bytes
}

pub(in crate::plan) fn row_bytes(
    content: ContentHash,
    shard: ShardIndex,
    row: CarriedRow,
) -> [u8; ROW_BYTES] {
    let mut bytes = [0; ROW_BYTES];
    bytes[..16].copy_from_slice(&content);
    bytes[16..].copy_from_slice(&placed_bytes(shard, row));
    bytes
}

pub(in crate::plan) fn placed_bytes(shard: ShardIndex, row: CarriedRow) -> [u8; PLACED_BYTES] {
    let mut bytes = [0; PLACED_BYTES];
    bytes[..4].copy_from_slice(&shard.to_le_bytes());
    bytes[4..].copy_from_slice(&row.to_bytes());
    bytes
}

pub(in crate::plan) fn placed(bytes: &[u8; PLACED_BYTES]) -> (ShardIndex, CarriedRow) {
    let (shard, row) = bytes.split_first_chunk().expect("it is longer than that");
    let row = row.try_into().expect("a row is what follows");
    (
        ShardIndex::from_le_bytes(*shard),
        CarriedRow::from_bytes(row),
    )
}

/// Hands out every row of `rows` whose content is among `answers`, with where its answer stands, in
/// the order of `rows`. Holds the answers alone in memory.
pub(in crate::plan) fn join<E>(
    answers: impl Iterator<Item = Result<[u8; ANSWER_BYTES], E>>,
    rows: impl Iterator<Item = Result<[u8; ROW_BYTES], E>>,
    mut unchanged: impl FnMut(ShardIndex, CarriedRow) -> Result<(), E>,
) -> Result<Counts, E> {
    let mut known: HashMap<ContentHash, Known> = HashMap::new();
    for answer in answers {
        let answer = answer?;
        let (entry, part) = answer.split_last_chunk().expect("it is longer than that");
        let entry = entry.try_into().expect("an entry is what precedes");
        let LedgerEntry { content, line } = LedgerEntry::from_bytes(entry);
        known.entry(content).or_insert(Known {
            part: u32::from_le_bytes(*part),
            line,
            is_asked_for: false,
        });
    }
    let mut counts = Counts::default();
    for row in rows {
        let row = row?;
        let (content, row) = row.split_first_chunk().expect("it is longer than that");
        let Some(known) = known.get_mut(content) else {
            counts.fresh += 1;
            continue;
        };
        known.is_asked_for = true;
        counts.unchanged += 1;
        let (shard, row) = placed(row.try_into().expect("a placed row is what follows"));
        let row = CarriedRow {
            part: known.part,
            line: known.line,
            ..row
        };
        unchanged(shard, row)?;
    }
    let gone = known.values().filter(|known| !known.is_asked_for);
    counts.gone = gone.count() as u64;
    Ok(counts)
}

/// An earlier answer.
struct Known {
    part: u32,
    line: LineAt,
    is_asked_for: bool,
}

#[cfg(test)]
mod tests {
    use millrace_protocol::row::Place;

    use super::*;

    fn line(offset: u32) -> LineAt {
        LineAt {
            frame_start: 0,
            frame_bytes: 100,
            offset,
            bytes: 10,
        }
    }

    fn row(content: u8, shard: ShardIndex, offset: u64) -> Result<[u8; ROW_BYTES], ()> {
        let row = CarriedRow {
            place: Place::Offset { offset },
            part: 0,
            line: line(0),
        };
        Ok(row_bytes([content; 16], shard, row))
    }

    fn answer(content: u8, part: u32, offset: u32) -> Result<[u8; ANSWER_BYTES], ()> {
        let entry = LedgerEntry {
            content: [content; 16],
            line: line(offset),
        };
        Ok(answer_bytes(&entry.to_bytes(), part))
    }

    #[test]
    fn rows_are_unchanged_or_fresh_and_answers_asked_for_or_gone() {
        let answers = [answer(1, 7, 30), answer(2, 8, 40), answer(1, 9, 50)];
        let rows = [row(3, 0, 0), row(1, 0, 10), row(1, 2, 5)];
        let mut carried = Vec::new();
        let counts = join(answers.into_iter(), rows.into_iter(), |shard, row| {
            carried.push((shard, row.place, row.part, row.line.offset));
            Ok(())
        });
        let at = |offset| Place::Offset { offset };
        assert_eq!(carried, [(0, at(10), 7, 30), (2, at(5), 7, 30)]);
        let expected = Counts {
            unchanged: 2,
            fresh: 1,
            gone: 1,
        };
        assert_eq!(counts, Ok(expected));
    }
}
