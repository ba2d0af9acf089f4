//! What the headers of an answer say of the limits.

use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use crate::limits::Standing;
use crate::options::StandInOptions;

/// The headers of OpenAI's API for a call that was let in or not, in real time.
pub fn limit_headers(options: &StandInOptions, standing: &Standing) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // Whoever calls lives in real time.
    let real_ms = |ms: u64| (ms as f64 / options.time_factor).ceil() as u64;
    let mut put = |name: &str, value: String| {
        let name = HeaderName::from_str(name).expect("letters make a header");
        let value = HeaderValue::from_str(&value).expect("numbers make a header");
        headers.insert(name, value);
    };
    for (of, limit, left, reset_ms) in [
        (
            "requests",
            options.requests_per_minute.map(u64::from),
            standing.requests_left,
            standing.requests_reset_ms,
        ),
        (
            "tokens",
            options.tokens_per_minute,
            standing.tokens_left,
            standing.tokens_reset_ms,
        ),
    ] {
        let Some(limit) = limit else { continue };
        put(&format!("x-ratelimit-limit-{of}"), limit.to_string());
        put(&format!("x-ratelimit-remaining-{of}"), left.to_string());
        put(
            &format!("x-ratelimit-reset-{of}"),
            duration(real_ms(reset_ms)),
        );
    }
    if !standing.is_let_in {
        let wait_ms = real_ms(standing.requests_reset_ms.max(standing.tokens_reset_ms));
        put("retry-after", wait_ms.div_ceil(1000).to_string());
        put("retry-after-ms", wait_ms.to_string());
    }
    headers
}

/// As OpenAI writes it: `59.5s`, `120ms`, `6m0s`.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}s", json!(ms as f64 / 1000.0)),
        _ => format!("{}m{}s", ms / 60_000, (ms % 60_000).div_ceil(1000)),
    }
}
