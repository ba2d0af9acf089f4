//! One JSON object per line: only the fields that the job names are looked at.

use std::{borrow::Cow, fmt};

use millrace_protocol::row::{RowError, RowErrorCode};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{error::Category, value::RawValue};

use super::view::{self, Refused, RowView, Wanted};

/// Deepest nesting of a row. Whoever reads the results must be able to parse them recursively.
const DEPTH_MAX: usize = 128;

/// Parses one line.
pub(crate) fn parse<'a>(bytes: &'a [u8], wanted: &Wanted) -> Result<RowView<'a>, Refused> {
    let line = view::utf8(bytes)?;
    if is_too_deep(bytes) {
        let message = format!("the row nests deeper than {DEPTH_MAX} levels");
        return Err(Refused::new(RowErrorCode::InvalidJson, message));
    }
    let mut json = serde_json::Deserializer::from_str(line);
    let found = FoundSeed(wanted)
        .deserialize(&mut json)
        .and_then(|found| json.end().map(|()| found))
        .map_err(|error| Refused::new(RowErrorCode::InvalidJson, explain(&error)))?;
    let Found { id, text, joined } = found;
    let id = match &wanted.id {
        None => None,
        Some(field) => {
            let id = view::id_of_json(field, id.map(RawValue::get));
            Some(id.map_err(|error| Refused { id: None, error })?)
        }
    };
    let text = match text {
        Some(Text::String(text)) => Ok(text),
        Some(Text::Other(kind)) => {
            let message = format!("field {:?} is {kind} instead of a string", wanted.text);
            Err(RowError::new(RowErrorCode::InvalidField, message))
        }
        None => {
            let message = format!(
                "the row has no field {:?}, which {}",
                wanted.text,
                wanted.role_of_text()
            );
            Err(RowError::new(RowErrorCode::MissingField, message))
        }
    };
    wanted.row(id, text, |text| {
        let values: Vec<_> = joined
            .iter()
            .map(|value| value.map(RawValue::get))
            .collect();
        wanted.beside(&values, text)
    })
}

/// serde_json skips fields that nobody wants without recursion, and so without its depth limit.
fn is_too_deep(bytes: &[u8]) -> bool {
    // Few rows have this many brackets, and finding them is much faster than following them.
    let mut brackets = memchr::memchr2_iter(b'{', b'[', bytes);
    if brackets.nth(DEPTH_MAX).is_none() {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
    }
    false
}

/// What went wrong, without the row's text.
fn explain(error: &serde_json::Error) -> String {
    match error.classify() {
        Category::Data => "the row is not a JSON object".into(),
        Category::Io | Category::Syntax | Category::Eof => error.to_string(),
    }
}

/// The wanted values of a row; of a repeated field the last.
struct Found<'a> {
    id: Option<&'a RawValue>,
    text: Option<Text<'a>>,
    joined: Vec<Option<&'a RawValue>>,
}

struct FoundSeed<'w>(&'w Wanted);

impl<'de> DeserializeSeed<'de> for FoundSeed<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FoundSeed<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let wanted = self.0;
        let mut found = Found {
            id: None,
            text: None,
            joined: vec![None; wanted.join.len()],
        };
        while let Some(role) = map.next_key_seed(RoleSeed(wanted))? {
            let Role { id, text, join } = role;
            if !id && join.is_none() {
                if text {
                    found.text = Some(map.next_value_seed(TextSeed)?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
                continue;
            }
            let raw: &'de RawValue = map.next_value()?;
            if id {
                found.id = Some(raw);
            }
            if text {
                let mut json = serde_json::Deserializer::from_str(raw.get());
                found.text = Some(TextSeed.deserialize(&mut json).map_err(A::Error::custom)?);
            }
            if let Some(index) = join {
                found.joined[index] = Some(raw);
            }
        }
        Ok(found)
    }
}

/// What a field is wanted for.
struct Role {
    id: bool,
    text: bool,
    join: Option<usize>,
}

struct RoleSeed<'w>(&'w Wanted);

impl<'de> DeserializeSeed<'de> for RoleSeed<'_> {
    type Value = Role;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Role, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for RoleSeed<'_> {
    type Value = Role;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Role, E> {
        let Wanted { id, text, join, .. } = self.0;
        Ok(Role {
            id: id.as_deref() == Some(name),
            text: text == name,
            join: join.iter().position(|field| field.name == name),
        })
    }
}

/// The value of the text field.
enum Text<'a> {
    String(Cow<'a, str>),
    /// Anything else, named for the error message.
    Other(&'static str),
}

struct TextSeed;

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = Text<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text::String(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Text<'de>, E> {
        Ok(Text::Other("null"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text<'de>, E> {
        Ok(Text::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text<'de>, E> {
        Ok(Text::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text<'de>, E> {
        Ok(Text::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text<'de>, E> {
        Ok(Text::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Text<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text::Other("an object"))
    }
}
