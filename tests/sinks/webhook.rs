//! Webhooks, by a receiver that does as it is told: the signature, what each answer means, and whom they may call.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::harness::receiver::{Answer, Received, Receiver};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

async fn webhook(receiver: &Receiver, more: &str) -> Arc<dyn Sink> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), SECRET).unwrap();
    let table = format!("url = '{}'\nsecret_file = 'secret'\nallow_private = true\n{more}", receiver.url());
    open("webhook", &table, folder.path()).await.unwrap()
}

async fn post(sink: &dyn Sink) -> Outcome {
    let outcome = sink.deliver(&track(), &applies(1..=1)).await.remove(0);
    let (Outcome::Retry { why, .. } | Outcome::Refused { why }) = &outcome else { return outcome };
    assert!(!why.contains(&SECRET[6..]) && !why.contains("hush-hush"), "{why}");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_signed_and_a_repeat_has_the_same_id() {
    let receiver = Receiver::start().await;
    let sink = webhook(&receiver, "headers = { X-Shop = 'hush-hush' }").await;
    receiver.script([Answer::Status(503), Answer::Full(200, vec![], b"thanks".to_vec())]);
    assert!(matches!(post(&*sink).await, Outcome::Retry { .. }));
    assert_eq!(post(&*sink).await, Outcome::Delivered);
    let got = receiver.wait_for(2).await;
    for request in &got {
        request.verify(SECRET);
        assert_eq!(request.header("content-type"), "application/cloudevents+json; charset=utf-8");
        assert_eq!(request.header("user-agent"), concat!("chainweir/", env!("CARGO_PKG_VERSION")));
        assert_eq!(request.header("x-shop"), "hush-hush");
        assert_eq!(request.header("webhook-id"), request.event()["id"]);
        assert_eq!(request.event()["data"]["value"], MAX);
    }
    assert_eq!(got[0].header("webhook-id"), got[1].header("webhook-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_a_receiver_has_its_outcome() {
    let receiver = Receiver::start().await;
    let sink = webhook(&receiver, "").await;
    for status in [200, 201, 202, 204, 299] {
        receiver.script([Answer::Status(status)]);
        assert_eq!(post(&*sink).await, Outcome::Delivered, "{status}");
    }
    for status in [400, 410, 413, 415, 422] {
        receiver.script([Answer::Full(status, vec![], b"no\x1b[2J thanks".to_vec())]);
        let Outcome::Refused { why } = post(&*sink).await else { panic!("{status}") };
        assert!(why.contains(&status.to_string()) && why.contains(r"no\u{1b}[2J thanks"), "{why}");
    }
    for status in [304, 401, 403, 404, 405, 408, 409, 425, 429, 431, 500, 502, 503, 504, 599] {
        receiver.script([Answer::Status(status)]);
        let outcome = post(&*sink).await;
        assert!(matches!(&outcome, Outcome::Retry { after: None, .. }), "{status}: {outcome:?}");
    }
    for (said, wait) in [("7", 7), ("100000", 3600)] {
        receiver.script([Answer::Full(429, vec![("retry-after", said.into())], vec![])]);
        let outcome = post(&*sink).await;
        assert!(
            matches!(&outcome, Outcome::Retry { after: Some(after), .. } if after.as_secs() == wait),
            "{outcome:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let sink = webhook(&receiver, "").await;
    for status in [301, 302, 303, 307, 308] {
        receiver.script([Answer::Full(status, vec![("location", elsewhere.url())], vec![])]);
        let outcome = post(&*sink).await;
        assert!(matches!(&outcome, Outcome::Retry { why, .. } if why.contains("not followed")), "{outcome:?}");
    }
    assert_eq!((receiver.received().len(), elsewhere.received().len()), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_or_never_ends_is_left_in_time() {
    let receiver = Receiver::start().await;
    let sink = webhook(&receiver, "timeout_ms = 2000").await;
    // (what it does, whether that is a delivery)
    for (answer, delivered) in [
        (Answer::Hang, false),
        (Answer::Slow(Duration::from_secs(20), 200), false),
        (Answer::Close, false),
        (Answer::Stall(500), false),
        (Answer::Endless(500), false),
        (Answer::Stall(200), true),
        (Answer::Endless(200), true),
    ] {
        receiver.script([answer.clone()]);
        let start = Instant::now();
        let outcome = post(&*sink).await;
        let took = start.elapsed();
        assert_eq!(outcome == Outcome::Delivered, delivered, "{answer:?}: {outcome:?}");
        assert!(matches!(outcome, Outcome::Delivered | Outcome::Retry { .. }), "{answer:?}: {outcome:?}");
        // What hangs does so for longer.
        assert!(took < Duration::from_secs(15), "{answer:?}: {took:?}");
        if let (Answer::Endless(500), Outcome::Retry { why, .. }) = (&answer, &outcome) {
            assert!(why.len() < 500, "{why}");
        }
    }
    let port = receiver.stop().await;
    assert!(matches!(post(&*sink).await, Outcome::Retry { .. }));
    let receiver = Receiver::start_on(port).await;
    assert_eq!(post(&*sink).await, Outcome::Delivered);
    receiver.wait_for(1).await[0].verify(SECRET);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_receiver_needs_leave() {
    let receiver = Receiver::start().await;
    let table = |more: &str| format!("url = '{}'\n{more}", receiver.url());
    let told = why(open("webhook", &table(""), Path::new(".")).await.err().unwrap());
    assert!(told.contains("127.0.0.1") && told.contains("allow_private = true"), "{told}");
    let sink = open("webhook", &table("allow_private = true"), Path::new(".")).await.unwrap();
    assert_eq!(post(&*sink).await, Outcome::Delivered);
    assert_eq!(receiver.received()[0].header("webhook-signature"), "", "without a secret nothing is signed");
}

/// What a request is made of, for a verifier in another language.
fn request(got: &Received, secret: &str) -> String {
    let headers: serde_json::Map<String, serde_json::Value> =
        got.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().into())).collect();
    serde_json::json!({ "secret": secret, "headers": headers, "body": String::from_utf8_lossy(&got.body) }).to_string()
}

const NODE: &str = r#"
const { Webhook } = require("standardwebhooks");
const { secret, headers, body } = JSON.parse(require("fs").readFileSync(0));
console.log(new Webhook(secret).verify(body, headers).id);
"#;

const PYTHON: &str = r#"
import json, sys
from standardwebhooks.webhooks import Webhook
request = json.load(sys.stdin)
print(Webhook(request["secret"]).verify(request["body"], request["headers"])["id"])
"#;

/// What it prints, or `None` where it refuses.
fn run(program: &str, script: &str, flag: &str, folder: &str, variable: &str, stdin: &str) -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(folder);
    let mut child = Command::new(program)
        .args([flag, script])
        .env(variable, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || complaint.contains("WebhookVerificationError"), "{complaint}");
    output.status.success().then_some(said)
}

/// With the libraries of Standard Webhooks; those of PHP come from no registry that a test may reach, and examples/deposits-to-webhook
/// verifies by PHP's own functions.
#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_of_nodejs_and_python_accept_the_signature_while_the_secret_changes() {
    const NEW: &str = "whsec_bmV3IHNlY3JldCBvZiB0aGUgc2hvcCwgMzIgYnl0ZXM=";
    if !Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/python/standardwebhooks").is_dir() {
        eprintln!("SKIPPED: no Standard Webhooks libraries; install them by: cargo x setup");
        return;
    }
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secrets"), format!("{SECRET} {NEW}")).unwrap();
    let table = format!("url = '{}'\nsecret_file = 'secrets'\nallow_private = true", receiver.url());
    let sink = open("webhook", &table, folder.path()).await.unwrap();
    assert_eq!(post(&*sink).await, Outcome::Delivered);
    let got = receiver.wait_for(1).await.remove(0);
    let verifiers =
        [("node", NODE, "-e", "node_modules", "NODE_PATH"), ("python3", PYTHON, "-c", "python", "PYTHONPATH")];
    for (program, script, flag, packages, variable) in verifiers {
        for secret in [SECRET, NEW] {
            let id = run(program, script, flag, packages, variable, &request(&got, secret));
            assert_eq!(id.as_deref(), got.event()["id"].as_str(), "{program}");
        }
        let other = "whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCwgMzIgYnl0ZXM=";
        assert_eq!(run(program, script, flag, packages, variable, &request(&got, other)), None, "{program}");
        let forged =
            Received { body: bytes::Bytes::from(format!("{} ", String::from_utf8_lossy(&got.body))), ..got.clone() };
        assert_eq!(run(program, script, flag, packages, variable, &request(&forged, NEW)), None, "{program}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attributes_are_headers_where_the_payload_is_the_body() {
    let receiver = Receiver::start().await;
    let sink = webhook(&receiver, "content_mode = 'binary'").await;
    let mut delivery = apply(7);
    let emission = Arc::make_mut(&mut delivery.emission);
    emission.lane_key = "Zoë \"100%\"\r\nX-Evil: 1".into();
    all_delivered(&sink.deliver(&track(), &[delivery]).await);
    let got = receiver.wait_for(1).await.remove(0);
    got.verify(SECRET);
    assert_eq!((got.header("content-type"), &got.body[..]), ("application/json", payload(7).as_bytes()));
    let expected = [
        ("ce-specversion", "1.0"),
        ("ce-id", apply(7).id.to_string().as_str()),
        ("ce-source", "eip155:1"),
        ("ce-type", "whale.large-moves"),
        ("ce-subject", "Zo%C3%AB%20%22100%25%22%0D%0AX-Evil:%201"),
        ("ce-time", "2023-11-14T22:13:27Z"),
        ("ce-op", "apply"),
        ("ce-block", "7"),
        ("ce-cursor", "7"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in expected {
        assert_eq!(got.header(&name), value, "{name}");
    }
    assert_eq!(got.header("x-evil"), "", "a payload adds no header");

    let sink = webhook(&receiver, "content_mode = 'bare'").await;
    assert_eq!(post(&*sink).await, Outcome::Delivered);
    let got = receiver.wait_for(2).await.remove(1);
    assert_eq!((got.header("ce-id"), &got.body[..]), ("", payload(1).as_bytes()));
    assert!(
        open("webhook", "url = 'https://1.1.1.1/'\nbatch = 5\ncontent_mode = 'bare'", Path::new(".")).await.is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_filled_in_and_end_where_they_end() {
    let receiver = Receiver::start().await;
    let headers =
        "headers = { X-Stream = '{plugin}/{stream} on {chain}', X-Key = 'k={lane_key}', X-Json = '{\"a\": 1}' }";
    let sink = webhook(&receiver, headers).await;
    let mut delivery = apply(1);
    Arc::make_mut(&mut delivery.emission).lane_key = "a\r\nX-Evil: 1".into();
    all_delivered(&sink.deliver(&track(), &[delivery]).await);
    let got = receiver.wait_for(1).await.remove(0);
    assert_eq!(got.header("x-stream"), "whale/large-moves on 1");
    assert_eq!((got.header("x-key"), got.header("x-evil")), ("k=a%0D%0AX-Evil:%201", ""));
    assert_eq!(got.header("x-json"), "{\"a\": 1}");
    let batch = "url = 'https://1.1.1.1/'\nbatch = 5\nheaders = { X-Key = '{lane_key}' }";
    assert!(open("webhook", batch, Path::new(".")).await.is_err());
    let ours = "url = 'https://1.1.1.1/'\nheaders = { ce-id = 'x' }";
    assert!(open("webhook", ours, Path::new(".")).await.is_err());
}
