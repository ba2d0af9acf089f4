//! Tells the receiver that a job names how the job ended: signed as the Standard Webhooks convention
//! has it, tried again for a while, and never at the cost of the job.

use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{StatusCode, header};
use millrace_crds::SecretKeyRef;
use millrace_protocol::event::{self, COMPLETED, Counts, Event, Over};
use millrace_protocol::manifest::Manifest;
use millrace_telemetry::chain;
use reqwest::redirect::Policy;
use sha2::Sha256;

use crate::job::CheckedJob;
use crate::secrets::{Purpose, SecretError, Secrets};
use crate::store::{GuardError, LinkLocal, guarded};

/// What events are signed with.
const SECRET: Purpose = Purpose {
    field: "spec.notify.secretRef",
    key: "secret",
    variable: "MILLRACE_NOTIFY_SECRET",
};

/// What a secret begins with whose rest is Base64; any other is taken as it is.
const SECRET_PREFIX: &str = "whsec_";

/// Longest that one try may take, as the convention advises.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Tries after the first one, over some minute and a half.
const RETRIES: usize = 8;

/// Longest pause between two tries, whatever the receiver asks for.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Why a receiver was not told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// There is no secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The secret cannot be read.
    #[error("spec.notify.secretRef: after {SECRET_PREFIX} it must be Base64")]
    Key,
    /// The URL leads to where nobody may be told.
    #[error("spec.notify.url")]
    Url(#[source] GuardError),
    /// The receiver would not have the event, or not in time.
    #[error("spec.notify.url: the receiver was not told, {tries} tries: {last}")]
    Undelivered {
        /// How often it was tried.
        tries: usize,
        /// What came of the last try.
        last: String,
    },
}

/// By what right and where receivers are told.
#[derive(Debug, Clone)]
pub struct Means {
    /// Where secrets are.
    pub secrets: Secrets,
    /// Whether receivers may be at addresses of the machine's own link.
    pub link_local: LinkLocal,
}

impl Means {
    /// Tells whom the job names, if it names anybody. What went wrong is returned as a sentence: it
    /// concerns the receiver and not the job.
    pub async fn tell(&self, job: &CheckedJob, event: &Event) -> Option<String> {
        let to = job.notify.as_ref()?;
        let told = self.deliver(&to.url, to.secret_ref.as_ref(), event).await;
        let problem = chain(&told.err()?);
        tracing::warn!(problem, "the job is over, and the receiver was not told");
        Some(problem)
    }

    /// Finds the secret that the job's events are signed with, so that it is not missed at the end.
    pub fn check(&self, job: &CheckedJob) -> Result<(), NotifyError> {
        let named = job.notify.as_ref().and_then(|to| to.secret_ref.as_ref());
        if let Some(named) = named {
            key(&self.secrets.find(SECRET, named)?.value())?;
        }
        Ok(())
    }

    /// Delivers an event, tried again for a while.
    pub async fn deliver(
        &self,
        url: &str,
        secret: Option<&SecretKeyRef>,
        event: &Event,
    ) -> Result<(), NotifyError> {
        let key = match secret {
            Some(named) => Some(key(&self.secrets.find(SECRET, named)?.value())?),
            None => None,
        };
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            // An event is for the receiver that the job names and for nobody else.
            .redirect(Policy::none());
        let client = guarded(client, url, self.link_local).map_err(NotifyError::Url)?;
        let body = serde_json::to_vec(event).expect("an event is plain data");
        let body = Bytes::from(body);
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(PAUSE_MAX)
            .with_max_times(RETRIES)
            .with_jitter()
            .build();
        let mut tries = 0;
        loop {
            tries += 1;
            let failed = match post(&client, url, key.as_deref(), &event.id, &body).await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            let undelivered = |last| Err(NotifyError::Undelivered { tries, last });
            if failed.is_final {
                return undelivered(failed.message);
            }
            let Some(pause) = pauses.next() else {
                return undelivered(failed.message);
            };
            let pause = failed
                .after
                .map_or(pause, |after| after.max(pause).min(PAUSE_MAX));
            tracing::info!(
                error = failed.message,
                ?pause,
                "the receiver is told once more"
            );
            tokio::time::sleep(pause).await;
        }
    }
}

