//! The record holds every call, those that nobody worked on too.

use std::net::SocketAddr;

use millrace_stand_in::{StandIn, StandInOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Makes a call, and returns the first line of its answer.
async fn call(address: SocketAddr, key: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn calls_with_a_wrong_key_or_that_cannot_be_read_are_recorded_and_count_against_no_limit() {
    let options = StandInOptions {
        api_key: Some("sk-right".to_owned()),
        ..StandInOptions::default()
    };
    let stand_in = StandIn::start(options).await.unwrap();
    let base_url = stand_in.base_url();
    let address = base_url.strip_prefix("http://").unwrap();
    let address = address.strip_suffix("/v1").unwrap().parse().unwrap();
    for (key, body, status) in [
        ("sk-wrong", "{}", 401),
        ("sk-right", "no JSON", 400),
        ("sk-right", "{}", 400),
    ] {
        let answer = call(address, key, body).await;
        assert!(answer.contains(&status.to_string()), "{answer}");
        let call = stand_in.record().calls.pop().unwrap();
        assert_eq!((call.status, &*call.key), (Some(status), key));
        assert!(call.ended_ms.is_some());
    }
    let record = stand_in.record();
    assert_eq!(record.calls.len(), 3);
    assert_eq!(record.peak(), Default::default());
}
