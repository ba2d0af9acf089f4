//! Of the jobs of a service those with the highest priority go first, from the moment they have it.

use millrace_e2e::remote::SceneOptions;
use millrace_stand_in::StandInOptions;
use serde_json::json;

use crate::scene::Scene;
use crate::served::{Given, Served, wait};

/// Jobs, the words that their prompts begin with, how many rows they have, and their priority.
const JOBS: [(&str, &str, usize, i32); 2] = [
    ("urgent", "Urgent {{ title }}", 500, 1),
    ("patient", "Patient {{ title }}", 200, 0),
];

#[test]
fn the_higher_priority_goes_first_and_a_job_that_gets_a_higher_one_goes_before_it() {
    let served = Served::new(Scene::new(SceneOptions {
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 2}}),
        job: json!({"sharding": {"targetBytes": 1024}}),
        api: StandInOptions {
            latency_ms: 30,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    }));
    let scene = &served.scene;
    let give = |(name, template, rows, priority): (&str, &str, usize, i32)| {
        scene.write_rows(0..rows);
        let file = scene.path(&format!("{name}.jsonl"));
        std::fs::rename(scene.path("rows.jsonl"), &file).unwrap();
        served.give(Given {
            name,
            rows: file.display().to_string(),
            output: scene.path(name).display().to_string(),
            template,
            credentials: None,
            priority,
        });
    };
    // Whether each call so far is of the job that waits.
    let are_patient = || -> Vec<bool> {
        let calls = scene.record().calls.into_iter();
        calls
            .map(|call| call.rows[0].starts_with("Patient"))
            .collect()
    };
    give(JOBS[0]);
    let worker = served.start("worker.log");
    wait(&worker, "calls", || !are_patient().is_empty());
    give(JOBS[1]);
    wait(&worker, "calls of the first", || are_patient().len() >= 200);
    let so_far = are_patient();
    assert!(so_far.iter().all(|is_patient| !is_patient), "{so_far:?}");

    served.give_priority("patient", 2);
    let of_patient = |calls: &[bool]| calls.iter().filter(|it| **it).count();
    wait(&worker, "calls of the second", || {
        of_patient(&are_patient()) == JOBS[1].2
    });
    let calls = are_patient();
    let first = calls.iter().position(|it| *it).unwrap();
    let last = calls.iter().rposition(|it| *it).unwrap();
    let others = last + 1 - first - JOBS[1].2;
    // Two shards of a dozen rows were in hand before it, and two more are when its own are all in hand: with
    // equal priorities it would be as many as its own.
    assert!(others <= 80, "{others} calls in between");
}
