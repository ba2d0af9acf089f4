//! Credentials of the machine's own role, which are asked for where none are given. A machine without a role
//! may never answer, so it is asked for a short time, and who sees the error is told why it was asked.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider};
use object_store::{BackoffConfig, CredentialProvider, Error, RetryConfig};

use super::Forbidden;
use super::error::StoreFailure;

/// How often the machine is asked again, for how long, and how long all of it may take.
const RETRIES_MAX: usize = 2;
const RETRY_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(10);

/// No credentials are given, and the machine gave none. What its service replied is not in it.
#[derive(Debug, thiserror::Error)]
#[error(
    "AWS_ACCESS_KEY_ID is not set, and this machine gave no role of its own ({why}): set AWS_ACCESS_KEY_ID and \
     AWS_SECRET_ACCESS_KEY"
)]
pub(super) struct NoCredentials {
    /// What came of asking the machine, or who forbids it.
    why: String,
}

impl NoCredentials {
    fn after(error: Error) -> Self {
        let first = &error as &(dyn std::error::Error + 'static);
        let mut links = std::iter::successors(Some(first), |link| link.source());
        let forbidden = links.find_map(|link| link.downcast_ref::<Forbidden>());
        let why = match forbidden {
            Some(forbidden) => forbidden.to_string(),
            None => millrace_telemetry::chain(&StoreFailure::from(error)),
        };
        Self { why }
    }
}

/// Asks the machine.
#[derive(Debug)]
struct MachineRole(AwsCredentialProvider);

#[async_trait]
impl CredentialProvider for MachineRole {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>, Error> {
        let missing = match tokio::time::timeout(TIMEOUT, self.0.get_credential()).await {
            Ok(Ok(credential)) => return Ok(credential),
            Ok(Err(error)) => NoCredentials::after(error),
            Err(_) => NoCredentials {
                why: format!("it did not answer within {} s", TIMEOUT.as_secs()),
            },
        };
        Err(Error::Generic {
            store: "S3",
            source: Box::new(missing),
        })
    }
}

/// The same builder, which asks the machine for a short time where nothing else gives credentials.
pub(super) fn bounded(builder: AmazonS3Builder) -> Result<AmazonS3Builder, Error> {
    if is_given(&builder) {
        return Ok(builder);
    }
    let asking = builder.clone().with_retry(RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
    });
    let role = MachineRole(asking.build()?.credentials().clone());
    Ok(builder.with_credentials(Arc::new(role)))
}

/// Whether something else than the machine's role gives credentials, or none are needed.
fn is_given(builder: &AmazonS3Builder) -> bool {
    use AmazonS3ConfigKey as Key;
    let has = |key: &Key| builder.get_config_value(key).is_some();
    let unsigned = builder.get_config_value(&Key::SkipSignature);
    has(&Key::AccessKeyId)
        || has(&Key::SecretAccessKey)
        || (has(&Key::WebIdentityTokenFile) && has(&Key::RoleArn))
        || has(&Key::ContainerCredentialsRelativeUri)
        || (has(&Key::ContainerCredentialsFullUri) && has(&Key::ContainerAuthorizationTokenFile))
        || unsigned.is_some_and(|it| it == "true")
}

#[cfg(test)]
mod tests {
    use crate::store::{LinkLocal, StoreOptions, Stores, read};

    /// What is said of an object where no credentials are given, and the machine is asked here.
    async fn told(machine: &str, link_local: LinkLocal) -> String {
        let settings = [
            ("aws_endpoint", machine),
            ("aws_metadata_endpoint", machine),
            ("aws_allow_http", "true"),
        ];
        let settings = settings.map(|(key, value)| (key.parse().unwrap(), value.to_owned()));
        let stores = Stores::new(StoreOptions {
            s3: settings.to_vec(),
            file_roots: vec![],
            link_local,
        });
        let location = stores.open("s3://bucket/object").unwrap();
        let error = read(&location.store, &location.path).await.unwrap_err();
        millrace_telemetry::chain(&error)
    }

    #[tokio::test]
    async fn without_credentials_the_missing_variable_is_named() {
        let app = axum::Router::new().fallback(|| async { axum::http::StatusCode::NOT_FOUND });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let machine = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let said = told(&machine, LinkLocal::Allowed).await;
        let begins = "the store failed at object: AWS_ACCESS_KEY_ID is not set, and this machine gave no role of \
                      its own (";
        assert!(said.starts_with(begins), "{said}");
        assert!(said.contains("404"), "{said}");
        let ends = "): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
        assert!(said.ends_with(ends), "{said}");
    }

    #[tokio::test]
    async fn a_pod_without_credentials_is_told_why_the_machine_is_not_asked() {
        let said = told("http://169.254.169.254", LinkLocal::Blocked).await;
        assert!(said.contains("AWS_ACCESS_KEY_ID is not set"), "{said}");
        assert!(said.contains("MILLRACE_ALLOW_LINK_LOCAL"), "{said}");
    }
}
