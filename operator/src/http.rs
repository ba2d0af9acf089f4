//! What the kubelet asks of the operator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

/// Whether this process leads.
pub type Leads = Arc<AtomicBool>;

/// Answers `/health`, `/ready` and `/metrics` for as long as the process lives.
pub async fn listen(listener: TcpListener, leads: Leads) -> std::io::Result<()> {
    let app = Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/ready", get(|| async { StatusCode::OK }))
        .route("/metrics", get(metrics))
        .with_state(leads);
    axum::serve(listener, app).await
}

async fn metrics(State(leads): State<Leads>) -> String {
    format!(
        "# HELP millrace_operator_leader Whether this process leads.\n\
         # TYPE millrace_operator_leader gauge\n\
         millrace_operator_leader {}\n",
        u8::from(leads.load(Ordering::Relaxed))
    )
}
