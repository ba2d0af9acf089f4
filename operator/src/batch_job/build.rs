//! The objects of a job. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::core::Resource;
use millrace_crds::inference_service::{Autoscaling, PodTemplate};
use millrace_crds::{API_VERSION, BatchJob, InferenceService};
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use serde_json::{Value, json};

use super::check::Checked;
use super::decide::MadeStep;
use crate::apply::object;
use crate::config::Options;
use crate::names::{self, JOB_LABEL, child, label_value, labels, leases_secret, service_of};
use crate::pod_network::egress_rules;
use crate::pods;

/// Key of the manifests in their ConfigMap.
const MANIFESTS_KEY: &str = "manifests.yaml";

/// How often the pod of a step is tried again.
const STEP_TRIES: u32 = 3;

/// The service that the job brings, as it is made: it sleeps while the job needs nothing.
pub fn own_service(job: &BatchJob) -> Option<InferenceService> {
    let mut service = job.own_service()?;
    let spec = &mut service.spec;
    spec.autoscaling.min_replicas = 0;
    if let Some(secret) = &job.spec.credentials
        && !spec.secrets.contains(secret)
    {
        spec.secrets.push(secret.clone());
    }
    service.metadata = serde_json::from_value(metadata(job, &service_of(job), "service"))
        .expect("metadata has its shape");
    Some(service)
}

/// The job and its services as pods and workers of a run get them: what a person wrote, and the
/// job's id.
pub fn manifests(job: &BatchJob, checked: &Checked, run: RunNumber) -> String {
    let Checked { service, others } = checked;
    let mut spec = job.spec.clone();
    spec.rerun_failed = run - FIRST_RUN;
    // What concerns the operator alone would make workers take the job for another one.
    spec.cancel = false;
    spec.suspend = false;
    spec.active_deadline_seconds = None;
    spec.ttl_seconds_after_finished = None;
    spec.max_failed_indexes = None;
    spec.managed_by = None;
    spec.priority = 0;
    spec.reader = None;
    let job = json!({
        "apiVersion": API_VERSION,
        "kind": "BatchJob",
        "metadata": {"name": job.name_any(), "namespace": job.namespace(), "uid": job.uid()},
        "spec": spec,
    });
    let document = |service: &InferenceService| {
        let mut spec = service.spec.clone();
        // How many pods there are and where is none of the workers' business either.
        spec.autoscaling = Autoscaling::default();
        spec.template = PodTemplate::default();
        spec.model_cache = None;
        let service = json!({
            "apiVersion": API_VERSION,
            "kind": "InferenceService",
            "metadata": {"name": service.name_any(), "namespace": service.namespace()},
            "spec": spec,
        });
        // JSON documents are YAML documents.
        format!("---\n{service}\n")
    };
    let services: String = [service].into_iter().chain(others).map(document).collect();
    format!("{job}\n{services}")
}

/// The ConfigMap with the manifests.
pub fn config_map(job: &BatchJob, manifests: &str, run: RunNumber) -> ConfigMap {
    object(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, &names::step(&job.name_any(), "manifests", run), "manifests"),
        "data": {MANIFESTS_KEY: manifests},
    }))
}

/// The Job of a step.
pub fn step(job: &BatchJob, made: &MadeStep, options: &Options) -> Job {
    let MadeStep {
        step,
        run,
        give_up: _,
        checked,
    } = made;
    let name = job.name_any();
    let manifest_volume = json!({
        "name": "manifests",
        "configMap": {"name": names::step(&name, "manifests", *run)},
    });
    let mut volumes = vec![manifest_volume];
    let mut mounts =
        vec![json!({"name": "manifests", "mountPath": pods::MANIFESTS, "readOnly": true})];
    for secret in secrets(job, step) {
        let (volume, mount) = pods::credentials(secret);
        volumes.push(volume);
        mounts.push(mount);
    }
    let compares = *step == "plan" && job.spec.incremental.is_some();
    if compares || job.spec.dedup.is_some() {
        // Where rows are compared with those of the earlier output, or with each other.
        volumes.push(json!({"name": "tmp", "emptyDir": {}}));
        mounts.push(json!({"name": "tmp", "mountPath": "/tmp"}));
    }
    let template = &checked.service.spec.template;
    let usual = json!({
        "requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"},
    });
    let container = json!({
        "name": "step",
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": [step, "-f", format!("{}/{MANIFESTS_KEY}", pods::MANIFESTS)],
        "env": step_variables(job, made, options),
        "resources": pods::resources(&template.step_resources, usual),
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    });
    object(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, &names::step(&name, step, *run), step),
        "spec": {
            "backoffLimit": STEP_TRIES,
            "podFailurePolicy": pods::failure_policy(),
            "template": step_template(job, step, template, &container, &volumes),
        },
    }))
}

