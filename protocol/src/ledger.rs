//! Which rows a shard answered, by their content: what an incremental run finds unchanged rows by.
//! Both files are records of one length, so that any of them is found by its number.

use crate::row::Place;

/// What was asked about a row, hashed: its text, or the fields that prompts are made of.
pub type ContentHash = [u8; 16];

/// Where a result line stands in a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineAt {
    /// First stored byte of the frame that holds the line. A part without compression has frames
    /// too: what was written at a time.
    pub frame_start: u64,
    /// Stored bytes of the frame.
    pub frame_bytes: u32,
    /// First byte of the line in the decoded frame.
    pub offset: u32,
    /// Bytes of the line, without its newline.
    pub bytes: u32,
}

/// A row with a result line, in the ledger of its shard, which has the order of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Its content.
    pub content: ContentHash,
    /// Its line in the shard's part.
    pub line: LineAt,
}

/// A row of an incremental run whose content was answered before, in the list of its shard. A list
/// is sorted by place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CarriedRow {
    /// Where the row stands in the shard's file.
    pub place: Place,
    /// Index of the earlier part among those of the plan.
    pub part: u32,
    /// The line of that part.
    pub line: LineAt,
}

/// A row of a job that is a duplicate of an earlier one, in the list of its shard. A list is sorted by
/// place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DuplicateRow {
    /// Where the row stands in the shard's file.
    pub place: Place,
    /// The content of the row that it is a duplicate of.
    pub content: ContentHash,
    /// How similar both are, from 0 to 1; `None` where their contents are equal.
    pub similarity: Option<f32>,
}

impl LineAt {
    const BYTES: usize = 20;

    fn write(self, to: &mut [u8]) {
        let Self {
            frame_start,
            frame_bytes,
            offset,
            bytes,
        } = self;
        to[..8].copy_from_slice(&frame_start.to_le_bytes());
        to[8..12].copy_from_slice(&frame_bytes.to_le_bytes());
        to[12..16].copy_from_slice(&offset.to_le_bytes());
        to[16..20].copy_from_slice(&bytes.to_le_bytes());
    }

    fn read(from: &[u8]) -> Self {
        Self {
            frame_start: u64_at(from, 0),
            frame_bytes: u32_at(from, 8),
            offset: u32_at(from, 12),
            bytes: u32_at(from, 16),
        }
    }
}

impl LedgerEntry {
    /// Length of an entry.
    pub const BYTES: usize = 16 + LineAt::BYTES;

    /// As it is stored.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.content);
        self.line.write(&mut bytes[16..]);
        bytes
    }

    /// Reads an entry.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut content = [0; 16];
        content.copy_from_slice(&bytes[..16]);
        Self {
            content,
            line: LineAt::read(&bytes[16..]),
        }
    }
}

impl CarriedRow {
    /// Length of a row.
    pub const BYTES: usize = 20 + LineAt::BYTES;

    /// As it is stored.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        write_place(self.place, &mut bytes);
        bytes[16..20].copy_from_slice(&self.part.to_le_bytes());
        self.line.write(&mut bytes[20..]);
        bytes
    }

    /// Reads a row.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            place: place_of(bytes),
            part: u32_at(bytes, 16),
            line: LineAt::read(&bytes[20..]),
        }
    }
}

impl DuplicateRow {
    /// Length of a row.
    pub const BYTES: usize = 36;

    /// As it is stored.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        write_place(self.place, &mut bytes);
        bytes[16..32].copy_from_slice(&self.content);
        // Rows that have nothing in common are no duplicates, so that 0 is free.
        let similarity = self.similarity.unwrap_or(0.0);
        bytes[32..].copy_from_slice(&similarity.to_le_bytes());
        bytes
    }

    /// Reads a row.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut content = [0; 16];
        content.copy_from_slice(&bytes[16..32]);
        let similarity = f32::from_bits(u32_at(bytes, 32));
        Self {
            place: place_of(bytes),
            content,
            similarity: (similarity > 0.0).then_some(similarity),
        }
    }
}

/// Writes the place that rows of lists begin with.
fn write_place(place: Place, to: &mut [u8]) {
    let (group, row) = match place {
        // No file has as many row groups.
        Place::Offset { offset } => (u64::MAX, offset),
        Place::Group { row_group, row } => (u64::from(row_group), row),
    };
    to[..8].copy_from_slice(&group.to_le_bytes());
    to[8..16].copy_from_slice(&row.to_le_bytes());
}

/// The place of a row of any list, with which it begins.
pub fn place_of(row: &[u8]) -> Place {
    let (group, row) = (u64_at(row, 0), u64_at(row, 8));
    match u32::try_from(group) {
        Ok(row_group) => Place::Group { row_group, row },
        Err(_) => Place::Offset { offset: row },
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..at + 8].try_into();
    u64::from_le_bytes(bytes.expect("eight bytes are eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..at + 4].try_into();
    u32::from_le_bytes(bytes.expect("four bytes are four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let line = LineAt {
            frame_start: 1 << 40,
            frame_bytes: 7,
            offset: u32::MAX,
            bytes: 3,
        };
        let entry = LedgerEntry {
            content: [9; 16],
            line,
        };
        assert_eq!(LedgerEntry::from_bytes(&entry.to_bytes()), entry);
        for place in [
            Place::Offset { offset: u64::MAX },
            Place::Group {
                row_group: u32::MAX,
                row: 5,
            },
        ] {
            let row = CarriedRow {
                place,
                part: 12,
                line,
            };
            assert_eq!(CarriedRow::from_bytes(&row.to_bytes()), row);
            for similarity in [None, Some(0.9)] {
                let row = DuplicateRow {
                    place,
                    content: [7; 16],
                    similarity,
                };
                assert_eq!(DuplicateRow::from_bytes(&row.to_bytes()), row);
                assert_eq!(place_of(&row.to_bytes()), place);
            }
        }
    }
}
