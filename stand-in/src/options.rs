//! How a stand-in behaves. Times are those of the API that it stands in for; `time_factor` says how
//! much faster they pass here. What headers say is real time, since that is what callers live in.

use clap::Args;

use crate::limits::{Algorithm, Limits};
use crate::tls::TlsOptions;

/// Limits, pace and faults.
#[derive(Debug, Clone, Args)]
pub struct StandInOptions {
    /// How requests and tokens of a minute are counted.
    #[arg(long, value_enum, default_value_t)]
    pub algorithm: Algorithm,
    /// Requests of a minute, per key; more are answered 429.
    #[arg(long)]
    pub requests_per_minute: Option<u32>,
    /// Requests that a full bucket lets in at once; by default those of a minute.
    #[arg(long)]
    pub requests_burst: Option<u32>,
    /// Tokens of prompts and answers of a minute, per key.
    #[arg(long)]
    pub tokens_per_minute: Option<u64>,
    /// Tokens that a full bucket lets in at once; by default those of a minute.
    #[arg(long)]
    pub tokens_burst: Option<u64>,
    /// Milliseconds that a call takes.
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
    /// Milliseconds that each row of a call takes on top.
    #[arg(long, default_value_t = 0)]
    pub latency_per_row_ms: u64,
    /// Milliseconds between two pieces of a stream.
    #[arg(long, default_value_t = 0)]
    pub stream_pause_ms: u64,
    /// How much faster time passes than for the API that this stands in for.
    #[arg(long, default_value_t = 1.0)]
    pub time_factor: f64,
    /// Key that calls must carry; by default any will do.
    #[arg(long)]
    pub api_key: Option<String>,
    /// Numbers in an embedding.
    #[arg(long, default_value_t = 8)]
    pub dimensions: usize,
    #[command(flatten)]
    /// TLS, if there is any.
    pub tls: TlsOptions,
    #[command(flatten)]
    /// What goes wrong.
    pub faults: Faults,
}

impl Default for StandInOptions {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            requests_per_minute: None,
            requests_burst: None,
            tokens_per_minute: None,
            tokens_burst: None,
            latency_ms: 0,
            latency_per_row_ms: 0,
            stream_pause_ms: 0,
            time_factor: 1.0,
            api_key: None,
            dimensions: 8,
            tls: TlsOptions::default(),
            faults: Faults::default(),
        }
    }
}

impl StandInOptions {
    /// What a minute holds.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            algorithm: self.algorithm,
            requests: self.requests_per_minute,
            requests_burst: self.requests_burst,
            tokens: self.tokens_per_minute,
            tokens_burst: self.tokens_burst,
        }
    }
}

/// What goes wrong, counted over the calls that are let in: `3` spoils the third, the sixth and so on.
#[derive(Debug, Clone, Default, Args)]
pub struct Faults {
    /// Every how many calls the answer is 503.
    #[arg(long)]
    pub overloaded_every: Option<u64>,
    /// Real milliseconds that such an answer asks to wait before another call.
    #[arg(long)]
    pub overloaded_retry_after_ms: Option<u64>,
    /// Every how many calls the answer is 500.
    #[arg(long)]
    pub failed_every: Option<u64>,
    /// Real milliseconds that such an answer asks to wait before another try.
    #[arg(long)]
    pub failed_retry_after_ms: Option<u64>,
    /// Every how many calls the answer is cut in its middle, so that it is no JSON of any schema.
    #[arg(long)]
    pub malformed_every: Option<u64>,
    /// Every how many calls the answer lacks one of several rows.
    #[arg(long)]
    pub short_every: Option<u64>,
    /// Every how many calls nothing is answered at all.
    #[arg(long)]
    pub silent_every: Option<u64>,
    /// Every how many calls a stream ends in its middle.
    #[arg(long)]
    pub cut_every: Option<u64>,
    /// Every how many calls a stream stops in its middle, and never ends.
    #[arg(long)]
    pub stalled_every: Option<u64>,
    /// Calls with a row that holds this text are answered 500, all of them.
    #[arg(long)]
    pub failed_text: Option<String>,
    /// Rows that hold this text are refused, whoever travels with them.
    #[arg(long)]
    pub refused_text: Option<String>,
    /// Most tokens of a prompt; a longer one is answered 400.
    #[arg(long)]
    pub context_tokens_max: Option<u64>,
}
