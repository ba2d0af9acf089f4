//! Runs a command with a Postgres of its own at `MILLRACE_POSTGRES_URL`; prints the seconds that it took
//! and how many rows a table holds after it: `with_postgres TABLE COMMAND ARGUMENT…`.

use std::process::{Command, ExitCode};
use std::time::Instant;

use millrace_e2e::postgres_server::PostgresServer;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(table), Some(program)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: with_postgres TABLE COMMAND ARGUMENT…");
        return ExitCode::from(2);
    };
    let postgres = PostgresServer::start();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("MILLRACE_POSTGRES_URL", postgres.url());
    let started = Instant::now();
    let status = tokio::task::block_in_place(|| command.status());
    let seconds = started.elapsed().as_secs_f64();
    if !status.expect("the command starts").success() {
        return ExitCode::FAILURE;
    }
    let client = postgres.connect().await;
    let count = format!("select count(*) from {table}");
    let row = client.query_one(&count, &[]).await;
    let rows: i64 = row.expect("the table is there").get(0);
    println!("{seconds} {rows}");
    ExitCode::SUCCESS
}
