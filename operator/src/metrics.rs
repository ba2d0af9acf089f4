//! What the operator counts and measures, in OpenMetrics' text format.
//!
//! Visits are counted as they happen. What is true of objects is read from the controllers' own
//! copies of them when it is asked for, so that nothing is left of an object that is gone. No label
//! names a job, a shard or a pod.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kube::ResourceExt;
use millrace_crds::InferenceService;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::batch_job::standing::reason as job_reason;
use crate::conditions::find;
use crate::names::service_of;
use crate::objects::{Backlog, Objects};
use crate::reasons::{self, UNVISITED};

/// Beginning of every name.
const PREFIX: &str = "millrace";

/// What is counted over visits; cheap to clone.
#[derive(Debug, Clone)]
pub struct VisitMetrics {
    visits: Family<VisitLabels, Counter>,
    seconds: Family<KindLabel, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VisitLabels {
    kind: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    namespace: String,
    reason: String,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceCostLabels {
    namespace: String,
    currency: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CostLabels {
    namespace: String,
    service: String,
    currency: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    namespace: String,
    service: String,
}

impl Default for VisitMetrics {
    fn default() -> Self {
        // 1 ms to 16 s: from a visit that finds everything done to one that waits for a slow API.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self {
            visits: Family::default(),
            seconds: Family::new_with_constructor(seconds),
        }
    }
}

impl VisitMetrics {
    /// Notes a visit to an object of `kind`.
    pub fn note(&self, kind: &str, outcome: &'static str, took: Duration) {
        let kind = kind.to_owned();
        self.seconds
            .get_or_create(&KindLabel { kind: kind.clone() })
            .observe(took.as_secs_f64());
        self.visits
            .get_or_create(&VisitLabels { kind, outcome })
            .inc();
    }
}

/// What is true of the process at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// Whether it leads.
    pub leads: bool,
    /// Whether the Redis of the leases answers.
    pub leases_available: bool,
    /// The objects, if it leads.
    pub objects: Option<&'a Objects>,
}

/// All metrics as text.
pub fn render(visits: &VisitMetrics, now: Now) -> String {
    let Now {
        leads,
        leases_available,
        objects,
    } = now;
    let mut registry = Registry::with_prefix(PREFIX);
    let VisitMetrics {
        visits: counted,
        seconds,
    } = visits.clone();
    let help = "Whether this process leads";
    registry.register("operator_leader", help, gauge(leads.into()));
    let help = "Whether the Redis of the leases answers";
    registry.register("leases_available", help, gauge(leases_available.into()));
    registry.register("operator_visits", "Visits to objects", counted);
    let help = "Time a visit took";
    registry.register_with_unit("operator_visit_duration", help, Unit::Seconds, seconds);
    if let Some(objects) = objects {
        register_objects(&mut registry, objects);
    }
    let mut text = String::new();
    encode_registry(&mut text, &registry)
        .and_then(|()| encode_eof(&mut text))
        .expect("writing to a string cannot fail");
    text
}

fn gauge(value: i64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// Registers what is true of objects.
fn register_objects(registry: &mut Registry, objects: &Objects) {
    let JobGauges {
        jobs,
        costs,
        costs_of_namespaces,
    } = JobGauges::of(objects);
    let ServiceGauges {
        services,
        shards,
        replicas,
        ready,
    } = ServiceGauges::of(objects);
    let help = "Jobs by the reason of their condition Succeeded";
    registry.register("jobs", help, jobs);
    let help = "Services by the reason of their condition Ready";
    registry.register("services", help, services);
    let help = "What the calls of the jobs of a service cost so far, in its currency";
    registry.register("service_cost", help, costs);
    let help = "What the calls of the jobs of a namespace cost so far, by currency";
    registry.register("namespace_cost", help, costs_of_namespaces);
    let help = "Shards that no commit stands for yet, over the jobs of a service";
    registry.register("service_backlog_shards", help, shards);
    let help = "Pods of a service that should serve";
    registry.register("service_replicas", help, replicas);
    let help = "Pods of a service that serve";
    registry.register("service_ready_replicas", help, ready);
}

/// What is true of jobs.
#[derive(Default)]
struct JobGauges {
    jobs: Family<ReasonLabels, Gauge>,
    costs: Family<CostLabels, Gauge<f64, AtomicU64>>,
    costs_of_namespaces: Family<NamespaceCostLabels, Gauge<f64, AtomicU64>>,
}

impl JobGauges {
    fn of(objects: &Objects) -> Self {
        let gauges = Self::default();
        let jobs = objects.jobs.state().into_iter();
        for job in jobs.filter(|job| job.other_manager().is_none()) {
            let reason = job_reason(&job).unwrap_or(UNVISITED);
            let labels = ReasonLabels {
                namespace: job.namespace().unwrap_or_default(),
                reason: reason.to_owned(),
                class: reasons::of_job(reason).as_str(),
            };
            gauges.jobs.get_or_create(&labels).inc();
            if let Some(spent) = job.status.as_ref().and_then(|status| status.cost.as_ref()) {
                let of_namespace = NamespaceCostLabels {
                    namespace: labels.namespace.clone(),
                    currency: spent.currency.clone(),
                };
                let total = spent.total.as_f64();
                gauges
                    .costs_of_namespaces
                    .get_or_create(&of_namespace)
                    .inc_by(total);
                let labels = CostLabels {
                    namespace: labels.namespace,
                    service: service_of(&job),
                    currency: spent.currency.clone(),
                };
                gauges.costs.get_or_create(&labels).inc_by(total);
            }
        }
        gauges
    }
}

/// What is true of services.
#[derive(Default)]
struct ServiceGauges {
    services: Family<ReasonLabels, Gauge>,
    shards: Family<ServiceLabels, Gauge>,
    replicas: Family<ServiceLabels, Gauge>,
    ready: Family<ServiceLabels, Gauge>,
}

impl ServiceGauges {
    fn of(objects: &Objects) -> Self {
        let gauges = Self::default();
        for service in objects.services.state() {
            let reason = service_reason(&service).unwrap_or(UNVISITED);
            let by_reason = ReasonLabels {
                namespace: service.namespace().unwrap_or_default(),
                reason: reason.to_owned(),
                class: reasons::of_service(reason).as_str(),
            };
            gauges.services.get_or_create(&by_reason).inc();
            let labels = ServiceLabels {
                namespace: service.namespace().unwrap_or_default(),
                service: service.name_any(),
            };
            let Some(Backlog { shards, replicas }) =
                objects.backlog(&labels.namespace, &labels.service)
            else {
                continue;
            };
            let status = service.status.as_ref();
            let ready = status.and_then(|status| status.ready_replicas);
            let ready = ready.unwrap_or(0).into();
            gauges.shards.get_or_create(&labels).set(shards as i64);
            gauges.replicas.get_or_create(&labels).set(replicas.into());
            gauges.ready.get_or_create(&labels).set(ready);
        }
        gauges
    }
}

fn service_reason(service: &InferenceService) -> Option<&str> {
    let ready = find(&service.status.as_ref()?.conditions, "Ready")?;
    Some(&ready.reason)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::runtime::reflector::Store;
    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;
    use millrace_crds::BatchJob;
    use millrace_crds::batch_job::Spent;
    use serde_json::json;

    use super::*;

    fn job(name: &str, reason: &str, committed: u32) -> BatchJob {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": name, "namespace": "tenant"},
            "spec": {
                "serviceRef": {"name": "embed"},
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
            "status": {
                "conditions": [{
                    "type": "Succeeded", "status": "Unknown", "reason": reason, "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
                "shards": {"total": 10, "committed": committed, "failed": 1},
            },
        }))
        .unwrap()
    }

    fn service() -> InferenceService {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "embed", "namespace": "tenant"},
            "spec": {"models": []},
            "status": {
                "replicas": 3, "readyReplicas": 2,
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Serving", "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        }))
        .unwrap()
    }

    fn store<K>(objects: Vec<K>) -> Store<K>
    where
        K: kube::Resource<DynamicType = ()> + Clone + 'static,
    {
        let mut writer = Writer::default();
        for object in objects {
            writer.apply_watcher_event(&Event::Apply(object));
        }
        writer.as_reader()
    }

    fn objects() -> Objects {
        let mut unvisited = job("new", "", 0);
        unvisited.status = None;
        let mut jobs = [job("a", "Running", 4), job("b", "Running", 9)];
        for job in &mut jobs {
            let cost = "1.25".parse().expect("an amount");
            job.status.as_mut().expect("a status").cost = Some(Spent::of(cost, 5, "USD"));
        }
        let others = [job("c", "Completed", 9), unvisited];
        Objects {
            jobs: store(jobs.into_iter().chain(others).collect()),
            services: store(vec![service()]),
        }
    }

    /// The lines of a scrape that are not comments, by name and labels.
    fn scraped(text: &str) -> BTreeMap<&str, f64> {
        assert!(text.ends_with("# EOF\n"), "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                (name, value.parse().expect("a number"))
            })
            .collect()
    }

    #[test]
    fn a_scrape_says_how_visits_went_and_how_the_objects_are() {
        let visits = VisitMetrics::default();
        visits.note("BatchJob", "done", Duration::from_millis(3));
        visits.note("BatchJob", "apply", Duration::from_secs(3));
        let objects = objects();
        let text = render(
            &visits,
            Now {
                leads: true,
                leases_available: false,
                objects: Some(&objects),
            },
        );
        let scraped = scraped(&text);
        let service = r#"namespace="tenant",service="embed""#;
        for (name, expected) in [
            ("millrace_operator_leader".to_owned(), 1.0),
            ("millrace_leases_available".to_owned(), 0.0),
            (
                r#"millrace_operator_visits_total{kind="BatchJob",outcome="done"}"#.to_owned(),
                1.0,
            ),
            (
                r#"millrace_operator_visit_duration_seconds_count{kind="BatchJob"}"#.to_owned(),
                2.0,
            ),
            (
                r#"millrace_jobs{namespace="tenant",reason="Running",class="Moving"}"#.to_owned(),
                2.0,
            ),
            (
                r#"millrace_jobs{namespace="tenant",reason="Unvisited",class="Moving"}"#.to_owned(),
                1.0,
            ),
            (
                r#"millrace_services{namespace="tenant",reason="Serving",class="Settled"}"#
                    .to_owned(),
                1.0,
            ),
            (
                format!(r#"millrace_service_cost{{{service},currency="USD"}}"#),
                2.5,
            ),
            (
                r#"millrace_namespace_cost{namespace="tenant",currency="USD"}"#.to_owned(),
                2.5,
            ),
            (format!("millrace_service_backlog_shards{{{service}}}"), 5.0),
            (format!("millrace_service_replicas{{{service}}}"), 3.0),
            (format!("millrace_service_ready_replicas{{{service}}}"), 2.0),
        ] {
            assert_eq!(
                scraped.get(name.as_str()),
                Some(&expected),
                "{name}\n{text}"
            );
        }
    }

    #[test]
    fn who_does_not_lead_says_nothing_of_objects() {
        let now = Now {
            leads: false,
            leases_available: true,
            objects: None,
        };
        let text = render(&VisitMetrics::default(), now);
        assert_eq!(scraped(&text)["millrace_operator_leader"], 0.0);
        assert!(!text.contains("millrace_jobs"), "{text}");
    }

    #[test]
    fn the_backlog_of_a_service_is_that_of_its_jobs_at_work() {
        let expected = Backlog {
            shards: 5,
            replicas: 3,
        };
        assert_eq!(objects().backlog("tenant", "embed"), Some(expected));
        assert_eq!(objects().backlog("tenant", "other"), None);
        assert_eq!(objects().backlog("other", "embed"), None);
    }
}
