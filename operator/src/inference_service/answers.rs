//! What the caches of a service's pods knew, as its status says. Pure.

use millrace_crds::inference_service::CacheStatus;
use millrace_protocol::registry::{CacheCounts, WorkerReport};

/// The rate is written again when it has moved by so much.
const RATE_STEP: f64 = 0.01;

/// The counts are written again when there are so many times more.
const COUNT_STEP: u64 = 2;

/// What the status says after a visit: what it said before, unless enough has moved since. A status that
/// followed each request would be written for ever.
pub fn known(
    before: Option<CacheStatus>,
    workers: &[(String, WorkerReport)],
) -> Option<CacheStatus> {
    let reported = workers.iter().filter_map(|(_, report)| report.cache);
    let now = reported.fold(CacheCounts::default(), |sum, counts| CacheCounts {
        hits: sum.hits + counts.hits,
        misses: sum.misses + counts.misses,
    });
    let asked = now.hits + now.misses;
    if asked == 0 {
        return before;
    }
    let hit_rate = (now.hits as f64 / asked as f64 * 100.0).round() / 100.0;
    let is_worth_it = before.is_none_or(|before| {
        let asked_before = before.hits + before.misses;
        (hit_rate - before.hit_rate).abs() >= RATE_STEP - f64::EPSILON
            || asked >= asked_before.saturating_mul(COUNT_STEP)
    });
    match is_worth_it {
        true => Some(CacheStatus {
            hits: now.hits,
            misses: now.misses,
            hit_rate,
        }),
        false => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(counts: Option<(u64, u64)>) -> (String, WorkerReport) {
        let report = WorkerReport {
            cache: counts.map(|(hits, misses)| CacheCounts { hits, misses }),
            ..WorkerReport::default()
        };
        ("pod".to_owned(), report)
    }

    fn status(hits: u64, misses: u64, hit_rate: f64) -> Option<CacheStatus> {
        Some(CacheStatus {
            hits,
            misses,
            hit_rate,
        })
    }

    #[test]
    fn counts_are_summed_over_the_pods_that_report_any() {
        let workers = [worker(Some((30, 10))), worker(None), worker(Some((10, 10)))];
        assert_eq!(known(None, &workers), status(40, 20, 0.67));
        assert_eq!(known(None, &[worker(None), worker(Some((0, 0)))]), None);
    }

    #[test]
    fn little_that_moves_is_not_written_and_pods_that_sleep_are_remembered() {
        let before = status(400, 600, 0.4);
        let after = |hits, misses| known(before, &[worker(Some((hits, misses)))]);
        assert_eq!(after(400, 600), before);
        assert_eq!(after(600, 900), before);
        assert_eq!(after(620, 880), status(620, 880, 0.41));
        assert_eq!(after(800, 1_200), status(800, 1_200, 0.4));
        // A pod went, and the others know as much of what they are asked.
        assert_eq!(after(40, 60), before);
        assert_eq!(known(before, &[]), before);
    }
}
