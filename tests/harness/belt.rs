//! The whole conveyor belt with real ends: anvil under load, the real program with `erc20-transfers`, and one sink of
//! every kind. [`Belt::check`] waits until each of them holds what the canonical chain alone gives, and nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use alloy_primitives::{Address, B256, U256};
use serde_json::Value;

use super::anvil::Anvil;
use super::chain::{Chain, Town, Transfer};
use super::nats::Nats;
use super::postgres::Postgres;
use super::process::{Ledger, Process, folder};
use super::receiver::{Received, Receiver};
use super::until;

pub const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// Deeper than any reorg of the tests, 32.
pub const FINAL: u64 = 40;

/// How the program reads the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    WebSocket,
    Http,
}

pub struct Belt {
    /// First: what it wrote is shown before the folder goes.
    pub process: Option<Process>,
    pub anvil: Anvil,
    pub chain: Chain,
    pub town: Town,
    pub postgres: Postgres,
    pub nats: Nats,
    pub receiver: Receiver,
    pub folder: tempfile::TempDir,
    pub via: Via,
    /// anvil's own default: finalized is 64 blocks behind the head, safe 32.
    pub tags: bool,
    /// Path of the journal, in the folder.
    pub journal: &'static str,
    /// Outputs and routes besides.
    pub more: String,
    /// Webhooks whose signature was found right. It holds for five minutes.
    verified: AtomicUsize,
}

