//! The limiter's rules, case by case.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NONE: Limits = Limits {
    algorithm: Algorithm::SlidingWindow,
    requests_per_minute: None,
    tokens_per_minute: None,
    requests_per_day: None,
    tokens_per_day: None,
    concurrency: 1_000,
};

fn ask(limits: Limits, tokens: u64) -> Ask {
    Ask {
        limits,
        tokens,
        call_timeout: Duration::from_secs(600),
        bill: None,
    }
}

fn settled(verdict: Verdict) -> Settlement {
    Settlement {
        tokens: None,
        cost: None,
        verdict,
        pause: None,
        allowed: Allowed::default(),
        concurrency: 8,
    }
}

#[test]
fn a_call_more_than_a_minute_takes_waits_until_the_first_has_left() {
    let mut state = State::default();
    let limits = Limits {
        requests_per_minute: Some(PerMinute::of(2)),
        ..NONE
    };
    let mut at = |id, now_ms| state.ask(id, &ask(limits, 0), Minute::default(), now_ms);
    assert_eq!(at("a", 0), Ok(()));
    assert_eq!(at("b", 1_000), Ok(()));
    assert_eq!(at("c", 2_000), Err(Refusal::For(59_200)));
    assert_eq!(at("c", 61_200), Ok(()));
}

#[test]
fn tokens_are_corrected_when_a_call_has_ended() {
    let mut state = State::default();
    let limits = Limits {
        tokens_per_minute: Some(PerMinute::of(100)),
        ..NONE
    };
    let minute = Minute::default();
    assert_eq!(state.ask("a", &ask(limits, 80), minute, 0), Ok(()));
    assert!(state.ask("b", &ask(limits, 50), minute, 0).is_err());
    let fewer = Settlement {
        tokens: Some(50),
        ..settled(Verdict::Fine)
    };
    state.settle("a", &fewer, 10);
    state.settle("a", &fewer, 20);
    assert_eq!(state.ask("b", &ask(limits, 50), minute, 30), Ok(()));
    assert!(state.ask("c", &ask(limits, 1), minute, 30).is_err());
}

#[test]
fn a_bucket_is_taken_out_of_by_requests_and_tokens_and_refilled_evenly() {
    let mut state = State::default();
    let limits = Limits {
        algorithm: Algorithm::TokenBucket,
        requests_per_minute: Some(PerMinute {
            most: 100,
            burst: 20,
        }),
        tokens_per_minute: Some(PerMinute::of(1_000)),
        ..NONE
    };
    let minute = Minute::default();
    let at = |state: &mut State, id: &str, tokens, now_ms| {
        state.ask(id, &ask(limits, tokens), minute, now_ms)
    };
    for call in 0..18 {
        assert_eq!(at(&mut state, &call.to_string(), 50, 0), Ok(()));
    }
    assert_eq!(at(&mut state, "more", 50, 0), Err(Refusal::For(612)));
    assert_eq!(at(&mut state, "more", 50, 612), Ok(()));
    // 950 of 980 tokens were taken, and twenty came back.
    assert_eq!(at(&mut state, "much", 100, 1_224), Err(Refusal::For(3_060)));
    let fewer = Settlement {
        tokens: Some(10),
        ..settled(Verdict::Fine)
    };
    state.settle("more", &fewer, 1_224);
    state.settle("more", &fewer, 1_224);
    assert_eq!(at(&mut state, "much", 100, 1_224), Err(Refusal::For(612)));
}

#[test]
fn a_day_counts_the_tokens_that_calls_took() {
    let mut state = State::default();
    let limits = Limits {
        tokens_per_day: Some(100),
        ..NONE
    };
    let minute = Minute::default();
    assert_eq!(state.ask("a", &ask(limits, 80), minute, 0), Ok(()));
    let a_day = Refusal::For(97 * 900_000);
    assert_eq!(state.ask("b", &ask(limits, 50), minute, 0), Err(a_day));
    let fewer = Settlement {
        tokens: Some(50),
        ..settled(Verdict::Fine)
    };
    // Whenever it ends: the minute is long over.
    state.settle("a", &fewer, 300_000);
    assert_eq!(state.ask("b", &ask(limits, 50), minute, 300_000), Ok(()));
    assert!(state.ask("c", &ask(limits, 1), minute, 300_000).is_err());
    assert_eq!(
        state.ask("c", &ask(limits, 1), minute, 97 * 900_000),
        Ok(())
    );
}

