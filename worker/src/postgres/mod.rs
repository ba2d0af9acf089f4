//! Loads an output into a table of Postgres, by binary COPY over a few connections.
//!
//! The output stays the truth: a table can be dropped, and is made and loaded again. A row is told by
//! where it stands in the input, so loading twice changes nothing; what is loaded of each file is noted
//! beside the table, so loading twice costs little, too.

mod connect;
mod json;
mod lane;
mod record;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use millrace_protocol::manifest::LivePart;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use self::connect::{Database, passes};
use self::lane::{Lane, LoadedFile, ROWS_DUE, Road, pauses};
use self::table::{COLUMNS, Found, KEY_IS_UNIQUE, Table};
use crate::job::CheckedJob;
use crate::secrets::{AUTHORITIES, Purpose, SecretError, Secrets};
use crate::store::{Location, StoreError};

/// The connection URL.
const URL: Purpose = Purpose {
    field: "spec.output.postgres.secretRef",
    key: "url",
    variable: "MILLRACE_POSTGRES_URL",
};

/// Connections of one load. A server's own work on the rows takes longer than sending them, and few
/// servers have cores to spare for more.
const LANES: usize = 4;

/// Why rows could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// There is no URL.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The URL cannot be read.
    #[error(
        "spec.output.postgres.secretRef: what it names is no connection URL such as \
         postgres://user:password@host:5432/database?sslmode=require"
    )]
    Url,
    /// The database stores texts in another encoding.
    #[error("spec.output.postgres: the database's encoding is {encoding}; give one whose is UTF8")]
    Encoding {
        /// The encoding.
        encoding: String,
    },
    /// A table of that name is there and will not do.
    #[error("spec.output.postgres.table: {table} is there, and {misfit}")]
    Misfit {
        /// The table.
        table: String,
        /// What of it.
        misfit: String,
    },
    /// The server failed, or cannot be reached.
    #[error("the database failed at {doing}: {}", said(.error))]
    Failed {
        /// What it was asked for.
        doing: &'static str,
        /// How it failed. No source of this error, since what it says in full may quote rows.
        error: tokio_postgres::Error,
    },
    /// The server does not answer.
    #[error("the database does not answer")]
    Hangs,
    /// Somebody changed what is noted of the loaded rows.
    #[error("less of {path} is loaded than was: the tables were changed meanwhile; run again")]
    Rewound {
        /// The file below the output.
        path: String,
    },
    /// A file could not be opened.
    #[error("the results could not be read")]
    Store(#[from] StoreError),
    /// A file broke off or cannot be decompressed.
    #[error("{path} cannot be read")]
    Broken {
        /// The file below the output.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what its file should hold.
    #[error("{path} holds a line that is no line of results or errors: {message}")]
    Line {
        /// The file below the output.
        path: String,
        /// What is wrong.
        message: String,
    },
}

fn refused(doing: &'static str, error: tokio_postgres::Error) -> PostgresError {
    PostgresError::Failed { doing, error }
}

/// What a server said, without the details, which may quote rows.
fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => millrace_telemetry::chain(error),
    }
}

/// A table that the job's results can be loaded into.
#[derive(Debug)]
pub struct Sink {
    database: Database,
    table: Table,
    output_uri: String,
}

impl Sink {
    /// The table that the job names, if it names one: made if it is missing, and checked if it is there.
    /// Asked for before a run begins, so that it does not fail at its end.
    pub async fn open(job: &CheckedJob, secrets: &Secrets) -> Result<Option<Self>, PostgresError> {
        let Some(asked) = &job.output.postgres else {
            return Ok(None);
        };
        let url = secrets.find(URL, &asked.secret)?;
        let authorities = secrets.beside(&asked.secret, AUTHORITIES);
        let sink = Self {
            database: Database::new(&url.value(), authorities.as_deref())?,
            table: Table::new(asked),
            output_uri: job.output.uri.clone(),
        };
        sink.prepare().await?;
        Ok(Some(sink))
    }

    /// The table's name, as the job says it.
    pub fn table(&self) -> &str {
        self.table.name()
    }

    /// Loads the rows of `parts` that are not loaded yet; returns how many those were.
    pub async fn load(&self, output: &Location, parts: &[LivePart]) -> Result<u64, PostgresError> {
        let started = Instant::now();
        let noted = self.prepare().await?;
        let files = missing(parts, &noted);
        // Each has rows enough for a transaction that is worth its cost.
        let rows = parts.iter().map(|part| part.commit.rows);
        let rows: u64 = rows.map(|rows| rows.succeeded + rows.failed).sum();
        let lanes = (rows as usize / ROWS_DUE).clamp(1, LANES);
        let files = Arc::new(Mutex::new(files.into_iter()));
        let road = Arc::new(Road {
            database: self.database.clone(),
            table: self.table.clone(),
            output: output.clone(),
            output_uri: self.output_uri.clone(),
        });
        let mut working = JoinSet::new();
        for _ in 0..lanes {
            let (files, mut lane) = (Arc::clone(&files), Lane::new(Arc::clone(&road)));
            let next = move || files.lock().unwrap_or_else(PoisonError::into_inner).next();
            working.spawn(async move { lane.load(next).await });
        }
        let mut rows = 0;
        // The first failure ends all: the others are dropped with the set.
        while let Some(ended) = working.join_next().await {
            rows += ended.expect("a lane does not panic")?;
        }
        let (table, took) = (self.table(), started.elapsed());
        tracing::info!(rows, table, ?took, "rows are loaded");
        Ok(rows)
    }

