//! One provider: its connection and what it says. `pool -> [endpoint] -> the node`.
//!
//! Knows JSON-RPC calls and nothing of blocks, nor of other providers. A URL may hold a key: what leaves here names scheme
//! and host alone, whatever the library below puts into its errors.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{B256, U64};
use alloy_pubsub::RawSubscription;
use alloy_rpc_client::{ClientBuilder, RpcClient};
use alloy_transport::{RpcError, TransportErrorKind};
use futures::{StreamExt, TryStreamExt};
use rand::Rng;
use serde_json::Value;
use serde_json::value::RawValue;
use url::Url;

use super::classify::{Asks, Hint, classify};
use super::ipc::Ipc;
use super::limits::{Gate, Importance};
use super::ws::Ws;
use crate::model::ChainId;

/// What a call came to, if not to an answer.
#[derive(Clone, Debug)]
pub(super) enum Fail {
    /// The connection, not the question: another provider may do.
    Dead(String),
    Limited {
        why: String,
        after: Option<Duration>,
    },
    TooLarge {
        why: String,
        hint: Option<Hint>,
    },
    Unknown(String),
    NoMethod(String),
    NoTag,
    False(String),
    Other(String),
    WrongChain(String),
}

/// Calls in one request. Providers bound it at 100 and more; one that refuses is asked for less.
const BATCH_MOST: usize = 64;
/// A refusal may have been a bad moment: after so long all is tried again, and twice as long after each time it was in vain.
const BATCH_AGAIN: Duration = Duration::from_secs(60);
/// Where there are no batches, so many calls at a time instead.
const SIDE_BY_SIDE: usize = 32;

/// Notifications that wait for us. Of a mempool, hundreds may come at once.
const UNHEARD_MOST: usize = 4096;

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Rate limits are waited for so often within one call.
const LIMIT_TRIES: u32 = 4;
/// The largest answer over WebSocket and IPC: receipts of the largest blocks are some 20 MiB.
pub(super) const ANSWER_MOST: usize = 256 << 20;

/// A provider as the configuration has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Setting {
    pub url: String,
    pub per_second: Option<f64>,
    pub concurrency: Option<usize>,
    pub headers: reqwest::header::HeaderMap,
}

enum Way {
    WebSocket,
    Http,
    Ipc(PathBuf),
}

pub(super) struct Provider {
    /// Its place in the configuration's order of preference.
    pub index: usize,
    /// Scheme and host: all that may be shown.
    pub shown: String,
    url: Url,
    way: Way,
    timeout: Duration,
    headers: reqwest::header::HeaderMap,
    expect: Mutex<Option<ChainId>>,
    client: tokio::sync::Mutex<Option<RpcClient>>,
    failures: AtomicU32,
    retry_at: Mutex<Option<Instant>>,
    pub gate: Gate,
    pub requests: AtomicU64,
    pub errors: AtomicU64,
    pub no_block_receipts: AtomicBool,
    /// It has no `debug_traceBlockByHash`, and is asked for `trace_block`.
    pub no_call_tracer: AtomicBool,
    batch: Mutex<Batch>,
}

/// Calls in one request; 1 where it takes no batches.
struct Batch {
    size: usize,
    smaller_since: Instant,
    in_vain: u32,
}

/// A provider as one operation asks it.
pub(super) struct Endpoint {
    provider: Arc<Provider>,
    importance: Importance,
    /// When the operation began, in the order of this provider's gate.
    began: u64,
    /// Nobody else can be asked: what passes is waited for here.
    patient: bool,
}

impl Deref for Endpoint {
    type Target = Provider;

    fn deref(&self) -> &Provider {
        &self.provider
    }
}

