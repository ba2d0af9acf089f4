//! How a text is written before anything is made of it. Pure.

use std::borrow::Cow;

use millrace_crds::batch_job::{self, UnicodeForm, Whitespace};
use millrace_protocol::row::{RowError, RowErrorCode};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

/// How texts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Normalizer {
    unicode: Option<UnicodeForm>,
    whitespace: Option<Whitespace>,
    lowercase: bool,
    /// Longest text in bytes: a few characters become many times as long.
    text_bytes_max: usize,
}

impl Normalizer {
    /// The way of a job, whose rows have at most so many bytes.
    pub fn new(spec: &batch_job::Normalize, row_bytes_max: usize) -> Self {
        let batch_job::Normalize {
            unicode,
            whitespace,
            lowercase,
        } = spec;
        Self {
            unicode: *unicode,
            whitespace: *whitespace,
            lowercase: *lowercase,
            text_bytes_max: row_bytes_max,
        }
    }

    /// The text as it is written from here on. Doing it again changes nothing.
    pub fn apply<'a>(&self, text: Cow<'a, str>) -> Result<Cow<'a, str>, RowError> {
        let mut text = self.formed(text)?;
        if self.lowercase && text.chars().any(|c| !c.to_lowercase().eq([c])) {
            // Some small letters are written in another form than the large ones that they come from.
            text = self.formed(Cow::Owned(text.to_lowercase()))?;
        }
        Ok(match self.whitespace {
            None => text,
            Some(Whitespace::Trim) => trimmed(text),
            Some(Whitespace::Collapse) if is_collapsed(&text) => text,
            Some(Whitespace::Collapse) => Cow::Owned(collapsed(&text)),
        })
    }

    fn formed<'a>(&self, text: Cow<'a, str>) -> Result<Cow<'a, str>, RowError> {
        let is_formed = |quick: IsNormalized| quick == IsNormalized::Yes;
        Ok(match self.unicode {
            None => text,
            Some(UnicodeForm::Nfc) if is_formed(is_nfc_quick(text.chars())) => text,
            Some(UnicodeForm::Nfc) => Cow::Owned(self.bounded(text.nfc())?),
            Some(UnicodeForm::Nfkc) if is_formed(is_nfkc_quick(text.chars())) => text,
            Some(UnicodeForm::Nfkc) => Cow::Owned(self.bounded(text.nfkc())?),
        })
    }

    fn bounded(&self, chars: impl Iterator<Item = char>) -> Result<String, RowError> {
        let mut text = String::new();
        for char in chars {
            if text.len() + char.len_utf8() > self.text_bytes_max {
                let message = format!(
                    "the normalized text is longer than {} bytes; raise input.maxRowBytes if it is \
                     meant to be",
                    self.text_bytes_max
                );
                return Err(RowError::new(RowErrorCode::RowTooLong, message));
            }
            text.push(char);
        }
        Ok(text)
    }
}

fn trimmed(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) if text.trim().len() == text.len() => Cow::Owned(text),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    }
}

/// Whether the only white space is one space at a time between words.
fn is_collapsed(text: &str) -> bool {
    let mut is_behind_word = false;
    for char in text.chars() {
        match char.is_whitespace() {
            true if char != ' ' || !is_behind_word => return false,
            is_space => is_behind_word = !is_space,
        }
    }
    is_behind_word || text.is_empty()
}

fn collapsed(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !collapsed.is_empty() {
            collapsed.push(' ');
        }
        collapsed.push_str(word);
    }
    collapsed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn normalizer(spec: Value) -> Normalizer {
        Normalizer::new(&serde_json::from_value(spec).unwrap(), 1 << 10)
    }

    fn written(spec: Value, text: &str) -> String {
        let written = normalizer(spec).apply(Cow::Borrowed(text)).unwrap();
        written.into_owned()
    }

    #[test]
    fn each_setting_does_what_it_says() {
        let text = " Cafe\u{301}\u{a0} \n\u{fb01}ne ① ";
        for (spec, expected) in [
            (json!({"unicode": "NFC"}), " Café\u{a0} \n\u{fb01}ne ① "),
            (json!({"unicode": "NFKC"}), " Café  \nfine 1 "),
            (
                json!({"whitespace": "Trim"}),
                "Cafe\u{301}\u{a0} \n\u{fb01}ne ①",
            ),
            (
                json!({"whitespace": "Collapse"}),
                "Cafe\u{301} \u{fb01}ne ①",
            ),
            (
                json!({"lowercase": true}),
                " cafe\u{301}\u{a0} \n\u{fb01}ne ① ",
            ),
            (
                json!({"unicode": "NFKC", "whitespace": "Collapse", "lowercase": true}),
                "café fine 1",
            ),
        ] {
            assert_eq!(written(spec.clone(), text), expected, "{spec}");
        }
    }

    #[test]
    fn a_text_that_is_written_so_already_is_not_copied() {
        let spec = json!({"unicode": "NFC", "whitespace": "Collapse", "lowercase": true});
        let kept = normalizer(spec).apply(Cow::Borrowed("a café and a mill"));
        assert!(matches!(kept, Ok(Cow::Borrowed(_))), "{kept:?}");
    }

    #[test]
    fn a_character_that_becomes_many_cannot_fill_the_memory() {
        let text = "\u{fdfa}".repeat(300);
        let spec = json!({"unicode": "NFKC"});
        let error = normalizer(spec).apply(Cow::Owned(text)).unwrap_err();
        assert_eq!(error.code, RowErrorCode::RowTooLong);
    }

    proptest! {
        #[test]
        fn doing_it_again_changes_nothing(
            text in "(\\PC|[ \n\u{a0}İßǅ℡Ⅷ\u{301}\u{345}ΐ]){0,20}",
            form in proptest::sample::select(vec![json!(null), json!("NFC"), json!("NFKC")]),
            whitespace in proptest::sample::select(vec![json!(null), json!("Trim"), json!("Collapse")]),
            lowercase in any::<bool>(),
        ) {
            let spec = json!({"unicode": form, "whitespace": whitespace, "lowercase": lowercase});
            let once = written(spec.clone(), &text);
            prop_assert_eq!(written(spec, &once), once);
        }
    }
}
