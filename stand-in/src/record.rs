//! What was asked and when: the proof that limits were kept.

use serde::{Deserialize, Serialize};

use crate::limits::WINDOW_MS;

/// One call, as it arrived and ended. Times are those of the API, from the start of the stand-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// When it arrived.
    pub at_ms: u64,
    /// When its answer was given; `None` while it is worked on, or its caller went away before.
    pub ended_ms: Option<u64>,
    /// The key that it carried.
    pub key: String,
    /// Path of the endpoint.
    pub path: String,
    /// Status of the answer; `None` while it is worked on.
    pub status: Option<u16>,
    /// Tokens of prompt and answer; what a refused call would have cost.
    pub tokens: u64,
    /// Those of them that are the answer's.
    pub answer_tokens: u64,
    /// The texts of its rows: a prompt, or the inputs of an embedding; none where the key was wrong or
    /// the call cannot be read.
    pub rows: Vec<String>,
    /// Whether its answer was to come piece by piece.
    #[serde(default)]
    pub is_streamed: bool,
    /// Whether it was let in, and so counts against limits and costs money.
    pub is_let_in: bool,
    /// How it came: `HTTP/1.1` or `HTTP/2.0`.
    #[serde(default)]
    pub version: String,
    /// Port from which its connection came, which tells connections apart.
    #[serde(default)]
    pub peer_port: u16,
}

/// All calls, in the order of their arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The calls.
    pub calls: Vec<Call>,
}

/// The fullest minute of a record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peak {
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
    /// Calls at one time.
    pub in_flight: u64,
}

impl Record {
    /// The calls with this status.
    pub fn with_status(&self, status: u16) -> impl Iterator<Item = &Call> {
        let calls = self.calls.iter();
        calls.filter(move |call| call.status == Some(status))
    }

    /// How often each row was answered, by its text.
    pub fn answered(&self) -> std::collections::BTreeMap<&str, u64> {
        let mut answered = std::collections::BTreeMap::new();
        for row in self.with_status(200).flat_map(|call| &call.rows) {
            *answered.entry(row.as_str()).or_default() += 1;
        }
        answered
    }

    /// The most that any sixty seconds held, and the most calls at one time.
    pub fn peak(&self) -> Peak {
        let let_in: Vec<&Call> = self.calls.iter().filter(|call| call.is_let_in).collect();
        let mut peak = Peak::default();
        let (mut first, mut tokens) = (0, 0);
        for (index, call) in let_in.iter().enumerate() {
            tokens += call.tokens;
            while let_in[first].at_ms + WINDOW_MS <= call.at_ms {
                tokens -= let_in[first].tokens;
                first += 1;
            }
            peak.requests = peak.requests.max((index - first + 1) as u64);
            peak.tokens = peak.tokens.max(tokens);
        }
        // One that ends within the moment of its arrival was there all the same.
        let ends = |call: &Call| {
            call.ended_ms
                .map_or(u64::MAX, |end| end.max(call.at_ms + 1))
        };
        let mut moments: Vec<(u64, i64)> = let_in
            .iter()
            .flat_map(|call| [(call.at_ms, 1), (ends(call), -1)])
            .collect();
        // What ends at a moment makes room for what begins at it.
        moments.sort_unstable();
        let mut in_flight = 0_i64;
        for (_, change) in moments {
            in_flight += change;
            peak.in_flight = peak.in_flight.max(in_flight as u64);
        }
        peak
    }

    /// From the first arrival to the last answer.
    pub fn took_ms(&self) -> u64 {
        let first = self.calls.first().map_or(0, |call| call.at_ms);
        let last = self.calls.iter().filter_map(|call| call.ended_ms).max();
        last.unwrap_or(first) - first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_minute_is_found_wherever_it_lies() {
        let call = |at_ms, tokens| Call {
            at_ms,
            ended_ms: Some(at_ms + 500),
            key: String::new(),
            path: String::new(),
            status: Some(200),
            tokens,
            answer_tokens: 0,
            rows: Vec::new(),
            is_streamed: false,
            is_let_in: true,
            version: String::new(),
            peer_port: 0,
        };
        let calls = vec![
            call(0, 5),
            call(50_000, 1),
            call(60_000, 2),
            call(60_400, 1),
        ];
        let peak = Record { calls }.peak();
        assert_eq!((peak.requests, peak.tokens, peak.in_flight), (3, 6, 2));
    }
}
