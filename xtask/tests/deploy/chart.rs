//! What the chart makes of several sets of values, as Helm renders it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Map, Value, json};

use crate::files;
use crate::programs::of_kubernetes;

/// Everything that is off by default, on.
pub const EVERYTHING: &[&str] = &[
    "cache.enabled=true",
    "images.pullSecrets[0].name=registry",
    "leases.redis.storage=1Gi",
    "monitoring.alerts.enabled=true",
    "monitoring.dashboards.enabled=true",
    "monitoring.podMonitor.enabled=true",
    "monitoring.serviceMonitor.enabled=true",
    "networkPolicy.pods.from[0].namespaceSelector.matchLabels.team=monitoring",
    "operator.extraEnv[0].name=MILLRACE_LOG",
    "operator.extraEnv[0].value=debug",
    "operator.nodeSelector.pool=system",
    "operator.otlpEndpoint=http://collector.observability.svc:4318",
    "operator.podAnnotations.team=search",
    "operator.podLabels.team=search",
    "operator.priorityClassName=important",
    "operator.replicas=2",
    "operator.tolerations[0].key=system",
    "operator.topologySpreadConstraints[0].maxSkew=1",
    "operator.topologySpreadConstraints[0].topologyKey=kubernetes.io/hostname",
    "operator.topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
];

/// Redis servers of one's own, by Secret and by URL.
pub const EXTERNAL: &[&str] = &[
    "cache.enabled=true",
    "cache.redis.url=rediss://user:password@cache.example.com:6390/0",
    "leases.redis.urlSecret.name=redis",
    "networkPolicy.apiServer.cidrs[0]=10.0.0.1/32",
];

/// One namespace, and nothing else in the cluster.
const NAMESPACED: &[&str] = &["watchNamespace=team", "crds.install=false"];

/// The operator's API, which needs a right over the whole cluster.
const API: &str = "api.enabled=true";

/// Sets that must hold what every install must.
fn sets() -> Vec<Vec<&'static str>> {
    let both = |a: &[&'static str], b: &[&'static str]| [a, b].concat();
    vec![
        Vec::new(),
        EVERYTHING.to_vec(),
        EXTERNAL.to_vec(),
        both(EVERYTHING, NAMESPACED),
        vec![API],
        both(&[API], NAMESPACED),
        vec!["networkPolicy.enabled=false", "rbac.aggregateToUsers=false"],
    ]
}

fn helm(program: &Path, command: &str, set: &[&str]) -> Output {
    let mut helm = Command::new(program);
    helm.args([command, "millrace"])
        .arg(files::path("charts/millrace"))
        .args(["--namespace", "system"]);
    for argument in set {
        match argument.starts_with("--") {
            true => helm.arg(argument),
            false => helm.args(["--set", argument]),
        };
    }
    helm.output().expect("helm runs")
}

pub fn render(program: &Path, set: &[&str]) -> Vec<Value> {
    let output = helm(program, "template", set);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{set:?}: {problem}");
    let text = String::from_utf8(output.stdout).expect("Helm prints UTF-8");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("Helm prints YAML");
    let objects: Vec<Value> = objects.into_iter().filter(|it| !it.is_null()).collect();
    assert!(
        objects.len() > 10,
        "{set:?} renders {} objects",
        objects.len()
    );
    objects
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().expect("an object has a kind")
}

pub fn named<'a>(objects: &'a [Value], kind_: &str, name: &str) -> Option<&'a Value> {
    let is_it = |it: &&Value| kind(it) == kind_ && it["metadata"]["name"] == name;
    objects.iter().find(is_it)
}

/// The pods that an object makes: their labels and what they run.
fn pods(objects: &[Value]) -> Vec<(&Value, &Value)> {
    let pod = |object: &'_ Value| match kind(object) {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => Some("/spec/template"),
        _ => None,
    };
    objects
        .iter()
        .filter_map(|object| {
            let template = object.pointer(pod(object)?).expect("a pod has a template");
            Some((&template["metadata"]["labels"], &template["spec"]))
        })
        .collect()
}

/// The containers of a pod, those that run before the others included.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|field| pod[field].as_array().into_iter().flatten())
}

