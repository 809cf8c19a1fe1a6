//! A receiver of webhooks that does as a test tells it, and remembers what it got.
//!
//! ```ignore
//! let receiver = Receiver::start().await;
//! receiver.script([Answer::Status(503), Answer::Hang]);   // then `otherwise`, which is 200 at first
//! // ... point an output at receiver.url(), with allow_private = true ...
//! let got = receiver.wait_for(3).await;
//! got[0].verify(SECRET);
//! let port = receiver.stop().await;                         // connections are refused from here on
//! let receiver = Receiver::start_on(port).await;            // a new one, with an empty memory
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures::StreamExt;

/// What the receiver does with one request.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16),
    /// A status with headers and a body.
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Takes the request and says nothing, until the receiver stops.
    Hang,
    /// Waits, then answers with a status.
    Slow(Duration, u16),
    /// A status and a body that never ends.
    Endless(u16),
    /// A status, the beginning of a body, and then silence.
    Stall(u16),
    /// Takes the request and closes the connection.
    Close,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub at: Instant,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What was answered.
    pub answer: Answer,
}

impl Received {
    /// The body as JSON.
    pub fn event(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a webhook's body is JSON")
    }
    /// Whether the answer said that it was taken.
    pub fn accepted(&self) -> bool {
        matches!(self.answer, Answer::Status(200..=299) | Answer::Slow(_, 200..=299))
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("headers are ASCII"))
    }
    /// Panics unless the Standard Webhooks signature is right. `secret` begins with `whsec_`.
    pub fn verify(&self, secret: &str) {
        let verifier = standardwebhooks::Webhook::new(secret).expect("the test's own secret is right");
        verifier.verify(&self.body, &self.headers).expect("the signature is right");
    }
}

#[derive(Default)]
struct Memory {
    script: VecDeque<Answer>,
    otherwise: Option<Answer>,
    received: Vec<Received>,
}

type Shared = Arc<(Mutex<Memory>, tokio::sync::Notify)>;

pub struct Receiver {
    address: SocketAddr,
    shared: Shared,
    server: tokio::task::JoinHandle<()>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Receiver {
    /// On a free port of the loopback.
    pub async fn start() -> Self {
        Self::start_on(super::free_port()).await
    }

    pub async fn start_on(port: u16) -> Self {
        let listener = super::until("the port to be free", || async {
            tokio::net::TcpListener::bind(("127.0.0.1", port)).await.ok()
        })
        .await;
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Shared::default();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let app = axum::Router::new().fallback(receive).with_state((shared.clone(), stopped.clone()));
        let server = tokio::spawn(async move {
            let mut stopped = stopped;
            let until_stopped = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            axum::serve(listener, app).with_graceful_shutdown(until_stopped).await.expect("the receiver serves");
        });
        Self { address, shared, server, stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// The next requests get these answers, in this order, one each.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.0.lock().unwrap().script.extend(answers);
    }

    /// What is left of the script is not played.
    pub fn drop_script(&self) {
        self.shared.0.lock().unwrap().script.clear();
    }

    /// The answer when the script is at its end.
    pub fn otherwise(&self, answer: Answer) {
        self.shared.0.lock().unwrap().otherwise = Some(answer);
    }

    pub fn received(&self) -> Vec<Received> {
        self.shared.0.lock().unwrap().received.clone()
    }

    /// Returns all requests as soon as there are this many. Panics after 30 s.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        let enough = async {
            loop {
                let changed = self.shared.1.notified();
                let received = self.received();
                if received.len() >= count {
                    return received;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), enough).await;
        waited.unwrap_or_else(|_| panic!("waited for {count} requests, there are {}", self.received().len()))
    }

    /// Closes every connection and the port, which is returned.
    pub async fn stop(mut self) -> u16 {
        self.stop.send_replace(true);
        if tokio::time::timeout(Duration::from_secs(1), &mut self.server).await.is_err() {
            self.server.abort();
        }
        self.address.port()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.server.abort();
    }
}

async fn receive(
    State((shared, mut stopped)): State<(Shared, tokio::sync::watch::Receiver<bool>)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = {
        let mut memory = shared.0.lock().unwrap();
        let next = memory.script.pop_front().or_else(|| memory.otherwise.clone());
        let answer = next.unwrap_or(Answer::Status(200));
        memory.received.push(Received { at: Instant::now(), headers, body, answer: answer.clone() });
        answer
    };
    shared.1.notify_waiters();
    let respond = |status: u16, headers: Vec<(&str, String)>, body: Body| {
        let mut response = Response::builder().status(StatusCode::from_u16(status).expect("a status of the test"));
        for (name, value) in headers {
            response = response.header(name, value);
        }
        response.body(body).expect("an answer of the test")
    };
    // Unwinding without a message takes the connection's task down, and the connection with it.
    let close = || -> Response { std::panic::resume_unwind(Box::new("closed on purpose")) };
    match answer {
        Answer::Status(status) => respond(status, vec![], Body::empty()),
        Answer::Full(status, headers, body) => respond(status, headers, body.into()),
        Answer::Slow(wait, status) => {
            tokio::time::sleep(wait).await;
            respond(status, vec![], Body::empty())
        }
        Answer::Hang => {
            let _ = stopped.wait_for(|stop| *stop).await;
            close()
        }
        Answer::Endless(status) => {
            let chunk = Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; 16 * 1024]));
            respond(status, vec![], Body::from_stream(futures::stream::repeat(chunk)))
        }
        Answer::Stall(status) => {
            let begin = futures::stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from_static(b"begin"))]);
            respond(status, vec![], Body::from_stream(begin.chain(futures::stream::pending())))
        }
        Answer::Close => close(),
    }
}
