//! A provider's bad days: a proxy before a real node, which speaks JSON-RPC over HTTP and WebSocket, singly and in batches,
//! and by a seed does one of [`Fault::ALL`] to what the node answers.
//!
//! ```ignore
//! let proxy = FaultProxy::before(&anvil.http(), Some(&anvil.ws())).await;
//! proxy.misbehave(Fault::LieData, 0.3, seed);     // three answers of ten, where the fault fits the answer
//! proxy.behave();
//! ```
//! It may call itself another chain (`chain_id`), so that many of them can be followed in one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::{B256, Bytes};
use futures::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Delay,
    /// Nothing is answered, and the connection is closed.
    Drop,
    /// Nothing is answered, and the connection stays.
    Hang,
    /// Half of an answer.
    Cut,
    TooMany,
    ServerError,
    Html,
    Empty,
    /// Also where there is something.
    Null,
    TruncateLogs,
    ReorderLogs,
    /// The head of some blocks ago.
    OlderHead,
    /// Another block with the same parent, whole and consistent.
    SiblingFork,
    SilentSubscription,
    /// Twice, and the one before once more.
    DoubleNotifications,
    LieInData,
    LieInAddress,
    LieInTopic,
    LieInTransaction,
    /// One log less, from the filter's answer and from the receipts.
    LeaveOneOut,
    /// A batch's answers in another order.
    BatchDisorder,
    BatchOneMissing,
    /// An error object where a list belongs.
    BatchError,
}

impl Fault {
    pub const ALL: &'static [Self] = &[
        Self::Delay,
        Self::Drop,
        Self::Hang,
        Self::Cut,
        Self::TooMany,
        Self::ServerError,
        Self::Html,
        Self::Empty,
        Self::Null,
        Self::TruncateLogs,
        Self::ReorderLogs,
        Self::OlderHead,
        Self::SiblingFork,
        Self::SilentSubscription,
        Self::DoubleNotifications,
        Self::LieInData,
        Self::LieInAddress,
        Self::LieInTopic,
        Self::LieInTransaction,
        Self::LeaveOneOut,
        Self::BatchDisorder,
        Self::BatchOneMissing,
        Self::BatchError,
    ];

    /// What a provider says that is not so.
    pub const LIES: &'static [Self] = &[
        Self::Null,
        Self::TruncateLogs,
        Self::ReorderLogs,
        Self::OlderHead,
        Self::SiblingFork,
        Self::LieInData,
        Self::LieInAddress,
        Self::LieInTopic,
        Self::LieInTransaction,
        Self::LeaveOneOut,
    ];
}

pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Shared {
    node: String,
    node_ws: Option<String>,
    chain_id: Option<u64>,
    http: reqwest::Client,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    fault: Option<Fault>,
    chance: f64,
    done: u64,
    calls: HashMap<String, u64>,
    /// Siblings by their hash: whose, and their own header.
    siblings: HashMap<String, (String, Value)>,
    notified: Vec<Value>,
}

/// What leaves, in the end.
enum Out {
    Text(String),
    Status(u16, String),
    Half(String),
    Close,
    Hang,
}

impl FaultProxy {
    pub async fn before(node: &str, node_ws: Option<&str>) -> Self {
        Self::of_chain(node, node_ws, None).await
    }

    /// One that calls itself another chain.
    pub async fn of_chain(node: &str, node_ws: Option<&str>, chain_id: Option<u64>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let state = State {
            rng: StdRng::seed_from_u64(0),
            fault: None,
            chance: 0.0,
            done: 0,
            calls: HashMap::new(),
            siblings: HashMap::new(),
            notified: vec![],
        };
        let shared = Arc::new(Shared {
            node: node.to_owned(),
            node_ws: node_ws.map(str::to_owned),
            chain_id,
            http: reqwest::Client::builder().no_proxy().build().expect("a plain client"),
            state: Mutex::new(state),
        });
        let own = shared.clone();
        let server = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let _ = stream.set_nodelay(true);
                let own = own.clone();
                tokio::spawn(async move {
                    let mut first = [0; 3];
                    match stream.peek(&mut first).await {
                        Ok(3) if &first == b"GET" => own.web_socket(stream).await,
                        Ok(n) if n > 0 => own.http(stream).await,
                        _ => None,
                    }
                });
            }
        });
        Self { port, shared, server }
    }

    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn ws(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    pub fn misbehave(&self, fault: Fault, chance: f64, seed: u64) {
        let mut state = self.shared.state();
        (state.fault, state.chance, state.rng) = (Some(fault), chance, StdRng::seed_from_u64(seed));
    }

    pub fn behave(&self) {
        self.shared.state().fault = None;
    }

    /// How often it did what it was told.
    pub fn done(&self) -> u64 {
        self.shared.state().done
    }

    pub fn calls(&self, method: &str) -> u64 {
        self.shared.state().calls.get(method).copied().unwrap_or(0)
    }
}