pub fn variable<'a>(objects: &'a [Value], name: &str) -> Option<&'a Value> {
    let operator = named(objects, "Deployment", "millrace-operator").expect("an operator");
    let variables = &operator["spec"]["template"]["spec"]["containers"][0]["env"];
    let variables = variables.as_array().expect("the operator has variables");
    variables.iter().find(|it| it["name"] == name)
}

/// Whether `labels` has all of `wanted`.
fn carries(labels: &Value, wanted: &Map<String, Value>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

#[test]
fn every_pod_passes_the_restricted_standard() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    for set in sets() {
        let objects = render(&helm, &set);
        for (labels, pod) in pods(&objects) {
            let of_pod = &pod["securityContext"];
            assert_eq!(of_pod["runAsNonRoot"], true, "{labels}");
            assert_eq!(
                of_pod["seccompProfile"]["type"], "RuntimeDefault",
                "{labels}"
            );
            let is_operator = labels["app.kubernetes.io/component"] == "operator";
            assert_eq!(
                pod["automountServiceAccountToken"] == false,
                !is_operator,
                "{labels}"
            );
            assert!(containers(pod).count() > 0, "{labels}");
            for container in containers(pod) {
                let security = &container["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], true, "{labels}");
                assert_eq!(security["allowPrivilegeEscalation"], false, "{labels}");
                assert_eq!(
                    security["capabilities"],
                    json!({"drop": ["ALL"]}),
                    "{labels}"
                );
                assert!(
                    container["resources"]["limits"]["memory"].is_string(),
                    "{labels}"
                );
            }
        }
    }
}

#[test]
fn a_namespaced_install_makes_nothing_cluster_wide_but_crds() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    const OF_A_NAMESPACE: [&str; 14] = [
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "PodMonitor",
        "PrometheusRule",
        "Role",
        "RoleBinding",
        "Secret",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "StatefulSet",
    ];
    let wider = |set: &[&str]| -> Vec<String> {
        let set = [EVERYTHING, set].concat();
        let objects = render(&helm, &set);
        let kinds = objects.iter().map(kind);
        kinds
            .filter(|it| !OF_A_NAMESPACE.contains(it))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(wider(NAMESPACED), [""; 0]);
    let crds = wider(&["watchNamespace=team"]);
    assert!(!crds.is_empty() && crds.iter().all(|it| it == "CustomResourceDefinition"));
    assert!(wider(&[]).contains(&"ClusterRole".to_owned()));
}

#[test]
fn a_namespaced_install_has_the_same_rights_in_its_namespace_alone() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let (wide, narrow) = (render(&helm, &[]), render(&helm, NAMESPACED));
    let everywhere = named(&wide, "ClusterRole", "millrace").expect("rights everywhere");
    let here = named(&narrow, "Role", "millrace").expect("rights in the namespace");
    assert_eq!(everywhere["rules"], here["rules"]);
    let binding = named(&narrow, "RoleBinding", "millrace").expect("a binding");
    assert_eq!(here["metadata"]["namespace"], "team");
    assert_eq!(binding["metadata"]["namespace"], "team");
    assert_eq!(binding["subjects"][0]["namespace"], "system");
    let watched = variable(&narrow, "MILLRACE_WATCH_NAMESPACE").expect("the operator is told");
    assert_eq!(watched["value"], "team");
    assert!(variable(&wide, "MILLRACE_WATCH_NAMESPACE").is_none());
    let here = render(&helm, &[EVERYTHING, NAMESPACED].concat());
    let monitor = named(&here, "PodMonitor", "millrace-inference").expect("a monitor");
    let scraped = &monitor["spec"]["namespaceSelector"];
    assert_eq!(scraped, &json!({"matchNames": ["team"]}));
    let policy = named(&narrow, "NetworkPolicy", "millrace-leases").expect("a policy");
    let from = policy["spec"]["ingress"][0]["from"]
        .as_array()
        .expect("peers");
    let tenants = from.last().expect("the pods of jobs");
    let label = "/namespaceSelector/matchLabels/kubernetes.io~1metadata.name";
    assert_eq!(tenants.pointer(label), Some(&json!("team")));
}

