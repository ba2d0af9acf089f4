//! The files that tell the programs of a node how to run.

use std::fs;

use anyhow::Result;

use super::images::PAUSE;
use super::names::{Cluster, NODE_IP, POD_CIDR};
use super::programs::VOLUME_PLUGINS;

/// Writes them all.
pub fn write(cluster: &Cluster) -> Result<()> {
    fs::write(cluster.path("containerd.toml"), containerd(cluster))?;
    fs::write(cluster.path("cni/10-pods.conflist"), pod_network())?;
    fs::write(cluster.path("kubelet.yaml"), kubelet(cluster))?;
    fs::write(cluster.path("Corefile"), dns(cluster))?;
    // What pods inherit that do not use the cluster's DNS.
    fs::write(
        cluster.path("resolv.conf"),
        format!("nameserver {NODE_IP}\n"),
    )?;
    Ok(())
}

fn containerd(cluster: &Cluster) -> String {
    let folder = cluster.folder().display();
    // Without restrict_oom_score_adj it lowers scores, which takes a capability that containers lack.
    format!(
        r#"version = 2
root = "{folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"#,
        socket = cluster.containerd_socket().display(),
    )
}

/// Every pod has a link of its own to the node, so that what one pod sends another through a service
/// passes the node's address translation both ways.
fn pod_network() -> String {
    let network = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_CIDR}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    format!("{network:#}\n")
}

fn kubelet(cluster: &Cluster) -> String {
    let (folder, label) = (cluster.folder().display(), cluster.label());
    let socket = cluster.containerd_socket();
    let socket = socket.display();
    // A machine's own limits stay out of the way: swap, older cgroups, a disk that is nearly full.
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\n\
         kind: KubeletConfiguration\n\
         containerRuntimeEndpoint: 'unix://{socket}'\n\
         cgroupDriver: cgroupfs\n\
         cgroupRoot: /{label}\n\
         failCgroupV1: false\n\
         failSwapOn: false\n\
         oomScoreAdj: 0\n\
         authentication:\n\
         \x20 anonymous: {{enabled: false}}\n\
         \x20 webhook: {{enabled: true}}\n\
         \x20 x509: {{clientCAFile: '{folder}/pki/ca.crt'}}\n\
         authorization: {{mode: AlwaysAllow}}\n\
         clusterDNS: ['{NODE_IP}']\n\
         clusterDomain: cluster.local\n\
         resolvConf: '{folder}/resolv.conf'\n\
         volumePluginDir: {VOLUME_PLUGINS}\n\
         evictionHard: {{memory.available: 100Mi, nodefs.available: 2%, imagefs.available: 2%}}\n\
         imageGCHighThresholdPercent: 100\n"
    )
}

/// Names of services are answered; every other name does not exist, at once.
fn dns(cluster: &Cluster) -> String {
    format!(
        "cluster.local:53 {{\n\
         \x20 bind {NODE_IP}\n\
         \x20 kubernetes cluster.local {{\n\
         \x20   kubeconfig {}/coredns.kubeconfig millrace\n\
         \x20 }}\n\
         }}\n\
         .:53 {{\n\
         \x20 bind {NODE_IP}\n\
         \x20 template ANY ANY . {{\n\
         \x20   rcode NXDOMAIN\n\
         \x20 }}\n\
         }}\n",
        cluster.folder().display()
    )
}
