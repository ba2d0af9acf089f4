//! The client of one bucket of S3.

use std::{sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut},
    client::HttpConnector,
};

use super::guard::{Guard, Rules};
use super::{Loopback, StoreError, StoreOptions, Uploads, identity};

/// How long connecting to a store may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Whether an endpoint may do without encryption.
const ALLOW_HTTP: AmazonS3ConfigKey = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);

/// The client of a bucket.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Uploads that were begun in it.
    pub(super) uploads: Option<Uploads>,
}

impl Bucket {
    /// The client of a bucket, with these options.
    pub(super) fn open(bucket: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let not_made = |source| StoreError::Client {
            bucket: bucket.into(),
            source,
        };
        let mut builder = AmazonS3Builder::new()
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_client_options(client_options())
            .with_retry(retry());
        let rules = Rules {
            link_local: options.link_local,
            loopback: Loopback::from_env(),
        };
        let guard = || Guard {
            rules,
            connect_timeout: CONNECT_TIMEOUT,
            timeout: TIMEOUT,
        };
        if !rules.allow_all() {
            builder = builder.with_http_connector(guard());
        }
        let mut client = client_options();
        for (key, value) in &options.s3 {
            // A guarded client takes one word alone for yes.
            let value = match key {
                &ALLOW_HTTP if is_yes(value) => "true",
                _ => value,
            };
            builder = builder.with_config(*key, value);
            if let AmazonS3ConfigKey::Client(key) = key {
                client = client.with_config(*key, value);
            }
        }
        if let Some(endpoint) = plain_http(&builder) {
            return Err(StoreError::PlainHttp { endpoint });
        }
        let builder = identity::bounded(builder.with_bucket_name(bucket)).map_err(not_made)?;
        let skips_signature = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature);
        let store = Arc::new(builder.build().map_err(not_made)?);
        let uploads = match skips_signature.is_some_and(|it| it == "true") {
            // Without credentials nothing can be signed.
            true => None,
            false => {
                let client = guard().connect(&client).map_err(not_made)?;
                Some(Uploads::new(store.clone(), client))
            }
        };
        Ok(Self { store, uploads })
    }
}

/// The endpoint, if it is one without encryption that nobody allowed; without a name and password that it
/// may hold.
fn plain_http(builder: &AmazonS3Builder) -> Option<String> {
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key))?;
    let rest = endpoint.strip_prefix("http://")?;
    let allowed = builder.get_config_value(&ALLOW_HTTP);
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    (!allowed.is_some_and(|it| is_yes(&it))).then(|| format!("http://{host}"))
}

/// Whether a setting says yes, in the words that clients of S3 take for it.
fn is_yes(value: &str) -> bool {
    ["1", "true", "on", "yes", "y"].contains(&value.to_lowercase().as_str())
}

/// Each request is bounded, and so are its tries together, so that a store that hangs shows as an
/// error. That may take longer than a lease lives; whoever holds one renews it meanwhile.
fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(TIMEOUT)
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 8,
        retry_timeout: Duration::from_secs(60),
    }
}
