//! Reads the results of a finished job and finds the texts that are most alike.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Texts that a reader knows what to expect for. The first text that holds one becomes a query.
const TOPICS: [&str; 3] = ["chess", "password manager", "weather"];
/// Neighbours shown of each.
const NEIGHBOURS: usize = 5;

/// One embedded text.
pub struct Row {
    /// The id of the row.
    pub id: String,
    /// The text.
    pub text: String,
    /// Its embedding, scaled to length 1.
    pub vector: Vec<f32>,
}

#[derive(Deserialize)]
struct Manifest {
    parts: Vec<LivePart>,
}

#[derive(Deserialize)]
struct LivePart {
    commit: Commit,
}

#[derive(Deserialize)]
struct Commit {
    part: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    id: Option<String>,
    result: HashMap<String, Vec<f32>>,
    input: Input,
}

#[derive(Deserialize)]
struct Input {
    text: String,
}

/// The rows of every live part of the output, in input order.
pub fn read(output: &Path, step: &str) -> Result<Vec<Row>> {
    let manifest = std::fs::read(output.join("manifest.json"))
        .with_context(|| format!("{} holds no manifest.json", output.display()))?;
    let manifest: Manifest = serde_json::from_slice(&manifest)?;
    let mut rows = Vec::new();
    for part in manifest
        .parts
        .iter()
        .filter_map(|part| part.commit.part.as_deref())
    {
        let file = File::open(output.join(part)).with_context(|| format!("{part} is missing"))?;
        for line in BufReader::new(file).lines() {
            let mut line: Line =
                serde_json::from_str(&line?).with_context(|| format!("{part} has a bad line"))?;
            let vector = line
                .result
                .remove(step)
                .with_context(|| format!("no step {step}"))?;
            let (id, text) = (line.id.unwrap_or_default(), line.input.text);
            rows.push(Row {
                id,
                text,
                vector: unit(vector),
            });
        }
    }
    Ok(rows)
}

/// The queries among `rows`, each with its nearest neighbours and their cosines.
pub fn shown(rows: &[Row]) -> String {
    let mut shown = String::new();
    for query in queries(rows) {
        writeln!(
            shown,
            "\n{}  {}",
            rows[query].id,
            shortened(&rows[query].text)
        )
        .expect("in memory");
        for (score, index) in nearest(rows, query) {
            let Row { id, text, .. } = &rows[index];
            writeln!(shown, "  {score:.3}  {}  ({id})", shortened(text)).expect("in memory");
        }
    }
    shown
}

/// One row per topic, or evenly spaced ones where no text has it.
fn queries(rows: &[Row]) -> Vec<usize> {
    let topics = TOPICS.iter().enumerate();
    let mut queries: Vec<usize> = topics
        .map(|(index, topic)| {
            let found = rows
                .iter()
                .position(|row| row.text.to_lowercase().contains(topic));
            found.unwrap_or(index * rows.len() / TOPICS.len())
        })
        .collect();
    queries.dedup();
    queries
}

/// The rows most like `query`, best first, without itself.
fn nearest(rows: &[Row], query: usize) -> Vec<(f32, usize)> {
    let cosine = |row: &Row| {
        row.vector
            .iter()
            .zip(&rows[query].vector)
            .map(|(a, b)| a * b)
            .sum()
    };
    let mut scored: Vec<(f32, usize)> = rows
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != query)
        .map(|(index, row)| (cosine(row), index))
        .collect();
    scored.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.cmp(second)));
    scored.truncate(NEIGHBOURS);
    scored
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|it| it * it).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|it| *it /= length);
    }
    vector
}

/// The start of a text, enough for a line of a terminal.
fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    let mut shown: String = text.chars().take(CHARACTERS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, vector: [f32; 2]) -> Row {
        Row {
            id: id.to_owned(),
            text: id.to_owned(),
            vector: unit(vector.to_vec()),
        }
    }

    #[test]
    fn the_nearest_row_points_the_same_way_whatever_its_length() {
        let rows = [
            row("query", [1.0, 0.0]),
            row("far", [0.0, 9.0]),
            row("near", [5.0, 1.0]),
        ];
        let found: Vec<usize> = nearest(&rows, 0)
            .into_iter()
            .map(|(_, index)| index)
            .collect();
        assert_eq!(found, [2, 1]);
    }
}
