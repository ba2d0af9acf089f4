//! A fault at every point at which there can be one: the end is always the same.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::Client;
use millrace_e2e::api_proxy::{ApiProxy, Point, Strike};
use millrace_e2e::redis_server::RedisServer;
use serde_json::Value;

use crate::control_plane::control_plane;
use crate::operator::{Operator, Options};
use crate::picture::{Painter, differences};
use crate::scenario::Scenario;
use crate::tenant::Tenant;

/// Namespaces in which a point is tried at the same time.
const AT_ONCE: usize = 16;

/// The same without a fault. The more there are, the more states of one course are seen and written.
const UNDISTURBED_AT_ONCE: usize = 2;

/// Longest a scenario may take, with the pauses after errors, while the machine is busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long nothing may be written before the undisturbed run counts as over.
const QUIET: Duration = Duration::from_secs(3);

/// The same before a disturbed run counts as one with another end: what is played beside the operator, such
/// as the collector of garbage, may be late on a busy machine.
const QUIET_AT_ANOTHER_END: Duration = Duration::from_secs(20);

/// How often a point is tried: a run may pass it by, where events come together that came apart in the
/// undisturbed one.
const TRIES: usize = 3;

/// Most points of a hundred that no run may come to.
const MISSED_PERCENT_MAX: usize = 5;

/// The crashes at a write of the scenario that is tried with all. One after it without a lag is much the
/// one before the next write, and is tried with others.
const CRASHES: [Strike; 2] = [Strike::KillBefore, Strike::KillAfterAndLag];

/// What else can become of a write. Each write gets the next one: the operator lives on, and does with
/// all of them the same, whatever it wrote.
const ANSWERS: [Strike; 4] = [
    Strike::Refuse(409),
    Strike::Refuse(429),
    Strike::Refuse(500),
    Strike::TimeOut,
];

/// Every scenario with the crashes at each of its writes, and whether it is tried with all else as well:
/// answers to its writes, and events of watches that are lost. One goes through most of what an operator
/// does; of the others, one crash at each write is tried.
const SCENARIOS: [(Scenario, &[Strike], bool); 8] = [
    (Scenario::Plain, &[Strike::KillBefore], false),
    (Scenario::Suspended, &CRASHES, true),
    (Scenario::Cancelled, &[Strike::KillAfterAndLag], false),
    (Scenario::Deleted, &[Strike::KillAfterAndLag], false),
    (Scenario::RolledOut, &[Strike::KillBefore], false),
    (Scenario::OwnService, &[Strike::KillAfter], false),
    (Scenario::RunAgain, &[Strike::KillAfterAndLag], false),
    (Scenario::Late, &[Strike::KillAfter], false),
];

/// What every run shares.
struct Stage {
    client: Client,
    redis: RedisServer,
    painter: Painter,
}

/// How a run ended.
struct End {
    has_struck: bool,
    writes: Vec<String>,
    events: usize,
    picture: BTreeMap<String, Value>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_write_or_event_changes_nothing_of_the_end() {
    let Some(api) = control_plane() else { return };
    let client = api.client().await;
    let redis = RedisServer::start();
    let stage = Stage {
        painter: Painter::new(client.clone(), &redis.url()).await,
        client,
        redis,
    };
    let begun = Instant::now();
    let stage = &stage;
    let ends = SCENARIOS.map(|(scenario, ..)| undisturbed(stage, scenario));
    let ends: Vec<End> = futures::stream::iter(ends)
        .buffered(UNDISTURBED_AT_ONCE)
        .collect()
        .await;
    let mut points = Vec::new();
    for ((scenario, crashes, with_all), end) in SCENARIOS.into_iter().zip(&ends) {
        let (writes, events) = (end.writes.len(), end.events);
        println!("{scenario:?}: {writes} writes, {events} events of watches");
        let of_scenario = points_of(crashes, with_all, end).into_iter();
        points.extend(of_scenario.map(|point| (scenario, end, point)));
    }
    let runs = points
        .iter()
        .enumerate()
        .map(|(index, &(scenario, expected, point))| {
            disturbed(stage, scenario, point, index, expected)
        });
    let runs: Vec<_> = futures::stream::iter(runs)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failures: Vec<&String> = runs.iter().filter_map(|run| run.as_ref().err()).collect();
    let missed = runs.iter().filter_map(|run| run.as_ref().ok()?.as_ref());
    let missed: Vec<&(Scenario, Point)> = missed.collect();
    for failure in &failures {
        // The first lines say where it was and what came of it.
        for line in failure.lines().take(4) {
            println!("{line}");
        }
    }
    let (all, seconds) = (points.len(), begun.elapsed().as_secs());
    println!("{all} points in {seconds} s, not reached: {missed:?}");
    assert!(
        missed.len() * 100 <= all * MISSED_PERCENT_MAX,
        "too few points were reached"
    );
    assert!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures[0]
    );
}

