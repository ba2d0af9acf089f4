//! What an answer belongs to. Pure.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// Begins each key. Another form of keys or answers takes another word.
const FORM: &[u8] = b"millrace answer 1";

/// What decides an answer: the model with its settings, truncation and text. Nothing can be learnt
/// from it of the text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// As it is written.
    pub fn to_hex(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// The key that is written like this.
    pub(super) fn from_hex(text: &str) -> Option<Self> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

/// The keys of all slots of a question.
pub struct Keys(Vec<Key>);

impl Keys {
    /// Hashes each text once: `fingerprints` stand for the models that are asked.
    pub fn new(fingerprints: &[[u8; 32]], truncate: bool, texts: &[String]) -> Self {
        let mut keys = Vec::with_capacity(texts.len() * fingerprints.len());
        for text in texts {
            let text: [u8; 32] = Sha256::digest(text.as_bytes()).into();
            keys.extend(fingerprints.iter().map(|fingerprint| {
                // All parts but the first have a length of their own, so no two keys run together.
                let hash = Sha256::new()
                    .chain_update(FORM)
                    .chain_update(fingerprint)
                    .chain_update([u8::from(truncate)])
                    .chain_update(text);
                Key(hash.finalize().into())
            }));
        }
        Self(keys)
    }

    /// The key of a slot, `text * models + model`.
    pub fn get(&self, slot: usize) -> Key {
        self.0[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_key_makes_another() {
        let key = |fingerprint, truncate, text: &str| {
            Keys::new(&[[fingerprint; 32]], truncate, &[text.to_owned()]).get(0)
        };
        let one = key(1, true, "grain");
        assert!(one == key(1, true, "grain"));
        for other in [
            key(2, true, "grain"),
            key(1, false, "grain"),
            key(1, true, "grain "),
        ] {
            assert!(one != other);
        }
    }

    #[test]
    fn slots_are_texts_by_models() {
        let texts = ["grain".to_owned(), "water".to_owned()];
        let keys = Keys::new(&[[1; 32], [2; 32]], true, &texts);
        let alone = Keys::new(&[[2; 32]], true, &texts[1..]);
        assert!(keys.get(3) == alone.get(0));
    }
}