/// What the program of a step is told by its environment.
fn step_variables(job: &BatchJob, made: &MadeStep, options: &Options) -> Vec<Value> {
    let MadeStep {
        step: _,
        run: _,
        give_up,
        checked,
    } = made;
    let leases = leases_secret(&checked.service.name_any());
    let mut variables = pods::lease_variables(options, &leases);
    if let Some(give_up) = give_up {
        variables.push(json!({"name": "MILLRACE_GIVE_UP", "value": give_up.of_shards()}));
        variables.push(json!({"name": "MILLRACE_GIVE_UP_REASON", "value": give_up.reason()}));
    }
    variables.extend(pods::store_variables(options));
    variables.push(json!({"name": "MILLRACE_REPORT", "value": "/dev/termination-log"}));
    variables.extend(pods::telemetry_variables(options));
    variables.push(json!({"name": "MILLRACE_SECRETS", "value": pods::SECRETS}));
    if let Some(secret) = &job.spec.credentials {
        let folder = format!("{}/{}", pods::SECRETS, secret.name);
        variables.push(json!({"name": "MILLRACE_CREDENTIALS", "value": folder}));
    }
    variables
}

/// The pod template of a step: it runs once.
pub fn step_template(
    job: &BatchJob,
    step: &str,
    template: &PodTemplate,
    container: &Value,
    volumes: &[Value],
) -> Value {
    let mut made = pod_template(job, step, template, container, volumes);
    made["spec"]["restartPolicy"] = json!("Never");
    made
}

/// What all pods of a job have in common: they run beside the service that the template is of.
pub fn pod_template(
    job: &BatchJob,
    component: &str,
    template: &PodTemplate,
    container: &Value,
    volumes: &[Value],
) -> Value {
    let labels = labels(component, JOB_LABEL, &job.name_any());
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pods::pod_security(),
        "containers": [container],
        "volumes": volumes,
    });
    pods::place(&mut pod, template);
    json!({
        "metadata": pods::pod_metadata(template, labels, BTreeMap::new()),
        "spec": pod,
    })
}

/// The template of the pods beside which the job's own run: that of the service that it brings, or else
/// of the one that is there.
pub fn service_template(job: &BatchJob, service: Option<&InferenceService>) -> PodTemplate {
    let own = own_service(job);
    let service = own.as_ref().or(service);
    service.map_or_else(PodTemplate::default, |it| it.spec.template.clone())
}

/// What the pods of the steps reach over the network. Nobody has anything to ask of them.
pub fn network_policy(job: &BatchJob, options: &Options) -> NetworkPolicy {
    let name = job.name_any();
    object(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, &child(&name, "steps"), "steps"),
        "spec": {
            "podSelector": {"matchLabels": {JOB_LABEL: label_value(&name)}},
            "policyTypes": ["Ingress", "Egress"],
            "egress": egress_rules(options),
        },
    }))
}

/// The Secrets that a step needs, each once. The database is looked at before anything is computed for
/// it, and the end is told by finish alone.
fn secrets<'a>(job: &'a BatchJob, step: &str) -> BTreeSet<&'a str> {
    let store = job.spec.credentials.iter().map(|it| it.name.as_str());
    let database = job
        .spec
        .output
        .postgres
        .iter()
        .map(|it| it.secret_ref.name.as_str());
    let receiver = job.spec.notify.iter().filter(|_| step == "finish");
    let receiver = receiver.filter_map(|it| it.secret_ref.as_ref().map(|it| it.name.as_str()));
    store.chain(database).chain(receiver).collect()
}

