//! What the reasons of conditions mean to whoever watches from afar. Metrics carry the class of a reason
//! beside it and alerts go by that, so that a reason is known to all of them once it stands here. Pure.

use self::Class::{Failed, Moving, Settled, Waiting};

/// What a reason asks of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing: it passes by itself.
    Moving,
    /// Nothing: things are as somebody wanted them.
    Settled,
    /// To mend what the message names; before that nothing begins.
    Waiting,
    /// To look at an end that nobody asked for.
    Failed,
}

impl Class {
    /// The class as metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Moving => "Moving",
            Class::Settled => "Settled",
            Class::Waiting => "Waiting",
            Class::Failed => "Failed",
        }
    }
}

/// What counts as the reason of an object that was not visited yet.
pub const UNVISITED: &str = "Unvisited";

/// Reasons of a job's condition `Succeeded`.
const OF_JOBS: [(&str, Class); 25] = [
    (UNVISITED, Moving),
    ("Planning", Moving),
    ("Running", Moving),
    // The Redis that is away has an alert of its own.
    ("LeasesUnavailable", Moving),
    ("Finishing", Moving),
    ("Cancelling", Moving),
    ("Expiring", Moving),
    ("Stopping", Moving),
    ("Suspended", Settled),
    ("Completed", Settled),
    ("Cancelled", Settled),
    // It may come a moment later, which the job's conditions count as moving; after the time that alerts
    // allow, somebody has to make it.
    ("ServiceNotFound", Waiting),
    ("UnknownModel", Waiting),
    ("LocalPath", Waiting),
    ("SecretNotShared", Waiting),
    ("NoPricing", Waiting),
    ("RouteNotRemote", Waiting),
    ("Rejected", Waiting),
    ("DeadlineExceeded", Failed),
    ("TooManyFailedRows", Failed),
    ("TooManyFailedIndexes", Failed),
    ("BudgetSpent", Failed),
    ("ShardsFailed", Failed),
    ("PlanFailed", Failed),
    ("FinishFailed", Failed),
];

/// Reasons of a service's condition `Ready`.
const OF_SERVICES: [(&str, Class); 7] = [
    (UNVISITED, Moving),
    ("Scaling", Moving),
    ("Serving", Settled),
    ("Asleep", Settled),
    ("SourceNotSupported", Waiting),
    ("PortInUse", Waiting),
    ("Rejected", Waiting),
];

/// The class of a reason of a job.
pub fn of_job(reason: &str) -> Class {
    class(&OF_JOBS, reason)
}

/// The class of a reason of a service.
pub fn of_service(reason: &str) -> Class {
    class(&OF_SERVICES, reason)
}

/// A reason that is not known was written by another version, and is for a person to look at.
fn class(known: &[(&str, Class)], reason: &str) -> Class {
    let found = known.iter().find(|(known, _)| *known == reason);
    found.map_or(Waiting, |(_, class)| *class)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;

    /// Words in the sources of a visit that look like reasons: types and states of conditions, kinds of
    /// objects, and what Events alone say.
    const NO_REASONS: [&str; 15] = [
        "Complete",
        "Deployment",
        "Failed",
        "False",
        "Ingress",
        "NetworkPolicy",
        "ReaderRejected",
        "Ready",
        "Reconciling",
        "ReplicaFailure",
        "Service",
        "Stalled",
        "Succeeded",
        "True",
        "Unknown",
    ];

    fn names(table: &[(&'static str, Class)]) -> BTreeSet<String> {
        let names: BTreeSet<String> = table.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names.len(), table.len(), "a reason has two classes");
        names
    }

    fn read(relative: &str) -> String {
        std::fs::read_to_string(folder(relative))
            .unwrap_or_else(|error| panic!("{relative}: {error}"))
    }

    fn folder(relative: &str) -> PathBuf {
        Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this")).join(relative)
    }

    /// Whether a word is written as reasons are.
    fn is_like_a_reason(word: &str) -> bool {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.contains(|c: char| c.is_ascii_lowercase())
            && word.chars().all(|c| c.is_ascii_alphabetic())
    }

    /// The reasons that the sources of a visit write. What is built is made of words of Kubernetes.
    fn written(kind: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(folder(&format!("src/{kind}"))).expect("a folder of sources")
        {
            let name = entry
                .expect("a file")
                .file_name()
                .into_string()
                .expect("UTF-8");
            let is_built = name.starts_with("build") || name == "notify.rs";
            if is_built || !name.ends_with(".rs") || name.ends_with("_tests.rs") {
                continue;
            }
            let source = read(&format!("src/{kind}/{name}"));
            let source = source.split("#[cfg(test)]").next().unwrap_or_default();
            let words = source.split('"').skip(1).step_by(2);
            let words = words.filter(|it| is_like_a_reason(it) && !NO_REASONS.contains(it));
            found.extend(words.map(str::to_owned));
        }
        found
    }

    /// The words in the first column of the table below a heading of docs/cluster.md.
    fn documented(heading: &str) -> BTreeSet<String> {
        let page = read("../docs/cluster.md");
        let section = page
            .split(&format!("\n## {heading}\n"))
            .nth(1)
            .expect("the heading");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        let words = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
        words.map(str::to_owned).collect()
    }

    #[test]
    fn every_reason_that_a_visit_writes_has_one_class() {
        let (jobs, services) = (names(&OF_JOBS), names(&OF_SERVICES));
        for (kind, known) in [("batch_job", &jobs), ("inference_service", &services)] {
            let written = written(kind);
            assert!(written.len() > 3, "{kind}: {written:?}");
            // Scaling looks at the reasons of jobs as well.
            let is_known = |it: &&String| known.contains(*it) || jobs.contains(*it);
            let unknown: Vec<_> = written.iter().filter(|it| !is_known(it)).collect();
            assert!(unknown.is_empty(), "{kind}: {unknown:?} have no class");
        }
    }

    #[test]
    fn every_reason_is_documented_and_no_other() {
        for (table, heading) in [
            (names(&OF_JOBS), "What happens to a job"),
            (names(&OF_SERVICES), "What happens to a service"),
        ] {
            let mut expected = table;
            expected.remove(UNVISITED);
            assert_eq!(documented(heading), expected, "{heading}");
        }
    }

    #[test]
    fn a_reason_of_another_version_is_for_a_person_to_look_at() {
        assert_eq!(of_job("Enchanted"), Class::Waiting);
        assert_eq!(of_service("Serving"), Class::Settled);
    }
}
