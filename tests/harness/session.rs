//! A recorded polling session of a real node, served again over HTTP JSON-RPC.
//!
//! `SessionServer::start(path)` reads a `reorg/*.session.ndjson.gz`; its clock is an index into the session's
//! requests. At each moment it answers as that node would have: null above the head, "unknown block" for logs
//! where the node said so, orphaned siblings before a reorg. `advance()` moves the clock to the next new head and
//! says whether there was one; `advance_by(n)` moves it by requests; `done()` is true at the end.
//! The head is the last block that the session got by number. Methods that were not recorded (receipts, tags) are
//! refused as that node refused them in 2021.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub struct SessionServer {
    state: Arc<Mutex<State>>,
    pub url: String,
}

struct State {
    clock: usize,
    length: usize,
    /// (index, hash): from then on this is the head.
    heads: Vec<(usize, String)>,
    blocks: HashMap<String, (usize, Value)>,
    /// Logs by block hash: what was answered, and when.
    logs: HashMap<String, Vec<(usize, Result<Value, Value>)>>,
}

fn height(block: &Value) -> u64 {
    quantity(&block["number"]).expect("a block has a number")
}

fn quantity(v: &Value) -> Option<u64> {
    u64::from_str_radix(v.as_str()?.trim_start_matches("0x"), 16).ok()
}

impl State {
    fn load(path: &Path) -> Self {
        let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let lines = std::io::BufReader::new(flate2::read::MultiGzDecoder::new(file)).lines();
        let mut s = Self { clock: 0, length: 0, heads: vec![], blocks: HashMap::new(), logs: HashMap::new() };
        for (i, line) in lines.enumerate() {
            let mut entry: Value = serde_json::from_str(&line.expect("gzip")).expect("JSON");
            let method = entry["request"]["method"].as_str().expect("a method").to_owned();
            let result = entry["response"]["result"].take();
            s.length = i + 1;
            match method.as_str() {
                "eth_getBlockByNumber" | "eth_getBlockByHash" if !result.is_null() => {
                    let hash = result["hash"].as_str().expect("a hash").to_owned();
                    if method == "eth_getBlockByNumber" && s.heads.last().is_none_or(|(_, h)| *h != hash) {
                        s.heads.push((i, hash.clone()));
                    }
                    s.blocks.entry(hash).or_insert((i, result));
                }
                "eth_getLogs" => {
                    let hash = entry["request"]["params"][0]["blockHash"].as_str().expect("by hash").to_owned();
                    let error = entry["response"]["error"].take();
                    s.logs.entry(hash).or_default().push((i, if error.is_null() { Ok(result) } else { Err(error) }));
                }
                _ => {}
            }
        }
        s
    }

    fn head(&self) -> &Value {
        let known = self.heads.iter().take_while(|(i, _)| *i <= self.clock).last().or(self.heads.first());
        &self.blocks[&known.expect("a session has a head").1].1
    }

    /// From the head downwards, as far as it was recorded.
    fn ancestry(&self) -> impl Iterator<Item = &Value> {
        std::iter::successors(Some(self.head()), |b| {
            b["parentHash"].as_str().and_then(|p| self.blocks.get(p)).map(|(_, b)| b)
        })
    }

    fn by_number(&self, number: &Value) -> Option<&Value> {
        match number.as_str()? {
            "latest" => Some(self.head()),
            _ => {
                let n = quantity(number)?;
                self.ancestry().find(|b| height(b) == n)
            }
        }
    }

    fn by_hash(&self, hash: &Value) -> Option<&Value> {
        let (seen, block) = self.blocks.get(hash.as_str()?)?;
        (*seen <= self.clock || self.ancestry().any(|b| b["hash"] == *hash)).then_some(block)
    }

    fn logs_of(&self, hash: &Value) -> Result<Value, Value> {
        let unknown = || json!({ "code": -32000, "message": "unknown block" });
        if self.by_hash(hash).is_none() {
            return Err(unknown());
        }
        let told = self.logs.get(hash.as_str().unwrap_or("")).ok_or_else(unknown)?;
        let latest = told.iter().take_while(|(i, _)| *i <= self.clock).last();
        latest.or(told.first()).map_or_else(|| Err(unknown()), |(_, answer)| answer.clone())
    }

