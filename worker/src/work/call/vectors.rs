//! Vectors as they lie on a receipt: what was asked first, which is short, and the numbers behind it, so
//! that whoever looks for one reads no other. Pure.
//!
//! ```text
//! "mrvec001"  tokens: u64  rows: u32  size: u32  asked: rows × 32 bytes  vectors: rows × size × f32
//! ```
//!
//! All numbers are little-endian.

use std::ops::Range;

use millrace_protocol::wire::Prediction;

/// What tells a prompt from all others: its hash.
pub type Asked = [u8; 32];

const MAGIC: &[u8; 8] = b"mrvec001";
const FIXED_BYTES: usize = 24;

/// Rows on a receipt at most: as many as an API takes in a call.
const ROWS_MAX: usize = 2_048;

/// The head of a receipt is no longer than that.
pub const HEAD_BYTES_MAX: u64 = (FIXED_BYTES + ROWS_MAX * size_of::<Asked>()) as u64;

/// What stands before the vectors.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Tokens that the call took.
    pub tokens: u64,
    /// What was asked, in the order of the vectors.
    pub asked: Vec<Asked>,
    /// Numbers of a vector.
    pub size: u32,
}

/// The bytes of a receipt, if the predictions are vectors of one length.
pub fn encode(tokens: u64, said: &[(Asked, &Prediction)]) -> Option<Vec<u8>> {
    let vector = |said: &(Asked, &Prediction)| match said.1 {
        Prediction::Embedding(vector) => Some(vector.len()),
        _ => None,
    };
    let size = vector(said.first()?)?;
    if said.len() > ROWS_MAX || said.iter().any(|said| vector(said) != Some(size)) {
        return None;
    }
    let bytes = FIXED_BYTES + said.len() * (size_of::<Asked>() + size * size_of::<f32>());
    let mut encoded = Vec::with_capacity(bytes);
    encoded.extend(MAGIC);
    encoded.extend(tokens.to_le_bytes());
    encoded.extend((said.len() as u32).to_le_bytes());
    encoded.extend(u32::try_from(size).ok()?.to_le_bytes());
    for (asked, _) in said {
        encoded.extend(asked);
    }
    for (_, prediction) in said {
        if let Prediction::Embedding(vector) = prediction {
            encoded.extend(vector.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
    Some(encoded)
}

impl Head {
    /// Reads the head from the beginning of a receipt; nothing if that is no receipt.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_BYTES>()?;
        let rest_of = fixed.strip_prefix(MAGIC)?;
        let (tokens, rest_of) = rest_of.split_first_chunk()?;
        let (rows, rest_of) = rest_of.split_first_chunk()?;
        let size = rest_of.try_into().ok()?;
        let rows = u32::from_le_bytes(*rows) as usize;
        let (asked, _) = rest.as_chunks();
        Some(Self {
            tokens: u64::from_le_bytes(*tokens),
            asked: asked.get(..rows)?.to_vec(),
            size: u32::from_le_bytes(size),
        })
    }

    /// Where the bytes of all vectors lie.
    pub fn vectors(&self) -> Range<u64> {
        let start = (FIXED_BYTES + self.asked.len() * size_of::<Asked>()) as u64;
        let each = u64::from(self.size) * size_of::<f32>() as u64;
        start..start + each * self.asked.len() as u64
    }
}

/// One of the vectors, of `size` numbers, by its place among them; nothing if it is not there whole.
pub fn decode(vectors: &[u8], row: usize, size: u32) -> Option<Prediction> {
    let each = size as usize * size_of::<f32>();
    let bytes = vectors.get(row.checked_mul(each)?..)?.get(..each)?;
    let (numbers, []) = bytes.as_chunks() else {
        return None;
    };
    let numbers = numbers.iter().map(|number| f32::from_le_bytes(*number));
    Some(Prediction::Embedding(numbers.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_to_the_last_bit_and_a_receipt_that_is_cut_gives_none() {
        let vector = |numbers: &[f32]| Prediction::Embedding(numbers.to_vec());
        let (one, other) = (vector(&[0.1, -2.5e-30]), vector(&[f32::MAX, 0.0]));
        let bytes = encode(7, &[([1; 32], &one), ([2; 32], &other)]).unwrap();
        let head = Head::decode(&bytes).unwrap();
        assert_eq!((head.tokens, head.size), (7, 2));
        assert_eq!(head.asked, [[1; 32], [2; 32]]);
        let range = head.vectors();
        assert_eq!(range.end, bytes.len() as u64);
        let vectors = &bytes[range.start as usize..];
        assert_eq!(decode(vectors, 0, 2), Some(one.clone()));
        assert_eq!(decode(vectors, 1, 2), Some(other));
        assert_eq!(decode(vectors, 2, 2), None);
        assert_eq!(decode(&vectors[..15], 1, 2), None);
        for cut in 0..range.start as usize {
            assert_eq!(Head::decode(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(encode(7, &[]), None);
        let longer = vector(&[1.0, 2.0, 3.0]);
        assert_eq!(encode(7, &[([1; 32], &one), ([2; 32], &longer)]), None);
    }
}
