//! Events in a few words. Pure.

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;

use super::show::{age, clipped, or_dash};

/// Longest message of an event, where room is short.
const MESSAGE_CHARS_MAX: usize = 100;

/// Columns of the table of events.
pub const HEADER: [&str; 5] = ["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"];

/// When an event was seen last. Events of the two APIs keep that in different fields.
pub fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|it| it.last_observed_time.as_ref());
    let micro = series.or(event.event_time.as_ref()).map(|it| it.0);
    let last = event
        .last_timestamp
        .as_ref()
        .or(event.first_timestamp.as_ref());
    let created = event.metadata.creation_timestamp.as_ref();
    last.map(|it| it.0).or(micro).or(created.map(|it| it.0))
}

/// A row of the table of events.
pub fn row(event: &Event, wide: bool, now: Timestamp) -> Vec<String> {
    let seen = last_seen(event).map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
    let object = &event.involved_object;
    let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
    let name = object.name.as_deref().unwrap_or_default();
    let series = event.series.as_ref().and_then(|it| it.count);
    let times = match series.or(event.count) {
        Some(times) if times > 1 => format!(" ({times} times)"),
        _ => String::new(),
    };
    let message = event.message.as_deref().unwrap_or_default();
    let chars_max = if wide { usize::MAX } else { MESSAGE_CHARS_MAX };
    vec![
        age(seen.as_ref(), now),
        or_dash(event.type_.as_ref()),
        or_dash(event.reason.as_ref()),
        format!("{kind}/{name}"),
        clipped(message, chars_max) + &times,
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::show::testing::now;

    fn event(times: Value) -> Event {
        let mut event = json!({
            "metadata": {"name": "e", "creationTimestamp": "2026-01-02T03:00:00Z"},
            "involvedObject": {"kind": "BatchJob", "name": "embed"},
            "type": "Normal", "reason": "Planning", "message": "the run\nis being planned",
        });
        for (key, value) in times.as_object().unwrap() {
            event[key] = value.clone();
        }
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn an_event_of_either_api_tells_when_it_was_seen_last() {
        let check = |times: Value, expected: &str| {
            assert_eq!(row(&event(times), false, now())[0], expected);
        };
        check(json!({"lastTimestamp": "2026-01-02T03:01:05Z"}), "5s");
        check(json!({"eventTime": "2026-01-02T03:01:00.000000Z"}), "10s");
        let series = json!({"count": 3, "lastObservedTime": "2026-01-02T03:01:09.000000Z"});
        check(
            json!({"eventTime": "2026-01-02T03:00:00.000000Z", "series": series}),
            "1s",
        );
        check(json!({}), "70s");
    }

    #[test]
    fn a_row_names_the_object_and_how_often_it_happened() {
        let row = row(&event(json!({"count": 4})), false, now());
        assert_eq!(row[3], "batchjob/embed");
        assert_eq!(row[4], "the run is being planned (4 times)");
    }
}
