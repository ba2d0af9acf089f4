//! Passages of prose out of manual pages and plain documentation.

use super::Text;

/// Characters that a passage has at least and at most.
const CHARACTERS: std::ops::RangeInclusive<usize> = 24..=4_000;

/// Characters at given shares of a corpus of passages: a median near 62 tokens of an English
/// tokeniser, and one passage in ten above some 200.
const LENGTHS: &[(f64, f64)] = &[
    (0.0, 30.0),
    (0.1, 80.0),
    (0.25, 145.0),
    (0.5, 285.0),
    (0.75, 530.0),
    (0.9, 940.0),
    (1.0, 1_900.0),
];

/// The passages of many files, end to end, with numbers for ids.
pub fn numbered(documentation: &str) -> Vec<Text> {
    let passages = passages(documentation).into_iter().enumerate();
    passages
        .map(|(number, text)| Text {
            id: format!("passage-{number:06}"),
            text,
        })
        .collect()
}

/// `count` texts whose lengths are spread as [`LENGTHS`] says, in the order of `texts`.
pub fn spread(texts: &[Text], count: usize) -> Vec<Text> {
    let mut by_length: Vec<usize> = (0..texts.len()).collect();
    by_length.sort_by_key(|&index| (texts[index].text.len(), index));
    let mut next = 0;
    let mut chosen = Vec::new();
    for step in 0..count {
        let wanted = length_at(step as f64 / count as f64);
        let at_least = by_length.partition_point(|&index| texts[index].text.len() < wanted);
        // Each text once: where the length is taken, the next longer one.
        next = at_least.max(next);
        let Some(&index) = by_length.get(next) else {
            break;
        };
        chosen.push(index);
        next += 1;
    }
    chosen.sort_unstable();
    chosen
        .into_iter()
        .map(|index| texts[index].clone())
        .collect()
}

/// Characters at a share of the corpus, between the points of [`LENGTHS`] on a logarithmic scale.
fn length_at(share: f64) -> usize {
    let after = LENGTHS
        .iter()
        .position(|(at, _)| *at > share)
        .unwrap_or(LENGTHS.len() - 1);
    let ((from, low), (to, high)) = (LENGTHS[after - 1], LENGTHS[after]);
    let within = (share - from) / (to - from);
    (low.ln() + within * (high.ln() - low.ln())).exp() as usize
}

fn passages(documentation: &str) -> Vec<String> {
    let mut passages = Vec::new();
    let mut current = String::new();
    for line in documentation.lines().chain([""]) {
        match prose(line) {
            Some(words) => {
                if !current.is_empty() {
                    current.push(' ');
                }
                current.push_str(&words);
            }
            None => {
                if is_passage(&current) {
                    passages.push(std::mem::take(&mut current));
                }
                current.clear();
            }
        }
    }
    passages
}

/// What a reader sees of a line of plain text or of a manual page, or nothing where a passage ends.
fn prose(line: &str) -> Option<String> {
    let line = line.trim();
    let shown = match line.strip_prefix(['.', '\'']) {
        None => line.to_owned(),
        Some(macro_line) => {
            // Only the macros that change the font stand inside a sentence.
            let (name, arguments) = macro_line.split_once(' ')?;
            let glue = match name {
                "B" | "I" => " ",
                "BR" | "BI" | "IR" | "RB" | "RI" | "IB" => "",
                _ => return None,
            };
            arguments
                .replace('"', "")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(glue)
        }
    };
    let words = unescaped(&shown);
    (!words.trim().is_empty()).then(|| words.trim().to_owned())
}

/// A line without the escapes of roff.
fn unescaped(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            shown.push(character);
            continue;
        }
        match characters.next() {
            Some('f' | '*') => {
                match characters.next() {
                    Some('(') => drop((characters.next(), characters.next())),
                    Some('[') => while characters.next().is_some_and(|it| it != ']') {},
                    _ => {}
                };
            }
            Some('(') => match (characters.next(), characters.next()) {
                (Some('a'), Some('q')) | (Some('c'), Some('q')) => shown.push('\''),
                (Some('l' | 'r' | 'd'), Some('q')) => shown.push('"'),
                (Some('e' | 'h'), Some(_)) => shown.push('-'),
                _ => {}
            },
            Some('"') => break,
            Some('e') => shown.push('\\'),
            Some('-') => shown.push('-'),
            Some(' ' | '~' | '0') => shown.push(' '),
            _ => {}
        }
    }
    shown
}

/// Whether a passage is prose rather than a table, a listing or a fragment.
fn is_passage(text: &str) -> bool {
    let letters = text
        .chars()
        .filter(|it| it.is_alphabetic() || *it == ' ')
        .count();
    CHARACTERS.contains(&text.len()) && letters * 10 > text.chars().count() * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_page_becomes_its_sentences() {
        let page = ".TH LS 1\n.SH DESCRIPTION\nList information about the\n.I files\nin the \
            \\fBcurrent\\fR direc\\%tory.\n.PP\nSort entries if none of \\-cftuvSUX is given.\n";
        let expected = [
            "List information about the files in the current directory.",
            "Sort entries if none of -cftuvSUX is given.",
        ];
        assert_eq!(passages(page), expected);
    }

    #[test]
    fn tables_and_fragments_are_no_passages() {
        assert!(passages("0x00 0x01 0x02 | 17 | 18 | 19 | 20 | 21 | 22\n\nshort\n").is_empty());
    }

    #[test]
    fn lengths_are_spread_with_a_long_tail_and_no_text_twice() {
        let texts: Vec<Text> = (0..4_000)
            .map(|id| Text {
                id: format!("{id:04}"),
                text: "x".repeat(24 + id % 2_000),
            })
            .collect();
        let chosen = spread(&texts, 1_000);
        let mut lengths: Vec<usize> = chosen.iter().map(|text| text.text.len()).collect();
        lengths.sort_unstable();
        assert_eq!(chosen.len(), 1_000);
        assert!(
            (250..320).contains(&lengths[500]),
            "median {}",
            lengths[500]
        );
        assert!((900..1_000).contains(&lengths[900]), "p90 {}", lengths[900]);
        assert!(chosen.windows(2).all(|pair| pair[0].id < pair[1].id));
    }
}