#[test]
fn calls_go_down_to_one_after_the_other_and_up_again() {
    let mut state = State::default();
    let limits = Limits {
        concurrency: 8,
        ..NONE
    };
    let mut now_ms = 0;
    let mut call = |state: &mut State, verdict| {
        now_ms += 10;
        let id = now_ms.to_string();
        let asked = state.ask(&id, &ask(limits, 0), Minute::default(), now_ms);
        assert_eq!(asked, Ok(()));
        state.settle(&id, &settled(verdict), now_ms + 5);
        state.calls_max(8)
    };
    let down: Vec<u64> = (0..5).map(|_| call(&mut state, Verdict::TooMuch)).collect();
    assert_eq!(down, [4, 2, 1, 1, 1]);
    let up: Vec<u64> = (0..40).map(|_| call(&mut state, Verdict::Fine)).collect();
    assert_eq!((up[0], *up.last().unwrap()), (2, 8));
}

#[test]
fn calls_that_were_on_their_way_at_a_cut_do_not_cut_again() {
    let mut state = State::default();
    let limits = Limits {
        concurrency: 8,
        ..NONE
    };
    for id in ["a", "b", "c"] {
        assert!(state.ask(id, &ask(limits, 0), Minute::default(), 0).is_ok());
    }
    for id in ["a", "b", "c"] {
        state.settle(id, &settled(Verdict::TooMuch), 5);
    }
    assert_eq!(state.calls_max(8), 4);
}

#[test]
fn a_pause_holds_everyone_back() {
    let mut state = State::default();
    let minute = Minute::default();
    assert_eq!(state.ask("a", &ask(NONE, 0), minute, 0), Ok(()));
    let paused = Settlement {
        pause: Some(Duration::from_secs(7)),
        ..settled(Verdict::Nothing)
    };
    state.settle("a", &paused, 1_000);
    assert_eq!(
        state.ask("b", &ask(NONE, 0), minute, 3_000),
        Err(Refusal::For(5_000))
    );
    assert_eq!(state.ask("b", &ask(NONE, 0), minute, 8_000), Ok(()));
}

#[test]
fn a_call_of_more_tokens_than_a_minute_allows_is_made_alone() {
    let mut state = State::default();
    let limits = Limits {
        tokens_per_minute: Some(PerMinute::of(100)),
        ..NONE
    };
    assert_eq!(
        state.ask("a", &ask(limits, 500), Minute::default(), 0),
        Ok(())
    );
    assert!(
        state
            .ask("b", &ask(limits, 1), Minute::default(), 0)
            .is_err()
    );
}

fn parts(parts: u64) -> Cost {
    Cost::of_parts(parts)
}

fn paid_by_a_job(price: u64, paid: Option<u64>) -> Ask {
    let bill = Bill {
        job: "job/".to_owned(),
        price: parts(price),
        max: Some(parts(100)),
        paid: paid.map(parts),
    };
    Ask {
        bill: Some(bill),
        ..ask(NONE, 0)
    }
}

fn cost(cost: u64) -> Settlement {
    Settlement {
        cost: Some(parts(cost)),
        ..settled(Verdict::Fine)
    }
}

#[test]
fn near_its_end_a_budget_lets_one_call_in_after_the_other_and_then_none() {
    let mut state = State::default();
    let ask = |state: &mut State, id: &str, price, paid| {
        state.ask(id, &paid_by_a_job(price, paid), Minute::default(), 0)
    };
    assert_eq!(ask(&mut state, "a", 40, None), Err(Refusal::Unfilled));
    assert_eq!(ask(&mut state, "a", 40, Some(10)), Ok(()));
    assert_eq!(ask(&mut state, "b", 40, None), Ok(()));
    let waits = Err(Refusal::UntilACallEnds);
    assert_eq!(
        ask(&mut state, "c", 40, None),
        waits,
        "90 and 40 are too much"
    );
    state.settle("a", &cost(30), 0);
    assert_eq!(ask(&mut state, "c", 40, None), waits, "80 and 40 as well");
    state.settle("b", &cost(50), 0);
    state.settle("b", &cost(50), 0);
    assert_eq!(
        ask(&mut state, "c", 40, None),
        Ok(()),
        "90, and nobody else"
    );
    assert_eq!(ask(&mut state, "d", 1, None), waits);
    state.settle("c", &cost(40), 0);
    assert_eq!(ask(&mut state, "d", 1, None), Err(Refusal::Spent));
    assert_eq!(ask(&mut state, "d", 1, Some(0)), Err(Refusal::Spent));
}

