//! Important rows first, as a whole job has it.

use std::time::SystemTime;

use millrace_e2e::history::{assert_every_row_once, manifest, outcomes};
use millrace_protocol::layout;
use millrace_protocol::manifest::LivePart;
use millrace_protocol::plan::Plan;

use crate::scene::{Scene, SceneOptions, line_offsets};

/// Rows of three classes, every fifth of which has the text of an earlier one; the last is no JSON.
fn input() -> Vec<u8> {
    let lines = (0..1_200).map(|row| {
        let text = row % 960;
        let tier = ["tin", "gold", "silver"][(row / 7) % 3];
        format!(
            "{{\"id\":\"{row}\",\"tier\":\"{tier}\",\"text\":\"the {text}th wheel of the mill\"}}\n"
        )
    });
    (lines.collect::<String>() + "{no json\n").into_bytes()
}

fn scene(settings: &str) -> Scene {
    Scene::new(SceneOptions {
        input: input(),
        input_settings: "    idField: id\n    order: [\"tier == 'gold'\", \"tier == 'silver'\"]\n",
        settings: format!("  sharding:\n    targetBytes: 2048\n{settings}"),
        ..SceneOptions::default()
    })
}

/// When each commit of the first run was made, by class. Shards of duplicates are not among them.
fn committed(scene: &Scene) -> Vec<(u8, SystemTime)> {
    let parts = manifest(&scene.output()).parts;
    let parts = parts
        .iter()
        .filter(|it| it.run == 1 && !it.range.is_of_duplicates());
    let commit = |part: &LivePart| scene.output().join(layout::commit(1, part.commit.shard));
    let class = |part: &LivePart| part.range.class.expect("each shard has a class");
    let at = |part: &LivePart| commit(part).metadata().unwrap().modified().unwrap();
    parts.map(|part| (class(part), at(part))).collect()
}

/// The input's rows ended once each, those of the first class before any of the last.
fn check(scene: &Scene) {
    let seen = outcomes(&scene.output());
    assert_every_row_once(&seen, &scene.uri("rows.jsonl"), &line_offsets(&input()));
    assert_eq!(seen.values().filter(|it| it.is_err()).count(), 1);
    let committed = committed(scene);
    let of = |class| {
        committed
            .iter()
            .filter(move |it| it.0 == class)
            .map(|it| it.1)
    };
    // Two shards are in hand at a time, and there are some forty of the class between these.
    assert!(of(1).count() > 30, "{}", of(1).count());
    assert!(of(0).max() < of(2).min());
}

#[test]
fn rows_of_the_first_class_of_all_shards_are_done_before_those_of_the_last() {
    let scene = scene("");
    scene.run().wait();
    check(&scene);
}

#[test]
fn classes_duplicates_and_a_rerun_leave_every_row_with_one_end() {
    let scene = scene("  dedup: {}\n  backoffLimitPerIndex: 0\n");
    scene.run().wait();
    check(&scene);
    assert_eq!(
        manifest(&scene.output()).dedup.map(|it| it.duplicates),
        Some(240)
    );
    // What is no JSON fails again, in the shard of its class.
    let job = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    std::fs::write(scene.path("job.yaml"), job + "  rerunFailed: 1\n").unwrap();
    scene.run().wait();
    let manifest = manifest(&scene.output());
    let rows = manifest.totals.rows;
    assert_eq!((manifest.run, rows.succeeded, rows.failed), (2, 1_200, 1));
    let plan = std::fs::read(scene.output().join(layout::plan(2))).unwrap();
    let plan: Plan = serde_json::from_slice(&plan).unwrap();
    let classes: Vec<_> = plan.shards.iter().map(|shard| shard.class).collect();
    assert_eq!(classes, [Some(2)]);
}