impl Provider {
    pub fn new(index: usize, setting: Setting, timeout: Duration, expect: Option<ChainId>) -> Result<Self, String> {
        let Setting { url, per_second, concurrency, headers } = setting;
        // The text itself is not repeated: it may be a key.
        let url = match url.strip_prefix('/') {
            Some(_) => Url::from_file_path(&url).map_err(|()| "an rpc path cannot be read".to_owned())?,
            None => Url::parse(&url).map_err(|e| format!("an rpc URL cannot be read: {e}"))?,
        };
        let host = || Ok::<_, String>(url.host_str().ok_or("an rpc URL has no host")?.to_owned());
        let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
        let (way, shown) = match url.scheme() {
            "ws" | "wss" => (Way::WebSocket, format!("{}://{}{port}", url.scheme(), host()?)),
            "http" | "https" => (Way::Http, format!("{}://{}{port}", url.scheme(), host()?)),
            "ipc" | "file" => {
                let path = PathBuf::from(url.path());
                (Way::Ipc(path.clone()), format!("ipc://{}", path.display()))
            }
            other => {
                return Err(format!("an rpc URL has the scheme {other:?}; use ws, wss, http, https or ipc"));
            }
        };
        Ok(Self {
            index,
            shown,
            url,
            way,
            timeout,
            headers,
            expect: Mutex::new(expect),
            client: tokio::sync::Mutex::new(None),
            failures: AtomicU32::new(0),
            retry_at: Mutex::new(None),
            gate: Gate::new(concurrency, per_second),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            no_block_receipts: AtomicBool::new(false),
            no_call_tracer: AtomicBool::new(false),
            batch: Mutex::new(Batch { size: BATCH_MOST, smaller_since: Instant::now(), in_vain: 0 }),
        })
    }

    pub fn asked(self: &Arc<Self>, importance: Importance, patient: bool) -> Arc<Endpoint> {
        Arc::new(Endpoint { provider: self.clone(), importance, began: self.gate.begins(), patient })
    }

    /// It tells of new heads by itself.
    pub fn subscribes(&self) -> bool {
        !matches!(self.way, Way::Http)
    }

    pub fn expect(&self, chain: ChainId) {
        *self.expect.lock().expect("no panic while held") = Some(chain);
    }

    /// Nothing of the URL but scheme and host, and not more than a line.
    fn redact(&self, text: &str) -> String {
        let mut text = text.replace(self.url.as_str(), &self.shown);
        let mut secrets: Vec<String> = vec![self.url.username().into(), self.url.password().unwrap_or("").into()];
        secrets.extend(self.url.path().split('/').map(String::from));
        secrets.extend(self.url.query_pairs().map(|(_, v)| v.into_owned()));
        secrets.extend(self.url.query().map(String::from));
        for secret in secrets.iter().filter(|s| s.len() >= 6) {
            text = text.replace(secret.as_str(), "***");
        }
        let line = text.lines().next().unwrap_or("").chars().take(300).collect::<String>();
        format!("{}: {line}", self.shown)
    }

    fn late(&self) -> String {
        format!("no answer in {} ms", self.timeout.as_millis())
    }