/// The event of a run that was finished. `reason` is why it was given up, if it was.
pub fn finished(job: &CheckedJob, manifest: &Manifest, reason: Option<&str>) -> Event {
    let failed_shards = manifest.failed_shards.len();
    let (reason, message) = match (manifest.complete, reason) {
        (true, _) => (
            COMPLETED,
            "every row ended as a result or as a reported error".to_owned(),
        ),
        (false, reason) => (
            reason.unwrap_or("ShardsFailed"),
            format!("{failed_shards} shards were not done; manifest.json names them"),
        ),
    };
    let over = Over {
        counts: Some(Counts {
            rows: manifest.totals.rows,
            tokens: manifest.totals.tokens,
            failed_shards: failed_shards as u32,
        }),
        postgres: manifest.postgres.clone(),
        ..over(job, manifest.run, reason, message)
    };
    // A job without an object is told by when it ended.
    let ended = manifest.finished_at.replace([':', '.'], "-");
    Event::of(over, job.uid.as_ref().unwrap_or(&ended))
}

/// The event of a local run that failed.
pub fn failed(job: &CheckedJob, message: String) -> Event {
    let over = over(job, job.run, "RunFailed", message);
    let now = jiff::Timestamp::now().as_millisecond().to_string();
    Event::of(over, job.uid.as_ref().unwrap_or(&now))
}

fn over(job: &CheckedJob, run: u32, reason: &str, message: String) -> Over {
    Over {
        namespace: job.namespace.clone(),
        name: job.name.clone(),
        run,
        reason: reason.to_owned(),
        message,
        output: job.output.uri.clone(),
        counts: None,
        postgres: None,
    }
}

/// What came of a try.
struct Failed {
    message: String,
    /// Whether another try would end the same.
    is_final: bool,
    /// How long the receiver wants to be left alone.
    after: Option<Duration>,
}

async fn post(
    client: &reqwest::Client,
    url: &str,
    key: Option<&[u8]>,
    id: &str,
    body: &Bytes,
) -> Result<(), Failed> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs()).to_string();
    let mut request = client
        .post(url)
        .header(header::CONTENT_TYPE, event::MEDIA_TYPE)
        .header("webhook-id", id)
        .header("webhook-timestamp", &seconds)
        .body(body.clone());
    if let Some(key) = key {
        request = request.header("webhook-signature", signature(key, id, &seconds, body));
    }
    let reply = request.send().await.map_err(|error| Failed {
        // Only the URL could tell who may read the job what it should not know.
        message: chain(&error.without_url()),
        is_final: false,
        after: None,
    })?;
    let status = reply.status();
    if status.is_success() {
        return Ok(());
    }
    let passes = status.is_server_error()
        || [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
        ]
        .contains(&status);
    let after = reply.headers().get(header::RETRY_AFTER);
    let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
    Err(Failed {
        message: format!("it answered {status}"),
        is_final: !passes,
        after: after.map(Duration::from_secs),
    })
}

fn key(secret: &str) -> Result<Vec<u8>, NotifyError> {
    match secret.strip_prefix(SECRET_PREFIX) {
        Some(encoded) => BASE64_STANDARD
            .decode(encoded)
            .map_err(|_| NotifyError::Key),
        None => Ok(secret.as_bytes().to_vec()),
    }
}

/// `v1,<Base64 of HMAC-SHA256 over id, timestamp and body>`
fn signature(key: &[u8], id: &str, seconds: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
    for piece in [id.as_bytes(), b".", seconds.as_bytes(), b".", body] {
        mac.update(piece);
    }
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
