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

/// What becomes of a write, each in its turn.
const STRIKES: [Strike; 7] = [
    Strike::KillBefore,
    Strike::KillAfter,
    Strike::KillAfterAndLag,
    Strike::Refuse(409),
    Strike::Refuse(429),
    Strike::Refuse(500),
    Strike::TimeOut,
];

/// Every scenario with what becomes of its writes, and whether events of watches are lost as well.
/// One goes through most of what an operator does, and so is tried with everything; of the others, the
/// crashes are.
const SCENARIOS: [(Scenario, &[Strike], bool); 8] = [
    (Scenario::Plain, &[Strike::KillBefore], false),
    (Scenario::Suspended, &STRIKES, true),
    (Scenario::Cancelled, &[Strike::KillAfterAndLag], false),
    (Scenario::Deleted, &[Strike::KillAfterAndLag], false),
    (Scenario::RolledOut, &[Strike::KillBefore], false),
    (Scenario::OwnService, &[Strike::KillBefore], false),
    (Scenario::RunAgain, &[Strike::KillAfterAndLag], false),
    (Scenario::Late, &[Strike::KillBefore], false),
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
    let mut points = Vec::new();
    let mut ends = Vec::new();
    for (scenario, strikes, loses_events) in SCENARIOS {
        let end = undisturbed(&stage, scenario).await;
        let (writes, events) = (end.writes.len(), end.events);
        println!("{scenario:?}: {writes} writes, {events} events of watches");
        let of_scenario = points_of(strikes, writes, if loses_events { events } else { 0 });
        points.extend(of_scenario.map(|point| (scenario, point)));
        ends.push((scenario, end));
    }
    let stage = &stage;
    let ends = &ends;
    let runs = points
        .iter()
        .enumerate()
        .map(|(index, &(scenario, point))| async move {
            let (_, expected) = ends.iter().find(|(it, _)| *it == scenario).unwrap();
            disturbed(stage, scenario, point, index, expected).await
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

/// Each of these strikes at each of so many writes, and each of so many events lost.
fn points_of(strikes: &[Strike], writes: usize, events: usize) -> impl Iterator<Item = Point> {
    let at_write = |number| {
        let point = move |strike: &Strike| Point::Write(number, *strike);
        strikes.iter().map(point)
    };
    (1..=writes)
        .flat_map(at_write)
        .chain((1..=events).map(Point::Event))
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
        let picture = stage.painter.picture(&tenant.namespace).await;
        if expected.is_some_and(|expected| expected.picture == picture) {
            return Ok(picture);
        }
        let now = proxy.requests();
        if now != written {
            (written, since) = (now, Instant::now());
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