    fn logs(&self, filter: &Value) -> Result<Value, Value> {
        let hashes: Vec<Value> = match filter.get("blockHash") {
            Some(hash) => vec![hash.clone()],
            None => {
                let from = quantity(&filter["fromBlock"]).unwrap_or(0);
                let to = quantity(&filter["toBlock"]).unwrap_or(u64::MAX);
                let mut inside: Vec<&Value> = self.ancestry().filter(|b| (from..=to).contains(&height(b))).collect();
                inside.reverse();
                inside.iter().map(|b| b["hash"].clone()).collect()
            }
        };
        let allowed = |list: Option<&Value>, v: &Value| match list {
            Some(Value::Array(l)) if !l.is_empty() => l.contains(v),
            Some(Value::String(_)) => list == Some(v),
            _ => true,
        };
        let mut all = Vec::new();
        for hash in &hashes {
            let answer = self.logs_of(hash)?;
            for log in answer.as_array().expect("logs are a list") {
                if allowed(filter.get("address"), &log["address"])
                    && allowed(filter.get("topics").and_then(|t| t.get(0)), &log["topics"][0])
                {
                    all.push(log.clone());
                }
            }
        }
        Ok(json!(all))
    }

    fn answer(&self, method: &str, p: &Value) -> Result<Value, Value> {
        let shape = |b: Option<&Value>| {
            let mut block = b.cloned().unwrap_or(Value::Null);
            if p[1] != json!(true)
                && let Some(all) = block.get_mut("transactions").and_then(Value::as_array_mut)
            {
                all.iter_mut().for_each(|t| *t = t["hash"].clone());
            }
            block
        };
        match method {
            "eth_chainId" => Ok(json!("0x89")),
            "eth_blockNumber" => Ok(self.head()["number"].clone()),
            "eth_getBlockByNumber" if matches!(p[0].as_str(), Some("safe" | "finalized")) => {
                Err(json!({ "code": -32602, "message": "invalid argument 0: hex string without 0x prefix" }))
            }
            "eth_getBlockByNumber" => Ok(shape(self.by_number(&p[0]))),
            "eth_getBlockByHash" => Ok(shape(self.by_hash(&p[0]))),
            "eth_getLogs" => self.logs(&p[0]),
            _ => Err(
                json!({ "code": -32601, "message": format!("the method {method} does not exist/is not available") }),
            ),
        }
    }
}

impl SessionServer {
    /// Serves until the runtime of the test ends.
    pub async fn start(path: &Path) -> Self {
        let state = Arc::new(Mutex::new(State::load(path)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = state.clone();
        let handler = move |axum::Json(body): axum::Json<Value>| async move {
            let state = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let method = body["method"].as_str().unwrap_or("");
            axum::Json(match state.answer(method, &body["params"]) {
                Ok(result) => json!({ "jsonrpc": "2.0", "id": body["id"], "result": result }),
                Err(error) => json!({ "jsonrpc": "2.0", "id": body["id"], "error": error }),
            })
        };
        let app = axum::Router::new().route("/", axum::routing::post(handler));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { state, url }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// To the next moment at which the head changes; at the last head, to the end. False at the end.
    pub fn advance(&self) -> bool {
        let mut s = self.state();
        let next = s.heads.iter().map(|(i, _)| *i).find(|i| *i > s.clock);
        s.clock = next.unwrap_or(s.length - 1);
        next.is_some()
    }

    /// By so many requests of the session.
    pub fn advance_by(&self, requests: usize) {
        let mut s = self.state();
        s.clock = (s.clock + requests).min(s.length - 1);
    }

    /// Height and hash of the head at this moment.
    pub fn head(&self) -> (u64, String) {
        let s = self.state();
        (height(s.head()), s.head()["hash"].as_str().expect("a hash").to_owned())
    }

    pub fn done(&self) -> bool {
        let s = self.state();
        s.clock == s.length - 1
    }
}
