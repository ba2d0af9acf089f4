//! Fields that expressions name and that no row has: an expression over a misspelt field is true, or false,
//! of every row, and nothing else says so.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::Map;
use serde_json::value::RawValue;

/// The named fields that no row had so far.
pub(super) struct Unseen {
    /// Whether there is one, so that rows are looked at no more once all were seen.
    is_any: AtomicBool,
    fields: Mutex<BTreeSet<String>>,
}

impl Unseen {
    /// None of these was seen.
    pub(super) fn new(fields: &[String]) -> Self {
        Self {
            is_any: AtomicBool::new(!fields.is_empty()),
            fields: Mutex::new(fields.iter().cloned().collect()),
        }
    }

    /// Looks at those of the named fields that a row has, a JSON object.
    pub(super) fn look(&self, row: Option<&RawValue>) {
        if !self.is_any.load(Ordering::Relaxed) {
            return;
        }
        let Some(row) = row.and_then(|row| serde_json::from_str(row.get()).ok()) else {
            return;
        };
        let row: Map<String, serde_json::Value> = row;
        let mut fields = self.fields.lock().unwrap_or_else(PoisonError::into_inner);
        fields.retain(|field| !row.contains_key(field));
        self.is_any.store(!fields.is_empty(), Ordering::Relaxed);
    }

    /// Those that no row had.
    pub(super) fn fields(&self) -> Vec<String> {
        let fields = self.fields.lock().unwrap_or_else(PoisonError::into_inner);
        fields.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_no_row_has_is_left() {
        let unseen = Unseen::new(&["stars".to_owned(), "starz".to_owned()]);
        for row in [r#"{"project":"mill"}"#, r#"{"stars":null}"#] {
            let row = RawValue::from_string(row.to_owned()).unwrap();
            unseen.look(Some(&row));
        }
        unseen.look(None);
        assert_eq!(unseen.fields(), ["starz"]);
        assert!(Unseen::new(&[]).fields().is_empty());
    }
}