impl Belt {
    /// `None`, said aloud, where one of the servers is not to be had. The program is not started yet.
    pub async fn new(seed: u64, via: Via) -> Option<Self> {
        // Fees of nothing and fixed times: the same transactions make the same block again, A -> B -> A.
        let anvil = Anvil::start(&["--no-mining", "--base-fee", "0"])?;
        let postgres = Postgres::start().await?;
        let nats = Nats::start(None).await?;
        let chain = Chain::connect(&anvil.http()).await;
        chain.block_interval(12).await;
        let town = Town::found(&chain, seed).await;
        let folder = folder(&["erc20-transfers"]);
        let receiver = Receiver::start().await;
        Some(Self {
            anvil,
            chain,
            town,
            postgres,
            nats,
            receiver,
            folder,
            via,
            process: None,
            tags: false,
            journal: "chainweir.db",
            more: String::new(),
            verified: AtomicUsize::new(0),
        })
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> String {
        let rpc = if self.via == Via::WebSocket { self.anvil.ws() } else { self.anvil.http() };
        let finality = if self.tags { "\"tags\"".to_owned() } else { format!("{{ depth = {FINAL} }}") };
        format!(
            r#"
[journal]
path = "{}"

[chain.local]
rpc = "{rpc}"
poll_ms = 50
start = 0
finality = {finality}

[output.rows]
type = "postgres"
url_env = "DATABASE_URL"

[output.store]
type = "sqlite"
path = "store.db"

[output.queue]
type = "nats"
url = "{}"

[output.hook]
type = "webhook"
url = "{}"
secret_env = "HOOK_SECRET"
allow_private = true

[output.third]
type = "file"
path = "third.ndjson"

[output.last]
type = "file"
path = "last.ndjson"

[[route]]
from = "erc20-transfers.transfers"
to = ["rows", "store", "queue", "hook"]

[[route]]
from = "erc20-transfers.transfers"
to = ["third"]
when = {{ confirmations = 3 }}

[[route]]
from = "erc20-transfers.transfers"
to = ["last"]
when = "finalized"

{}
"#,
            self.journal,
            self.nats.url(),
            self.receiver.url(),
            self.more
        )
    }

    pub async fn start(&mut self) {
        let env = [("DATABASE_URL", self.postgres.url()), ("HOOK_SECRET", SECRET.to_owned())];
        let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.process = Some(Process::start_with(self.folder.path(), &self.config(), &env).await);
    }

    /// Not waited for, to be killed as it begins.
    pub fn begin(&self) -> Process {
        let env = [("DATABASE_URL", self.postgres.url()), ("HOOK_SECRET", SECRET.to_owned())];
        let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
        Process::begin(self.folder.path(), &self.config(), &env)
    }

    pub fn running(&self) -> &Process {
        self.process.as_ref().expect("it was started")
    }

    /// All that the receiver had. A signature is good for five minutes: each is looked at once, and soon.
    fn requests(&self) -> Vec<Received> {
        let received = self.receiver.received();
        let verified = self.verified.fetch_max(received.len(), Ordering::Relaxed);
        received.iter().skip(verified).for_each(|r| r.verify(SECRET));
        received
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("it was started").kill();
    }

    /// Started, and under load killed at a random moment of its first so many milliseconds.
    pub async fn live_and_die(&mut self, most_ms: u64) {
        self.start().await;
        let life = std::time::Duration::from_millis(self.town.below(most_ms));
        let process = self.process.take().expect("it was started");
        let killed = tokio::spawn(async move {
            tokio::time::sleep(life).await;
            process.kill();
        });
        // Each request is let end: anvil gives up a reorg half-way when whoever asked for it is gone.
        while !killed.is_finished() {
            self.load(1, true).await;
        }
        self.requests();
    }

    /// Killed so many times while it runs; then everything is checked. What the chain has at the end.
    pub async fn survive(&mut self, kills: u64) -> Vec<Transfer> {
        self.load(10, false).await;
        for _ in 0..kills {
            self.live_and_die(1_500).await;
        }
        self.start().await;
        self.check().await;
        self.chain.transfers(0..=self.chain.head().await).await
    }

    /// Blocks with transfers, and now and then a reorg of 1 to 32 blocks.
    pub async fn load(&mut self, blocks: u64, reorgs: bool) {
        for _ in 0..blocks {
            self.town.block(&self.chain, 4).await;
            if reorgs && self.town.below(6) == 0 {
                self.reorg().await;
                self.requests();
            }
        }
    }

    /// At random, 1 to 32 deep; now and then with the very blocks of before coming back.
    pub async fn reorg(&mut self) -> u64 {
        let deepest = 32.min(self.chain.head().await - 2);
        let depth = 1 + self.town.below(deepest);
        if self.town.below(4) == 0 {
            let before = self.chain.raw_of_last(depth).await;
            self.town.reorg(&self.chain, depth, 2).await;
            self.chain.reorg(depth, &before).await;
        } else {
            self.town.reorg(&self.chain, depth, 2).await;
        }
        depth
    }

    /// Waits until everything that left, and everything that is kept, equals a replay of the canonical chain alone.
    /// Nobody may mine meanwhile.
    pub async fn check(&self) {
        let head = self.chain.head().await;
        let hash = self.chain.hash(head).await.to_string();
        self.running().until_at(&hash).await;
        let truth = self.chain.transfers(0..=head).await;
        let equal = |found: &[Transfer], up_to: u64| {
            let wanted = truth.iter().filter(|t| t.block <= up_to);
            found.iter().eq(wanted)
        };

        // Where the very blocks of before came back, the plugin may have stood at this head, and be about to leave it.
        waited("the feed", &truth, || async {
            let feed = self.running().feed("erc20-transfers.transfers").await;
            Some(Ledger::of(&feed).transfers())
        })
        .await;
        until("the plugin's state to be the chain's", || async { (self.totals() == totals(&truth)).then_some(()) })
            .await;
        waited("the webhook", &truth, || async {
            let received = self.requests();
            let events: Vec<Value> = received.iter().filter(|r| r.accepted()).map(|r| r.event()).collect();
            Some(Ledger::of(&events).transfers())
        })
        .await;
        waited("PostgreSQL", &truth, || self.rows()).await;
        waited("the SQLite store", &truth, || async { self.stored("store.db", "").ok() }).await;
        waited("NATS", &truth, || async {
            let ledger = Ledger::of(&self.nats.messages("CHAINWEIR").await?);
            assert_eq!(ledger.repeats, 0, "the stream holds a message twice");
            Some(ledger.transfers())
        })
        .await;
        until("the third confirmations", || async {
            let ledger = Ledger::of(&self.lines("third.ndjson"));
            assert_eq!(ledger.repeats, 0, "a file holds a line twice");
            equal(&ledger.transfers(), head.saturating_sub(2)).then_some(())
        })
        .await;
        let depth = if self.tags { 64 } else { FINAL };
        until("what is final", || async {
            let lines = self.lines("last.ndjson");
            assert!(lines.iter().all(|line| line["op"] == "apply"), "what is final is never retracted");
            let ledger = Ledger::of(&lines);
            assert_eq!(ledger.repeats, 0, "a file holds a line twice");
            equal(&ledger.transfers(), head.saturating_sub(depth)).then_some(())
        })
        .await;
    }

    pub fn lines(&self, file: &str) -> Vec<Value> {
        super::ndjson(&self.dir().join(file))
    }

    /// `None` while the table is not there.
    async fn rows(&self) -> Option<Vec<Transfer>> {
        let client = self.postgres.client().await;
        let question = r#"SELECT _block::text, log_index::text, _block_hash::text, tx::text, token::text, "from"::text,
            "to"::text, value::text FROM erc20_transfers_transfers"#;
        let rows = client.query(question, &[]).await.ok()?;
        Some(sorted(rows.iter().map(|row| transfer(|at| row.get(at)))))
    }

    /// The rows of a SQLite output's file; `which` follows the name of the table.
    pub fn stored(&self, file: &str, which: &str) -> rusqlite::Result<Vec<Transfer>> {
        let db = read_only(&self.dir().join(file))?;
        let mut question = db.prepare(&format!(
            r#"SELECT cast(_block AS text), cast(log_index AS text), _block_hash, tx, token, "from", "to", value
               FROM erc20_transfers_transfers {which}"#
        ))?;
        let rows = question.query_map([], |row| Ok(transfer(|at| row.get(at).expect("a text"))))?;
        Ok(sorted(rows.collect::<rusqlite::Result<Vec<_>>>()?))
    }

    /// Lane keys that wait alone, of all outputs.
    pub fn parked(&self) -> u64 {
        let db = read_only(&self.dir().join(self.journal)).expect("the journal is there");
        db.query_row("SELECT count(*) FROM parked", [], |row| row.get(0)).expect("the journal counts")
    }

    /// The plugin's state: per token the number of transfers, and their sum.
    fn totals(&self) -> Vec<(u64, U256)> {
        let db = read_only(&self.dir().join(self.journal)).expect("the journal is there");
        let mut question = db.prepare("SELECT value FROM state").expect("the journal has state");
        let values = question.query_map([], |row| row.get::<_, Vec<u8>>(0)).expect("rows");
        let total = |bytes: Vec<u8>| {
            let total: Value = serde_json::from_slice(&bytes).expect("the totals are JSON");
            (
                total["count"].as_u64().expect("a count"),
                total["sum"].as_str().expect("a sum").parse().expect("a number"),
            )
        };
        let mut totals: Vec<_> = values.map(|v| total(v.expect("a value"))).collect();
        totals.sort();
        totals
    }
}

fn read_only(path: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let db = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(db)
}

pub fn transfer(text: impl Fn(usize) -> String) -> Transfer {
    let hash = |at| text(at).parse::<B256>().expect("a hash");
    let address = |at| text(at).parse::<Address>().expect("an address");
    Transfer {
        block: text(0).parse().expect("a height"),
        log_index: text(1).parse().expect("an index"),
        block_hash: hash(2),
        tx: hash(3),
        token: address(4),
        from: address(5),
        to: address(6),
        value: text(7).parse().expect("a number"),
    }
}

pub fn sorted(all: impl IntoIterator<Item = Transfer>) -> Vec<Transfer> {
    let mut all: Vec<Transfer> = all.into_iter().collect();
    all.sort();
    all
}

/// Says what differs, not all there is.
fn same(found: &[Transfer], truth: &[Transfer], what: &str) {
    let missing: Vec<_> = truth.iter().filter(|t| !found.contains(t)).collect();
    let invented: Vec<_> = found.iter().filter(|t| !truth.contains(t)).collect();
    assert!(missing.is_empty() && invented.is_empty(), "{what}: missing {missing:?}, invented {invented:?}");
    assert_eq!(found.len(), truth.len(), "{what} holds something twice");
}

/// Destinations come later than the journal: waits, then says what differs.
pub async fn waited<F: Future<Output = Option<Vec<Transfer>>>>(what: &str, truth: &[Transfer], ask: impl Fn() -> F) {
    let began = std::time::Instant::now();
    loop {
        let found = ask().await.unwrap_or_default();
        if found == truth {
            return;
        }
        if began.elapsed() > std::time::Duration::from_secs(30) {
            return same(&found, truth, what);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Per token, the number of transfers and their sum.
fn totals(truth: &[Transfer]) -> Vec<(u64, U256)> {
    let mut totals: BTreeMap<Address, (u64, U256)> = BTreeMap::new();
    for transfer in truth {
        let total = totals.entry(transfer.token).or_default();
        total.0 += 1;
        total.1 = total.1.wrapping_add(transfer.value);
    }
    let mut totals: Vec<(u64, U256)> = totals.into_values().collect();
    totals.sort();
    totals
}

/// The seed of this run, printed; `CHAINWEIR_SEED` replays one.
pub fn seed() -> u64 {
    let seed = std::env::var("CHAINWEIR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("CHAINWEIR_SEED={seed}");
    seed
}

/// How often, by default and in `cargo x nightly`.
pub fn times(short: u64, long: u64) -> u64 {
    if std::env::var_os("CHAINWEIR_LONG").is_some() { long } else { short }
}