#[test]
fn nobody_may_read_secrets() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    for set in sets() {
        let objects = render(&helm, &set);
        let roles = objects
            .iter()
            .filter(|it| ["Role", "ClusterRole"].contains(&kind(it)));
        let mut writes = false;
        for rule in roles.flat_map(|it| it["rules"].as_array().expect("a role has rules")) {
            let list = |field: &str| -> Vec<&str> {
                let words = rule[field].as_array().into_iter().flatten();
                words.map(|it| it.as_str().expect("a word")).collect()
            };
            for field in ["apiGroups", "resources", "verbs"] {
                assert!(!list(field).contains(&"*"), "{rule}");
            }
            if list("resources").contains(&"secrets") {
                assert_eq!(list("verbs"), ["create", "patch"], "{rule}");
                writes = true;
            }
        }
        assert!(
            writes,
            "the operator cannot tell its pods where the leases are"
        );
    }
}

#[test]
fn the_notes_name_commands_that_fit_the_release() {
    let Some(program) = of_kubernetes("helm") else {
        return;
    };
    let notes = |set: &[&str]| -> String {
        let output = helm(&program, "install", &[&["--dry-run=client"], set].concat());
        let printed = String::from_utf8(output.stdout).expect("Helm prints UTF-8");
        let notes = printed.split_once("\nNOTES:\n").expect("notes").1;
        notes.to_owned()
    };
    let usual = notes(&[]);
    assert!(usual.contains("deployment/millrace-operator"), "{usual}");
    assert!(usual.contains("watches all namespaces"), "{usual}");
    assert!(usual.contains("`leases.redis.storage`"), "{usual}");
    assert!(!usual.contains("networkPolicy.pods.from"), "{usual}");
    let here = notes(NAMESPACED);
    assert!(here.contains("kubectl -n team apply"), "{here}");
    assert!(here.contains("crds.install is false"), "{here}");
    let closed = notes(&["monitoring.podMonitor.enabled=true"]);
    assert!(closed.contains("`networkPolicy.pods.from`"), "{closed}");
}

#[test]
fn what_selects_pods_selects_pods_of_the_release() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    for set in sets() {
        let objects = render(&helm, &set);
        let pods = pods(&objects);
        let services = || objects.iter().filter(|it| kind(it) == "Service");
        for object in &objects {
            let selector = match kind(object) {
                "Service" => "/spec/selector",
                "NetworkPolicy" => "/spec/podSelector/matchLabels",
                "PodDisruptionBudget" | "ServiceMonitor" => "/spec/selector/matchLabels",
                _ => continue,
            };
            let wanted = object.pointer(selector).and_then(Value::as_object);
            let wanted = wanted.unwrap_or_else(|| panic!("{object} selects everything"));
            let found = match kind(object) {
                "ServiceMonitor" => services()
                    .filter(|it| carries(&it["metadata"]["labels"], wanted))
                    .count(),
                _ => pods
                    .iter()
                    .filter(|(labels, _)| carries(labels, wanted))
                    .count(),
            };
            let name = &object["metadata"]["name"];
            let expected = if name == "millrace-default-deny" {
                pods.len()
            } else {
                1
            };
            assert_eq!(found, expected, "{} {name}", kind(object));
        }
    }
}

#[test]
fn a_pod_reaches_only_what_it_needs() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let ports = |objects: &[Value], name: &str| -> Vec<i64> {
        let policy = named(objects, "NetworkPolicy", name).expect("a policy");
        let rules = policy["spec"]["egress"].as_array().into_iter().flatten();
        let ports = rules.flat_map(|it| it["ports"].as_array().expect("no rule is for all ports"));
        ports
            .map(|it| it["port"].as_i64().expect("a number"))
            .collect()
    };
    let usual = render(&helm, &[]);
    assert_eq!(
        ports(&usual, "millrace-operator"),
        [53, 53, 443, 6443, 6379]
    );
    assert_eq!(ports(&usual, "millrace-leases"), [0; 0]);
    assert_eq!(ports(&usual, "millrace-default-deny"), [0; 0]);
    let external = render(&helm, EXTERNAL);
    assert_eq!(
        ports(&external, "millrace-operator"),
        [53, 53, 443, 6443, 6379, 6390]
    );
    let everything = render(&helm, EVERYTHING);
    assert_eq!(ports(&everything, "millrace-cache"), [0; 0]);
    assert!(ports(&everything, "millrace-operator").contains(&4318));
    let closed = render(&helm, &["networkPolicy.operator.from=null"]);
    let policy = named(&closed, "NetworkPolicy", "millrace-operator").expect("a policy");
    assert!(
        policy["spec"].get("ingress").is_none(),
        "an empty list would let everybody in"
    );
}

