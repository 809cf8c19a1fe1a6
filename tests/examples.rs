//! Every example is run. The receivers of examples/deposits-to-webhook are started as its README says, and keep a right
//! ledger: told good, forged, repeated, stale and taken back events one by one, then by the real program from a real
//! chain with reorgs. (examples/quickstart is run in `dev.rs`.)

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::chain::{Chain, Town, Transfer};
use crate::harness::postgres::Postgres;
use crate::harness::process::Process;
use crate::harness::{free_port, guests, until};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
const SHOP: &str = "0x14dc79964da2c08b23698b3d3cc7ca32193d9955";
const OTHER: &str = "0x70997970c51812dc3a010c7d01b50e0d17dc79c8";

#[tokio::test]
async fn php_receiver_keeps_a_right_ledger() {
    // php takes a port, but does not choose one.
    let port = free_port();
    told_everything("php", &["-S", &format!("127.0.0.1:{port}"), "receiver.php"], Some(port)).await;
}

#[tokio::test]
async fn nodejs_receiver_keeps_a_right_ledger() {
    told_everything("node", &["receiver.mjs", "0"], None).await;
}

#[tokio::test]
async fn python_receiver_keeps_a_right_ledger() {
    told_everything("python3", &["receiver.py", "0"], None).await;
}

struct Receiver {
    process: Child,
    url: String,
    ledger: PathBuf,
    http: reqwest::Client,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Receiver {
    /// `None`, said aloud, where the interpreter is not installed.
    async fn start(program: &str, args: &[&str], port: Option<u16>, folder: &Path) -> Option<Self> {
        let ledger = folder.join("data/ledger.json");
        let process = Command::new(program)
            .args(args)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deposits-to-webhook"))
            .env("HOOK_SECRET", SECRET)
            .env("DEPOSIT_ADDRESS", SHOP)
            .env("LEDGER", &ledger)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut process = match process {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Past the test runner's capture: a skipped test must be seen.
                let _ =
                    writeln!(std::io::stderr(), "SKIPPED receiver of {program}: not installed; run `cargo x setup`");
                return None;
            }
            Err(error) => panic!("{program}: {error}"),
        };
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let port = port.unwrap_or_else(|| {
            let port = lines.find_map(|line| line.strip_prefix("listening on ")?.parse().ok());
            port.unwrap_or_else(|| panic!("{program} did not listen"))
        });
        std::thread::spawn(move || lines.for_each(drop));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("plain");
        let receiver = Self { process, url: format!("http://127.0.0.1:{port}/"), ledger, http };
        let begun = Instant::now();
        while receiver.http.get(&receiver.url).send().await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{program} does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(receiver)
    }

    async fn post(&self, id: &str, time: i64, signature: &str, body: &str) -> u16 {
        let request = self.http.post(&self.url).header("content-type", "application/cloudevents+json");
        let request = request.header("webhook-id", id).header("webhook-timestamp", time.to_string());
        let answer = request.header("webhook-signature", signature).body(body.to_owned()).send().await;
        answer.expect("an answer").status().as_u16()
    }

    /// Signed as Chainweir signs.
    async fn tell(&self, id: &str, event: &Value) -> u16 {
        let (body, at) = (event.to_string(), now());
        self.post(id, at, &sign(SECRET, id, at, &body), &body).await
    }

    fn deposits(&self) -> Value {
        let text = std::fs::read_to_string(&self.ledger).expect("a ledger");
        serde_json::from_str::<Value>(&text).expect("JSON")["deposits"].take()
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

fn sign(secret: &str, id: &str, time: i64, body: &str) -> String {
    let key = standardwebhooks::Webhook::new(secret).expect("a good secret");
    key.sign(id, time, body.as_bytes()).expect("signed")
}

/// What Chainweir posts: a CloudEvent in structured JSON.
fn event(id: &str, op: &str, emission: &str, to: &str, value: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "source": "eip155:31337",
        "type": "erc20-transfers.transfers",
        "subject": "0x5fbdb2315678afecb367f032d93f642f64180aa3",
        "time": "2026-01-01T00:12:00Z",
        "datacontenttype": "application/json",
        "data": { "token": "0x5fbdb2315678afecb367f032d93f642f64180aa3", "from": OTHER, "to": to, "value": value, "log_index": 0, "tx": "0x01" },
        "op": op,
        "emission": emission,
        "block": "60",
        "blockhash": "0x02",
        "cursor": "17",
    })
}

