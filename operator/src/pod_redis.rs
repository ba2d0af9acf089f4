//! A Redis that pods reach, with or without a user for each namespace.

use std::time::Duration;

use millrace_leases::{LeaseError, NamespaceUsers, RedisOptions, UsersError};

use crate::context::unless_away;

/// How often it is asked whether the server still knows its users.
const USERS_INTERVAL: Duration = Duration::from_secs(2);

/// A Redis that pods reach.
pub struct PodRedis {
    /// What it is there for.
    name: &'static str,
    url: String,
    users: Option<NamespaceUsers>,
}

impl PodRedis {
    /// The server at `url`. With `namespace_users` the URL must be that of a user with a password who
    /// may make users. Connects to nothing yet.
    pub fn new(name: &'static str, url: String, namespace_users: bool) -> Result<Self, UsersError> {
        let users = match namespace_users {
            true => Some(NamespaceUsers::new(&RedisOptions::new(url.clone()))?),
            false => None,
        };
        Ok(Self { name, url, users })
    }

    /// The URL with which pods of a namespace reach it, once they are let in.
    pub fn url(&self, namespace: &str) -> String {
        match &self.users {
            Some(users) => users.url(namespace),
            None => self.url.clone(),
        }
    }

    /// Lets the pods of a namespace in.
    pub async fn admit(&self, namespace: &str) -> Result<(), LeaseError> {
        if let Some(users) = &self.users {
            // Where the server is away, the user is made when it is back.
            unless_away(users.admit(namespace).await)?;
        }
        Ok(())
    }

    /// Makes the users again that the server loses, for as long as the process lives.
    pub async fn keep_users(&self) {
        let Some(users) = &self.users else {
            return;
        };
        loop {
            if let Err(error) = users.keep().await {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    error,
                    server = self.name,
                    "the users of a Redis cannot be looked after"
                );
            }
            tokio::time::sleep(USERS_INTERVAL).await;
        }
    }
}
