//! One connection to a Redis server: bounded in time, replaced after any error, never replaying.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{
    Client, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation,
    ServerErrorKind,
};

use super::RedisOptions;
use crate::LeaseError;

/// Runs scripts and commands, all over one connection.
pub struct Connection {
    client: Client,
    config: ConnectionManagerConfig,
    command_timeout: Duration,
    refusals_pass: bool,
    current: Mutex<Current>,
}

/// The connection in use, and how many there were before it.
struct Current {
    generation: u64,
    manager: ConnectionManager,
}

impl Connection {
    /// Checks the URL; connects with the first call.
    pub fn new(options: &RedisOptions) -> Result<Self, LeaseError> {
        let RedisOptions {
            url,
            command_timeout,
            refusals_pass,
        } = options.clone();
        let client = Client::open(url).map_err(classify)?;
        // The caller decides when to try again, so one call is one attempt to connect.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(command_timeout))
            .set_response_timeout(Some(command_timeout));
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config.clone())
            .map_err(classify)?;
        let current = Mutex::new(Current {
            generation: 0,
            manager,
        });
        Ok(Self {
            client,
            config,
            command_timeout,
            refusals_pass,
            current,
        })
    }

    /// Runs a script once, loading it where the server does not know it yet.
    pub(crate) async fn invoke<T: FromRedisValue>(
        &self,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<T, LeaseError> {
        self.call(async |mut manager| invocation.invoke_async(&mut manager).await)
            .await
    }

    /// Runs a command once.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, LeaseError> {
        self.call(async |mut manager| command.query_async(&mut manager).await)
            .await
    }

    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(ConnectionManager) -> RedisResult<T>,
    ) -> Result<T, LeaseError> {
        let (generation, manager) = {
            let current = self
                .current
                .lock()
                .expect("no holder of the connection panics");
            (current.generation, current.manager.clone())
        };
        let reply: RedisResult<T> =
            match tokio::time::timeout(self.command_timeout, call(manager)).await {
                Ok(reply) => reply,
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            };
        if reply.is_err() {
            self.replace(generation)?;
        }
        reply.map_err(|error| match classify(error) {
            LeaseError::Refused(error) if self.refusals_pass => LeaseError::Unavailable(error),
            error => error,
        })
    }

    /// Gives up the connection of a failed call, unless another call did so already. It may be
    /// stalled, or lead to a server that was demoted, and the manager itself would keep it then.
    fn replace(&self, generation: u64) -> Result<(), LeaseError> {
        let mut current = self
            .current
            .lock()
            .expect("no holder of the connection panics");
        if current.generation == generation {
            let (client, config) = (self.client.clone(), self.config.clone());
            let manager =
                ConnectionManager::new_lazy_with_config(client, config).map_err(classify)?;
            *current = Current {
                generation: generation + 1,
                manager,
            };
        }
        Ok(())
    }
}

/// What a failed call means for its caller.
fn classify(error: RedisError) -> LeaseError {
    use ServerErrorKind as Server;
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::Server(
            Server::BusyLoading
            | Server::TryAgain
            | Server::ClusterDown
            | Server::MasterDown
            | Server::ReadOnly,
        ) => LeaseError::Unavailable(error),
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Server(Server::NoPerm | Server::Moved) => LeaseError::Refused(error),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => LeaseError::Corrupt(error),
        _ => match error.code() {
            // A command as long as ours is cut off before the server asks who sent it.
            Some("ERR") if says(&error, "unauthenticated") => LeaseError::Refused(error),
            Some("ERR") if says(&error, "max number of clients") => LeaseError::Unavailable(error),
            // Out of memory; cannot persist; too few replicas; busy with another's script.
            Some("OOM" | "MISCONF" | "NOREPLICAS" | "BUSY") => LeaseError::Unavailable(error),
            Some("NOAUTH" | "WRONGPASS") => LeaseError::Refused(error),
            Some("WRONGTYPE") => LeaseError::Corrupt(error),
            _ => LeaseError::Script(error),
        },
    }
}

fn says(error: &RedisError, words: &str) -> bool {
    error.detail().is_some_and(|detail| detail.contains(words))
}
