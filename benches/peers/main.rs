//! Chainweir beside what its users would pick instead, on the same anvil chain and the same PostgreSQL server, one after
//! the other: `cargo x peers`. It says, for each: events a second from the start of the process to the last event, the
//! same from the first event on, the most memory, and how long after a block its event is there.
//!
//! The chain has 500 blocks of 200 ERC-20 transfers. A peer is one function here and a folder beside this file.

#[path = "../../tests/harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use harness::anvil::Anvil;
use harness::chain::{Chain, Contract};
use harness::postgres::Postgres;
use harness::process::{Process, folder};
use serde_json::json;

const BLOCKS: u64 = 500;
const TRANSFERS: u64 = 200;
/// Blocks mined one by one, for the time from a block to its event.
const SINGLE: usize = 100;
const PATIENCE: Duration = Duration::from_secs(300);

/// Where events arrive: how many there are by now.
enum Place {
    Rows { client: tokio_postgres::Client, table: String },
    Hook(Arc<AtomicU64>),
}

impl Place {
    async fn count(&self) -> u64 {
        match self {
            // No table yet: nothing has come.
            Self::Rows { client, table } => {
                let row = client.query_one(&format!("select count(*) from {table}"), &[]).await;
                row.map_or(0, |row| row.get::<_, i64>(0) as u64)
            }
            Self::Hook(count) => count.load(Ordering::Relaxed),
        }
    }

    /// Between two counts. Counting rows is work for the server: seldom where there are many.
    fn step(&self, many: bool) -> Duration {
        match self {
            Self::Rows { .. } if many => Duration::from_millis(100),
            _ => Duration::from_micros(500),
        }
    }

    /// So that counting costs nothing from here on. How many there are then.
    async fn empty(&self, there: u64) -> u64 {
        match self {
            Self::Rows { client, table } => {
                client.batch_execute(&format!("truncate table {table}")).await.expect("the rows are there");
                0
            }
            Self::Hook(_) => there,
        }
    }

    /// When there were so many.
    async fn until(&self, count: u64, many: bool) -> Instant {
        let (began, step) = (Instant::now(), self.step(many));
        while self.count().await < count {
            assert!(began.elapsed() < PATIENCE, "{} of {count} events after {PATIENCE:?}", self.count().await);
            tokio::time::sleep(step).await;
        }
        Instant::now()
    }
}

/// One of them, ended with this.
enum Running {
    Ours(Process),
    Peer(Child),
}

