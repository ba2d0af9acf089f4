//! Tables, times and counts as people read them. Pure.

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::HumanCount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use millrace_crds::BatchJob;
use millrace_crds::batch_job::{Estimate, RouteCounts, Spent};
use millrace_protocol::plural::plural;
use serde::Serialize;

/// How a command that speaks of objects prints them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For people with room: more columns, and nothing cut.
    Wide,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
}

/// Lines of a table without borders, the first one its header.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.lines();
    lines.map(|line| line.trim_end().to_owned()).collect()
}

/// A job as it is printed for programs: without the book-keeping of who set which field.
pub fn bare(mut job: BatchJob) -> BatchJob {
    job.metadata.managed_fields = None;
    job
}

/// An object as JSON or YAML, with a newline at its end.
pub fn document(object: &impl Serialize, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Yaml => serde_saphyr::to_string(object)?,
        Format::Json | Format::Text | Format::Wide => serde_json::to_string_pretty(object)? + "\n",
    })
}

/// Time since `then`, as kubectl shows ages.
pub fn age(then: Option<&Time>, now: Timestamp) -> String {
    match then {
        Some(Time(then)) => span(now.duration_since(*then).as_secs()),
        None => "-".to_owned(),
    }
}

/// Seconds as `42s`, `3m20s`, `5h10m` or `3d4h`.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..86_400 => two(hours, "h", minutes % 60, "m"),
        86_400..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

/// A count with separators.
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// A count with its noun, as in `1 row` and `1,203 rows`.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {}", count(number), plural(number, noun))
}

/// What was spent, and for each row.
pub fn spent_text(spent: &Spent) -> String {
    let Spent {
        total,
        per_row,
        currency,
    } = spent;
    let per_row = per_row.map(|cost| format!(" ({} a row)", cost.short()));
    format!(
        "{} {currency}{}",
        total.short(),
        per_row.unwrap_or_default()
    )
}

/// What became of the rows of a route, or of one of its arms.
pub fn route_text(counts: &RouteCounts, currency: Option<&str>) -> String {
    let RouteCounts {
        route,
        arm,
        succeeded,
        failed,
        escalated,
        tokens,
        cost,
    } = counts;
    let arm = arm.as_ref().map(|arm| format!("/{arm}"));
    let arm = arm.unwrap_or_default();
    let counts = [
        (succeeded, "succeeded"),
        (failed, "failed"),
        (escalated, "escalated"),
    ];
    let counts = counts.map(|(rows, what)| format!("{} {what}", HumanCount(*rows)));
    let cost = cost.unwrap_or_default().short();
    let cost = currency.map(|currency| format!(", {cost} {currency}"));
    format!(
        "{route}{arm}: {}, {}{}",
        counts.join(", "),
        counted(*tokens, "token"),
        cost.unwrap_or_default()
    )
}

/// What is going to be taken, and what it will cost.
pub fn estimate_text(estimate: &Estimate) -> String {
    let Estimate {
        rows,
        tokens_least,
        tokens_most,
        cost_least,
        cost_most,
        currency,
    } = estimate;
    let cost = cost_least.zip(*cost_most).map(|(least, most)| {
        let currency = currency.as_deref().unwrap_or_default();
        format!(", {} to {} {currency}", least.short(), most.short())
    });
    let (least, most) = (count(*tokens_least), count(*tokens_most));
    let (rows, cost) = (counted(*rows, "row"), cost.unwrap_or_default());
    format!("{least} to {most} tokens{cost} for {rows}")
}

/// What there is, or a dash.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

/// Text on one line of at most `chars` characters.
pub fn clipped(text: &str, chars: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= chars {
        return line;
    }
    let kept: String = line.chars().take(chars.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
pub mod testing {
    //! A job as tests need it.

    use millrace_crds::BatchJob;
    use serde_json::json;

    /// A job whose `Succeeded` says this.
    pub fn job(status: &str, reason: &str) -> BatchJob {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {
                "name": "embed", "namespace": "tenant", "uid": "u", "generation": 1,
                "creationTimestamp": "2026-01-02T03:00:00Z",
            },
            "spec": {
                "serviceRef": {"name": "minilm"},
                "input": {"uris": ["s3://bucket/rows.jsonl"]},
                "output": {"uri": "s3://bucket/embed"},
            },
            "status": {
                "observedGeneration": 1,
                "startTime": "2026-01-02T03:00:10Z",
                "run": 1, "workers": 2,
                "progress": "41%",
                "rows": {"succeeded": 1_200, "failed": 3, "skipped": 0},
                "shards": {"total": 100, "committed": 41, "failed": 1},
                "tokens": 54_321,
                "rowsPerSecond": 282.5,
                "eta": "2026-01-02T03:05:00Z",
                "output": "s3://bucket/embed",
                "sampleErrors": [
                    {"position": "s3://bucket/rows.jsonl@10", "code": "invalid_json", "message": "no JSON"},
                ],
                "conditions": [{
                    "type": "Succeeded", "status": status, "reason": reason, "message": "as it is",
                    "lastTransitionTime": "2026-01-02T03:00:10Z", "observedGeneration": 1,
                }],
            },
        }))
        .expect("a job as an API server gives it")
    }

    /// A minute after the job began.
    pub fn now() -> k8s_openapi::jiff::Timestamp {
        "2026-01-02T03:01:10Z".parse().expect("a time")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let row = |name: &str, reason: &str| vec![name.to_owned(), reason.to_owned()];
        let rows = vec![row("embed", "Running"), row("a-long-name", "")];
        let lines = table(&["NAME", "REASON"], rows);
        assert_eq!(
            lines,
            ["NAME         REASON", "embed        Running", "a-long-name"]
        );
    }

    #[test]
    fn times_are_short() {
        for (seconds, expected) in [
            (-5, "0s"),
            (42, "42s"),
            (200, "3m20s"),
            (240, "4m"),
            (4_000, "66m"),
            (18_600, "5h10m"),
            (273_600, "3d4h"),
            (864_000, "10d"),
        ] {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn a_message_is_cut_to_one_line() {
        assert_eq!(clipped("a\n  b", 10), "a b");
        assert_eq!(clipped("ärger über", 6), "ärger…");
    }
}
