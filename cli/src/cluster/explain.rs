//! Turns what a call to the API server failed with into a sentence that says what to do. Pure.

use std::error::Error;

use kube::core::Status;

/// What went wrong while `doing`, such as "get batchjob/embed", at the API server `server`.
pub fn error(error: kube::Error, server: &str, doing: &str) -> anyhow::Error {
    anyhow::anyhow!(sentence(&error, server, doing))
}

/// Whether the account lacks the right, whatever the right is.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Whether asking again later may help.
pub fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500 || [410, 429].contains(&status.code),
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => true,
        _ => false,
    }
}

fn sentence(error: &kube::Error, server: &str, doing: &str) -> String {
    match error {
        kube::Error::Api(status) => answered(status, server, doing),
        kube::Error::HyperError(_) | kube::Error::Service(_) => format!(
            "cannot {doing}: the API server {server} cannot be reached ({}); choose another cluster \
             with --context (`kubectl config get-contexts` lists them) or --kubeconfig",
            innermost(error)
        ),
        kube::Error::Auth(_) => format!(
            "cannot {doing}: the kubeconfig gives no credentials for {server} ({}); log in again, or \
             choose another account with --context",
            innermost(error)
        ),
        _ => format!("cannot {doing} at {server}: {}", innermost(error)),
    }
}

/// The API server answered, and refused.
fn answered(status: &Status, server: &str, doing: &str) -> String {
    let message = status.message.trim();
    match status.code {
        401 => format!(
            "cannot {doing}: {server} does not accept the credentials of the kubeconfig; log in \
             again, or choose another account with --context"
        ),
        403 => format!(
            "cannot {doing}: this account lacks the right ({message}); ask for it, or choose another \
             account with --context"
        ),
        // An unknown kind is answered without the details of an object.
        404 if status.details.is_none() || message.contains("could not find the requested") => {
            format!(
                "cannot {doing}: {server} does not know this kind, so millrace is not installed there; \
                 choose another cluster with --context, or install it with `helm install millrace \
                 charts/millrace -n millrace-system --create-namespace`"
            )
        }
        _ => format!("cannot {doing}: {message}"),
    }
}

/// What is at the bottom of an error: the layers above it only say that something below failed.
fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str, details: bool) -> kube::Error {
        let mut status = Status::failure(message, "").with_code(code);
        status.details = details.then(|| serde_json::from_str("{}").unwrap());
        kube::Error::Api(status.boxed())
    }

    fn check(error: kube::Error, expected: &[&str]) {
        let said = sentence(&error, "https://there:6443", "get batchjob/embed");
        for expected in expected {
            assert!(said.contains(expected), "{said}\nlacks\n{expected}");
        }
    }

    #[test]
    fn a_server_that_cannot_be_reached_is_named_with_the_way_to_another() {
        let refused = std::io::Error::other("connection refused");
        check(
            kube::Error::Service(Box::new(refused)),
            &["https://there:6443", "connection refused", "--context"],
        );
    }

    #[test]
    fn a_missing_right_is_said_in_the_servers_words() {
        let message = r#"batchjobs is forbidden: User "ana" cannot get"#;
        check(
            api(403, message, true),
            &["get batchjob/embed", r#"User "ana""#, "--context"],
        );
    }

    #[test]
    fn a_server_that_does_not_know_the_kind_lacks_millrace() {
        check(
            api(404, "404 page not found", false),
            &["not installed", "helm install"],
        );
    }

    #[test]
    fn a_refused_object_is_refused_in_the_servers_words() {
        let message = "spec: Invalid value: input cannot be changed";
        check(api(422, message, true), &[message]);
    }

    #[test]
    fn only_what_may_pass_is_asked_again() {
        assert!(is_passing(&api(503, "", true)));
        assert!(is_passing(&api(410, "", true)));
        assert!(!is_passing(&api(403, "", true)));
        assert!(!is_passing(&api(404, "", true)));
    }
}
