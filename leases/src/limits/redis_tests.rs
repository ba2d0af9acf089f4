//! The scripts let in what the state lets in, by one clock.

use std::cell::RefCell;

use ::redis::{Connection, FromRedisValue};
use millrace_e2e::redis_server::RedisServer;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};

use super::super::state::{Refusal, State};
use super::*;

/// Runs a script at a moment.
fn run<T: FromRedisValue>(
    redis: &mut Connection,
    script: &str,
    mut told: Vec<String>,
    now_ms: u64,
) -> T {
    let script = [
        include_str!("common.lua"),
        "now_ms = tonumber(ARGV[#ARGV])\n",
        include_str!("gradient.lua"),
        script,
    ]
    .concat();
    told.push(now_ms.to_string());
    let keys = KEYS.map(|name| key("tenant", "api", name));
    let mut command = ::redis::cmd("EVAL");
    command.arg(script).arg(KEYS.len()).arg(&keys).arg(told);
    command.query(redis).expect("the script runs")
}

#[test]
fn a_settlement_that_is_cut_off_is_told_later() {
    let own = Mutex::new(Own::default());
    let settlement = Settlement {
        tokens: Some(7),
        cost: None,
        verdict: Verdict::Fine,
        pause: None,
        allowed: Allowed::default(),
        concurrency: 1,
    };
    let untold = [Some(settlement), None];
    for untold in untold {
        drop(Telling {
            own: &own,
            id: "a-1",
            untold,
        });
    }
    let own = own.into_inner().unwrap();
    let later: Vec<&str> = own.untold.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(later, ["a-1"]);
}

/// What the state says, in the words of the script.
fn words(asked: Result<(), Refusal>) -> (&'static str, String) {
    match asked {
        Ok(()) => ("granted", String::new()),
        Err(Refusal::For(ms)) => ("wait", ms.to_string()),
        Err(Refusal::UntilACallEnds) => ("wait", "-1".to_owned()),
        Err(Refusal::Unfilled) => ("unfilled", String::new()),
        Err(Refusal::Spent) => ("spent", String::new()),
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    let minute = |most: u64| proptest::option::of((1..=most, 1..=most));
    let day = |most: u64| proptest::option::of(1..=most);
    let all = (any::<bool>(), minute(30), minute(900), day(60), day(1_500));
    (all, 1_u64..12).prop_map(
        |((is_bucket, requests, tokens, of_day, tokens_of_day), concurrency)| {
            let per_minute = |(most, burst)| PerMinute { most, burst };
            Limits {
                algorithm: match is_bucket {
                    true => Algorithm::TokenBucket,
                    false => Algorithm::SlidingWindow,
                },
                requests_per_minute: requests.map(per_minute),
                tokens_per_minute: tokens.map(per_minute),
                requests_per_day: of_day,
                tokens_per_day: tokens_of_day,
                concurrency,
            }
        },
    )
}

/// How a call ends: which one, with which tokens, and what it says.
type Ending = (usize, Option<u64>, Verdict, Option<u64>, Allowed);

/// Milliseconds, tokens of a call, and how another ends.
type Step = (u64, u64, Option<Ending>);

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![
        6 => Just(Verdict::Fine),
        1 => Just(Verdict::TooMuch),
        1 => Just(Verdict::Nothing),
    ];
    let pause = proptest::option::weighted(0.05, 1_u64..20_000);
    let of_minute = |most| proptest::option::weighted(0.05, 1_u64..most);
    let allowed = (of_minute(40), of_minute(1_200));
    let allowed = allowed.prop_map(|(requests, tokens)| Allowed { requests, tokens });
    let ending = (
        0_usize..12,
        proptest::option::of(0_u64..120),
        verdict,
        pause,
        allowed,
    );
    let passes_ms = prop_oneof![8 => 0_u64..4_000, 1 => 0_u64..4_000_000];
    (
        passes_ms,
        1_u64..80,
        proptest::option::weighted(0.8, ending),
    )
}

#[test]
fn the_scripts_let_in_what_the_state_lets_in() {
    let redis = RedisServer::start();
    let connection = RefCell::new(redis.connection());
    let config = ProptestConfig {
        cases: 32,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let all = (limits(), proptest::collection::vec(step(), 1..120));
    let tried = TestRunner::new(config).run(&all, |(limits, steps)| {
        let redis = &mut *connection.borrow_mut();
        ::redis::cmd("FLUSHALL").exec(redis).expect("it forgets");
        both_say_the_same(redis, limits, steps)
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_bucket_of_a_limit_that_the_api_takes_back_and_names_again_is_full() {
    let redis = RedisServer::start();
    let limits = Limits {
        algorithm: Algorithm::TokenBucket,
        requests_per_minute: None,
        tokens_per_minute: None,
        requests_per_day: None,
        tokens_per_day: None,
        concurrency: 1,
    };
    let said = |tokens| {
        let requests = None;
        let allowed = Allowed { requests, tokens };
        Some((0, None, Verdict::Fine, None, allowed))
    };
    let steps = vec![
        (0, 1, None),
        (0, 10, said(Some(1))),
        (0, 1, said(None)),
        (0, 44, said(Some(1))),
    ];
    both_say_the_same(&mut redis.connection(), limits, steps).unwrap();
}

fn both_say_the_same(redis: &mut Connection, limits: Limits, steps: Vec<Step>) -> TestCaseResult {
    let (mut state, minute, mut now_ms) = (State::default(), Minute::default(), 1_000_000_000);
    let mut open: Vec<String> = Vec::new();
    for (number, (passes_ms, tokens, ending)) in steps.into_iter().enumerate() {
        now_ms += passes_ms;
        if let Some((place, tokens, verdict, pause_ms, allowed)) = ending
            && !open.is_empty()
        {
            let id = open.swap_remove(place % open.len());
            let settlement = Settlement {
                tokens,
                cost: None,
                verdict,
                pause: pause_ms.map(Duration::from_millis),
                allowed,
                concurrency: limits.concurrency,
            };
            state.settle(&id, &settlement, now_ms);
            let told = to_settle(&id, &settlement);
            run::<i64>(redis, include_str!("settle.lua"), told, now_ms);
        }
        let ask = Ask {
            limits,
            tokens,
            call_timeout: Duration::from_secs(600),
            bill: None,
        };
        let id = format!("a-{number}");
        let (word, wait) = words(state.ask(&id, &ask, minute, now_ms));
        let told = to_ask(&id, &ask, minute, None);
        let said: Vec<String> = run(redis, include_str!("ask.lua"), told, now_ms);
        prop_assert_eq!(&said[0], word, "{} {:?}", number, said);
        match word {
            "wait" => prop_assert_eq!(&said[1], &wait, "{}", number),
            _ => open.push(id),
        }
    }
    Ok(())
}
