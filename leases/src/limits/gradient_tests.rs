//! APIs of every kind, and how many calls they are asked at one time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use millrace_e2e::redis_server::RedisServer;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// An API that answers by how many calls it has, as many as it may have.
struct Api {
    gradient: Gradient,
    concurrency: u64,
    now_ms: u64,
    /// When each call ends, and when it was let in.
    calls: BinaryHeap<Reverse<(u64, u64)>>,
    random: StdRng,
}

impl Api {
    fn new(concurrency: u64, seed: u64) -> Self {
        Self {
            gradient: Gradient::default(),
            concurrency,
            now_ms: 0,
            calls: BinaryHeap::new(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Makes so many calls that take as long as `takes_ms` says of how many there are and of chance, from
    /// 0 to 1. Returns the fewest calls at one time that were allowed meanwhile.
    fn make(&mut self, calls: usize, takes_ms: impl Fn(f64, f64) -> f64) -> u64 {
        let mut fewest = u64::MAX;
        for _ in 0..calls {
            let calls_max = self.gradient.calls_max(self.concurrency);
            fewest = fewest.min(calls_max);
            while (self.calls.len() as u64) < calls_max {
                let (in_flight, chance) = (self.calls.len() as f64 + 1.0, self.random.random());
                let takes_ms = takes_ms(in_flight, chance) as u64;
                self.calls
                    .push(Reverse((self.now_ms + takes_ms, self.now_ms)));
            }
            let in_flight = self.calls.len() as u64;
            let Reverse((ends_ms, at_ms)) = self.calls.pop().unwrap();
            self.now_ms = ends_ms;
            self.gradient.see(Seen {
                at_ms,
                now_ms: self.now_ms,
                in_flight,
                concurrency: self.concurrency,
            });
        }
        fewest
    }

    fn usual(&self) -> u64 {
        self.gradient.usual_max(self.concurrency)
    }
}

/// As slow for everybody, however many they are.
fn constant(_: f64, _: f64) -> f64 {
    20_000.0
}

/// Works on so many at a time, and has the others wait.
fn with_knee(knee: f64) -> impl Fn(f64, f64) -> f64 {
    move |calls, _| 2_000.0 * (calls / knee).max(1.0)
}

#[test]
fn all_calls_are_made_from_the_first_on_and_none_left_out_before_the_tenth_round() {
    for concurrency in [1, 5, 50, 170] {
        let round = concurrency.max(ROUND_CALLS_MIN) as usize;
        let fewest = Api::new(concurrency, 0).make(10 * round, constant);
        assert_eq!(fewest, concurrency);
    }
}

#[test]
fn an_api_that_is_slow_whoever_asks_is_asked_by_all_but_for_short_trials() {
    for concurrency in [1, 2, 5, 50, 170] {
        let mut api = Api::new(concurrency, 0);
        let fewest = api.make(40_000, constant);
        assert!(fewest >= fewer(concurrency), "{fewest} of {concurrency}");
        assert_eq!(api.usual(), concurrency);
    }
}

#[test]
fn an_api_that_has_calls_wait_no_more_is_asked_by_all_again() {
    let mut api = Api::new(50, 0);
    api.make(20_000, with_knee(10.0));
    assert!(api.usual() < 20, "{}", api.usual());
    api.make(20_000, constant);
    assert_eq!(api.usual(), 50);
}

/// What the scripts keep, by the clock of the test.
fn script() -> String {
    let parts = [
        include_str!("common.lua"),
        include_str!("gradient.lua"),
        "now_ms = tonumber(ARGV[1])
        see(tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
        return gradient_max(learned(), tonumber(ARGV[4]))",
    ];
    parts.concat()
}

#[test]
fn the_scripts_learn_the_same() {
    let redis = RedisServer::start();
    let (mut connection, script) = (redis.connection(), script());
    let keys: Vec<String> = (0..12).map(|key| format!("{{limits}}:{key}")).collect();
    let mut random = StdRng::seed_from_u64(7);
    let (mut gradient, mut allowed) = (Gradient::default(), Vec::new());
    for call in 0..6_000_u64 {
        let calls_max = gradient.calls_max(50);
        // First they wait in line, and then nobody does.
        let waits = if call < 3_000 {
            calls_max as f64 / 10.0
        } else {
            1.0
        };
        let took_ms = (2_000.0 * waits * (0.9 + 0.2 * random.random::<f64>())) as u64;
        let at_ms = 1_000_000 + call * 1_000;
        let seen = Seen {
            at_ms,
            now_ms: at_ms + took_ms,
            in_flight: calls_max,
            concurrency: 50,
        };
        gradient.see(seen);
        let mut command = ::redis::cmd("EVAL");
        command.arg(&script).arg(keys.len()).arg(&keys);
        command.arg(&[seen.now_ms, at_ms, calls_max, 50]);
        let of_script: u64 = command.query(&mut connection).expect("the script runs");
        assert_eq!(of_script, gradient.calls_max(50), "after call {call}");
        allowed.push(of_script);
    }
    assert!(allowed.iter().min().unwrap() < &15, "they wait no more");
    assert_eq!(allowed.last(), Some(&50));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn calls_that_would_only_wait_are_not_made(
        knee in 4_u64..40,
        concurrency in 50_u64..120,
        seed in any::<u64>(),
    ) {
        let mut api = Api::new(concurrency, seed);
        let waits = with_knee(knee as f64);
        api.make(20_000, |calls, chance| waits(calls, 0.0) * (0.85 + 0.3 * chance));
        let (usual, knee) = (api.usual() as f64, knee as f64);
        prop_assert!((knee * 0.7..=knee * 1.6 + 1.0).contains(&usual), "{usual} at a knee of {knee}");
    }

    #[test]
    fn noise_leaves_no_calls_out(concurrency in 2_u64..200, seed in any::<u64>()) {
        let mut api = Api::new(concurrency, seed);
        let fewest = api.make(20_000, |_, chance| 20_000.0 * (0.7 + 0.6 * chance));
        prop_assert!(fewest >= fewer(concurrency), "{fewest} of {concurrency}");
        prop_assert_eq!(api.usual(), concurrency);
    }

    #[test]
    fn answers_of_every_length_leave_few_calls_out(concurrency in 5_u64..200, seed in any::<u64>()) {
        let mut api = Api::new(concurrency, seed);
        // From half a second to a minute and a half, most of them short.
        let fewest = api.make(20_000, |_, chance| 500.0 * (5.2 * chance * chance).exp());
        prop_assert!(fewest as f64 >= concurrency as f64 * 0.5, "{fewest} of {concurrency}");
    }
}
