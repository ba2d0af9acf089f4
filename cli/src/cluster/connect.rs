//! Finds the cluster that a person means, and speaks to it.

use std::error::Error;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::explain;
use crate::invocation::Invocation;

/// How long a server that does not answer is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Who patches and applies.
pub const FIELD_MANAGER: &str = "kubectl-millrace";

/// Which cluster, and where in it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Namespace; by default that of the kubeconfig's context.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig; by default the current one.
    #[arg(long)]
    context: Option<String>,
    /// Kubeconfig file; by default those of KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
}

/// A cluster that was found. Nothing was asked of it yet.
#[derive(Clone)]
pub struct Connection {
    /// Speaks to the API server.
    pub client: Client,
    /// The namespace that is meant.
    pub namespace: String,
    /// The API server's address.
    pub server: String,
    /// How to call this program for the same cluster and namespace again.
    pub invocation: Invocation,
    args: ClusterArgs,
}

impl ClusterArgs {
    /// Finds the cluster.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let mut config = self
            .config()
            .await
            .map_err(|error| anyhow!(unfound(&error)))?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let server = config.cluster_url.to_string();
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client =
            Client::try_from(config).map_err(|error| explain::error(error, &server, "connect"))?;
        Ok(Connection {
            client,
            namespace,
            server: server.trim_end_matches('/').to_owned(),
            invocation: Invocation::with_flags(self.flags()),
            args: self.clone(),
        })
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let Self {
            namespace: _,
            context,
            kubeconfig,
        } = self;
        let options = KubeConfigOptions {
            context: context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match (kubeconfig, context) {
            (Some(path), _) => {
                Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await?,
            // Without a kubeconfig, the account of the pod that this may run in.
            (None, None) => Config::infer().await?,
        };
        Ok(config)
    }

    /// These arguments as a person would type them.
    fn flags(&self) -> String {
        let Self {
            namespace,
            context,
            kubeconfig,
        } = self;
        let kubeconfig = kubeconfig.as_deref().map(Path::to_string_lossy);
        let flags = [
            ("-n", namespace.as_deref()),
            ("--context", context.as_deref()),
            ("--kubeconfig", kubeconfig.as_deref()),
        ];
        let given = flags.into_iter().filter_map(|(flag, value)| {
            let value = value?;
            Some(format!("{flag} {value}"))
        });
        given.collect::<Vec<_>>().join(" ")
    }
}

/// Why there is no cluster, and what to do. Only what stands on top of an error of the kubeconfig is said: it
/// repeats what is below. That this program runs in no pod goes without saying.
fn unfound(error: &anyhow::Error) -> String {
    let remedy = "name one with --kubeconfig and --context, or set KUBECONFIG";
    let inferred = error.downcast_ref::<InferConfigError>();
    let error = inferred.and_then(Error::source).unwrap_or(error.as_ref());
    match error.downcast_ref::<KubeconfigError>() {
        Some(KubeconfigError::ReadConfig(why, path)) if why.kind() == ErrorKind::NotFound => {
            format!(
                "no cluster can be found: there is no {}; {remedy}",
                path.display()
            )
        }
        _ => format!("no cluster can be found: {remedy} ({error})"),
    }
}

impl Connection {
    /// Says what a call failed with, and what to do.
    pub fn explain(&self, error: kube::Error, doing: &str) -> anyhow::Error {
        explain::error(error, &self.server, doing)
    }

    /// The same cluster, another namespace.
    pub fn within(&self, namespace: &str) -> Self {
        if self.namespace == namespace {
            return self.clone();
        }
        let args = ClusterArgs {
            namespace: Some(namespace.to_owned()),
            ..self.args.clone()
        };
        Self {
            namespace: namespace.to_owned(),
            invocation: Invocation::with_flags(args.flags()),
            args,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_repeated_as_they_were_given() {
        let args = ClusterArgs {
            namespace: Some("tenant".to_owned()),
            context: None,
            kubeconfig: Some("/tmp/k".into()),
        };
        assert_eq!(args.flags(), "-n tenant --kubeconfig /tmp/k");
        assert_eq!(ClusterArgs::default().flags(), "");
    }

    #[tokio::test]
    async fn a_context_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("config");
        let text = "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: []\n";
        std::fs::write(&kubeconfig, text).unwrap();
        let args = ClusterArgs {
            namespace: None,
            context: Some("nowhere".to_owned()),
            kubeconfig: Some(kubeconfig),
        };
        let error = args.connect().await.err().expect("no such context");
        let said = format!("{error:#}");
        assert!(
            said.contains("--context") && said.contains("nowhere"),
            "{said}"
        );
    }
}
