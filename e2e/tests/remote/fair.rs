//! The jobs of a service share its API fairly.

use millrace_e2e::remote::SceneOptions;
use millrace_stand_in::StandInOptions;
use serde_json::json;

use crate::scene::Scene;
use crate::served::{Given, Served, wait};

/// How much faster time passes: a minute is five seconds, of which a busy machine has a fiftieth for what lies
/// between a call that is let in and its arrival.
const TIME_FACTOR: f64 = 12.0;

/// By how much a job's part may differ from the others': a shard is in hand or not.
const TOLERANCE: f64 = 0.08;

/// Jobs, the words that their prompts begin with, and how many rows they have.
const JOBS: [(&str, &str, usize); 3] = [
    ("small", "First of {{ title }}", 200),
    ("medium", "Second of {{ title }}", 300),
    ("large", "Third of {{ title }}", 400),
];

#[test]
fn jobs_of_unequal_size_have_a_third_of_the_calls_each_while_all_have_work() {
    let served = Served::new(Scene::new(SceneOptions {
        remote: json!({"rowsPerCall": 1, "limits": {"requestsPerMinute": 300, "concurrency": 12}}),
        job: json!({"sharding": {"targetBytes": 1024}}),
        api: StandInOptions {
            latency_ms: 2_000,
            time_factor: TIME_FACTOR,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    }));
    let scene = &served.scene;
    let uri = |name: &str| format!("file://{}", scene.path(name).display());
    for (name, template, rows) in JOBS {
        scene.write_rows(0..rows);
        let file = format!("{name}.jsonl");
        std::fs::rename(scene.path("rows.jsonl"), scene.path(&file)).unwrap();
        served.give(Given {
            name,
            rows: uri(&file),
            output: uri(name),
            template,
            credentials: None,
            priority: 0,
        });
    }
    let workers = ["one.log", "two.log"].map(|log| served.start(log));
    let all = |(name, _, rows): (&str, &str, usize)| scene.lines_of(name, "parts").len() == rows;
    wait(&workers[0], "end of all jobs", || JOBS.into_iter().all(all));

    let record = scene.record();
    let job_of = |row: &str| {
        let begins = |(_, template, _): &(&str, &str, usize)| {
            row.starts_with(template.split(' ').next().unwrap())
        };
        JOBS.iter().position(begins).expect("a row of a job")
    };
    let jobs: Vec<usize> = record
        .calls
        .iter()
        .map(|call| job_of(&call.rows[0]))
        .collect();
    let of = |jobs: &[usize], job| jobs.iter().filter(|&&it| it == job).count();
    for (job, (name, _, rows)) in JOBS.iter().enumerate() {
        assert_eq!(of(&jobs, job), *rows, "{name}");
    }
    let small_ended = jobs.iter().rposition(|&job| job == 0).unwrap();
    let together = &jobs[..=small_ended];
    let shares = [0, 1, 2].map(|job| of(together, job) as f64 / together.len() as f64);
    println!("shares of {} calls: {shares:?}", together.len());
    for share in shares {
        assert!((share - 1.0 / 3.0).abs() <= TOLERANCE, "{shares:?}");
    }
    assert!(record.peak().requests <= 300, "{:?}", record.peak());
}
