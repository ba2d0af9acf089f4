//! What a panic said, for those who judge by it what it means. It is never passed on: the panics of the
//! standard library quote the text at hand, and rows' texts belong in no log, status or Event.

use std::any::Any;

/// The words of a panic that was caught; panics carry text unless somebody chose otherwise.
pub fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_found_whether_its_words_are_fixed_or_made() {
        let caught = |panic: fn()| std::panic::catch_unwind(panic).unwrap_err();
        assert_eq!(text(&*caught(|| panic!("fixed"))), "fixed");
        let made = caught(|| std::panic::panic_any(format!("made {}", 1)));
        assert_eq!(text(&*made), "made 1");
        let other = caught(|| std::panic::panic_any(1_u8));
        assert_eq!(text(&*other), "a panic without words");
    }
}
