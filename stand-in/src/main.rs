//! `millrace-stand-in`: the stand-in as a program, for a rehearsal on one machine.

use anyhow::Context;
use clap::Parser;
use millrace_stand_in::{StandIn, StandInOptions};

/// Stands in for a paid API: /v1/chat/completions, /v1/responses and /v1/embeddings. What was asked
/// can be read at /record.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: String,
    #[command(flatten)]
    options: StandInOptions,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { listen, options } = Cli::parse();
    let listener = tokio::net::TcpListener::bind(&listen).await;
    let listener = listener.with_context(|| format!("{listen} cannot be listened on"))?;
    let stand_in = StandIn::listen(listener, options)?;
    println!("base URL: {}", stand_in.base_url());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
