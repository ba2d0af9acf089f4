//! What the jobs of a service have paid, for whoever decides about them and makes no calls.

use std::sync::LazyLock;

use ::redis::Script;
use millrace_protocol::cost::Cost;

use super::redis::key;
use crate::redis::Connection;
use crate::{LeaseError, RedisOptions};

static FIND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        "#!lua flags=no-writes,allow-oom\n",
        include_str!("account.lua")
    ))
});

/// What a job has paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// What its calls cost so far, those that are being made included, as far as one can tell.
    pub paid: Cost,
    /// Calls that are being made.
    pub open: u64,
}

impl Account {
    /// Whether all that the job may pay is paid: nothing more comes of waiting.
    pub fn is_spent(self, max: Cost) -> bool {
        self.paid >= max && self.open == 0
    }
}

/// The accounts of a service's jobs.
pub struct Accounts {
    connection: Connection,
    keys: [String; 2],
}

impl Accounts {
    /// The accounts of a service. Connects with the first call. Must be called within a tokio runtime.
    pub fn new(redis: &RedisOptions, namespace: &str, service: &str) -> Result<Self, LeaseError> {
        Ok(Self {
            connection: Connection::new(redis)?,
            keys: ["accounts", "bills"].map(|name| key(namespace, service, name)),
        })
    }

    /// The account of a job, unless none of its calls was let in, or the server forgot.
    pub async fn find(&self, job: &str) -> Result<Option<Account>, LeaseError> {
        let mut invocation = FIND.prepare_invoke();
        for key in &self.keys {
            invocation.key(key);
        }
        invocation.arg(job);
        let found: Vec<u64> = self.connection.invoke(&invocation).await?;
        Ok(match found[..] {
            [paid, open] => Some(Account {
                paid: Cost::of_parts(paid),
                open,
            }),
            _ => None,
        })
    }

    /// Closes the account of a job that is over.
    pub async fn close(&self, job: &str) -> Result<(), LeaseError> {
        let mut command = ::redis::cmd("HDEL");
        command.arg(&self.keys[0]).arg(job);
        self.connection.query::<i64>(&command).await.map(drop)
    }
}