    async fn connect(&self) -> Result<RpcClient, Fail> {
        let dead = |e: &dyn std::fmt::Display| Fail::Dead(self.redact(&format!("no connection: {e}")));
        let late = |_| dead(&self.late());
        let client = match &self.way {
            Way::WebSocket => {
                let ws = Ws { url: self.url.clone(), headers: self.headers.clone() };
                let opening = ClientBuilder::default().pubsub(ws);
                tokio::time::timeout(self.timeout, opening).await.map_err(late)?.map_err(|e| dead(&e))?
            }
            Way::Ipc(path) => {
                let opening = ClientBuilder::default().pubsub(Ipc(path.clone()));
                tokio::time::timeout(self.timeout, opening).await.map_err(late)?.map_err(|e| dead(&e))?
            }
            Way::Http => {
                let http = reqwest::Client::builder()
                    .timeout(self.timeout)
                    .default_headers(self.headers.clone())
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|e| dead(&e.without_url()))?;
                ClientBuilder::default().http_with_client(http, self.url.clone())
            }
        };
        let id = self.ask(&client, "eth_chainId", &serde_json::json!([])).await?;
        let id: U64 = serde_json::from_str(id.get())
            .map_err(|e| Fail::Other(self.redact(&format!("eth_chainId is not a number: {e}"))))?;
        let found = ChainId(id.to());
        match *self.expect.lock().expect("no panic while held") {
            Some(expected) if expected != found => Err(Fail::WrongChain(format!(
                "{} serves {found}, but {expected} is configured: correct `rpc` or `chain_id` of this chain",
                self.shown
            ))),
            _ => Ok(client),
        }
    }

    /// One question over one connection, no retries.
    async fn ask(&self, client: &RpcClient, method: &'static str, params: &Value) -> Result<Box<RawValue>, Fail> {
        let asking = client.request::<&Value, Box<RawValue>>(method, params);
        match tokio::time::timeout(self.timeout, asking).await {
            Err(_) => Err(Fail::Dead(self.redact(&format!("{method}: {}", self.late())))),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(self.fail(method, &e)),
        }
    }

    /// Many questions in one request; each has its answer or failure.
    async fn ask_many(
        &self,
        client: &RpcClient,
        method: &'static str,
        questions: &[Value],
    ) -> Result<Vec<Result<Box<RawValue>, Fail>>, Fail> {
        let mut batch = client.new_batch();
        let mut waiters = Vec::with_capacity(questions.len());
        for question in questions {
            waiters.push(batch.add_call::<_, Box<RawValue>>(method, question).map_err(|e| self.fail(method, &e))?);
        }
        match tokio::time::timeout(self.timeout, batch.send()).await {
            Err(_) => return Err(Fail::Dead(self.redact(&format!("{method}: {}", self.late())))),
            Ok(sent) => sent.map_err(|e| self.fail(method, &e))?,
        }
        // All that came has been sorted to its question by id; what did not come is a failure of its own.
        let answers = futures::future::join_all(waiters).await;
        Ok(answers.into_iter().map(|answer| answer.map_err(|e| self.fail(method, &e))).collect())
    }

    fn fail(&self, method: &str, e: &RpcError<TransportErrorKind>) -> Fail {
        let (code, message, after, http) = match e {
            RpcError::ErrorResp(payload) => (payload.code, payload.message.to_string(), None, None),
            RpcError::Transport(TransportErrorKind::HttpError(h)) => (0, h.body.clone(), None, Some(h.status)),
            RpcError::Transport(TransportErrorKind::HttpErrorWithRetryAfter { error, retry_after }) => {
                (0, error.body.clone(), Some(*retry_after), Some(error.status))
            }
            RpcError::NullResp => return Fail::Unknown(format!("what {method} asks for")),
            RpcError::DeserError { err, .. } => {
                return Fail::Dead(self.redact(&format!("{method}: the answer is not JSON-RPC: {err}")));
            }
            other => return Fail::Dead(self.redact(&format!("{method}: {other}"))),
        };
        // Some providers answer an error's JSON with an HTTP status of 4xx or 5xx.
        let (code, message) = match (http, serde_json::from_str::<Value>(&message)) {
            (Some(_), Ok(body)) if body.get("error").is_some_and(Value::is_object) => (
                body["error"]["code"].as_i64().unwrap_or(0),
                body["error"]["message"].as_str().unwrap_or("").to_owned(),
            ),
            _ => (code, message),
        };
        let status = http.map(|s| format!("HTTP {s}: ")).unwrap_or_default();
        let why = self.redact(&format!("{method}: {status}{message} ({code})"));
        if http == Some(429) || (after.is_some() && http == Some(503)) {
            return Fail::Limited { why, after };
        }
        match classify(method, code, &message) {
            Asks::Wait => Fail::Limited { why, after },
            Asks::Less(hint) => Fail::TooLarge { why, hint },
            // A body of HTML may hold any word: only a JSON-RPC error says these.
            _ if http.is_some() && code == 0 => match http {
                Some(413) => Fail::TooLarge { why, hint: None },
                _ => Fail::Dead(why),
            },
            Asks::Unknown => Fail::Unknown(why),
            Asks::NoMethod => Fail::NoMethod(why),
            Asks::NoTag => Fail::NoTag,
            Asks::Other => Fail::Other(why),
        }
    }

    async fn client(&self) -> Result<RpcClient, Fail> {
        if let Some(at) = *self.retry_at.lock().expect("no panic while held")
            && at > Instant::now()
        {
            let ms = at.saturating_duration_since(Instant::now()).as_millis();
            return Err(Fail::Dead(format!("{}: it failed; asked again in {ms} ms", self.shown)));
        }
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let client = self.connect().await.inspect_err(|_| self.failed())?;
        // Batches may have failed because the connection did.
        self.batch.lock().expect("no panic while held").size = BATCH_MOST;
        *slot = Some(client.clone());
        Ok(client)
    }

    fn failed(&self) {
        let mut retry_at = self.retry_at.lock().expect("no panic while held");
        // All that was under way fails with the connection, and is one failure.
        if retry_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let n = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let wait = BACKOFF_FIRST.saturating_mul(1 << n.min(10)).min(BACKOFF_MOST);
        *retry_at = Some(Instant::now() + jitter(wait));
    }

    /// Drops the connection, so that the next call opens one (and asks for the chain id again).
    pub async fn reset(&self) {
        *self.client.lock().await = None;
    }

    fn batch_size(&self) -> usize {
        let mut batch = self.batch.lock().expect("no panic while held");
        let again = BATCH_AGAIN * (1 << batch.in_vain.clamp(1, 7)) / 2;
        if batch.size < BATCH_MOST && batch.smaller_since.elapsed() >= again {
            batch.size = BATCH_MOST;
        }
        batch.size
    }

    /// No answer of a batch of this size was of use.
    fn smaller_batches(&self, method: &'static str, size: usize) {
        let mut batch = self.batch.lock().expect("no panic while held");
        // Many of that size may have been under way.
        if batch.size == size {
            batch.in_vain += u32::from(size == BATCH_MOST);
            (batch.size, batch.smaller_since) = (if size > 8 { 8 } else { 1 }, Instant::now());
            tracing::debug!(provider = %self.shown, method, size, now = batch.size, "smaller batches");
        }
    }

    /// `what`: the parameters of `eth_subscribe`.
    pub async fn subscribe(&self, what: Value) -> Result<RawSubscription, Fail> {
        let client = self.client().await?;
        if let Some(frontend) = client.pubsub_frontend() {
            frontend.set_channel_size(UNHEARD_MOST);
        }
        let id = self.ask(&client, "eth_subscribe", &what).await?;
        let id: B256 =
            serde_json::from_str(id.get()).map_err(|e| Fail::Other(self.redact(&format!("eth_subscribe: {e}"))))?;
        let frontend = client.pubsub_frontend().ok_or_else(|| Fail::Other("it has no subscriptions".into()))?;
        frontend.get_subscription(id).await.map_err(|e| Fail::Dead(self.redact(&e.to_string())))
    }
}

