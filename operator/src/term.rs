//! For how long this process leads. Nothing is written outside its term: a process that was stopped
//! in the middle of a visit may go on with it long after another leads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{Method, Request};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::BoxError;
use tower::filter::FilterLayer;

/// Groups of the API in which there are reviews alone.
const REVIEWS: [&str; 2] = [
    "/apis/authentication.k8s.io/",
    "/apis/authorization.k8s.io/",
];

/// A term, shared by the election, which extends it, and by a client, which keeps to it.
#[derive(Debug, Clone, Default)]
pub struct Term {
    until: Arc<Mutex<Option<Instant>>>,
}

/// A request to write that came too late, or before this process led.
#[derive(Debug, thiserror::Error)]
#[error("this process does not lead, so nothing is written")]
struct OutOfTerm;

impl Term {
    /// This process leads until then.
    pub fn extend(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// A client that reads at any time, and writes within this term alone.
    pub fn client(&self, config: Config) -> Result<Client, kube::Error> {
        let term = self.clone();
        let within = move |request: Request<Body>| -> Result<Request<Body>, BoxError> {
            if !writes(&request) || term.lasts(Instant::now()) {
                Ok(request)
            } else {
                Err(OutOfTerm.into())
            }
        };
        Ok(ClientBuilder::try_from(config)?
            .with_layer(&FilterLayer::new(within))
            .build())
    }

    fn lasts(&self, now: Instant) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }
}

/// Whether a request changes anything. Reviews of whoever asks for something do not, although each is
/// created.
fn writes<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    let mut reviews = REVIEWS.iter();
    request.method() != Method::GET && !reviews.any(|group| path.starts_with(group))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_written_before_a_term_and_after_it() {
        let term = Term::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        assert!(!term.lasts(now));
        term.extend(now + second);
        assert!(term.lasts(now));
        assert!(!term.lasts(now + second));
    }

    #[test]
    fn reviews_and_whatever_is_read_are_no_writes() {
        let check = |method: Method, uri: &str, expected: bool| {
            let request = Request::builder().method(method).uri(uri);
            assert_eq!(writes(&request.body(()).unwrap()), expected, "{uri}");
        };
        let pods = "http://server/api/v1/namespaces/tenant/pods";
        check(Method::GET, pods, false);
        check(Method::DELETE, pods, true);
        check(
            Method::POST,
            "/apis/authentication.k8s.io/v1/tokenreviews",
            false,
        );
        let status = "/apis/millrace.dev/v1alpha1/namespaces/tenant/batchjobs/embed/status";
        check(Method::PATCH, status, true);
    }
}
