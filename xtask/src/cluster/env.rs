//! What users and tests need to know about a cluster: as lines for a shell, or as JSON.

use std::path::PathBuf;
use std::process::Command;

use serde::Serialize;

use super::names::Cluster;

/// Where a cluster is reached.
#[derive(Serialize)]
pub struct Environment {
    name: String,
    /// Credentials of the administrator.
    kubeconfig: PathBuf,
    /// The network namespace in which the API server, services and pods are reached.
    netns: PathBuf,
    /// The folder of kubectl and helm.
    bin: PathBuf,
    /// The cluster's own folder; logs are in `log/`.
    folder: PathBuf,
}

impl Environment {
    /// That of a cluster, whether it runs or not.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            name: cluster.name().to_owned(),
            kubeconfig: cluster.kubeconfig(),
            netns: cluster.netns(),
            bin: cluster.bin().to_owned(),
            folder: cluster.folder().to_owned(),
        }
    }

    /// A program of the cluster's own folder, or of the machine, inside the cluster's network.
    pub fn inside(&self, program: &str) -> Command {
        let own = self.bin.join(program);
        let program = if own.exists() { own } else { program.into() };
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns.display()))
            .arg(program)
            .env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Lines that a shell evaluates.
    pub fn shell(&self) -> String {
        let Self {
            kubeconfig,
            netns,
            bin,
            ..
        } = self;
        format!(
            "export KUBECONFIG={}\n\
             export PATH={}:\"$PATH\"\n\
             millrace_in() {{ nsenter --net={} \"$@\"; }}\n",
            quoted(kubeconfig),
            quoted(bin),
            quoted(netns)
        )
    }
}

/// A path as one word of a shell.
fn quoted(path: &std::path::Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            name: "dev".to_owned(),
            kubeconfig: "/it's here/admin.kubeconfig".into(),
            netns: "/run/netns/millrace-dev".into(),
            bin: "/cache/bin".into(),
            folder: "/cache/clusters/dev".into(),
        }
    }

    #[test]
    fn a_shell_gets_back_the_paths_as_they_are() {
        let script = environment().shell() + "echo \"$KUBECONFIG\"; echo \"${PATH%%:*}\"\n";
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed, "/it's here/admin.kubeconfig\n/cache/bin\n");
    }

    #[test]
    fn json_names_every_place() {
        let json = serde_json::to_value(environment()).unwrap();
        assert_eq!(json["netns"], "/run/netns/millrace-dev");
        assert_eq!(json["bin"], "/cache/bin");
        assert_eq!(json["folder"], "/cache/clusters/dev");
        assert_eq!(json["name"], "dev");
    }
}