#[test]
fn the_api_is_there_with_its_rights_and_its_way_in_only_where_it_is_asked_for() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let open = |objects: &[Value]| -> Vec<i64> {
        let policy = named(objects, "NetworkPolicy", "millrace-operator").expect("a policy");
        let rules = policy["spec"]["ingress"].as_array().into_iter().flatten();
        let ports = rules.map(|it| it["ports"][0]["port"].as_i64().expect("a number"));
        ports.collect()
    };
    const RIGHT: &str = "millrace-system-api";
    let usual = render(&helm, &[]);
    assert!(named(&usual, "Service", "millrace-api").is_none());
    assert!(named(&usual, "ClusterRoleBinding", RIGHT).is_none());
    assert!(variable(&usual, "MILLRACE_API_LISTEN").is_none());
    assert_eq!(open(&usual), [8080]);
    for set in [&[API][..], &[&[API], NAMESPACED].concat()] {
        let objects = render(&helm, set);
        let service = named(&objects, "Service", "millrace-api").expect("a Service");
        let target = &service["spec"]["ports"][0]["targetPort"];
        let operator = named(&objects, "Deployment", "millrace-operator").expect("an operator");
        let ports = &operator["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert!(
            ports
                .as_array()
                .unwrap()
                .iter()
                .any(|it| it["name"] == *target)
        );
        let listen = variable(&objects, "MILLRACE_API_LISTEN").expect("an address");
        assert_eq!(listen["value"], "0.0.0.0:8082");
        let right = named(&objects, "ClusterRoleBinding", RIGHT).expect("the right to ask");
        assert_eq!(right["roleRef"]["name"], "system:auth-delegator");
        assert_eq!(open(&objects), [8080, 8082]);
    }
    let closed = render(&helm, &[API, "networkPolicy.api.from=null"]);
    assert_eq!(open(&closed), [8080]);
}

#[test]
fn several_operators_have_a_budget_and_one_has_none() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let has_budget = |set: &[&str]| {
        let objects = render(&helm, set);
        named(&objects, "PodDisruptionBudget", "millrace-operator").is_some()
    };
    assert!(!has_budget(&[]));
    assert!(has_budget(&["operator.replicas=2"]));
    assert!(!has_budget(&[
        "operator.replicas=2",
        "operator.podDisruptionBudget.enabled=false"
    ]));
}

#[test]
fn a_value_that_nobody_reads_is_refused() {
    let Some(program) = of_kubernetes("helm") else {
        return;
    };
    for value in [
        "nonsense=1",
        "operator.replica=2",
        "leases.redis.uri=redis://redis",
        "monitoring.alerts.enable=true",
        "operator.resources.limit.memory=1Gi",
    ] {
        let output = helm(&program, "template", &[value]);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{value} is let through");
        assert!(
            problem.contains("additional properties"),
            "{value}: {problem}"
        );
    }
    let output = helm(&program, "template", &["operator.replicas=9"]);
    assert!(!output.status.success(), "nine operators are let through");
}

#[test]
fn the_chart_brings_dashboard_and_alerts_as_they_lie_in_its_files() {
    let Some(helm) = of_kubernetes("helm") else {
        return;
    };
    let objects = render(&helm, EVERYTHING);
    let dashboards = named(&objects, "ConfigMap", "millrace-dashboards").expect("dashboards");
    assert_eq!(dashboards["metadata"]["labels"]["grafana_dashboard"], "1");
    let dashboard = dashboards["data"]["millrace.json"]
        .as_str()
        .expect("a dashboard");
    assert_eq!(
        dashboard,
        files::text("charts/millrace/files/dashboards/millrace.json")
    );
    let rule = named(&objects, "PrometheusRule", "millrace").expect("alerts");
    assert_eq!(
        rule["spec"],
        files::yaml("charts/millrace/files/alerts.yaml")
    );
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    let Some(program) = of_kubernetes("helm") else {
        return;
    };
    for set in sets() {
        let mut lint = Command::new(&program);
        lint.args(["lint", "--strict"])
            .arg(files::path("charts/millrace"));
        for value in &set {
            lint.args(["--set", value]);
        }
        let output = lint.output().expect("helm runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{set:?}: {printed}");
    }
}
