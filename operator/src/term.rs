//! For how long this process leads. Nothing is written outside its term: a process that was stopped
//! in the middle of a visit may go on with it long after another leads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{Method, Request};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::BoxError;
use tower::filter::FilterLayer;

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
            if term.allows(request.method(), Instant::now()) {
                Ok(request)
            } else {
                Err(OutOfTerm.into())
            }
        };
        Ok(ClientBuilder::try_from(config)?
            .with_layer(&FilterLayer::new(within))
            .build())
    }

    fn allows(&self, method: &Method, now: Instant) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *method == Method::GET || until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_written_before_a_term_and_after_it() {
        let term = Term::default();
        let now = Instant::now();
        assert!(term.allows(&Method::GET, now));
        assert!(!term.allows(&Method::PATCH, now));
        let second = Duration::from_secs(1);
        term.extend(now + second);
        assert!(term.allows(&Method::PATCH, now));
        assert!(!term.allows(&Method::DELETE, now + second));
        assert!(term.allows(&Method::GET, now + second));
    }
}
