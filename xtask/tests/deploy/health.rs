//! What Argo CD and Flux call the health of an object, over one table of objects.
//!
//! The scripts of Argo CD run in the Lua dialect and with the few libraries that it gives to scripts
//! of its users; the expressions of Flux are evaluated in the order in which it does.

use cel::{Context, Program};
use millrace_crds::check::check;
use millrace_crds::manifest::Kind;
use mlua::serde::SerializeOptions;
use mlua::{Lua, LuaOptions, LuaSerdeExt, StdLib};
use serde::Deserialize;
use serde_json::Value;

use crate::files;

/// `health_test.yaml`, in Argo CD's own format.
#[derive(Deserialize)]
struct Table {
    tests: Vec<Row>,
}

/// What an object should be called.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    health_status: Health,
    input_path: String,
}

/// What Argo CD shows of an object.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Health {
    status: String,
    message: String,
}

/// The folder of a kind, in the layout of Argo CD's resource_customizations.
fn folder(kind: Kind) -> String {
    format!("gitops/argocd/millrace.dev/{}", kind.as_str())
}

/// Calls `look` with every object of a kind's table and what it should be called.
fn each(kind: Kind, mut look: impl FnMut(&str, &Value, &Health)) {
    let folder = folder(kind);
    let text = files::text(&format!("{folder}/health_test.yaml"));
    let table: Table = serde_saphyr::from_str(&text).expect("a table");
    for Row {
        health_status,
        input_path,
    } in &table.tests
    {
        let object = files::yaml(&format!("{folder}/{input_path}"));
        look(
            &format!("{} {input_path}", kind.as_str()),
            &object,
            health_status,
        );
    }
}

/// What Argo CD would show.
fn by_argo_cd(kind: Kind, object: &Value) -> Health {
    // No string and no math library: users' scripts have none unless an administrator opens them.
    let lua = Lua::new_with(StdLib::TABLE | StdLib::PACKAGE, LuaOptions::default()).unwrap();
    let plain = SerializeOptions::new()
        .set_array_metatable(false)
        .serialize_none_to_null(false)
        .serialize_unit_to_null(false);
    let object = lua.to_value_with(object, plain).unwrap();
    lua.globals().set("obj", object).unwrap();
    let script = files::text(&format!("{}/health.lua", folder(kind)));
    let health = lua.load(script).eval().expect("the script runs");
    lua.from_value(health).expect("a status and a message")
}

/// What Flux would make of it.
fn by_flux(kind: Kind, object: &Value) -> &'static str {
    let patch = files::yaml("gitops/flux/health-checks.yaml");
    let checks = patch["spec"]["healthCheckExprs"]
        .as_array()
        .expect("expressions");
    let mut of_kind = checks.iter().filter(|it| it["kind"] == kind.as_str());
    let check = of_kind.next().expect("expressions of the kind");
    assert_eq!(check["apiVersion"], object["apiVersion"]);
    let observed = object.pointer("/status/observedGeneration");
    if observed.is_some_and(|it| *it != object["metadata"]["generation"]) {
        return "InProgress";
    }
    let mut context = Context::default();
    for (name, field) in object.as_object().expect("an object") {
        context.add_variable(name, field).expect("a plain value");
    }
    for (field, status) in [
        ("inProgress", "InProgress"),
        ("failed", "Failed"),
        ("current", "Current"),
    ] {
        let expression = check[field].as_str().expect("an expression");
        let program =
            Program::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        match program.execute(&context) {
            Ok(cel::Value::Bool(true)) => return status,
            Ok(cel::Value::Bool(false)) => {}
            Ok(other) => panic!("{expression} gives {other:?}"),
            // Flux waits for an object on which an expression fails.
            Err(_) if object.get("status").is_none() => return "Unknown",
            Err(error) => panic!("{expression}: {error}"),
        }
    }
    "InProgress"
}

#[test]
fn argo_cd_calls_each_object_what_its_table_says() {
    for kind in Kind::ALL {
        each(kind, |name, object, expected| {
            assert_eq!(&by_argo_cd(kind, object), expected, "{name}");
        });
    }
}

#[test]
fn flux_agrees_with_argo_cd() {
    for kind in Kind::ALL {
        each(kind, |name, object, expected| {
            let allowed: &[&str] = match expected.status.as_str() {
                "Healthy" => &["Current"],
                "Degraded" => &["Failed"],
                "Progressing" if object.get("status").is_none() => &["Unknown"],
                // A job that rests is not done, and Flux has no word for resting.
                "Progressing" | "Suspended" => &["InProgress"],
                other => panic!("{name}: Argo CD knows no {other}"),
            };
            let found = by_flux(kind, object);
            assert!(
                allowed.contains(&found),
                "{name}: {found}, {allowed:?} by Argo CD's word"
            );
        });
    }
}

#[test]
fn every_status_that_argo_cd_knows_of_a_job_is_in_the_table() {
    let mut seen = Vec::new();
    each(Kind::BatchJob, |_, _, expected| {
        seen.push(expected.status.clone())
    });
    for status in ["Healthy", "Degraded", "Progressing", "Suspended"] {
        assert!(seen.iter().any(|it| it == status), "{status}");
    }
}

/// The reasons that the operator knows of a job, but that of one which it has not visited.
fn reasons_of_jobs() -> Vec<String> {
    let source = files::text("operator/src/reasons.rs");
    let table = source.split("const OF_JOBS").nth(1).expect("the table");
    let table = table.split("];").next().unwrap_or_default();
    let words = table.split('"').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

#[test]
fn every_reason_that_the_operator_knows_of_a_job_is_in_the_table() {
    let mut seen = Vec::new();
    each(Kind::BatchJob, |_, object, _| {
        let reason = &object["status"]["conditions"][0]["reason"];
        seen.extend(reason.as_str().map(str::to_owned));
    });
    let known = reasons_of_jobs();
    assert!(known.len() > 20, "{known:?}");
    let missing: Vec<_> = known.iter().filter(|it| !seen.contains(it)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_objects_of_the_tables_pass_the_check_and_none_is_left_out() {
    for kind in Kind::ALL {
        let mut named = Vec::new();
        each(kind, |name, object, _| {
            assert!(
                check(kind, object).is_ok(),
                "{name}: {:?}",
                check(kind, object)
            );
            named.push(name.rsplit('/').next().expect("a file name").to_owned());
        });
        named.sort();
        assert_eq!(named, files::names(&format!("{}/testdata", folder(kind))));
    }
}

#[test]
fn a_condition_without_its_neighbours_breaks_no_script() {
    for kind in Kind::ALL {
        each(kind, |name, object, _| {
            let mut object = object.clone();
            let Some(conditions) = object.pointer_mut("/status/conditions") else {
                return;
            };
            conditions.as_array_mut().expect("a list").truncate(1);
            let Health { status, message } = by_argo_cd(kind, &object);
            assert!(!status.is_empty() && !message.is_empty(), "{name}");
            by_flux(kind, &object);
        });
    }
}
