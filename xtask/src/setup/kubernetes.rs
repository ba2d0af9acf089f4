//! Kubernetes and what it needs, built from pinned Go modules. The checksum database of Go vouches
//! for what is fetched.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::process::{heading, output, run};

/// The folder of what is built, below the cache; the programs are in `bin/`.
pub const KUBERNETES: &str = "kubernetes-v1.34.4";

/// Programs that are built from one module.
struct Module {
    path: &'static str,
    version: &'static str,
    /// Names of the programs, and their packages.
    programs: &'static [(&'static str, &'static str)],
}

const MODULES: [Module; 4] = [
    Module {
        path: "k8s.io/kubernetes",
        version: "v1.34.4",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            (
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
    },
    Module {
        path: "go.etcd.io/etcd/server/v3",
        version: "v3.6.16",
        programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
    },
    Module {
        path: "github.com/coredns/coredns",
        version: "v1.15.0",
        programs: &[("coredns", "github.com/coredns/coredns")],
    },
    Module {
        path: "helm.sh/helm/v4",
        version: "v4.3.1",
        programs: &[("helm", "helm.sh/helm/v4/cmd/helm")],
    },
];

/// Builds everything, once. A build that was stopped goes on where Go's own cache left it.
pub fn kubernetes(cache: &Cache) -> Result<()> {
    cache.folder(KUBERNETES, &stamp(), |making| {
        let started = Instant::now();
        for module in &MODULES {
            module.build(making)?;
        }
        println!("    built in {} s", started.elapsed().as_secs());
        Ok(())
    })?;
    Ok(())
}

/// What is built, and how.
fn stamp() -> String {
    let pins = MODULES.iter().map(|module| {
        let Module {
            path,
            version,
            programs,
        } = module;
        format!("{path} {version} {programs:?} {}\n", module.linker_flags())
    });
    pins.collect()
}

impl Module {
    /// Builds the programs into `bin/` of `folder`.
    ///
    /// Each module has a project of its own around it, so that their dependencies never meet.
    fn build(&self, folder: &Path) -> Result<()> {
        let Self {
            path,
            version,
            programs,
        } = self;
        heading(&format!("fetching {path} {version}"));
        let project = folder.join("project");
        fs::create_dir_all(&project)?;
        let replaced = self.replaced(&project)?;
        fs::write(
            project.join("go.mod"),
            format!("module project\n\ngo 1.26.0\n\nrequire {path} {version}\n\n{replaced}"),
        )?;
        let imports = programs
            .iter()
            .map(|(_, package)| format!("import _ \"{package}\"\n"));
        fs::write(
            project.join("tools.go"),
            format!(
                "//go:build tools\n\npackage tools\n\n{}",
                imports.collect::<String>()
            ),
        )?;
        run(go(&project)?.args(["mod", "tidy"]))?;
        for (name, package) in *programs {
            heading(&format!("building {name}"));
            run(go(&project)?
                .args(["build", "-trimpath", "-ldflags", &self.linker_flags(), "-o"])
                .arg(folder.join("bin").join(name))
                .arg(package))?;
        }
        fs::remove_dir_all(project).context("a project of Go cannot be removed")
    }

    /// Kubernetes asks for parts of itself at no version, which only its own repository can answer.
    /// The same parts are published under a version that follows its own.
    fn replaced(&self, project: &Path) -> Result<String> {
        if self.path != "k8s.io/kubernetes" {
            return Ok(String::new());
        }
        let wanted = format!("{}@{}", self.path, self.version);
        let answer = output(go(project)?.args(["mod", "download", "-json", &wanted]))?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let file = answer["GoMod"].as_str().context("go names no go.mod")?;
        Ok(replacements(&fs::read_to_string(file)?, self.version))
    }

    fn linker_flags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        if self.path == "k8s.io/kubernetes" {
            let values = [
                ("gitVersion", self.version),
                (
                    "gitMajor",
                    self.version
                        .trim_start_matches('v')
                        .split('.')
                        .next()
                        .unwrap_or(""),
                ),
                ("gitMinor", self.version.split('.').nth(1).unwrap_or("")),
                ("gitTreeState", "clean"),
            ];
            for (name, value) in values {
                flags += &format!(" -X k8s.io/component-base/version.{name}={value}");
            }
        }
        flags
    }
}

/// A call of go in a project, which no setting of a workspace around the cache reaches.
fn go(project: &Path) -> Result<Command> {
    let mut command = Command::new(crate::needs::go().context("go is missing")?);
    command
        .current_dir(project)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off");
    Ok(command)
}

/// Lines of `go.mod` that give every module that is required at no version the published one.
fn replacements(go_mod: &str, version: &str) -> String {
    // v1.34.4 is published as v0.34.4.
    let published = version.replacen("v1.", "v0.", 1);
    let unversioned = go_mod.lines().filter_map(|line| {
        let mut words = line
            .trim()
            .trim_start_matches("require ")
            .split_whitespace();
        let (path, version) = (words.next()?, words.next()?);
        (path.starts_with("k8s.io/") && version == "v0.0.0").then_some(path)
    });
    unversioned
        .map(|path| format!("replace {path} => {path} {published}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_without_a_version_are_taken_from_where_they_are_published() {
        let go_mod = "module k8s.io/kubernetes\n\nrequire (\n\tk8s.io/api v0.0.0\n\
            \tk8s.io/klog/v2 v2.130.1\n\tk8s.io/kubelet v0.0.0 // indirect\n)\n\
            replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let expected = "replace k8s.io/api => k8s.io/api v0.34.4\n\
            replace k8s.io/kubelet => k8s.io/kubelet v0.34.4\n";
        assert_eq!(replacements(go_mod, "v1.34.4"), expected);
    }

    #[test]
    fn the_folder_is_named_after_the_version_of_kubernetes() {
        assert!(KUBERNETES.ends_with(MODULES[0].version));
    }

    #[test]
    fn kubernetes_knows_its_version() {
        let flags = MODULES[0].linker_flags();
        assert!(flags.contains("version.gitMajor=1 "), "{flags}");
        assert!(flags.contains("version.gitMinor=34 "), "{flags}");
    }
}
