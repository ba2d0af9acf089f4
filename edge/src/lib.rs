//! What the HTTP servers of all programs do alike: accept within limits, drain, and tell who asks.

mod bearer;
mod serve;
mod write_deadline;

pub use self::bearer::{Token, TokenError, bearer};
pub use self::serve::{Listener, ServeOptions, SocketFile, serve};

use http::HeaderMap;
use http::header::ACCEPT;

/// Whether whoever asks takes server-sent events.
pub fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|accepted| accepted.contains("text/event-stream"))
}