/// What `cargo x corpus` recorded is a chain that any follower can verify: every header hashes to its own hash, its
/// bloom is its receipts' and its parent came before it.
#[test]
fn quickstarts_recording_is_a_verifiable_chain_with_reorgs() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart/chain.ndjson.gz");
    let lines = BufReader::new(flate2::read::GzDecoder::new(std::fs::File::open(file).expect("committed")));
    let mut heights = HashMap::new();
    let (mut last, mut reorgs, mut logs) = (None, 0, 0);
    for line in lines.lines() {
        let line: Value = serde_json::from_str(&line.expect("gzip")).expect("JSON");
        let header: alloy_rpc_types_eth::Header = serde_json::from_value(line["block"].clone()).expect("a header");
        assert_eq!(header.inner.hash_slow(), header.hash, "block {}", header.inner.number);
        assert_eq!((&line["number"], &line["hash"]), (&json!(header.inner.number), &json!(header.hash)));
        let receipts: Vec<alloy_rpc_types_eth::TransactionReceipt> =
            serde_json::from_value(line["receipts"].clone()).expect("receipts");
        let all = receipts.iter().flat_map(|receipt| receipt.logs());
        logs += all.clone().count();
        assert_eq!(alloy_primitives::logs_bloom(all.map(|log| &log.inner)), header.inner.logs_bloom);
        let parent = header.inner.parent_hash;
        assert!(heights.get(&parent).is_none_or(|below| below + 1 == header.inner.number));
        assert!(header.inner.number == 0 || heights.contains_key(&parent), "no parent of {}", header.inner.number);
        reorgs += u32::from(last.is_some_and(|last| last != parent));
        heights.insert(header.hash, header.inner.number);
        last = Some(header.hash);
    }
    assert_eq!((heights.len(), reorgs), (337, 13));
    assert!(logs > 500, "only {logs} logs");
}

async fn told_everything(program: &str, args: &[&str], port: Option<u16>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(receiver) = Receiver::start(program, args, port, folder.path()).await else { return };

    // The value is beyond what a double holds: money must come through as it is.
    let big = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
    let first = event("d1", "apply", "e1", SHOP, big);
    assert_eq!(receiver.tell("d1", &first).await, 500, "there is no folder to write to");
    std::fs::create_dir(folder.path().join("data")).expect("a folder");
    assert_eq!(receiver.tell("d1", &first).await, 204, "what was not stored is taken when it comes again");
    assert_eq!(receiver.deposits()["e1"], first["data"]);

    assert_eq!(receiver.tell("d2", &event("d2", "apply", "e2", SHOP, "2")).await, 204);
    assert_eq!(receiver.tell("d3", &event("d3", "retract", "e2", SHOP, "2")).await, 204);
    assert_eq!(receiver.deposits().as_object().map(|all| all.len()), Some(1), "what is taken back is gone");
    assert_eq!(receiver.tell("d2", &event("d2", "apply", "e2", SHOP, "2")).await, 204, "a repeat is welcome");
    assert_eq!(receiver.deposits().as_object().map(|all| all.len()), Some(1), "and changes nothing");

    assert_eq!(receiver.tell("d4", &event("d4", "apply", "e4", OTHER, "4")).await, 204);
    assert_eq!(receiver.deposits().as_object().map(|all| all.len()), Some(1), "a payment is no deposit");

    let body = event("d5", "apply", "e5", SHOP, "5").to_string();
    let at = now();
    let right = sign(SECRET, "d5", at, &body);
    let forged = sign("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "d5", at, &body);
    assert_eq!(receiver.post("d5", at, &forged, &body).await, 401, "another's key");
    assert_eq!(receiver.post("d5", at, "", &body).await, 401, "no signature");
    assert_eq!(receiver.post("d5", at, "v1,", &body).await, 401, "half a signature");
    assert_eq!(receiver.post("d6", at, &right, &body).await, 401, "another delivery's signature");
    assert_eq!(receiver.post("d5", at, &right, &body.replace("\"5\"", "\"500\"")).await, 401, "another amount");
    for stale in [now() - 400, now() + 400] {
        assert_eq!(receiver.post("d5", stale, &sign(SECRET, "d5", stale, &body), &body).await, 401, "out of time");
    }
    assert!(receiver.deposits().get("e5").is_none());

    // While a secret is changed, both keys sign.
    assert_eq!(receiver.post("d5", at, &format!("{forged} {right}"), &body).await, 204);
    assert!(receiver.deposits().get("e5").is_some());

    let got = receiver.http.get(&receiver.url).send().await.expect("an answer").status();
    assert!(!got.is_success(), "a GET is no delivery");
}

/// The example's own configuration, with the ports of this test.
fn example(name: &str, ports: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("chainweir.toml");
    let mut text = std::fs::read_to_string(file).expect("the example has a configuration");
    for (theirs, ours) in ports {
        assert!(text.contains(theirs), "{name} does not name {theirs}");
        text = text.replace(theirs, ours);
    }
    text
}

/// A folder with the plugin that both examples use.
fn folder_with_plugin() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("plugins")).expect("a folder");
    let wasm = folder.path().join("plugins/erc20_transfers.wasm");
    std::fs::copy(guests::wasm("erc20-transfers"), wasm).expect("the plugin was built");
    folder
}