/// What all objects of a job have in common.
pub fn metadata(job: &BatchJob, name: &str, component: &str) -> Value {
    json!({
        "name": name,
        "namespace": job.namespace(),
        "labels": labels(component, JOB_LABEL, &job.name_any()),
        "ownerReferences": [job.controller_owner_ref(&())],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: Value) -> BatchJob {
        let mut job = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job", "namespace": "tenant", "uid": "u"},
            "spec": {
                "serviceRef": {"name": "service"}, "input": {"uris": ["s3://bucket/in"]},
                "credentials": {"name": "store"},
                "output": {"uri": "s3://bucket/out"},
            },
        });
        for (key, value) in more.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        serde_json::from_value(job).unwrap()
    }

    fn options() -> Options {
        Options::of_tests(&["--redis-url=redis://redis"])
    }

    #[test]
    fn workers_are_told_of_all_services_of_a_job_with_routes() {
        let service = |name: &str| -> InferenceService {
            let remote =
                json!({"baseUrl": "https://api.example.com/v1", "api": "Chat", "model": name});
            serde_json::from_value(json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
                "metadata": {"name": name, "namespace": "tenant"}, "spec": {"remote": remote},
            }))
            .unwrap()
        };
        let job: BatchJob = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job", "namespace": "tenant", "uid": "u"},
            "spec": {
                "routes": [
                    {"name": "cheap", "when": "stars > 3", "serviceRef": {"name": "mini"}},
                    {"name": "rest", "serviceRef": {"name": "large"}},
                ],
                "steps": [{"name": "a"}],
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap();
        let checked = Checked {
            service: service("mini"),
            others: vec![service("large")],
        };
        let told = millrace_crds::manifest::read_str("told", &manifests(&job, &checked, 1));
        let names: Vec<String> = (told.unwrap().iter())
            .map(|manifest| manifest.name().to_owned())
            .collect();
        assert_eq!(names, ["job", "mini", "large"]);
    }

    #[test]
    fn workers_keep_their_shards_while_a_service_scales_and_moves() {
        let told = |settings: Value| {
            let mut service = json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
                "metadata": {"name": "service", "namespace": "tenant"}, "spec": {"models": []},
            });
            for (key, value) in settings.as_object().unwrap() {
                service["spec"][key] = value.clone();
            }
            let checked = Checked {
                service: serde_json::from_value(service).unwrap(),
                others: Vec::new(),
            };
            manifests(&job(json!({})), &checked, FIRST_RUN)
        };
        let before = told(json!({}));
        for settings in [
            json!({"autoscaling": {"minReplicas": 3, "maxReplicas": 9}}),
            json!({"template": {"nodeSelector": {"pool": "gpu"}}}),
            json!({"modelCache": {"hostPath": "/models"}}),
        ] {
            assert_eq!(told(settings.clone()), before, "{settings}");
        }
        assert_ne!(told(json!({"cache": {"enabled": true}})), before);
    }

    #[test]
    fn a_step_runs_where_its_service_does_and_with_the_same_pull_secrets() {
        let service = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "tenant"},
            "spec": {"models": [], "template": {
                "serviceAccountName": "reader",
                "imagePullSecrets": [{"name": "registry"}],
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [{"key": "gpu"}],
                "podLabels": {"team": "search"},
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
                "stepResources": {"limits": {"memory": "4Gi"}},
            }},
        });
        let made = MadeStep {
            step: "plan",
            run: FIRST_RUN,
            give_up: None,
            checked: Checked {
                service: serde_json::from_value(service).unwrap(),
                others: Vec::new(),
            },
        };
        let made = json!(step(&job(json!({})), &made, &options()));
        assert_eq!(
            made["spec"]["podFailurePolicy"],
            pods::failure_policy(),
            "an eviction is no failure"
        );
        let template = &made["spec"]["template"];
        let pod = &template["spec"];
        assert_eq!(pod["serviceAccountName"], "reader");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!(pod["nodeSelector"], json!({"pool": "gpu"}));
        assert_eq!(pod["tolerations"][0]["key"], "gpu");
        let resources = json!({"limits": {"memory": "4Gi"}});
        assert_eq!(pod["containers"][0]["resources"], resources, "and no GPU");
        assert_eq!(template["metadata"]["labels"]["team"], "search");
        assert_eq!(template["metadata"]["labels"][JOB_LABEL], "job");
    }

    #[test]
    fn nobody_reaches_the_pods_of_steps_and_they_reach_what_workers_do() {
        let job = job(json!({}));
        let made = json!(network_policy(&job, &options()));
        let spec = &made["spec"];
        assert_eq!(spec.get("ingress"), None, "nobody is let in");
        assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(spec["egress"], egress_rules(&options()));
        let selected = &spec["podSelector"]["matchLabels"];
        let labels = json!(labels("notify", JOB_LABEL, "job"));
        assert_eq!(selected[JOB_LABEL], labels[JOB_LABEL]);
        assert_eq!(made["metadata"]["ownerReferences"][0]["name"], "job");
    }

    #[test]
    fn each_step_has_the_secrets_that_it_needs_and_no_others() {
        let job = job(json!({
            "output": {"uri": "s3://bucket/out", "postgres": {
                "secretRef": {"name": "db"}, "table": "texts",
            }},
            "notify": {"url": "https://example.com", "secretRef": {"name": "hook"}},
        }));
        let of = |step| secrets(&job, step).into_iter().collect::<Vec<_>>();
        assert_eq!(of("plan"), ["db", "store"]);
        assert_eq!(of("finish"), ["db", "hook", "store"]);
        let mut shared = job.clone();
        shared.spec.credentials = Some(millrace_crds::SecretRef { name: "db".into() });
        // A volume can be there only once.
        assert_eq!(
            secrets(&shared, "plan").into_iter().collect::<Vec<_>>(),
            ["db"]
        );
    }
}
