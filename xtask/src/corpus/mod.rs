//! Real texts from what is on the machine, the same ones each time: package descriptions, manual
//! pages and documentation, and where there is none of these, the sample in `examples/`.

mod machine;
mod packages;
mod passages;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::process::repository;

/// One text of a corpus, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Text {
    /// Where it comes from: a package, or a passage's number.
    pub id: String,
    /// The text itself.
    pub text: String,
}

/// How many texts the demo takes.
const DEMO_TEXTS: usize = 20_000;
/// Fewer than this, and the next source is asked.
const ENOUGH: usize = 2_000;
/// Sizes of the corpora of the benchmark.
const SHORT_TEXTS: usize = 4_000;
const LONG_TEXTS: usize = 2_000;

/// The texts of the demo, and in words where they come from.
pub fn demo() -> Result<(Vec<Text>, &'static str)> {
    let descriptions = distinct(packages::descriptions(&machine::packages()));
    if descriptions.len() >= ENOUGH {
        return Ok((
            thinned(&descriptions, DEMO_TEXTS),
            "package descriptions (apt-cache dumpavail)",
        ));
    }
    let passages = distinct(passages::numbered(&machine::documentation()?));
    if passages.len() >= ENOUGH {
        return Ok((
            thinned(&passages, DEMO_TEXTS),
            "passages of manual pages and /usr/share/doc",
        ));
    }
    Ok((
        sample()?,
        "the sample in examples/embed, since this machine has no texts of its own",
    ))
}

/// Texts of one line each.
pub fn short() -> Result<Vec<Text>> {
    let lines = distinct(packages::titles(&machine::packages()));
    let texts = if lines.len() >= ENOUGH {
        lines
    } else {
        sample()?
    };
    Ok(thinned(&texts, SHORT_TEXTS))
}

/// Passages whose lengths have a long tail. Empty where this machine has too few.
pub fn long() -> Result<Vec<Text>> {
    let mut found = packages::descriptions(&machine::packages());
    found.extend(passages::numbered(&machine::documentation()?));
    let found = distinct(found);
    if found.len() < 2 * LONG_TEXTS {
        Ok(Vec::new())
    } else {
        Ok(passages::spread(&found, LONG_TEXTS))
    }
}

/// Writes texts as JSON lines.
pub fn write(texts: &[Text], file: &Path) -> Result<()> {
    let mut lines = String::new();
    for text in texts {
        writeln!(lines, "{}", serde_json::to_string(text)?)?;
    }
    std::fs::write(file, lines).with_context(|| format!("{} cannot be written", file.display()))
}

fn sample() -> Result<Vec<Text>> {
    let file = repository().join("examples/embed/texts.jsonl");
    let lines = std::fs::read_to_string(&file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    lines
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

/// The texts without repetitions, sorted by id.
fn distinct(mut texts: Vec<Text>) -> Vec<Text> {
    texts.sort();
    let mut seen = BTreeSet::new();
    texts.retain(|text| seen.insert(text.text.clone()));
    texts
}

/// At most `count` texts, evenly spaced.
pub fn thinned(texts: &[Text], count: usize) -> Vec<Text> {
    let count = count.min(texts.len());
    (0..count)
        .map(|index| texts[index * texts.len() / count].clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: &str, text: &str) -> Text {
        Text {
            id: id.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_repeated_text_is_kept_once_under_its_first_id() {
        let found = distinct(vec![
            text("b", "same"),
            text("c", "other"),
            text("a", "same"),
        ]);
        assert_eq!(found, [text("a", "same"), text("c", "other")]);
    }

    #[test]
    fn thinning_takes_evenly_and_never_more_than_there_is() {
        let texts: Vec<Text> = (0..10).map(|id| text(&id.to_string(), "t")).collect();
        let ids = |texts: Vec<Text>| texts.into_iter().map(|text| text.id).collect::<Vec<_>>();
        assert_eq!(ids(thinned(&texts, 4)), ["0", "2", "5", "7"]);
        assert_eq!(thinned(&texts, 99).len(), 10);
        assert!(thinned(&[], 5).is_empty());
    }
}