/// Deposits as the chain has them, three blocks deep.
async fn deposits(chain: &Chain) -> Vec<(String, String)> {
    let head = chain.head().await;
    let shop: alloy_primitives::Address = SHOP.parse().expect("an address");
    let mine = |t: &Transfer| t.to == shop;
    let all = chain.transfers(0..=head - 2).await.into_iter().filter(mine);
    let mut all: Vec<_> = all.map(|t| (t.tx.to_string(), t.value.to_string())).collect();
    all.sort();
    all
}

async fn deposits_arrive(program: &str, args: &[&str], port: Option<u16>) {
    let folder = folder_with_plugin();
    std::fs::create_dir(folder.path().join("data")).expect("a folder");
    let Some(receiver) = Receiver::start(program, args, port, folder.path()).await else { return };
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 11).await;
    let config = example(
        "deposits-to-webhook",
        &[("ws://127.0.0.1:8545", &anvil.ws()), ("http://127.0.0.1:8000/", &receiver.url)],
    );
    let process = Process::start_with(folder.path(), &config, &[("HOOK_SECRET", SECRET)]).await;
    // It begins at the head: what is deposited from now on counts.
    until("the plugin to stand at the head", || async {
        let status = process.status().await?;
        status["plugins"][0]["chains"][0]["cursor"]["number"].as_u64().filter(|at| *at == 2)
    })
    .await;
    let before = deposits(&chain).await.len();
    for round in 0..6 {
        for _ in 0..4 {
            town.block(&chain, 6).await;
        }
        town.reorg(&chain, 1 + round % 4, 3).await;
    }
    chain.mine(3).await;
    let expected = deposits(&chain).await;
    assert!(expected.len() > before, "nobody paid the shop");
    until("the ledger to be the chain's", || async {
        let text = std::fs::read_to_string(&receiver.ledger).ok()?;
        let ledger: Value = serde_json::from_str(&text).ok()?;
        let entry = |d: &Value| Some((d["tx"].as_str()?.to_owned(), d["value"].as_str()?.to_owned()));
        // PHP writes an empty map as a list.
        let mut found: Vec<_> =
            ledger["deposits"].as_object()?.values().map(|d| entry(d).expect("a deposit")).collect();
        found.sort();
        // The mint that founded the town came before the plugin's start.
        let counted: Vec<_> = expected.iter().filter(|d| d.1 != "1000000").cloned().collect();
        (found == counted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposits_arrive_at_php() {
    let port = free_port();
    deposits_arrive("php", &["-S", &format!("127.0.0.1:{port}"), "receiver.php"], Some(port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposits_arrive_at_nodejs() {
    deposits_arrive("node", &["receiver.mjs", "0"], None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposits_arrive_at_python() {
    deposits_arrive("python3", &["receiver.py", "0"], None).await;
}

/// What the README asks the table is what the chain says of its balances.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_arrive_in_postgres_and_add_up_to_the_balances() {
    let Some(postgres) = Postgres::start().await else { return };
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 12).await;
    let folder = folder_with_plugin();
    let config = example("transfers-to-postgres", &[("ws://127.0.0.1:8545", &anvil.ws())]);
    let process = Process::start_with(folder.path(), &config, &[("DATABASE_URL", &postgres.url())]).await;
    for round in 0..6 {
        for _ in 0..4 {
            town.block(&chain, 6).await;
        }
        town.reorg(&chain, 1 + round % 4, 3).await;
    }
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/transfers-to-postgres/README.md");
    let readme = std::fs::read_to_string(readme).expect("the example has a README");
    let question = &readme[readme.find("    SELECT token").expect("a question")..];
    let mut balances = Vec::new();
    for who in &chain.accounts {
        balances.push((who.to_string().to_lowercase(), chain.balance(&town.token, *who).await.to_string()));
    }
    balances.sort();
    let client = postgres.client().await;
    until("the balances to be the chain's", || async {
        let question = question.replace("balance DESC", "holder").replace("AS balance", "::text AS balance");
        let rows = client.query(question.trim_end().trim_end_matches(';'), &[]).await.ok()?;
        let mut found: Vec<(String, String)> = rows.iter().map(|row| (row.get(1), row.get(2))).collect();
        found.sort();
        (found == balances).then_some(())
    })
    .await;
    let (status, _) = process.terminate().await;
    assert!(status.success(), "{status}");
}
