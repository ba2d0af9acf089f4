//! What the checks of a cluster find, and what is made of the answers of an API server. Pure.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// The oldest Kubernetes with native sidecars switched on.
pub const VERSION_MIN: (u32, u32) = (1, 29);

/// How one check came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is well; with what was found.
    Good(String),
    /// Something is wrong.
    Bad {
        /// What.
        found: String,
        /// What to do.
        hint: String,
    },
    /// This account may not look, so nothing is known.
    Unknown(String),
}

impl Verdict {
    /// Something is wrong.
    pub fn bad(found: impl Into<String>, hint: impl Into<String>) -> Self {
        Verdict::Bad {
            found: found.into(),
            hint: hint.into(),
        }
    }

    /// Whether the check failed.
    pub fn is_bad(&self) -> bool {
        matches!(self, Verdict::Bad { .. })
    }

    /// The lines to print.
    pub fn lines(&self, name: &str) -> Vec<String> {
        match self {
            Verdict::Good(found) => vec![format!("✓ {name}: {found}")],
            Verdict::Unknown(why) => vec![format!("? {name}: {why}")],
            Verdict::Bad { found, hint } => {
                vec![format!("✗ {name}: {found}"), format!("    {hint}")]
            }
        }
    }
}

/// Whether this version has what the pods need. Some providers write `29+` for a minor version.
pub fn version(major: &str, minor: &str) -> Verdict {
    let number = |text: &str| -> Option<u32> {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let found = format!("{major}.{minor}");
    let (major_min, minor_min) = VERSION_MIN;
    match number(major).zip(number(minor)) {
        Some(version) if version >= VERSION_MIN => Verdict::Good(found),
        Some(_) => Verdict::bad(
            found,
            format!(
                "upgrade the cluster to {major_min}.{minor_min} or newer: the pods of a service use \
                 native sidecars"
            ),
        ),
        None => Verdict::Unknown(format!("{found:?} is no version that this program knows")),
    }
}

/// Fields of `spec` and `status` that `ours` has and `theirs` lacks, as paths.
pub fn missing_fields(ours: &Value, theirs: &Value) -> Vec<String> {
    let mut missing = BTreeSet::new();
    for top in ["spec", "status"] {
        compare(
            top,
            &ours["properties"][top],
            &theirs["properties"][top],
            &mut missing,
        );
    }
    missing.into_iter().collect()
}

fn compare(path: &str, ours: &Value, theirs: &Value, missing: &mut BTreeSet<String>) {
    if theirs.is_null() {
        missing.insert(path.to_owned());
        return;
    }
    if !ours["items"].is_null() {
        compare(
            &format!("{path}[]"),
            &ours["items"],
            &theirs["items"],
            missing,
        );
    }
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        compare(
            &format!("{path}.{name}"),
            field,
            &theirs["properties"][name],
            missing,
        );
    }
}

/// What a comparison of the fields says.
pub fn fields(missing: &[String]) -> Verdict {
    /// Fields that are named.
    const NAMED_MAX: usize = 5;
    if missing.is_empty() {
        return Verdict::Good("served with every field that this program knows".to_owned());
    }
    let named: Vec<&str> = missing.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = match missing.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Verdict::bad(
        format!("the cluster does not know {}{more}", named.join(", ")),
        "the CRDs are older than this program: upgrade the chart with `helm upgrade`",
    )
}

/// Pods of one kind, and how many of them are ready.
#[derive(Debug, Clone, Copy)]
pub struct Pods<'a> {
    /// Where they are.
    pub namespace: &'a str,
    /// The name of what keeps them.
    pub name: &'a str,
    /// Their `app.kubernetes.io/component`.
    pub component: &'a str,
    /// How many are ready.
    pub ready: i32,
    /// How many should be.
    pub wanted: i32,
}