fn hex(n: u64) -> Value {
    json!(format!("{n:#x}"))
}

fn quantity(v: &Value) -> Option<u64> {
    u64::from_str_radix(v.as_str()?.trim_start_matches("0x"), 16).ok()
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The fault, if it is one of these and the dice say so.
    fn now(&self, fits: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut state = self.state();
        let fault = state.fault.filter(|f| fits(*f))?;
        let chance = state.chance;
        if !state.rng.random_bool(chance) {
            return None;
        }
        state.done += 1;
        Some(fault)
    }

    fn below(&self, bound: usize) -> usize {
        self.state().rng.random_range(0..bound.max(1))
    }

    /// The node's own answer: the whole object.
    async fn node(&self, request: &Value) -> Option<Value> {
        self.http.post(&self.node).json(request).send().await.ok()?.json().await.ok()
    }

    async fn ask(&self, method: &str, params: Value) -> Option<Value> {
        let mut answer = self.node(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })).await?;
        Some(answer["result"].take())
    }

    // ---- one call -------------------------------------------------------------------------------------------

    async fn one(&self, request: &Value) -> Option<Value> {
        let method = request["method"].as_str().unwrap_or("");
        *self.state().calls.entry(method.to_owned()).or_default() += 1;
        let id = request["id"].clone();
        if let (Some(chain), "eth_chainId") = (self.chain_id, method) {
            return Some(json!({ "jsonrpc": "2.0", "id": id, "result": hex(chain) }));
        }
        // A sibling that was told is stood by, whatever comes after.
        let mut request = request.clone();
        let sibling = self.of_sibling(&mut request);
        let mut answer = self.node(&request).await?;
        answer["id"] = id;
        if let Some((whose, hash, header)) = sibling {
            let text = answer.to_string().replace(&whose, &hash);
            answer = serde_json::from_str(&text).expect("still JSON");
            if method == "eth_getBlockByHash" && !answer["result"].is_null() {
                overlay(&mut answer["result"], &header);
            }
        }
        if answer.get("error").is_some() {
            return Some(answer);
        }
        self.distort(method, &request["params"], &mut answer["result"]).await;
        Some(answer)
    }

    /// A question about a sibling becomes one about its original.
    fn of_sibling(&self, request: &mut Value) -> Option<(String, String, Value)> {
        let state = self.state();
        if state.siblings.is_empty() {
            return None;
        }
        let text = request["params"].to_string();
        let (hash, (whose, header)) = state.siblings.iter().find(|(hash, _)| text.contains(hash.as_str()))?;
        request["params"] = serde_json::from_str(&text.replace(hash.as_str(), whose)).expect("still JSON");
        Some((whose.clone(), hash.clone(), header.clone()))
    }

    async fn distort(&self, method: &str, params: &Value, result: &mut Value) {
        use Fault::*;
        let logs = matches!(method, "eth_getLogs" | "eth_getBlockReceipts");
        let latest = method == "eth_getBlockByNumber" && params[0] == "latest";
        let has_logs = logs && !log_places(result).is_empty();
        let fault = self.now(|f| match f {
            Null => true,
            TruncateLogs | ReorderLogs | LieInData | LieInAddress | LieInTopic | LieInTransaction | LeaveOneOut => {
                has_logs
            }
            OlderHead | SiblingFork => latest,
            _ => false,
        });
        match fault {
            Some(Null) => *result = Value::Null,
            Some(OlderHead) => {
                let back = 1 + self.below(4) as u64;
                let number = quantity(&result["number"]).unwrap_or(0).saturating_sub(back);
                if let Some(older) = self.ask("eth_getBlockByNumber", json!([hex(number), params[1]])).await {
                    *result = older;
                }
            }
            Some(SiblingFork) if quantity(&result["number"]) > Some(0) => self.sibling(result),
            Some(fault) if has_logs => {
                let places = log_places(result);
                let place = places[self.below(places.len())];
                spoil(result, place, fault);
            }
            _ => {}
        }
    }

    /// The same block with another word in its extra data, and so another hash.
    fn sibling(&self, block: &mut Value) {
        let Ok(mut header) = serde_json::from_value::<alloy_consensus::Header>(block.clone()) else { return };
        let mut state = self.state();
        header.extra_data = Bytes::from(state.rng.random::<[u8; 8]>().to_vec());
        let hash = header.hash_slow().to_string();
        let whose = block["hash"].as_str().unwrap_or("").to_owned();
        let own = json!({ "hash": hash, "extraData": header.extra_data });
        state.siblings.insert(hash, (whose, own.clone()));
        drop(state);
        overlay(block, &own);
    }

    // ---- what leaves ----------------------------------------------------------------------------------------

    /// `None`: the node itself is gone.
    async fn respond(&self, body: &str) -> Option<Out> {
        use Fault::*;
        let request: Value = serde_json::from_str(body).ok()?;
        if let Some(Delay) = self.now(|f| f == Delay) {
            let ms = self.state().rng.random_range(1..400);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let whole = match &request {
            Value::Array(calls) => {
                let answers = futures::future::join_all(calls.iter().map(|call| self.one(call))).await;
                let mut answers: Vec<Value> = answers.into_iter().collect::<Option<_>>()?;
                match self.now(|f| matches!(f, BatchDisorder | BatchOneMissing | BatchError)) {
                    Some(BatchDisorder) => answers.reverse(),
                    Some(BatchOneMissing) => drop(answers.remove(self.below(answers.len()))),
                    Some(BatchError) => {
                        let error = json!({ "code": -32600, "message": "batch requests are not taken just now" });
                        return Some(Out::Text(json!({ "jsonrpc": "2.0", "id": null, "error": error }).to_string()));
                    }
                    _ => {}
                }
                Value::Array(answers)
            }
            call => self.one(call).await?,
        };
        let text = whole.to_string();
        let fits = |f| matches!(f, Drop | Hang | Cut | TooMany | ServerError | Html | Empty);
        Some(match self.now(fits) {
            Some(Drop) => Out::Close,
            Some(Hang) => Out::Hang,
            Some(Cut) => Out::Half(text),
            Some(TooMany) => Out::Status(429, String::new()),
            Some(ServerError) => Out::Status(500, "internal error".into()),
            Some(Html) => Out::Status(200, "<html><body>Attention required</body></html>".into()),
            Some(Empty) => Out::Status(200, String::new()),
            _ => Out::Text(text),
        })
    }

    async fn http(self: Arc<Self>, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.ok()? == 0 {
                    return None;
                }
                let line = line.trim().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().ok()?;
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.ok()?;
            let head = |status: u16, length: usize| {
                let more = if status == 429 { "Retry-After: 0\r\n" } else { "" };
                format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n"
                )
            };
            let out = self.respond(std::str::from_utf8(&body).ok()?).await?;
            let (status, text, half) = match out {
                Out::Text(text) => (200, text, false),
                Out::Status(status, text) => (status, text, false),
                Out::Half(text) => (200, text, true),
                Out::Close => return None,
                Out::Hang => {
                    // Until the other side loses patience.
                    let _ = stream.read(&mut [0]).await;
                    return None;
                }
            };
            let kept = if half { text.len() / 2 } else { text.len() };
            let all = [head(status, text.len()).as_bytes(), &text.as_bytes()[..kept]].concat();
            stream.write_all(&all).await.ok()?;
            if half {
                return None;
            }
        }
    }

    async fn web_socket(self: Arc<Self>, stream: TcpStream) -> Option<()> {
        let socket = tokio_tungstenite::accept_async(stream).await.ok()?;
        let (mut to_client, mut from_client) = socket.split();
        // `None` closes.
        let (send, mut queue) = tokio::sync::mpsc::unbounded_channel::<Option<String>>();
        let writer = async move {
            while let Some(Some(text)) = queue.recv().await {
                to_client.send(Message::text(text)).await.ok()?;
            }
            let _ = to_client.close().await;
            Some(())
        };
        let reader = async {
            while let Some(Ok(message)) = from_client.next().await {
                let Ok(text) = message.into_text() else { continue };
                if text.is_empty() {
                    continue;
                }
                let (own, send, text) = (self.clone(), send.clone(), text.to_string());
                let request: Value = serde_json::from_str(&text).ok()?;
                // Answers may overtake each other, as at a real node.
                tokio::spawn(async move {
                    if request["method"] == "eth_subscribe" {
                        return own.subscribe(&request, send).await;
                    }
                    match own.respond(&text).await? {
                        Out::Text(text) => send.send(Some(text)).ok()?,
                        Out::Half(text) => send.send(Some(text[..text.len() / 2].to_owned())).ok()?,
                        Out::Status(429, _) => {
                            let error = json!({ "code": 429, "message": "too many requests" });
                            let text = json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }).to_string();
                            send.send(Some(text)).ok()?;
                        }
                        Out::Status(_, body) => send.send(Some(body)).ok()?,
                        Out::Close => send.send(None).ok()?,
                        Out::Hang => {}
                    }
                    Some(())
                });
            }
            Some(())
        };
        tokio::select! {
            _ = writer => {}
            _ = reader => {}
        }
        None
    }

    /// The node's own notifications, and what the fault makes of them.
    async fn subscribe(
        self: Arc<Self>,
        request: &Value,
        send: tokio::sync::mpsc::UnboundedSender<Option<String>>,
    ) -> Option<()> {
        let Some(node) = &self.node_ws else {
            let error = json!({ "code": -32601, "message": "notifications not supported" });
            let text = json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }).to_string();
            return send.send(Some(text)).ok();
        };
        let (mut socket, _) = tokio_tungstenite::connect_async(node.as_str()).await.ok()?;
        let mut asked = request.clone();
        asked["id"] = json!(1);
        socket.send(Message::text(asked.to_string())).await.ok()?;
        let mut silent = false;
        loop {
            let message = tokio::select! {
                message = socket.next() => message?.ok()?,
                () = send.closed() => return None,
            };
            let Ok(mut told) = serde_json::from_str::<Value>(message.to_text().ok()?) else { continue };
            if told["id"] == json!(1) {
                told["id"] = request["id"].clone();
                send.send(Some(told.to_string())).ok()?;
                continue;
            }
            let fault = self.now(|f| {
                matches!(
                    f,
                    Fault::SilentSubscription | Fault::DoubleNotifications | Fault::OlderHead | Fault::SiblingFork
                )
            });
            silent |= fault == Some(Fault::SilentSubscription);
            if silent {
                continue;
            }
            let before = {
                let mut state = self.state();
                state.notified.push(told.clone());
                let count = state.notified.len();
                state.notified.drain(..count.saturating_sub(4));
                state.notified[0].clone()
            };
            match fault {
                Some(Fault::DoubleNotifications) => {
                    for again in [&told, &told, &before] {
                        let mut again = again.clone();
                        again["params"]["subscription"] = told["params"]["subscription"].clone();
                        send.send(Some(again.to_string())).ok()?;
                    }
                    continue;
                }
                Some(Fault::OlderHead) => told["params"]["result"] = before["params"]["result"].clone(),
                Some(Fault::SiblingFork) => self.sibling(&mut told["params"]["result"]),
                _ => {}
            }
            send.send(Some(told.to_string())).ok()?;
        }
    }
}

