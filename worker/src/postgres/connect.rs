//! Connections to the database: the URL, TLS, and which failures pass.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config};
use tokio_rustls::TlsConnector;

use super::PostgresError;

/// Longest that connecting to one of the servers of a URL may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long what was sent may go unacknowledged before a connection counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What a server is called to its administrators.
const APPLICATION: &str = "millrace";

/// How a database is reached. Not printable: it holds a password.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: Tls,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Database")
    }
}

impl Database {
    /// Reads a connection URL. Certificates are always verified; those in `authorities`, a PEM file,
    /// count beside the public ones.
    pub fn new(url: &str, authorities: Option<&Path>) -> Result<Self, PostgresError> {
        // A certificate is verified as by `verify-full` wherever there is one.
        let url = url
            .replace("sslmode=verify-full", "sslmode=require")
            .replace("sslmode=verify-ca", "sslmode=require");
        // What is wrong with it is not quoted: it could be the password.
        let mut config = Config::from_str(&url).map_err(|_| PostgresError::Url)?;
        config.connect_timeout(CONNECT_TIMEOUT);
        config.tcp_user_timeout(SILENCE_MAX);
        config.keepalives_idle(SILENCE_MAX / 2);
        if config.get_application_name().is_none() {
            config.application_name(APPLICATION);
        }
        let tls = Tls::new(authorities);
        Ok(Self { config, tls })
    }

    /// A connection, which lives as long as its client.
    pub async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        tokio::spawn(async move {
            // Whoever uses the client hears of it too.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the database ended");
            }
        });
        Ok(client)
    }
}

/// Whether another try may succeed: the fault lies with the connection, with the server's moment, or
/// with what others do at the same time.
pub fn passes(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        // Without a code it is no answer of a server: refused, cut off, timed out.
        return !is_certificate(error);
    };
    // Classes: connections, resources such as too many of those, and an operator's intervention.
    let is_passing_class = ["08", "53", "57"]
        .iter()
        .any(|class| code.code().starts_with(class));
    is_passing_class
        || [
            &SqlState::T_R_SERIALIZATION_FAILURE,
            &SqlState::T_R_DEADLOCK_DETECTED,
            &SqlState::LOCK_NOT_AVAILABLE,
            // A server that was the first one until a moment ago.
            &SqlState::READ_ONLY_SQL_TRANSACTION,
        ]
        .contains(&code)
}

/// Whether a server's certificate was refused: it will be the next time, too.
fn is_certificate(error: &tokio_postgres::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) || error.is::<Unverifiable>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// No certificate can be verified here.
#[derive(Debug, Clone, thiserror::Error)]
#[error("certificates cannot be verified: {0}")]
struct Unverifiable(String);

/// The TLS that all else of this program speaks. Where nothing can be verified, only servers without
/// TLS can be reached.
#[derive(Clone)]
struct Tls(Result<TlsConnector, Unverifiable>);

impl Tls {
    fn new(authorities: Option<&Path>) -> Self {
        Self(connector(authorities).map_err(Unverifiable))
    }
}

fn connector(authorities: Option<&Path>) -> Result<TlsConnector, String> {
    let mut extra = Vec::new();
    if let Some(file) = authorities {
        let certificates =
            CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())?;
        for certificate in certificates {
            extra.push(certificate.map_err(|error| format!("ca.crt: {error}"))?);
        }
    }
    let provider = Arc::new(default_provider());
    let verifier = Verifier::new_with_extra_roots(extra, provider.clone());
    let verifier = verifier.map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl<S> MakeTlsConnect<S> for Tls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type TlsConnect = TlsTo;
    type Error = Unverifiable;

    fn make_tls_connect(&mut self, host: &str) -> Result<TlsTo, Unverifiable> {
        Ok(TlsTo {
            connector: self.0.clone(),
            host: host.to_owned(),
        })
    }
}

/// TLS to one server.
struct TlsTo {
    connector: Result<TlsConnector, Unverifiable>,
    host: String,
}

impl<S> TlsConnect<S> for TlsTo
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Encrypted<S>, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = self.connector?;
            let host = ServerName::try_from(self.host)?;
            Ok(Encrypted(Box::new(connector.connect(host, stream).await?)))
        })
    }
}

/// A connection under TLS.
struct Encrypted<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_cannot_be_read_is_not_quoted() {
        for url in [
            "postgres://user:hunter2@host:port/db",
            "user hunter2",
            "postgres://user:hunter2@host/db?sslrootcert=hunter2",
        ] {
            let error = Database::new(url, None).unwrap_err().to_string();
            assert!(
                error.starts_with("spec.output.postgres.secretRef: "),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        let url = "postgres://user:hunter2@host/db?sslmode=verify-full";
        let database = Database::new(url, None).unwrap();
        assert!(!format!("{database:?}").contains("hunter2"));
    }
}