/// Where the runs of a scenario with this end are struck.
fn points_of(crashes: &[Strike], with_all: bool, end: &End) -> Vec<Point> {
    let mut points = Vec::new();
    for number in 1..=end.writes.len() {
        let answer = with_all.then_some(ANSWERS[number % ANSWERS.len()]);
        let strikes = crashes.iter().copied().chain(answer);
        points.extend(strikes.map(|strike| Point::Write(number, strike)));
    }
    if with_all {
        points.extend((1..=end.events).map(Point::Event));
    }
    points
}

/// The end of a run without a fault, once nothing is written any more.
async fn undisturbed(stage: &Stage, scenario: Scenario) -> End {
    let namespace = format!("undisturbed-{}", format!("{scenario:?}").to_lowercase());
    let played = run(stage, scenario, &namespace, None, None).await;
    played.unwrap_or_else(|error| panic!("{scenario:?} without a fault: {error}"))
}

/// Runs with a fault, which must come to the same end. Gives the point back if none came to it.
async fn disturbed(
    stage: &Stage,
    scenario: Scenario,
    point: Point,
    index: usize,
    expected: &End,
) -> Result<Option<(Scenario, Point)>, String> {
    for attempt in 1..=TRIES {
        let namespace = format!("disturbed-{index:04}-{attempt}");
        let end = run(stage, scenario, &namespace, Some(point), Some(expected)).await;
        let end = end.map_err(|error| {
            let write = match point {
                Point::Write(number, _) => expected.writes[number - 1].as_str(),
                Point::Event(_) => "",
            };
            format!("{scenario:?} with {point:?} {write} in {namespace}: {error}")
        })?;
        if end.has_struck {
            return Ok(None);
        }
    }
    Ok(Some((scenario, point)))
}

async fn run(
    stage: &Stage,
    scenario: Scenario,
    namespace: &str,
    point: Option<Point>,
    expected: Option<&End>,
) -> Result<End, String> {
    let redis_url = stage.redis.url();
    let tenant = Tenant::new(stage.client.clone(), namespace, &redis_url).await;
    let options = Options {
        namespace,
        redis_url: &redis_url,
        identity: "operator",
        point,
    };
    let mut operator = Operator::start(stage.client.clone(), options).await;
    let proxy = operator.proxy.clone();
    let course = async {
        scenario.play(&tenant).await;
        settled(stage, &tenant, &proxy, expected).await
    };
    let course = tokio::time::timeout(PATIENCE, course);
    let played = tokio::select! {
        played = course => played.unwrap_or_else(|_| Err("it does not end".to_owned())),
        ended = operator.keep() => Err(ended),
    };
    let writes = proxy.writes();
    let picture = match played {
        Ok(picture) => picture,
        Err(error) => {
            let job = stage
                .painter
                .picture(namespace)
                .await
                .remove("BatchJob/embed");
            let trouble = tenant.world.trouble();
            let log = operator.log();
            return Err(format!(
                "{error}\nthe world: {trouble:?}\nwritten: {writes:#?}\nthe job: {job:#?}\n{log}"
            ));
        }
    };
    let manifests = tenant.world.manifests();
    if manifests != scenario.manifests() {
        return Err(format!("{manifests} manifests were written"));
    }
    Ok(End {
        has_struck: proxy.has_struck(),
        writes,
        events: proxy.events(),
        picture,
    })
}

/// The picture once the operator is done: what it should be, or what it is after a while of quiet.
async fn settled(
    stage: &Stage,
    tenant: &Tenant,
    proxy: &ApiProxy,
    expected: Option<&End>,
) -> Result<BTreeMap<String, Value>, String> {
    let mut written = proxy.requests();
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = proxy.requests();
        if now != written {
            // A picture takes many requests, and one of an operator at work is not of the end.
            (written, since) = (now, Instant::now());
            continue;
        }
        let picture = stage.painter.picture(&tenant.namespace).await;
        if expected.is_some_and(|expected| expected.picture == picture) {
            return Ok(picture);
        }
        let quiet = match expected {
            None => QUIET,
            Some(_) => QUIET_AT_ANOTHER_END,
        };
        if since.elapsed() > quiet {
            return match expected {
                None => Ok(picture),
                Some(expected) => Err(format!(
                    "another end:\n{}",
                    differences(&expected.picture, &picture)
                )),
            };
        }
    }
}
