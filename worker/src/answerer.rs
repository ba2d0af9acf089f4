//! Opens who answers the rows of a job: a server, an API elsewhere, or several services.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_leases::limits::ACCOUNTS_OF_SEVERAL;
use millrace_telemetry::chain;

use crate::job::{CheckedJob, Remote, Routing, Step};
use crate::run::RunError;
use crate::store::Location;
use crate::work::call::{Caller, CallerOptions};
use crate::work::client::remote::{Access, ApiError};
use crate::work::client::{AddressError, Client, ClientError, ServerAddress};
use crate::work::routed::Router;
use crate::work::submit::{SubmitOptions, Submitter};
use crate::work::{Answerer, Asker};

/// Chunks at the server at a time: one batch runs, one is prefetched, and the rest gives the
/// batcher a choice of lengths.
const CHUNKS_IN_FLIGHT_MAX: usize = 12;

/// Longest wait for a server that loads its models.
const SERVER_PATIENCE: Duration = Duration::from_secs(300);

/// Wait between a server's first readiness and the first rows: twice what a supervisor probes in.
const FIRST_ROWS_DELAY: Duration = Duration::from_millis(100);

/// Who answers the rows of the job, and what tells the results of each of its models from those of
/// another.
pub async fn open(
    server: &ServerAddress,
    job: &CheckedJob,
    output: &Location,
) -> Result<(Answerer, BTreeMap<String, String>), RunError> {
    if let Some(routing) = &job.routing {
        return routed(server, job, routing, output).await;
    }
    let Some(remote) = &job.remote else {
        let (submitter, models) = submitter(server, job).await?;
        let asker = Asker::Server(Box::new(submitter));
        return Ok((Answerer::One(asker), models));
    };
    let ServerAddress::Remote(access) = server else {
        return Err(AddressError::IsRemote.into());
    };
    let (caller, models) = caller(access, job, output, remote, &job.steps)?;
    let asker = Asker::Remote(Box::new(caller));
    Ok((Answerer::One(asker), models))
}

/// All services of a job with routes. Their models are told apart by the services' names.
async fn routed(
    server: &ServerAddress,
    job: &CheckedJob,
    routing: &Arc<Routing>,
    output: &Location,
) -> Result<(Answerer, BTreeMap<String, String>), RunError> {
    let (mut askers, mut models) = (Vec::new(), BTreeMap::new());
    for service in routing.services() {
        let (asker, of_service) = match &service.remote {
            None => {
                let (submitter, models) = submitter(server.server(), job).await?;
                (Asker::Server(Box::new(submitter)), models)
            }
            Some(remote) => {
                let access = server.access().ok_or(AddressError::IsRemote)?;
                let (caller, models) = caller(access, job, output, remote, &service.steps)?;
                (Asker::Remote(Box::new(caller)), models)
            }
        };
        askers.push(asker);
        let named = |(model, digest)| (format!("{}/{model}", service.name), digest);
        models.extend(of_service.into_iter().map(named));
    }
    let router = Router::new(job, routing.clone(), askers);
    Ok((Answerer::Routed(Box::new(router)), models))
}

/// Sends rows of the job to a server that is ready, and the digests of its models.
async fn submitter(
    server: &ServerAddress,
    job: &CheckedJob,
) -> Result<(Submitter, BTreeMap<String, String>), RunError> {
    let client = Client::new(server, job)?;
    let options = SubmitOptions {
        retry: job.retry.clone(),
        chunks_in_flight_max: CHUNKS_IN_FLIGHT_MAX,
        server_patience: SERVER_PATIENCE,
    };
    let models = models(&client).await.map_err(RunError::Server)?;
    Ok((Submitter::new(client, job.steps.clone(), options), models))
}

/// Asks an API elsewhere about rows of the job, by the steps that are for it, and the identity of its model.
fn caller(
    access: &Access,
    job: &CheckedJob,
    output: &Location,
    remote: &Remote,
    steps: &[Step],
) -> Result<(Caller, BTreeMap<String, String>), ApiError> {
    let purse = job.purse(remote, output);
    // A job that asks several services has one account at them all.
    let account = match purse.is_some() && job.routing.is_some() {
        true => {
            let account = access.gates.of(ACCOUNTS_OF_SEVERAL);
            Some(account.map_err(|error| ApiError::Unusable(chain(&error)))?)
        }
        false => None,
    };
    let options = CallerOptions {
        retry: job.retry.clone(),
        patience: SERVER_PATIENCE,
        purse,
        account,
    };
    let text_field = &job.input.fields.text;
    let caller = Caller::new(remote, steps.to_vec(), text_field, access, options)?;
    let models = BTreeMap::from([(remote.spec.model.clone(), caller.identity())]);
    Ok((caller, models))
}

/// The server's models by name. A server that dies while it is asked is asked again.
async fn models(client: &Client) -> Result<BTreeMap<String, String>, ClientError> {
    let asking = async {
        loop {
            client.wait_ready(SERVER_PATIENCE).await?;
            // Whoever supervises the server must have seen it ready too before a row may kill it,
            // or it is taken for a server that never worked.
            tokio::time::sleep(FIRST_ROWS_DELAY).await;
            match client.models().await {
                Err(ClientError::Gone(_) | ClientError::Away(_)) => continue,
                Err(
                    ClientError::Busy { retry_after } | ClientError::Unavailable { retry_after },
                ) => {
                    tokio::time::sleep(retry_after).await;
                }
                answered => return answered,
            }
        }
    };
    let models = tokio::time::timeout(SERVER_PATIENCE, asking)
        .await
        .map_err(|_| ClientError::Timeout)??;
    Ok(models
        .into_iter()
        .map(|model| (model.name, model.digest))
        .collect())
}
