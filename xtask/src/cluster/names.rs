//! What a cluster is called, and where its things lie. All of it follows from its name, so that
//! clusters of different names never meet.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{cache, setup};

/// The name of a cluster when the user gives none.
pub const DEFAULT_NAME: &str = "dev";
/// The one node, as Kubernetes calls it, and the device that carries its address.
pub const NODE: &str = "node0";
/// The node's address, on which DNS answers as well. Every cluster has a network of its own, so all
/// of them use the same addresses.
pub const NODE_IP: &str = "10.99.0.1";
/// Addresses of pods.
pub const POD_CIDR: &str = "10.244.0.0/24";
/// Addresses of services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The first address of [`SERVICE_CIDR`], at which pods find the API server.
pub const API_SERVICE_IP: &str = "10.96.0.1";

/// Where etcd and the API server listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Address of the API server.
    pub address: &'static str,
    /// Port of the API server.
    pub api_port: u16,
    /// Port of etcd.
    pub etcd_port: u16,
    /// Port at which etcd waits for others of its kind, of which there are none.
    pub etcd_peer_port: u16,
}

impl Listening {
    /// In a network of the cluster's own, in which pods reach the API server too.
    const IN_NODE: Self = Self {
        address: "0.0.0.0",
        api_port: 6443,
        etcd_port: 2379,
        etcd_peer_port: 2380,
    };

    /// On loopback, at ports that are free now.
    pub fn on_loopback() -> Result<Self> {
        // All are held until the last is known, so that they differ.
        let mut held = Vec::new();
        let mut port = || {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            Ok::<_, std::io::Error>(port)
        };
        Ok(Self {
            address: "127.0.0.1",
            api_port: port()?,
            etcd_port: port()?,
            etcd_peer_port: port()?,
        })
    }
}

/// A longer name would make paths of sockets too long for the kernel.
const NAME_LENGTH_MAX: usize = 20;

/// A cluster by its name, whether it runs or not.
pub struct Cluster {
    name: String,
    folder: PathBuf,
    bin: PathBuf,
    listening: Listening,
}

impl Cluster {
    /// The cluster of this name. Its folder need not be there.
    pub fn named(name: &str) -> Result<Self> {
        ensure!(
            is_name(name),
            "{name:?} is no name for a cluster: it needs 1 to {NAME_LENGTH_MAX} of a-z, 0-9 and -"
        );
        let root = cache::root()?;
        Ok(Self {
            name: name.to_owned(),
            folder: root.join("clusters").join(name),
            bin: root.join(setup::KUBERNETES).join("bin"),
            listening: Listening::IN_NODE,
        })
    }

    /// A control plane alone, whose things lie in `folder`.
    pub fn control_plane(folder: PathBuf, listening: Listening) -> Result<Self> {
        Ok(Self {
            name: "control-plane".to_owned(),
            folder,
            bin: cache::root()?.join(setup::KUBERNETES).join("bin"),
            listening,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in its folder.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.join(relative)
    }

    /// Where its etcd and its API server listen.
    pub fn listening(&self) -> Listening {
        self.listening
    }

    /// The folder of kubectl, helm and the programs of the cluster itself.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// What its network namespace and its cgroups are called.
    pub fn label(&self) -> String {
        format!("millrace-{}", self.name)
    }

    /// Its network namespace.
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(self.label())
    }

    /// The credentials of its administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("admin.kubeconfig")
    }

    /// The socket of its containerd.
    pub fn containerd_socket(&self) -> PathBuf {
        self.path("run/containerd.sock")
    }

    /// What a program of the node writes.
    pub fn log(&self, program: &str) -> PathBuf {
        self.path("log").join(format!("{program}.log"))
    }

    /// Keeps other runs off this cluster until dropped.
    pub fn lock(&self) -> Result<File> {
        let path = self.folder.with_extension("lock");
        fs::create_dir_all(path.parent().expect("it lies in a folder"))?;
        let lock =
            File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        if lock.try_lock().is_err() {
            println!("waiting for another cargo xtask to finish with this cluster");
            lock.lock()?;
        }
        Ok(lock)
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_in_paths_namespaces_and_shell_lines() {
        for good in ["dev", "e2e-1", "a"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            "Dev",
            "a b",
            "../x",
            "a.b",
            "a-name-that-is-far-too-long",
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_control_plane_alone_takes_ports_that_differ() {
        let Listening {
            address: _,
            api_port,
            etcd_port,
            etcd_peer_port,
        } = Listening::on_loopback().unwrap();
        let ports = std::collections::BTreeSet::from([api_port, etcd_port, etcd_peer_port]);
        assert_eq!(ports.len(), 3);
    }

    #[test]
    fn two_clusters_share_no_path_but_the_programs() {
        let (one, other) = (
            Cluster::named("one").unwrap(),
            Cluster::named("other").unwrap(),
        );
        assert_ne!(one.folder(), other.folder());
        assert_ne!(one.netns(), other.netns());
        assert_eq!(one.bin(), other.bin());
    }
}
