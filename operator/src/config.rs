//! The command line. Every flag has an environment variable.

use clap::Parser;

use crate::pod_network::{EgressRules, Peers};

/// Reconciles BatchJobs and InferenceServices.
#[derive(Debug, Clone, Parser)]
#[command(name = "millrace-operator", version)]
pub struct Options {
    /// Image with the worker.
    #[arg(long, env = "MILLRACE_WORKER_IMAGE")]
    pub worker_image: String,

    /// Image with the inference-server.
    #[arg(long, env = "MILLRACE_SERVER_IMAGE")]
    pub server_image: String,

    /// When images are pulled: Always, IfNotPresent or Never.
    #[arg(
        long,
        env = "MILLRACE_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent"
    )]
    pub image_pull_policy: String,

    /// Redis that holds the leases, as the operator and its pods reach it.
    #[arg(long, env = "MILLRACE_LEASES_REDIS_URL")]
    pub redis_url: String,

    /// Redis in which services keep answers, as their pods reach it.
    #[arg(long, env = "MILLRACE_CACHE_REDIS_URL", hide_env_values = true)]
    pub cache_redis_url: Option<String>,

    /// Gives each namespace a user of its own on the Redis of the leases, which reaches the keys of its
    /// namespace alone. The URL must be that of a user with a password who may make users.
    #[arg(long, env = "MILLRACE_LEASES_NAMESPACE_USERS")]
    pub leases_namespace_users: bool,

    /// The same for the Redis of the answers.
    #[arg(
        long,
        env = "MILLRACE_CACHE_NAMESPACE_USERS",
        requires = "cache_redis_url"
    )]
    pub cache_namespace_users: bool,

    /// Milliseconds that a lease of a shard holds without renewal.
    #[arg(long, env = "MILLRACE_LEASE_TTL_MS", default_value_t = 30_000)]
    pub lease_ttl_ms: u64,

    /// Lets S3 endpoints and services that give out credentials be at link-local addresses, as
    /// workload identity needs in some clouds.
    #[arg(long, env = "MILLRACE_ALLOW_LINK_LOCAL")]
    pub allow_link_local: bool,

    /// Lets S3 endpoints, APIs and receivers of events be at loopback addresses of the pods that ask
    /// them: sidecars that are injected into each.
    #[arg(long, env = "MILLRACE_ALLOW_LOOPBACK")]
    pub allow_loopback: bool,

    /// Peers of a NetworkPolicy, as a JSON list, that reach the pods of services beside those of their
    /// own namespace: whoever scrapes them or asks them from elsewhere.
    #[arg(long, env = "MILLRACE_POD_INGRESS_FROM", default_value = "[]")]
    pub pod_ingress_from: Peers,

    /// Egress rules of a NetworkPolicy, as a JSON list: all that the pods of services and jobs reach.
    /// By default everything but link-local addresses and other metadata services of machines.
    #[arg(long, env = "MILLRACE_POD_EGRESS")]
    pub pod_egress: Option<EgressRules>,

    /// Namespace that is watched; all of them by default.
    #[arg(long, env = "MILLRACE_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,

    /// Namespace of the operator itself, for its election.
    #[arg(long, env = "MILLRACE_NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Name of the operator's own Deployment, with which the Lease of the election goes.
    #[arg(long, env = "MILLRACE_DEPLOYMENT")]
    pub deployment: Option<String>,

    /// Name by which this process stands for election.
    #[arg(long, env = "HOSTNAME", default_value = "millrace-operator")]
    pub identity: String,

    /// Address for /health, /ready, /metrics and the backlogs of services.
    #[arg(long, env = "MILLRACE_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: String,

    /// Address at which whoever may get a BatchJob is told how far it is, such as 0.0.0.0:8082; nobody is by
    /// default.
    #[arg(long, env = "MILLRACE_API_LISTEN")]
    pub api_listen: Option<String>,

    /// The variables of this process by which its pods trace to the same collector.
    #[arg(skip = millrace_telemetry::handed_on())]
    pub telemetry: Vec<(String, String)>,
}

#[cfg(test)]
impl Options {
    /// Those of a test: `more` names the Redis of the leases, at least.
    pub fn of_tests(more: &[&str]) -> Self {
        let needed = ["operator", "--worker-image=w", "--server-image=s"];
        Self::parse_from([&needed, more].concat())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_has_an_environment_variable() {
        let command = Options::command();
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            let is_builtin = ["help", "version"].contains(&long);
            assert!(is_builtin || arg.get_env().is_some(), "--{long}");
        }
    }
}
