//! Real receivers on loopback, which verify what they are told and refuse it at first.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::post;
use serde_json::Value;

use super::*;

/// What a receiver hears, and how it answers.
#[derive(Default)]
struct Receiver {
    /// The answers to the first requests; all later ones are taken.
    answers: Mutex<Vec<StatusCode>>,
    heard: Mutex<Vec<(HeaderMap, Bytes)>>,
}

async fn hear(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    receiver.heard.lock().unwrap().push((headers, body));
    let mut answers = receiver.answers.lock().unwrap();
    match answers.is_empty() {
        true => StatusCode::NO_CONTENT,
        false => answers.remove(0),
    }
}

/// A receiver that answers so at first, and its URL.
async fn receiver(answers: &[StatusCode]) -> (Arc<Receiver>, String) {
    let receiver = Arc::new(Receiver {
        answers: Mutex::new(answers.to_vec()),
        heard: Mutex::default(),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?of=millrace", listener.local_addr().unwrap());
    let routes = Router::new().route("/hook", post(hear));
    let routes = routes.with_state(Arc::clone(&receiver));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (receiver, url)
}

/// Means with a Secret `hook` that holds `secret`.
fn means(secret: &str, link_local: LinkLocal) -> (Means, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("hook")).unwrap();
    std::fs::write(folder.path().join("hook/secret"), secret).unwrap();
    let means = Means {
        secrets: Secrets::Folder(folder.path().to_owned()),
        link_local,
    };
    (means, folder)
}

fn named() -> SecretKeyRef {
    SecretKeyRef {
        name: "hook".to_owned(),
        key: None,
    }
}

fn event() -> Event {
    let over = Over {
        namespace: "tenant".to_owned(),
        name: "embed".to_owned(),
        run: 1,
        reason: COMPLETED.to_owned(),
        message: "done".to_owned(),
        output: "s3://b/out".to_owned(),
        counts: None,
        postgres: None,
    };
    Event::of(over, "uid")
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers[name].to_str().unwrap()
}

#[tokio::test]
async fn an_event_is_signed_anew_for_each_try_until_it_is_taken() {
    let refusals = [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    let (receiver, url) = receiver(&refusals).await;
    let secret = format!(
        "{SECRET_PREFIX}{}",
        BASE64_STANDARD.encode("a key of many bytes")
    );
    let (means, _folder) = means(&secret, LinkLocal::Blocked);
    means.deliver(&url, Some(&named()), &event()).await.unwrap();
    let heard = receiver.heard.lock().unwrap();
    assert_eq!(heard.len(), 3);
    for (headers, body) in heard.iter() {
        let (id, at) = (
            header(headers, "webhook-id"),
            header(headers, "webhook-timestamp"),
        );
        assert_eq!(id, "uid-1-succeeded");
        // As a receiver verifies it, from the convention and not from this crate.
        let signed = [format!("{id}.{at}.").as_bytes(), body].concat();
        let mut mac = Hmac::<Sha256>::new_from_slice(b"a key of many bytes").unwrap();
        mac.update(&signed);
        let signature = header(headers, "webhook-signature");
        let signature = BASE64_STANDARD.decode(signature.strip_prefix("v1,").unwrap());
        mac.verify_slice(&signature.unwrap()).unwrap();
        assert_eq!(
            header(headers, "content-type"),
            "application/cloudevents+json"
        );
        let body: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(body["type"], "dev.millrace.batchjob.succeeded");
        assert_eq!(body["subject"], "tenant/embed");
    }
}

#[test]
fn the_signature_is_that_of_the_conventions_own_example() {
    let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    let signed = signature(&key, id, "1614265330", br#"{"test": 2432232314}"#);
    assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[tokio::test]
async fn a_receiver_that_refuses_for_good_is_asked_once() {
    let (receiver, url) = receiver(&[StatusCode::GONE]).await;
    let (means, _folder) = means("s", LinkLocal::Blocked);
    let error = means.deliver(&url, None, &event()).await.unwrap_err();
    assert!(error.to_string().contains("410"), "{error}");
    let heard = receiver.heard.lock().unwrap();
    assert_eq!(heard.len(), 1);
    assert!(
        !heard[0].0.contains_key("webhook-signature"),
        "there is no secret"
    );
}

#[tokio::test]
async fn addresses_of_the_machines_own_link_are_told_nothing() {
    let (means, _folder) = means("s", LinkLocal::Blocked);
    for url in ["http://169.254.169.254/latest", "http://[fd00:ec2::254]/"] {
        let error = means.deliver(url, Some(&named()), &event()).await;
        let error = error.unwrap_err();
        assert!(matches!(error, NotifyError::Url(_)), "{error}");
    }
    let missing = SecretKeyRef {
        name: "other".to_owned(),
        key: None,
    };
    let error = means
        .deliver("http://127.0.0.1:1/", Some(&missing), &event())
        .await;
    assert!(matches!(error.unwrap_err(), NotifyError::Secret(_)));
}