impl Endpoint {
    /// One call. What passes is waited for where nobody else can be asked; a connection that fails is dropped.
    pub async fn call(&self, method: &'static str, params: Value) -> Result<Box<RawValue>, Fail> {
        let (mut limits, mut again) = (0, false);
        let patience = if self.patient { self.timeout } else { Duration::ZERO };
        loop {
            let client = self.client().await?;
            let pass = self.gate.enter(self.importance, self.began, patience).await.map_err(|rest| Fail::Limited {
                why: format!(
                    "{}: {method}: it said \"too many\", and is asked again in {} ms",
                    self.shown,
                    rest.as_millis()
                ),
                after: Some(rest),
            })?;
            self.requests.fetch_add(1, Ordering::Relaxed);
            let answer = self.ask(&client, method, &params).await;
            match &answer {
                Err(Fail::Dead(_) | Fail::Other(_) | Fail::Limited { .. }) => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    pass.answered();
                    self.failures.store(0, Ordering::Relaxed);
                    *self.retry_at.lock().expect("no panic while held") = None;
                    return answer;
                }
            }
            match &answer {
                Err(Fail::Limited { after, .. }) => {
                    pass.limited(*after);
                    if self.patient && limits < LIMIT_TRIES {
                        limits += 1;
                        continue;
                    }
                }
                Err(fail) => {
                    let dead = matches!(fail, Fail::Dead(_));
                    if dead {
                        pass.failed();
                        self.reset().await;
                    }
                    // Once more, over a new connection: an operation of many calls must not fall with one of them.
                    if self.patient && !again {
                        again = true;
                        drop(pass);
                        tokio::time::sleep(jitter(AGAIN_AFTER)).await;
                        continue;
                    }
                    if dead {
                        self.failed();
                    }
                }
                Ok(_) => {}
            }
            return answer;
        }
    }

    /// Many calls of one method, answered in the order of the questions: in batches as large as the node takes them. What
    /// a batch did not bring is asked for by itself.
    pub async fn call_many(&self, method: &'static str, questions: Vec<Value>) -> Result<Vec<Box<RawValue>>, Fail> {
        let mut answers = Vec::with_capacity(questions.len());
        let mut rest = questions.as_slice();
        while !rest.is_empty() {
            let size = self.batch_size();
            if size < 2 || rest.len() < 2 {
                let one_by_one = futures::stream::iter(rest.to_vec()).map(|question| self.call(method, question));
                let all: Vec<_> = one_by_one.buffered(SIDE_BY_SIDE).try_collect().await?;
                answers.extend(all);
                break;
            }
            let (now, later) = rest.split_at(size.min(rest.len()));
            match self.batch(method, now).await {
                Some(some) => {
                    for (answer, question) in some.into_iter().zip(now) {
                        answers.push(match answer {
                            Ok(answer) => answer,
                            Err(_) => self.call(method, question.clone()).await?,
                        });
                    }
                    rest = later;
                }
                // No answer of it is of use: a smaller one is tried, and at last each by itself.
                None => self.smaller_batches(method, size),
            }
        }
        Ok(answers)
    }

    /// `None` where most of it failed.
    async fn batch(&self, method: &'static str, questions: &[Value]) -> Option<Vec<Result<Box<RawValue>, Fail>>> {
        let client = self.client().await.ok()?;
        let pass = self.gate.enter(self.importance, self.began, self.timeout).await.ok()?;
        pass.holds(questions.len());
        self.requests.fetch_add(questions.len() as u64, Ordering::Relaxed);
        let answers = match self.ask_many(&client, method, questions).await {
            Ok(answers) => answers,
            Err(fail) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                if let Fail::Limited { after, .. } = &fail {
                    pass.limited(*after);
                }
                return None;
            }
        };
        let good = answers.iter().filter(|answer| answer.is_ok()).count();
        if good * 2 < questions.len() {
            self.errors.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        pass.answered();
        Some(answers)
    }

    pub async fn chain(&self) -> Result<ChainId, Fail> {
        let id = self.call("eth_chainId", serde_json::json!([])).await?;
        let id: U64 = serde_json::from_str(id.get()).map_err(|e| Fail::Other(self.redact(&e.to_string())))?;
        Ok(ChainId(id.to()))
    }
}

