//! When a call is made again that the API put off, or that failed.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;

use super::Caller;
use crate::job::Retry;
use crate::work::client::remote::ApiError;

/// How often a call that the API puts off says so.
const PUT_OFF_WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// Why the API has not worked on a call.
pub enum PutOff {
    /// It has too much to do.
    TooMuch,
    /// It was not reached.
    Away(String),
    /// It answers nobody.
    Refused(String),
}

/// The tries of a call that is made again as it is.
pub struct Tries<'a> {
    caller: &'a Caller,
    waits: Box<dyn Iterator<Item = Duration> + Send + 'a>,
    /// When somebody was last told that the call is put off.
    told: Instant,
    away_since: Option<Instant>,
}

impl<'a> Tries<'a> {
    /// A call that is made for the first time.
    pub fn new(caller: &'a Caller) -> Self {
        Self {
            caller,
            waits: Box::new(backoff(&caller.options.retry, usize::MAX)),
            told: Instant::now(),
            away_since: None,
        }
    }

    /// Waits until the call, which has so many rows, is made again, if it is.
    pub async fn wait(&mut self, rows: usize, put_off: PutOff) -> Result<(), ApiError> {
        let options = &self.caller.options;
        match put_off {
            PutOff::Refused(words) => return Err(ApiError::Refused(words)),
            PutOff::TooMuch => {
                self.away_since = None;
                if self.told.elapsed() >= PUT_OFF_WARNING_INTERVAL {
                    self.told = Instant::now();
                    tracing::warn!(rows, "the API still puts a call off");
                }
            }
            PutOff::Away(words) => {
                let since = *self.away_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= options.patience {
                    let url = self.caller.remote.spec.base_url.clone();
                    return Err(ApiError::Away { url, words });
                }
                self.caller.tell_away(&words);
            }
        }
        let wait = self.waits.next().unwrap_or(options.retry.backoff_max);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Waits between tries: each twice the one before it, up to the longest. A half of each is jitter, so that many
/// callers do not come back at once.
pub fn backoff(retry: &Retry, times: usize) -> impl Iterator<Item = Duration> {
    // The jitter comes on top: up to as much again.
    backon::ExponentialBuilder::default()
        .with_min_delay(retry.backoff_initial / 2)
        .with_max_delay(retry.backoff_max / 2)
        .with_max_times(times)
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_differ_between_callers() {
        let retry = Retry {
            attempts_max: 8,
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
        };
        let waits = || backoff(&retry, 8).collect::<Vec<Duration>>();
        let callers: Vec<Vec<Duration>> = (0..50).map(|_| waits()).collect();
        let longest_ms = [100, 200, 400, 800, 1_000, 1_000, 1_000, 1_000];
        for (number, longest_ms) in longest_ms.into_iter().enumerate() {
            let longest = Duration::from_millis(longest_ms);
            let all = || callers.iter().map(|waits| waits[number]);
            assert!(all().all(|wait| wait >= longest / 2 && wait <= longest));
            let spread = all().max().unwrap() - all().min().unwrap();
            assert!(spread > longest / 10, "{number}: {spread:?}");
        }
        assert_eq!(waits().len(), 8);
    }
}