impl<'a> Pods<'a> {
    /// Those of a component that an object with this metadata keeps: how many are ready, as far as it says so,
    /// and how many should be, if not one.
    pub fn of(
        component: &'a str,
        metadata: &'a ObjectMeta,
        ready: Option<i32>,
        wanted: Option<i32>,
    ) -> Self {
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or_default(),
            name: metadata.name.as_deref().unwrap_or_default(),
            component,
            ready: ready.unwrap_or(0),
            wanted: wanted.unwrap_or(1),
        }
    }

    /// Whether one is ready, and else what keeps them from it, if one of their containers has not started.
    /// What never started has no logs, so that `describe` says more.
    pub fn verdict(&self, unstarted: Option<&str>) -> Verdict {
        let Self {
            namespace,
            name,
            component,
            ready,
            wanted,
        } = self;
        let found = format!("{namespace}/{name}: {ready} of {wanted} ready");
        if *ready >= 1 {
            return Verdict::Good(found);
        }
        let label = format!("-l app.kubernetes.io/component={component}");
        let describe =
            format!("see what it waits for: kubectl -n {namespace} describe pods {label}");
        match unstarted {
            Some(why) => Verdict::bad(format!("{found}: {why}"), describe),
            // The Redis says little of itself.
            None if *component == "leases" => Verdict::bad(found, describe),
            None => Verdict::bad(
                found,
                format!("see what it says: kubectl -n {namespace} logs {label}"),
            ),
        }
    }
}

/// Which of the rights that were asked for are there: each with its name.
pub fn rights(asked: &[(String, bool)], hint: &str) -> Verdict {
    let names = |has: bool| -> Vec<&str> {
        let found = asked.iter().filter(|(_, allowed)| *allowed == has);
        found.map(|(name, _)| name.as_str()).collect()
    };
    let lacking = names(false);
    if lacking.is_empty() {
        Verdict::Good(names(true).join(", "))
    } else {
        Verdict::bad(format!("no right to {}", lacking.join(", ")), hint)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failed_check_prints_its_hint_below_it() {
        let verdict = Verdict::bad("1.28", "upgrade");
        assert_eq!(verdict.lines("version"), ["✗ version: 1.28", "    upgrade"]);
        assert_eq!(
            Verdict::Good("1.31".into()).lines("version"),
            ["✓ version: 1.31"]
        );
        assert!(!Verdict::Unknown("no right".into()).is_bad());
    }

    #[test]
    fn kubernetes_is_new_enough_from_native_sidecars_on() {
        for good in [("1", "29"), ("1", "31+"), ("2", "0")] {
            assert!(
                matches!(version(good.0, good.1), Verdict::Good(_)),
                "{good:?}"
            );
        }
        assert!(version("1", "28").is_bad());
        assert!(matches!(version("", "new"), Verdict::Unknown(_)));
    }

    #[test]
    fn fields_that_a_cluster_lacks_are_found_at_any_depth() {
        let leaf = || json!({"type": "string"});
        let ours = json!({"properties": {
            "spec": {"properties": {
                "a": leaf(),
                "list": {"items": {"properties": {"b": leaf(), "c": leaf()}}},
            }},
            "status": {"properties": {"eta": leaf()}},
        }});
        let theirs = json!({"properties": {
            "spec": {"properties": {
                "a": leaf(), "new": leaf(),
                "list": {"items": {"properties": {"b": leaf()}}},
            }},
            "status": {"properties": {}},
        }});
        assert_eq!(
            missing_fields(&ours, &theirs),
            ["spec.list[].c", "status.eta"]
        );
        assert_eq!(missing_fields(&ours, &ours), [""; 0]);
        assert!(fields(&missing_fields(&ours, &theirs)).is_bad());
    }

    #[test]
    fn a_right_that_is_lacking_is_named() {
        let asked = [("get".to_owned(), true), ("patch".to_owned(), false)];
        let Verdict::Bad { found, .. } = rights(&asked, "ask") else {
            panic!("a right is lacking");
        };
        assert_eq!(found, "no right to patch");
    }

    #[test]
    fn one_ready_pod_is_enough() {
        let pods = |ready| Pods { ready, ..UNREADY };
        assert!(!pods(1).verdict(None).is_bad());
        assert!(pods(0).verdict(None).is_bad());
    }

    const UNREADY: Pods = Pods {
        namespace: "millrace-system",
        name: "operator",
        component: "operator",
        ready: 0,
        wanted: 1,
    };

    #[test]
    fn what_never_started_is_described_and_what_did_is_asked_for_its_logs() {
        let unstarted = UNREADY.verdict(Some("ErrImageNeverPull localhost/operator:dev"));
        let label = "-l app.kubernetes.io/component=operator";
        assert_eq!(
            unstarted,
            Verdict::bad(
                "millrace-system/operator: 0 of 1 ready: ErrImageNeverPull localhost/operator:dev",
                format!("see what it waits for: kubectl -n millrace-system describe pods {label}"),
            )
        );
        let Verdict::Bad { hint, .. } = UNREADY.verdict(None) else {
            panic!("no pod is ready");
        };
        assert_eq!(
            hint,
            format!("see what it says: kubectl -n millrace-system logs {label}")
        );
    }
}
