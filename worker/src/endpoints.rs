//! The endpoints that a job and its services name, looked at before the job is planned: workers reach none that
//! may not be reached, and a job that asks one would be open for ever.

use crate::job::CheckedJob;
use crate::store::{GuardError, LinkLocal, Rules};

/// An endpoint that may not be reached.
#[derive(Debug, thiserror::Error)]
#[error("{field} cannot be used")]
pub struct EndpointError {
    /// Where it is named.
    pub field: String,
    /// What is wrong with it.
    pub source: GuardError,
}

/// Refuses a job that names an address which may not be reached, in whatever form it is written. A name is looked
/// at each time that it is resolved.
pub fn check(job: &CheckedJob, link_local: LinkLocal) -> Result<(), EndpointError> {
    check_by(job, Rules::from_env(link_local))
}

fn check_by(job: &CheckedJob, rules: Rules) -> Result<(), EndpointError> {
    let apis = job.remotes().map(|remote| {
        let service = &remote.service;
        let field = format!("spec.remote.baseUrl of the InferenceService {service:?}");
        (field, &remote.spec.base_url)
    });
    let receiver = job.notify.as_ref();
    let receiver = receiver.map(|to| ("spec.notify.url".to_owned(), &to.url));
    for (field, url) in apis.chain(receiver) {
        let permitted = rules.check(url);
        permitted.map_err(|source| EndpointError { field, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Loopback;
    use crate::work::testing::remote_job;

    /// As in a pod.
    const POD: Rules = Rules {
        link_local: LinkLocal::Blocked,
        loopback: Loopback::Blocked,
    };

    /// What is said of a job that asks an API at one host and tells a receiver at another.
    fn refusal(api: &str, receiver: &str, rules: Rules) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let api = json!({"baseUrl": format!("http://{api}/v1")});
        let notify = json!({"notify": {"url": format!("http://{receiver}/hook")}});
        let job = remote_job(folder.path(), api, notify);
        let refused = check_by(&job, rules).err();
        refused.map(|error| millrace_telemetry::chain(&error))
    }

    #[test]
    fn an_address_that_may_not_be_reached_is_refused_by_its_field_in_every_form() {
        for host in [
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "[::ffff:169.254.169.254]",
            "127.0.0.1:8080",
            "2130706433",
            "[::1]",
        ] {
            let api = refusal(host, "example.com", POD).expect(host);
            assert!(api.starts_with("spec.remote.baseUrl of"), "{api}");
            assert!(api.contains("MILLRACE_ALLOW_"), "{api}");
            let receiver = refusal("example.com", host, POD).expect(host);
            assert!(receiver.starts_with("spec.notify.url "), "{receiver}");
        }
    }

    #[test]
    fn names_and_what_an_administrator_allows_are_let_pass() {
        assert_eq!(refusal("example.com", "10.0.0.7", POD), None);
        let own = Rules {
            loopback: Loopback::Allowed,
            ..POD
        };
        assert_eq!(refusal("127.0.0.1:8080", "[::1]", own), None);
    }
}