    /// Sees to the table, and says what of each file is loaded.
    async fn prepare(&self) -> Result<HashMap<String, Noted>, PostgresError> {
        let mut pauses = pauses();
        loop {
            let error = match self.try_prepare().await {
                Err(PostgresError::Failed { doing, error }) if passes(&error) => {
                    refused(doing, error)
                }
                prepared => return prepared,
            };
            let Some(pause) = pauses.next() else {
                return Err(error);
            };
            let error = millrace_telemetry::chain(&error);
            tracing::warn!(error, ?pause, "the database is asked once more");
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_prepare(&self) -> Result<HashMap<String, Noted>, PostgresError> {
        let connected = self.database.connect().await;
        let mut client = connected.map_err(|error| refused("connecting", error))?;
        check_encoding(&client).await?;
        self.make(&mut client).await?;
        self.check(&client).await?;
        let noted = self.table.noted();
        let noted = client
            .query(&noted, &[&self.table(), &self.output_uri])
            .await;
        let noted = noted.map_err(|error| refused("reading what is loaded", error))?;
        let entry = |row: &tokio_postgres::Row| {
            let (file, rows, is_whole) = (row.get(0), row.get::<_, i64>(1), row.get(2));
            let rows = rows as u64;
            (file, Noted { rows, is_whole })
        };
        Ok(noted.iter().map(entry).collect())
    }

    /// Makes both tables where they are missing, one after the other of all who do. Where both are there
    /// no right to make any is needed.
    async fn make(&self, client: &mut Client) -> Result<(), PostgresError> {
        let failed = |error| refused("making the table", error);
        let transaction = client.transaction().await.map_err(failed)?;
        let turn = "select pg_advisory_xact_lock(hashtext('millrace'))";
        transaction.batch_execute(turn).await.map_err(failed)?;
        let is_missing = "select to_regclass($1) is null, to_regclass($2) is null";
        let names: [&(dyn ToSql + Sync); 2] = [&self.table.ledger(), &self.table.quoted()];
        let is_missing = transaction.query_one(is_missing, &names).await;
        let is_missing = is_missing.map_err(failed)?;
        if is_missing.get(0) {
            let create = self.table.create_ledger();
            transaction.batch_execute(&create).await.map_err(failed)?;
        }
        if is_missing.get(1) {
            let create = self.table.create();
            transaction.batch_execute(&create).await.map_err(failed)?;
            let forget = self.table.forget();
            let forgotten = transaction.execute(&forget, &[&self.table()]).await;
            forgotten.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    async fn check(&self, client: &Client) -> Result<(), PostgresError> {
        let failed = |error| refused("reading the table's columns", error);
        let quoted = self.table.quoted();
        let columns = client.query(COLUMNS, &[&quoted]).await.map_err(failed)?;
        let columns = columns.iter().map(|row| Found {
            name: row.get(0),
            type_name: row.get(1),
            is_required: row.get(2),
        });
        let unique = client.query_one(KEY_IS_UNIQUE, &[&quoted]).await;
        let unique = unique.map_err(failed)?.get(0);
        match self.table.misfit(&columns.collect::<Vec<_>>(), unique) {
            None => Ok(()),
            Some(misfit) => Err(PostgresError::Misfit {
                table: self.table().to_owned(),
                misfit,
            }),
        }
    }
}

async fn check_encoding(client: &Client) -> Result<(), PostgresError> {
    let encoding = client.query_one("select current_setting('server_encoding')", &[]);
    let encoding = encoding.await;
    let encoding = encoding.map_err(|error| refused("asking for its encoding", error))?;
    match encoding.get(0) {
        "UTF8" => Ok(()),
        other => Err(PostgresError::Encoding {
            encoding: other.to_owned(),
        }),
    }
}

/// What is noted of a file.
struct Noted {
    rows: u64,
    is_whole: bool,
}

/// The files of `parts` that are not loaded to their end.
fn missing(parts: &[LivePart], noted: &HashMap<String, Noted>) -> Vec<LoadedFile> {
    let mut files = Vec::new();
    for part in parts {
        let part = Arc::new(part.clone());
        let named = [(&part.commit.part, false), (&part.commit.errors, true)];
        for (path, has_errors) in named {
            let Some(path) = path else { continue };
            let noted = noted.get(path);
            if noted.is_some_and(|noted| noted.is_whole) {
                continue;
            }
            files.push(LoadedFile {
                part: Arc::clone(&part),
                path: path.clone(),
                has_errors,
                rows_before: noted.map_or(0, |noted| noted.rows),
            });
        }
    }
    files
}
