//! What an answer that is none means: for the rows, for the call, or for all calls. Pure.

use http::StatusCode;
use millrace_protocol::row::{RowError, RowErrorCode};
use serde::Deserialize;

use super::CallError;
use super::http::Answer;
use super::sse::Broken;

/// Longest code of an API that is repeated.
const CODE_CHARS_MAX: usize = 64;

/// Codes with which an API says that nobody pays for the call.
const UNPAID: [&str; 3] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
];

/// Codes with which an API says that a prompt is too long.
const TOO_LONG: [&str; 2] = ["context_length_exceeded", "string_above_max_length"];

#[derive(Deserialize)]
struct Body {
    error: Described,
}

#[derive(Deserialize)]
struct Described {
    code: Option<serde_json::Value>,
    r#type: Option<String>,
}

/// Whether the API answered at all. `key_advice` says where to see to its key.
pub fn accepted(answer: &Answer, key_advice: impl FnOnce() -> String) -> Result<(), CallError> {
    let status = answer.status;
    if status == StatusCode::OK {
        return Ok(());
    }
    let code = code(&answer.body);
    let said = match &code {
        Some(code) => format!("status {}, {code}", status.as_u16()),
        None => format!("status {}", status.as_u16()),
    };
    let is = |codes: &[&str]| code.as_deref().is_some_and(|code| codes.contains(&code));
    let failed = |code, message: &str| {
        Err(CallError::Failed(RowError::new(
            code,
            format!("{message} ({said})"),
        )))
    };
    let rejected = |code, message: &str| {
        Err(CallError::Rejected(RowError::new(
            code,
            format!("{message} ({said})"),
        )))
    };
    match status.as_u16() {
        _ if is(&UNPAID) => refused(&said, "nobody pays for it; see to the account's plan"),
        429 | 503 | 529 => Err(CallError::TooMuch),
        413 => rejected(RowErrorCode::TextTooLong, "the API finds the row too large"),
        400 | 422 if is(&TOO_LONG) => rejected(
            RowErrorCode::TextTooLong,
            "the prompt has more tokens than the model takes",
        ),
        400 | 422 => rejected(RowErrorCode::Refused, "the API refuses the row"),
        408 | 504 => failed(
            RowErrorCode::Timeout,
            "the API did not answer the row in time",
        ),
        409 | 500.. => failed(RowErrorCode::ModelFailed, "the API fails on the row"),
        401 | 403 => refused(&said, &key_advice()),
        404 => refused(&said, "see to spec.remote.baseUrl and model"),
        _ => refused(&said, "see to spec.remote"),
    }
}

/// What a stream that is no answer means: nobody knows what it took, and another may be whole.
pub fn broken(broken: Broken) -> CallError {
    let (code, message) = match broken {
        Broken::Cut => (
            RowErrorCode::ModelFailed,
            "the API ended its answer before it was whole",
        ),
        Broken::Failed => (
            RowErrorCode::ModelFailed,
            "the API failed in the middle of its answer",
        ),
        Broken::Unreadable => (
            RowErrorCode::AnswerInvalid,
            "the API's answer is not what its endpoint streams",
        ),
    };
    CallError::Failed(RowError::new(code, message))
}

fn refused(said: &str, advice: &str) -> Result<(), CallError> {
    Err(CallError::Refused(format!(
        "the API answered {said}; {advice}"
    )))
}

/// The code that an API gives its error. Its message may repeat a row and is left alone.
fn code(body: &[u8]) -> Option<String> {
    let Body { error } = serde_json::from_slice(body).ok()?;
    let code = error.code.as_ref().and_then(serde_json::Value::as_str);
    let code = code.map(str::to_owned).or(error.r#type)?;
    let is_plain = code
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.');
    (is_plain && !code.is_empty() && code.len() <= CODE_CHARS_MAX).then_some(code)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn of(status: u16, body: &str) -> CallError {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.to_owned().into(),
        };
        accepted(&answer, || "see to THE_KEY".to_owned()).unwrap_err()
    }

    #[test]
    fn too_much_is_told_from_nobody_pays() {
        let limit = r#"{"error": {"code": "rate_limit_exceeded"}}"#;
        assert!(matches!(of(429, limit), CallError::TooMuch));
        let quota = r#"{"error": {"code": "insufficient_quota"}}"#;
        assert!(matches!(of(429, quota), CallError::Refused(_)));
        assert!(matches!(of(529, ""), CallError::TooMuch));
    }

    #[test]
    fn rows_are_blamed_for_what_is_theirs() {
        let long = r#"{"error": {"code": "context_length_exceeded", "message": "secret text"}}"#;
        let CallError::Rejected(error) = of(400, long) else {
            panic!("a row is to blame");
        };
        assert_eq!(error.code, RowErrorCode::TextTooLong);
        assert!(!error.message.contains("secret"), "{error}");
        assert!(matches!(of(500, "<html>"), CallError::Failed(_)));
        let CallError::Refused(said) = of(401, "") else {
            panic!("nobody is let in");
        };
        assert!(said.ends_with("see to THE_KEY"), "{said}");
        assert!(matches!(of(302, ""), CallError::Refused(_)));
    }

    #[test]
    fn a_code_that_is_a_text_is_not_repeated() {
        let text = r#"{"error": {"code": "the row said: hello"}}"#;
        let CallError::Failed(error) = of(500, text) else {
            panic!("the moment is to blame");
        };
        assert!(!error.message.contains("hello"), "{error}");
    }
}