fn overlay(block: &mut Value, own: &Value) {
    for (key, value) in own.as_object().expect("fields of a header") {
        block[key.as_str()] = value.clone();
    }
    let hash = own["hash"].clone();
    for transaction in block["transactions"].as_array_mut().into_iter().flatten() {
        if transaction.is_object() {
            transaction["blockHash"] = hash.clone();
        }
    }
}

/// Where logs are: in a list of logs (`None`), or in a receipt of a list.
fn log_places(result: &Value) -> Vec<(Option<usize>, usize)> {
    let all = result.as_array().map_or(&[][..], Vec::as_slice);
    let mut places = vec![];
    for (i, each) in all.iter().enumerate() {
        match each.get("logs").and_then(Value::as_array) {
            Some(logs) => places.extend((0..logs.len()).map(|j| (Some(i), j))),
            None if each.get("topics").is_some() => places.push((None, i)),
            None => {}
        }
    }
    places
}

fn spoil(result: &mut Value, (receipt, at): (Option<usize>, usize), fault: Fault) {
    let logs = match receipt {
        Some(i) => &mut result[i]["logs"],
        None => &mut *result,
    };
    let Some(list) = logs.as_array_mut() else { return };
    match fault {
        Fault::TruncateLogs => list.truncate(at),
        Fault::LeaveOneOut => drop(list.remove(at)),
        Fault::ReorderLogs => {
            // One log has no order: then it is told twice.
            if list.len() > 1 { list.reverse() } else { list.push(list[0].clone()) }
        }
        Fault::LieInData => list[at]["data"] = flipped(&list[at]["data"]),
        Fault::LieInAddress => list[at]["address"] = flipped(&list[at]["address"]),
        Fault::LieInTopic => {
            let last = list[at]["topics"].as_array().map_or(0, Vec::len).saturating_sub(1);
            list[at]["topics"][last] = flipped(&list[at]["topics"][last]);
        }
        Fault::LieInTransaction => list[at]["transactionHash"] = json!(B256::repeat_byte(0x5a)),
        _ => {}
    }
}

/// Hex with another last digit.
fn flipped(text: &Value) -> Value {
    let mut text = text.as_str().unwrap_or("0x00").to_owned();
    let last = text.pop();
    text.push(if last == Some('1') { '2' } else { '1' });
    json!(text)
}
