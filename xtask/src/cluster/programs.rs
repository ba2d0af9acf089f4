//! The programs of a node, each with its arguments.

use std::path::{Path, PathBuf};

use super::names::{Cluster, NODE, NODE_IP, POD_CIDR, SERVICE_CIDR};

/// One of them.
pub struct Program {
    /// Its name, also that of its log.
    pub name: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What it is started with.
    pub arguments: Vec<String>,
}

/// Names of all of them. A node that lacks one does not run.
pub const ALL: [&str; 8] = [
    "containerd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
];

/// Where plugins of an older kind would lie. The default is a folder of the machine.
pub const VOLUME_PLUGINS: &str = "/var/lib/kubelet/volume-plugins";

/// What the others need: containers, the store, and the API server, which waits for the store.
pub fn first(cluster: &Cluster) -> [Program; 3] {
    [containerd(cluster), etcd(cluster), apiserver(cluster)]
}

/// What answers as an API server, without a node.
pub fn control_plane(cluster: &Cluster) -> [Program; 2] {
    [etcd(cluster), apiserver(cluster)]
}

/// What needs the API server. Started before it answers, they would wait ever longer between tries.
pub fn then(cluster: &Cluster) -> [Program; 5] {
    [
        kubelet(cluster),
        controller_manager(cluster),
        scheduler(cluster),
        proxy(cluster),
        coredns(cluster),
    ]
}

/// A program built for clusters.
fn built(cluster: &Cluster, name: &'static str, arguments: &[String]) -> Program {
    Program {
        name,
        path: cluster.bin().join(name),
        arguments: arguments.to_vec(),
    }
}

fn option(name: &str, value: impl AsRef<Path>) -> String {
    format!("--{name}={}", value.as_ref().display())
}

fn containerd(cluster: &Cluster) -> Program {
    Program {
        name: "containerd",
        path: "containerd".into(),
        arguments: vec![option("config", cluster.path("containerd.toml"))],
    }
}

fn etcd(cluster: &Cluster) -> Program {
    let listening = cluster.listening();
    let clients = format!("http://127.0.0.1:{}", listening.etcd_port);
    let peers = format!("http://127.0.0.1:{}", listening.etcd_peer_port);
    let arguments = [
        option("data-dir", cluster.path("etcd")),
        // A cluster does not outlive a crash of the machine, so its store need not either.
        option("unsafe-no-fsync", "true"),
        option("listen-client-urls", &clients),
        option("advertise-client-urls", &clients),
        option("listen-peer-urls", &peers),
        option("log-level", "warn"),
    ];
    built(cluster, "etcd", &arguments)
}

fn apiserver(cluster: &Cluster) -> Program {
    let pki = cluster.path("pki");
    let listening = cluster.listening();
    let arguments = [
        option(
            "etcd-servers",
            format!("http://127.0.0.1:{}", listening.etcd_port),
        ),
        option("bind-address", listening.address),
        option("secure-port", listening.api_port.to_string()),
        option("advertise-address", NODE_IP),
        option("tls-cert-file", pki.join("apiserver.crt")),
        option("tls-private-key-file", pki.join("apiserver.key")),
        option("client-ca-file", pki.join("ca.crt")),
        option("token-auth-file", pki.join("tokens.csv")),
        option("authorization-mode", "Node,RBAC"),
        option("enable-admission-plugins", "NodeRestriction"),
        option("service-account-issuer", "https://kubernetes.default.svc"),
        option(
            "service-account-signing-key-file",
            pki.join("service-accounts.key"),
        ),
        option("service-account-key-file", pki.join("service-accounts.pub")),
        option("service-cluster-ip-range", SERVICE_CIDR),
        option("allow-privileged", "true"),
        // The node's name means nothing to the API server's DNS.
        option("kubelet-preferred-address-types", "InternalIP"),
        option(
            "kubelet-client-certificate",
            pki.join("apiserver-to-kubelet.crt"),
        ),
        option("kubelet-client-key", pki.join("apiserver-to-kubelet.key")),
    ];
    built(cluster, "kube-apiserver", &arguments)
}

fn kubelet(cluster: &Cluster) -> Program {
    let arguments = [
        option("kubeconfig", cluster.path("kubelet.kubeconfig")),
        option("config", cluster.path("kubelet.yaml")),
        option("hostname-override", NODE),
        option("node-ip", NODE_IP),
        option("v", "2"),
    ];
    built(cluster, "kubelet", &arguments)
}

fn controller_manager(cluster: &Cluster) -> Program {
    let kubeconfig = cluster.path("controller-manager.kubeconfig");
    let pki = cluster.path("pki");
    let arguments = [
        option("kubeconfig", &kubeconfig),
        option("authentication-kubeconfig", &kubeconfig),
        option("authorization-kubeconfig", &kubeconfig),
        option(
            "service-account-private-key-file",
            pki.join("service-accounts.key"),
        ),
        option("root-ca-file", pki.join("ca.crt")),
        option("use-service-account-credentials", "true"),
        // Nobody shares this API server, and the default makes a start four seconds longer.
        option("kube-api-qps", "500"),
        option("kube-api-burst", "500"),
        option("flex-volume-plugin-dir", VOLUME_PLUGINS),
        option("leader-elect", "false"),
    ];
    built(cluster, "kube-controller-manager", &arguments)
}

fn scheduler(cluster: &Cluster) -> Program {
    let kubeconfig = cluster.path("scheduler.kubeconfig");
    let arguments = [
        option("kubeconfig", &kubeconfig),
        option("authentication-kubeconfig", &kubeconfig),
        option("authorization-kubeconfig", &kubeconfig),
        option("leader-elect", "false"),
    ];
    built(cluster, "kube-scheduler", &arguments)
}

fn proxy(cluster: &Cluster) -> Program {
    let arguments = [
        option("kubeconfig", cluster.path("proxy.kubeconfig")),
        option("proxy-mode", "iptables"),
        option("cluster-cidr", POD_CIDR),
        option("hostname-override", NODE),
        // Connection tracking is the machine's to size.
        option("conntrack-max-per-core", "0"),
        option("conntrack-tcp-timeout-established", "0"),
        option("conntrack-tcp-timeout-close-wait", "0"),
    ];
    built(cluster, "kube-proxy", &arguments)
}

fn coredns(cluster: &Cluster) -> Program {
    let arguments = [
        "-conf".to_owned(),
        cluster.path("Corefile").display().to_string(),
    ];
    built(cluster, "coredns", &arguments)
}
