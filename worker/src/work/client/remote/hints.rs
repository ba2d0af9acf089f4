//! What an API says of its own limits in the headers of an answer. Pure.

use std::time::Duration;

use http::{HeaderMap, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use millrace_leases::limits::Allowed;

/// Longest that an API is believed to need.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What an API says of its limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hints {
    /// How long to wait before the next call.
    pub retry_after: Option<Duration>,
    /// How long from the moment of asking on nothing more is let in.
    pub exhausted: Option<Duration>,
    /// What it lets in in a minute.
    pub allowed: Allowed,
}

impl Hints {
    /// Reads `retry-after`, `retry-after-ms` and `x-ratelimit-*`.
    pub fn of(headers: &HeaderMap) -> Self {
        Self::at(headers, Timestamp::now())
    }

    /// The same of headers that arrive `now`.
    fn at(headers: &HeaderMap, now: Timestamp) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let precise = text("retry-after-ms").and_then(|ms| ms.trim().parse::<f64>().ok());
        // The moment is one of the API's clock, which may be far from ours.
        let moment = |name: &str| rfc2822::parse(text(name)?.trim()).ok();
        let seconds = || {
            let after = text(header::RETRY_AFTER.as_str())?;
            after.trim().parse::<f64>().ok().or_else(|| {
                let told_at = moment(header::DATE.as_str());
                let told_at = told_at.map_or(now, |told_at| told_at.timestamp());
                let moment = moment(header::RETRY_AFTER.as_str())?;
                let moment = moment.timestamp();
                Some(moment.duration_since(told_at).as_secs_f64().max(0.0))
            })
        };
        let retry_after = precise
            .map(|ms| ms / 1000.0)
            .or_else(seconds)
            .and_then(bounded);
        let exhausted = |what: &str| {
            let left = text(&format!("x-ratelimit-remaining-{what}"))?;
            if left.trim().parse::<f64>().ok()? > 0.0 {
                return None;
            }
            duration(text(&format!("x-ratelimit-reset-{what}"))?)
        };
        let most = |what: &str| {
            let most = text(&format!("x-ratelimit-limit-{what}"))?.trim();
            most.parse().ok().filter(|&most| most > 0)
        };
        Self {
            retry_after,
            exhausted: exhausted("requests").max(exhausted("tokens")),
            allowed: Allowed {
                requests: most("requests"),
                tokens: most("tokens"),
            },
        }
    }
}

/// `6m0s`, `1.5s`, `120ms`, or seconds.
fn duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut number, mut rest) = (0.0, String::new(), text.trim().chars().peekable());
    while let Some(character) = rest.next() {
        if character.is_ascii_digit() || character == '.' {
            number.push(character);
            continue;
        }
        let value: f64 = std::mem::take(&mut number).parse().ok()?;
        seconds += value
            * match character {
                'd' => 86_400.0,
                'h' => 3_600.0,
                'm' if rest.next_if_eq(&'s').is_some() => 0.001,
                'm' => 60.0,
                's' => 1.0,
                _ => return None,
            };
    }
    if !number.is_empty() {
        seconds += number.parse::<f64>().ok()?;
    }
    bounded(seconds)
}

fn bounded(seconds: f64) -> Option<Duration> {
    let wait = Duration::try_from_secs_f64(seconds).ok()?;
    Some(wait.min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(headers: &[(&'static str, &str)]) -> Hints {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        Hints::of(&map)
    }

    #[test]
    fn durations_are_read_in_every_form_that_is_in_use() {
        for (text, ms) in [
            ("6m0s", 360_000),
            ("1m30.5s", 90_500),
            ("120ms", 120),
            ("1.5s", 1_500),
            ("7", 7_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("soon"), None);
    }

    #[test]
    fn what_is_left_is_believed_only_when_it_is_nothing() {
        let left = hints(&[
            ("x-ratelimit-remaining-requests", "3"),
            ("x-ratelimit-reset-requests", "20s"),
        ]);
        assert_eq!(left, Hints::default());
        let nothing = hints(&[
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6s"),
        ]);
        assert_eq!(nothing.exhausted, Some(Duration::from_secs(6)));
    }

    #[test]
    fn the_more_precise_wait_counts() {
        let both = hints(&[("retry-after", "2"), ("retry-after-ms", "1200")]);
        assert_eq!(both.retry_after, Some(Duration::from_millis(1_200)));
        assert_eq!(both.allowed, Allowed::default());
        let endless = hints(&[("retry-after", "-5")]);
        assert_eq!(endless.retry_after, None);
    }

    #[test]
    fn a_wait_until_a_moment_is_reckoned_by_the_clock_of_the_api() {
        let wait = |headers: &[(&'static str, &str)], now: &str| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            Hints::at(&map, now.parse().unwrap()).retry_after
        };
        let until = ("retry-after", "Fri, 27 Nov 2026 10:00:30 GMT");
        let date = ("date", "Fri, 27 Nov 2026 10:00:00 GMT");
        let thirty = Some(Duration::from_secs(30));
        assert_eq!(wait(&[until, date], "2026-11-27T12:00:00Z"), thirty);
        assert_eq!(wait(&[until], "2026-11-27T10:00:00Z"), thirty);
        assert_eq!(wait(&[until], "2026-11-27T10:00:31Z"), Some(Duration::ZERO));
        assert_eq!(
            wait(&[("retry-after", "later")], "2026-11-27T10:00:31Z"),
            None
        );
    }

    #[test]
    fn limits_are_read_and_nothing_is_no_limit() {
        let said = hints(&[
            ("x-ratelimit-limit-requests", "20"),
            ("x-ratelimit-limit-tokens", "0"),
        ]);
        let allowed = Allowed {
            requests: Some(20),
            tokens: None,
        };
        assert_eq!(said.allowed, allowed);
    }
}
