//! Users of the Redis server, one per namespace, so that nobody reaches the keys of another.
//!
//! Their passwords are derived from the one that the operator has, so nothing is to be remembered:
//! a server that lost its users gets the same ones again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::redis::cmd;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use url::Url;

use crate::redis::Connection;
use crate::{LeaseError, RedisOptions};

/// Beginning of every user's name.
const PREFIX: &str = "millrace-";

/// What a user may do to its keys: run scripts, and from these change data. Nothing that shows the
/// keys, the clients or the load of others.
const RIGHTS: [&str; 18] = [
    "+@hash",
    "+@sortedset",
    "+@set",
    "+@string",
    "+@bitmap",
    "-@blocking",
    "+del",
    "+unlink",
    "+exists",
    "+expire",
    "+pexpire",
    "+time",
    "+eval",
    "+evalsha",
    "+script|load",
    "+ping",
    "+hello",
    "+auth",
];

/// Why no users can be made.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The URL is none.
    #[error("the URL of the Redis cannot be read")]
    Url(#[from] url::ParseError),
    /// There is nothing to derive passwords from.
    #[error("the URL of the Redis has no password, from which those of the namespaces are derived")]
    NoPassword,
    /// The server cannot be reached, or refuses.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// The users of all namespaces.
pub struct NamespaceUsers {
    connection: Connection,
    url: Url,
    password: String,
    /// Namespaces that this process has let in, and whether their users were made.
    admitted: Mutex<BTreeMap<String, bool>>,
}

impl NamespaceUsers {
    /// Users of the server that `redis` reaches as one who may make users. Connects with the first
    /// call. Must be called within a tokio runtime.
    pub fn new(redis: &RedisOptions) -> Result<Self, UsersError> {
        let url = Url::parse(&redis.url)?;
        let password = url.password().filter(|password| !password.is_empty());
        Ok(Self {
            connection: Connection::new(redis)?,
            password: password.ok_or(UsersError::NoPassword)?.to_owned(),
            url,
            admitted: Mutex::default(),
        })
    }

    /// The URL with which the pods of a namespace reach the server.
    pub fn url(&self, namespace: &str) -> String {
        let mut url = self.url.clone();
        // Both are refused for URLs without a host alone, and those have no password either.
        let _ = url.set_username(&user(namespace));
        let _ = url.set_password(Some(&self.password_of(namespace)));
        url.into()
    }

    /// Makes the user of a namespace, unless this process did so before. Where that fails, `keep`
    /// tries again.
    pub async fn admit(&self, namespace: &str) -> Result<(), LeaseError> {
        let is_made = *self.admitted().entry(namespace.to_owned()).or_default();
        match is_made {
            true => Ok(()),
            false => self.make(namespace).await,
        }
    }

    /// Makes the users that are not there: the server may have lost them.
    pub async fn keep(&self) -> Result<(), LeaseError> {
        let there: BTreeSet<String> = self.connection.query(cmd("ACL").arg("USERS")).await?;
        let admitted: Vec<String> = self.admitted().keys().cloned().collect();
        for namespace in admitted {
            if !there.contains(&user(&namespace)) {
                self.make(&namespace).await?;
            }
        }
        Ok(())
    }

    async fn make(&self, namespace: &str) -> Result<(), LeaseError> {
        let mut make = cmd("ACL");
        make.arg("SETUSER").arg(user(namespace));
        make.arg("reset").arg("on");
        make.arg(format!(">{}", self.password_of(namespace)));
        make.arg(format!("~millrace:{{{namespace}/*"));
        make.arg(&RIGHTS);
        self.connection.query::<()>(&make).await?;
        self.admitted().insert(namespace.to_owned(), true);
        Ok(())
    }

    fn admitted(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn password_of(&self, namespace: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.password.as_bytes())
            .expect("a key may have any length");
        mac.update(b"namespace/");
        mac.update(namespace.as_bytes());
        HEXLOWER.encode(&mac.finalize().into_bytes())
    }
}

fn user(namespace: &str) -> String {
    format!("{PREFIX}{namespace}")
}
