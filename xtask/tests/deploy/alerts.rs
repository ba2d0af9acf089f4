//! Alerts tell a person what to do, and fire when they should.

use std::process::Command;

use serde_json::Value;

use crate::files;
use crate::programs::installed;

fn alerts() -> Vec<Value> {
    let file = files::yaml("charts/millrace/files/alerts.yaml");
    let groups = file["groups"].as_array().expect("groups");
    let rules = groups
        .iter()
        .flat_map(|it| it["rules"].as_array().expect("rules"));
    rules.cloned().collect()
}

#[test]
fn every_alert_says_what_is_wrong_and_what_to_do() {
    let documentation = files::text("docs/monitoring.md");
    assert!(!alerts().is_empty());
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("an alert has a name");
        for field in ["summary", "description", "runbook"] {
            let text = alert["annotations"][field].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{name} has no {field}");
        }
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(
            ["critical", "warning"].contains(&severity),
            "{name}: {severity:?}"
        );
        assert!(
            documentation.contains(name),
            "docs/monitoring.md does not name {name}"
        );
    }
}

#[test]
fn the_reasons_that_alerts_name_are_reasons_of_jobs() {
    let documentation = files::text("docs/cluster.md");
    let mut seen = 0;
    for alert in alerts() {
        let expression = alert["expr"].as_str().expect("an expression");
        for matcher in expression.split("reason").skip(1) {
            let Some(rest) = matcher
                .strip_prefix("!~\"")
                .or_else(|| matcher.strip_prefix("=~\""))
            else {
                continue;
            };
            for reason in rest.split('"').next().expect("a pattern").split('|') {
                assert!(
                    documentation.contains(&format!("`{reason}`")),
                    "docs/cluster.md knows no {reason}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 3, "alerts name {seen} reasons");
}

#[test]
fn alerts_fire_when_they_should_and_rest_when_they_should() {
    let Some(promtool) = installed("promtool") else {
        return;
    };
    let tests = files::path("xtask/tests/deploy/alerts.test.yaml");
    let output = Command::new(promtool)
        .args(["test", "rules"])
        .arg(tests)
        .output()
        .expect("promtool runs");
    let printed = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&printed)
    );
}
