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
fn alerts_go_by_classes_that_the_operator_gives_to_reasons() {
    let source = files::text("operator/src/reasons.rs");
    let mut seen = 0;
    for alert in alerts() {
        let expression = alert["expr"].as_str().expect("an expression");
        assert!(
            !expression.contains("reason=") && !expression.contains("reason!"),
            "{expression} is stale as soon as there is another reason"
        );
        for matcher in expression.split("class=\"").skip(1) {
            let class = matcher.split('"').next().expect("a class");
            assert!(
                source.contains(&format!("=> \"{class}\"")),
                "the operator knows no class {class}"
            );
            seen += 1;
        }
    }
    assert!(seen > 2, "alerts name {seen} classes");
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
