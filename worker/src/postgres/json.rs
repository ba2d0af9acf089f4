//! JSON as `jsonb` takes it. Pure.
//!
//! What millrace writes is JSON, and joined input is whatever JSON the input had. Of that `jsonb`
//! refuses three things, each of which would sink all rows beside it: the character U+0000, half a
//! surrogate pair, and numbers of thousands of digits.

use std::borrow::Cow;

/// Longest number, and largest exponent, that stays a number.
const NUMBER_MAX: usize = 1_000;

/// What takes the place of a character that cannot be kept.
const REPLACEMENT: &str = "\\ufffd";

/// The same JSON without what `jsonb` refuses: such characters become U+FFFD, and such numbers
/// strings. `json` is valid JSON.
pub fn acceptable(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut changed: Option<String> = None;
    // Everything before it is in `changed`, if anything was changed.
    let mut kept = 0;
    let mut replace = |from: usize, to: usize, by: &str| {
        let text = changed.get_or_insert_default();
        text.push_str(&json[kept..from]);
        text.push_str(by);
        kept = to;
    };
    let (mut at, mut in_string) = (0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                in_string = !in_string;
                at += 1;
            }
            b'\\' if in_string => match escaped(json, at) {
                Escape::Kept(length) => at += length,
                Escape::Refused(length) => {
                    replace(at, at + length, REPLACEMENT);
                    at += length;
                }
            },
            b'-' | b'0'..=b'9' if !in_string => {
                let length = number(&bytes[at..]);
                if is_too_large(&json[at..at + length]) {
                    let quoted = format!("\"{}\"", &json[at..at + length]);
                    replace(at, at + length, &quoted);
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    match changed {
        None => Cow::Borrowed(json),
        Some(mut text) => {
            text.push_str(&json[kept..]);
            Cow::Owned(text)
        }
    }
}

/// A text without U+0000, which no text of Postgres can hold.
pub fn without_nul(text: String) -> String {
    match text.contains('\0') {
        true => text.replace('\0', "\u{fffd}"),
        false => text,
    }
}

/// What begins with a backslash, with its length in bytes.
enum Escape {
    Kept(usize),
    Refused(usize),
}

fn escaped(json: &str, at: usize) -> Escape {
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    match unit(at) {
        None => Escape::Kept(2),
        Some(0 | 0xdc00..=0xdfff) => Escape::Refused(6),
        Some(0xd800..=0xdbff) => match unit(at + 6) {
            Some(0xdc00..=0xdfff) => Escape::Kept(12),
            _ => Escape::Refused(6),
        },
        Some(_) => Escape::Kept(6),
    }
}

fn number(bytes: &[u8]) -> usize {
    let is_of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let rest = bytes.iter().position(|byte| !is_of_number(byte));
    rest.unwrap_or(bytes.len())
}

fn is_too_large(number: &str) -> bool {
    let exponent = number.split_once(['e', 'E']).map(|(_, exponent)| exponent);
    let is_steep = exponent.is_some_and(|exponent| {
        // One that does not fit into its type is too large as well.
        exponent.parse::<i32>().map_or(true, |exponent| {
            exponent.unsigned_abs() as usize > NUMBER_MAX
        })
    });
    number.len() > NUMBER_MAX || is_steep
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jsonb_takes_stays_as_it_is() {
        for json in [
            r#"{"a":"\\u0000 and \n","b":[1,-2.5e10,true,null],"c":"😀"}"#,
            r#""\ud83d\ude00 \u00e4""#,
            r#"{"1e9999":"1e9999"}"#,
            "-0.08676917",
        ] {
            assert!(matches!(acceptable(json), Cow::Borrowed(same) if same == json));
        }
    }

    #[test]
    fn what_jsonb_refuses_is_replaced_and_the_rest_is_kept() {
        let check = |json: &str, expected: &str| {
            assert_eq!(acceptable(json), expected, "{json}");
            serde_json::from_str::<serde_json::Value>(expected).unwrap();
        };
        check(r#"{"a\u0000b":"\\\u0000é"}"#, r#"{"a\ufffdb":"\\\ufffdé"}"#);
        check(
            r#"["\ud83d!","\ude00","\ud83d\ud83d\ude00"]"#,
            r#"["\ufffd!","\ufffd","\ufffd\ud83d\ude00"]"#,
        );
        check(r#"{"n":1e999999,"m":2}"#, r#"{"n":"1e999999","m":2}"#);
        check("-1E-99999999999", "\"-1E-99999999999\"");
        let long = "9".repeat(NUMBER_MAX + 1);
        check(&long, &format!("\"{long}\""));
    }
}