/// Between one and one and a half times: many clients must not come back at once, none before it was told.
pub(super) fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(1.0..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_failed_is_smaller_and_is_tried_whole_again_later() {
        let setting = Setting { url: "http://node.example".into(), ..Default::default() };
        let provider = Provider::new(0, setting, Duration::from_secs(1), None).unwrap();
        let later = |time: Duration| provider.batch.lock().unwrap().smaller_since -= time;
        for (again, early) in [(60, 59), (120, 119), (240, 239)] {
            for (size, less) in [(BATCH_MOST, 8), (BATCH_MOST, 8), (8, 1)] {
                provider.smaller_batches("eth_getBlockByNumber", size);
                assert_eq!(provider.batch_size(), less, "many of one size are one saying");
            }
            later(Duration::from_secs(early));
            assert_eq!(provider.batch_size(), 1);
            later(Duration::from_secs(again - early));
            assert_eq!(provider.batch_size(), BATCH_MOST);
        }
    }

    #[test]
    fn no_part_of_a_url_but_scheme_and_host_is_shown() {
        let url = "wss://user:passw0rd@node.example:8546/v2/s3cretKey123?token=abcdef99";
        let of = |url: &str| {
            Provider::new(0, Setting { url: url.into(), ..Default::default() }, Duration::from_secs(1), None)
        };
        let e = of(url).unwrap();
        for text in [
            format!("error sending request for url ({url})"),
            "bad key s3cretKey123 of user with passw0rd, token=abcdef99".into(),
        ] {
            let shown = e.redact(&text);
            assert!(shown.starts_with("wss://node.example:8546: "), "{shown}");
            for secret in ["s3cretKey123", "passw0rd", "abcdef99"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
        assert!(!of("ftp://a/s3cretKey123").err().unwrap().contains("s3cret"));
        assert_eq!(of("/run/node.ipc").unwrap().shown, "ipc:///run/node.ipc");
        assert_eq!(of("ipc:///run/node.ipc").unwrap().shown, "ipc:///run/node.ipc");
    }
}