impl Running {
    /// The most that it and its children ever had resident, summed: children of one program do not come and go.
    fn peak_mib(&self) -> f64 {
        let mut all = vec![match self {
            Self::Ours(process) => process.pid(),
            Self::Peer(child) => child.id(),
        }];
        let mut next = 0;
        while let Some(pid) = all.get(next).copied() {
            next += 1;
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        let peak = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        all.iter().filter_map(peak).sum::<f64>() / 1024.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Peer(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Town {
    anvil: Anvil,
    chain: Chain,
    token: Contract,
    logs: AtomicU64,
}

impl Town {
    async fn found() -> Self {
        let anvil = Anvil::start(&["--no-mining", "--order", "fifo", "--gas-limit", "100000000"]).expect("anvil");
        let chain = Chain::connect(&anvil.http()).await;
        let token = chain.deploy("Token", &["Peer".into(), "PEER".into()]).await;
        Self { anvil, chain, token, logs: AtomicU64::new(0) }
    }

    async fn block(&self, transfers: u64) {
        let sender = |i: u64| self.chain.accounts[(i % 10) as usize];
        let to = |i: u64| self.chain.accounts[(i / 10 % 10) as usize];
        let calls: Vec<_> = (0..transfers).map(|i| self.token.mint(sender(i), to(i), i + 1)).collect();
        let sent = calls.iter().map(|call| self.chain.send(call));
        futures::stream::iter(sent).buffered(10).collect::<Vec<_>>().await;
        self.chain.call("evm_mine", json!([])).await;
        self.logs.fetch_add(transfers, Ordering::Relaxed);
    }
}

/// Runs one of them from an empty start, first all that is there, then a block at a time; says what came of it.
async fn measure(name: &str, town: &Town, place: Place, start: impl FnOnce() -> Running) {
    let all = town.logs.load(Ordering::Relaxed);
    let began = Instant::now();
    let running = start();
    // A chain goes on, and some follow its last blocks only then.
    let ticking = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            town.block(0).await;
        }
    };
    let arriving = async { (place.until(1, true).await, place.until(all, true).await) };
    let (first, last) = tokio::select! {
        times = arriving => times,
        () = ticking => unreachable!("it goes on"),
    };
    let peak = running.peak_mib();
    let there = place.empty(all).await;
    let mut after_block_ms = vec![];
    for n in 1..=SINGLE as u64 {
        town.block(1).await;
        let mined = Instant::now();
        let seen = place.until(there + n, false).await;
        after_block_ms.push(seen.duration_since(mined).as_secs_f64() * 1e3);
    }
    after_block_ms.sort_by(f64::total_cmp);
    let at = |share: f64| after_block_ms[(share * (SINGLE - 1) as f64) as usize];
    let rate = |since: Instant| all as f64 / (last - since).as_secs_f64();
    let (whole, from_first, p50, p99) = (rate(began), rate(first), at(0.5), at(0.99));
    println!("| {name} | {whole:.0} | {from_first:.0} | {peak:.0} | {p50:.1} | {p99:.1} |");
}

/// What the node gives whoever asks for the logs and does nothing with them: more than that reaches nobody.
async fn node_alone(town: &Town) {
    const RANGE: u64 = 20;
    let client = reqwest::Client::builder().no_proxy().build().expect("a plain client needs nothing that can fail");
    let ask = |from: u64| {
        let filter = json!({ "address": town.token.address, "fromBlock": format!("{from:#x}"),
                             "toBlock": format!("{:#x}", from + RANGE - 1) });
        let question = json!({ "jsonrpc": "2.0", "id": from, "method": "eth_getLogs", "params": [filter] });
        let asked = client.post(town.anvil.http()).json(&question).send();
        async { asked.await.expect("anvil answers").bytes().await.expect("to the end").len() }
    };
    let head = town.chain.head().await;
    let began = Instant::now();
    let asked = futures::stream::iter((0..=head).step_by(RANGE as usize).map(ask)).buffered(4);
    let bytes: usize = asked.collect::<Vec<_>>().await.iter().sum();
    let (all, took) = (town.logs.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
    println!("| The node alone, {} bytes an event | {:.0} | | | | |", bytes as u64 / all, all as f64 / took);
}

/// `output`: the table of the configuration.
fn chainweir(dir: &Path, town: &Town, verify: &str, output: &str, env: &[(&str, &str)]) -> Running {
    let config = format!(
        "[chain.local]\nrpc = {:?}\nstart = 0\nverify = {verify:?}\nfinality = {{ depth = 5 }}\n\n\
         [output.place]\n{output}\n\n[[route]]\nfrom = \"erc20-transfers.transfers\"\nto = [\"place\"]\n",
        town.anvil.ws(),
    );
    Running::Ours(Process::begin(dir, &config, env))
}

fn ponder(dir: &Path, town: &Town, postgres: &Postgres) -> Running {
    let mut program = Command::new("node");
    program.arg("node_modules/ponder/dist/esm/bin/ponder.js");
    program.args(["start", "--schema", "ponder", "--hostname", "127.0.0.1", "--port"]);
    program.arg(harness::free_port().to_string()).current_dir(dir);
    program.env("PONDER_TELEMETRY_DISABLED", "true").env("DATABASE_URL", postgres.url());
    program.env("RPC_URL", town.anvil.http()).env("WS_URL", town.anvil.ws());
    program.env("TOKEN", town.token.address.to_string());
    let log = std::fs::File::create(dir.join("log")).expect("a log in the folder");
    program.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
    Running::Peer(program.spawn().expect("node runs"))
}

/// `storage` and `streams` are those parts of its configuration.
fn rindexer(dir: &Path, town: &Town, program: &str, [storage, streams]: [&str; 2], url: &str) -> Running {
    let abi = json!([{ "type": "event", "name": "Transfer", "anonymous": false, "inputs": [
        { "name": "from", "type": "address", "indexed": true }, { "name": "to", "type": "address", "indexed": true },
        { "name": "value", "type": "uint256", "indexed": false } ] }]);
    let config = format!(
        "name: Peers\nproject_type: no-code\nnetworks:\n- name: local\n  chain_id: 31337\n  rpc: {}\n  block_poll_frequency: rapid\n\
         {storage}contracts:\n- name: Token\n  details:\n  - network: local\n    address: '{}'\n    start_block: '0'\n\
         \x20 abi: ./abi.json\n  include_events:\n  - Transfer\n{streams}",
        town.anvil.http(),
        town.token.address,
    );
    std::fs::write(dir.join("abi.json"), abi.to_string()).expect("a file in the folder");
    std::fs::write(dir.join("rindexer.yaml"), config).expect("a file in the folder");
    let log = std::fs::File::create(dir.join("log")).expect("a log in the folder");
    let mut program = Command::new(program);
    program.args(["start", "--yes", "indexer"]).current_dir(dir).env("DATABASE_URL", url);
    program.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
    Running::Peer(program.spawn().expect("RINDEXER names a program"))
}

/// The peer's folder with what npm brings, below `target`.
fn ponder_folder() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (from, to) = (root.join("benches/peers/ponder"), root.join("target/peers/ponder"));
    std::fs::create_dir_all(&to).expect("a folder below target");
    let copied = Command::new("cp").arg("-R").arg(format!("{}/.", from.display())).arg(&to).status();
    assert!(copied.is_ok_and(|status| status.success()), "the peer's folder is copied");
    let npm = Command::new("npm").args(["install", "--no-audit", "--no-fund", "--silent"]).current_dir(&to).status();
    assert!(npm.is_ok_and(|status| status.success()), "npm installs {}", to.join("package.json").display());
    to
}

/// As rindexer posts them.
#[derive(serde::Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    event_data: Vec<&'a serde_json::value::RawValue>,
}

/// Counts the events in what is posted: one, or an array of them.
async fn counter() -> (String, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let own = count.clone();
    let take = move |body: axum::body::Bytes| async move {
        let events = match serde_json::from_slice::<Vec<&serde_json::value::RawValue>>(&body) {
            Ok(all) => all.len() as u64,
            Err(_) => serde_json::from_slice::<Chunk<'_>>(&body).map_or(1, |chunk| chunk.event_data.len() as u64),
        };
        own.fetch_add(events, Ordering::Relaxed);
        axum::http::StatusCode::NO_CONTENT
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/hook", listener.local_addr().expect("a bound socket has an address"));
    let app = axum::Router::new().fallback(take).layer(axum::extract::DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, count)
}

async fn rows(postgres: &Postgres, table: &str) -> Place {
    let (client, connection) =
        tokio_postgres::connect(&postgres.url(), tokio_postgres::NoTls).await.expect("PostgreSQL is there");
    tokio::spawn(connection);
    Place::Rows { client, table: table.to_owned() }
}

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    let town = Town::found().await;
    let began = Instant::now();
    for _ in 0..BLOCKS {
        town.block(TRANSFERS).await;
    }
    eprintln!("{BLOCKS} blocks of {TRANSFERS} transfers: {:.0?}", began.elapsed());
    let postgres = Postgres::start().await.expect("PostgreSQL");
    println!(
        "| | events/s, from its start | events/s, from the first event | peak MiB | block to event p50, ms | p99, ms |"
    );
    println!("|---|---|---|---|---|---|");
    if wants("node-alone") {
        node_alone(&town).await;
    }
    let dir = || folder(&["erc20-transfers"]);
    for (verify, how) in [("receipts", "every log proven"), ("bloom", "the node believed, as peers do")] {
        if wants(&format!("chainweir-{verify}-postgres")) {
            let (dir, place) = (dir(), rows(&postgres, &format!("{verify}.erc20_transfers_transfers")).await);
            let output = format!("type = \"postgres\"\nurl_env = \"DATABASE_URL\"\nschema = {verify:?}");
            let url = postgres.url();
            let env = [("DATABASE_URL", url.as_str())];
            let start = || chainweir(dir.path(), &town, verify, &output, &env);
            measure(&format!("Chainweir to PostgreSQL, {how}"), &town, place, start).await;
        }
        for (name, size, batch) in [("webhook", "one event each", 1), ("batches", "up to 500 each", 500)] {
            if wants(&format!("chainweir-{verify}-{name}")) {
                let (dir, (url, count)) = (dir(), counter().await);
                let output = format!("type = \"webhook\"\nurl = {url:?}\nallow_private = true\nbatch = {batch}");
                let start = || chainweir(dir.path(), &town, verify, &output, &[]);
                measure(&format!("Chainweir to webhook, {size}, {how}"), &town, Place::Hook(count), start).await;
            }
        }
    }
    // In no registry: whoever has built one says where it is.
    if let Ok(program) = std::env::var("RINDEXER") {
        let (postgres_on, none) = ("storage:\n  postgres:\n    enabled: true\n", "");
        if wants("rindexer-postgres") {
            let (dir, place) = (folder(&[]), rows(&postgres, "peers_token.transfer").await);
            let start = || rindexer(dir.path(), &town, &program, [postgres_on, none], &postgres.url());
            measure("rindexer to PostgreSQL", &town, place, start).await;
        }
        if wants("rindexer-webhook") {
            let (dir, (url, count)) = (folder(&[]), counter().await);
            let streams = format!(
                "  streams:\n    webhooks:\n    - endpoint: {url}\n      shared_secret: peers\n      networks: [local]\n\
                 \x20     events:\n      - event_name: Transfer\n"
            );
            let start = || rindexer(dir.path(), &town, &program, [none, &streams], &postgres.url());
            measure("rindexer to webhook, in chunks", &town, Place::Hook(count), start).await;
        }
    }
    if wants("ponder-postgres") {
        let (dir, place) = (ponder_folder(), rows(&postgres, "ponder.transfer").await);
        measure("Ponder 0.16.10 to PostgreSQL", &town, place, || ponder(&dir, &town, &postgres)).await;
    }
}
