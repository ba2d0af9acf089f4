//! A reader's answers over HTTP.

use millrace_protocol::layout;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::store::{LinkLocal, Stores};

const SUCCEEDED: [u64; 4] = [3, 0, 2, 5];

/// Writes the parts of a finished output, whose lines count from 0.
fn finish(folder: &std::path::Path) {
    let mut lines = 0..;
    let part = |(shard, succeeded): (usize, u64)| -> Value {
        let path = layout::part(1, shard as u32, "a", false);
        let text = lines.by_ref().take(succeeded as usize);
        let text: String = text.map(|line: u64| format!("{line}\n")).collect();
        std::fs::create_dir_all(folder.join("parts")).unwrap();
        std::fs::write(folder.join(&path), text).unwrap();
        json!({
            "run": 1, "range": {"input": 0, "kind": "bytes", "start": 0, "end": 1},
            "commit": {
                "shard": shard, "epoch": 1, "attempt": "a", "tokens": 0,
                "part": (succeeded > 0).then_some(path),
                "rows": {"succeeded": succeeded, "failed": 0, "skipped": 0},
            },
        })
    };
    let parts: Vec<Value> = SUCCEEDED.into_iter().enumerate().map(part).collect();
    let manifest = json!({
        "version": 1, "run": 1, "specSha256": "00", "answersSha256": "00", "complete": true,
        "totals": {"rows": {"succeeded": 10, "failed": 0, "skipped": 0}, "tokens": 0},
        "inputs": [], "parts": parts, "failedShards": [], "models": [],
        "finishedAt": "2026-01-01T00:00:00Z",
    });
    std::fs::write(folder.join(layout::MANIFEST), manifest.to_string()).unwrap();
}

struct Scene {
    folder: tempfile::TempDir,
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("file://{}", folder.path().display());
        let stores = Stores::from_env(LinkLocal::Allowed);
        let options = ReaderOptions {
            output: stores.open(&uri).unwrap(),
            job: "embed".to_owned(),
            token: Some(Token::new(b"s3cret").unwrap()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(listen(listener, options, stop.clone()));
        Self {
            folder,
            address,
            stop,
        }
    }

    /// Asks, and leaves the answer to be read.
    async fn ask(&self, job: &str, query: &str, token: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET /api/v1/jobs/{job}/results?{query} HTTP/1.0\r\n\
             authorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Head and body.
    async fn get(&self, job: &str, query: &str, token: &str) -> (String, String) {
        let mut stream = self.ask(job, query, token).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }
}

fn lines(numbers: std::ops::Range<u64>) -> String {
    numbers.map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn pages_side_by_side_hold_each_line_once_and_in_order() {
    let scene = Scene::new().await;
    finish(scene.folder.path());
    for limit in 1..=11 {
        let mut read = String::new();
        let mut next = Some(0);
        while let Some(offset) = next {
            let query = format!("offset={offset}&limit={limit}");
            let (head, body) = scene.get("embed", &query, "s3cret").await;
            assert!(head.contains("millrace-total: 10"), "{head}");
            assert!(head.contains("millrace-finished: true"), "{head}");
            read += &body;
            let named = head.lines();
            let named = named.filter_map(|line| line.strip_prefix("millrace-next-offset: "));
            next = named.map(|offset| offset.parse::<u64>().unwrap()).next();
        }
        assert_eq!(read, lines(0..10), "{limit}");
    }
    let (_, beyond) = scene.get("embed", "offset=10", "s3cret").await;
    assert_eq!(beyond, "");
}

#[tokio::test]
async fn results_are_for_whoever_brings_the_token_of_the_job() {
    let scene = Scene::new().await;
    for (job, query, token, status) in [
        ("embed", "", "guess", "401"),
        ("other", "", "guess", "401"),
        ("other", "", "s3cret", "404"),
        ("embed", "limit=0", "s3cret", "400"),
        ("embed", "", "s3cret", "404"),
    ] {
        let (head, body) = scene.get(job, query, token).await;
        assert_eq!(
            head.split(' ').nth(1),
            Some(status),
            "{job} {query}: {body}"
        );
    }
}

#[tokio::test]
async fn whoever_follows_gets_every_line_once_the_run_is_over() {
    let scene = Scene::new().await;
    let following = scene.get("embed", "follow=true", "s3cret");
    let finishing = async { finish(scene.folder.path()) };
    let ((_, all), ()) = futures::join!(following, finishing);
    assert_eq!(all, lines(0..10));
    let (_, some) = scene.get("embed", "follow=true&limit=4", "s3cret").await;
    assert_eq!(some, lines(0..4));
}

#[tokio::test]
async fn whoever_follows_is_let_go_when_the_reader_is_to_stop() {
    let scene = Scene::new().await;
    let mut stream = scene.ask("embed", "follow=true", "s3cret").await;
    let begun = stream.read(&mut [0; 512]).await.unwrap();
    assert!(begun > 0);
    scene.stop.cancel();
    assert_eq!(stream.read(&mut [0; 512]).await.unwrap(), 0);
}

#[tokio::test]
async fn whoever_is_one_too_many_is_told_when_to_come_again() {
    let scene = Scene::new().await;
    let mut following = Vec::new();
    for _ in 0..REQUESTS_MAX {
        let mut stream = scene.ask("embed", "follow=true", "s3cret").await;
        assert!(stream.read(&mut [0; 512]).await.unwrap() > 0);
        following.push(stream);
    }
    let (head, _) = scene.get("embed", "", "s3cret").await;
    assert!(head.contains("429 Too Many Requests"), "{head}");
    assert!(head.contains("retry-after: 1"), "{head}");
    drop(following);
}

fn check(query: &str, expected: Result<(u64, Option<u64>, bool), &str>) {
    let asked = Asked::parse(query).map_err(|refusal| refusal.to_string());
    let asked = asked.map(|asked| (asked.offset, asked.limit, asked.follow));
    assert_eq!(asked, expected.map_err(str::to_owned), "{query}");
}

#[test]
fn a_query_is_refused_by_the_name_of_what_is_wrong() {
    check("", Ok((0, None, false)));
    check("offset=20&limit=10", Ok((20, Some(10), false)));
    check("follow=true&limit=1000000", Ok((0, Some(1_000_000), true)));
    check("limit=ten", Err("limit: \"ten\" is no whole number"));
    check("limit=0", Err("limit: ask for at least one line"));
    check("limit=10001", Err("limit: a page has at most 10000 lines"));
    check("page=1", Err("page: give offset, limit or follow"));
    check(
        "follow=maybe",
        Err("follow: \"maybe\" is not true or false"),
    );
    check(
        "follow=true&offset=3",
        Err("offset: whoever follows begins at the first line"),
    );
}