#[test]
fn a_call_whose_end_nobody_told_is_paid_as_guessed() {
    let mut state = State::default();
    let ask = paid_by_a_job(100, Some(0));
    assert_eq!(state.ask("a", &ask, Minute::default(), 0), Ok(()));
    let at = |state: &mut State, now_ms| state.ask("b", &ask, Minute::default(), now_ms);
    assert_eq!(at(&mut state, 1_000), Err(Refusal::UntilACallEnds));
    assert_eq!(at(&mut state, 601_000), Err(Refusal::Spent));
}

proptest! {
    #[test]
    fn no_more_than_one_call_goes_beyond_a_budget(
        calls in proptest::collection::vec((1_u64..20, 0_u64..=20), 1..200),
        at_a_time in 1_usize..8,
    ) {
        let (mut state, mut paid, mut open) = (State::default(), 0, VecDeque::<(String, u64)>::new());
        for (number, (price, cheaper)) in calls.into_iter().enumerate() {
            let actual = price.saturating_sub(cheaper);
            let id = number.to_string();
            let asked = paid_by_a_job(price, Some(0));
            let refusal = loop {
                if open.len() >= at_a_time {
                    let (id, actual) = open.pop_front().unwrap();
                    state.settle(&id, &cost(actual), 0);
                    paid += actual;
                }
                match state.ask(&id, &asked, Minute::default(), 0) {
                    Ok(()) => break None,
                    Err(Refusal::Spent) => break Some(Refusal::Spent),
                    Err(_) => {
                        let (id, actual) = open.pop_front().expect("somebody is waited for");
                        state.settle(&id, &cost(actual), 0);
                        paid += actual;
                    }
                }
            };
            if refusal.is_some() {
                prop_assert!(paid >= 100, "{paid}");
                break;
            }
            open.push_back((id, actual));
        }
        paid += open.into_iter().map(|(_, actual)| actual).sum::<u64>();
        prop_assert!(paid < 100 + 20, "{paid}");
    }

    #[test]
    fn no_minute_and_no_day_holds_more_than_it_may(
        requests_per_minute in 1_u64..20,
        tokens_per_minute in 50_u64..500,
        requests_per_day in 20_u64..200,
        tokens_per_day in 500_u64..5_000,
        calls in proptest::collection::vec((0_u64..30_000, 1_u64..50), 1..300),
    ) {
        let limits = Limits {
            algorithm: Algorithm::SlidingWindow,
            requests_per_minute: Some(PerMinute::of(requests_per_minute)),
            tokens_per_minute: Some(PerMinute::of(tokens_per_minute)),
            requests_per_day: Some(requests_per_day),
            tokens_per_day: Some(tokens_per_day),
            concurrency: 1_000,
        };
        let (mut state, mut now_ms) = (State::default(), 0);
        let mut made: Vec<(u64, u64)> = Vec::new();
        for (number, (pause_ms, tokens)) in calls.into_iter().enumerate() {
            now_ms += pause_ms;
            let id = number.to_string();
            loop {
                match state.ask(&id, &ask(limits, tokens), Minute::default(), now_ms) {
                    Ok(()) => break,
                    Err(Refusal::For(wait_ms)) => now_ms += wait_ms,
                    Err(other) => panic!("{other:?}"),
                }
            }
            made.push((now_ms, tokens));
            let within = |window_ms: u64| {
                let late = made.iter().filter(move |(at, _)| at + window_ms > now_ms);
                late.fold((0, 0), |(n, sum), (_, tokens)| (n + 1, sum + tokens))
            };
            let (requests, tokens) = within(60_000);
            prop_assert!(requests <= requests_per_minute);
            prop_assert!(tokens <= tokens_per_minute);
            let (requests, tokens) = within(86_400_000);
            prop_assert!(requests <= requests_per_day);
            prop_assert!(tokens <= tokens_per_day);
        }
    }
}
