//! Promise 1 on what real chains did: mainnet's blocks replayed, and Polygon's live sessions with their reorgs served
//! again, through the real program. What comes out is compared with a count that shares no code with it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::chain::{TRANSFER, Transfer};
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::session::SessionServer;
use crate::harness::{guests, until};
use crate::verify::data;

pub fn lines(path: &Path) -> impl Iterator<Item = Value> {
    let file = BufReader::new(flate2::read::GzDecoder::new(std::fs::File::open(path).expect("the shared data")));
    file.lines().map(|line| serde_json::from_str(&line.expect("gzip")).expect("JSON"))
}

/// ERC-20 transfers among a record's logs: two indexed parties, and a value that is one word.
pub fn transfers_of(record: &Value) -> Vec<Transfer> {
    let receipts = record["receipts"].as_array().into_iter().flatten();
    let logs = receipts.flat_map(|r| r["logs"].as_array().into_iter().flatten());
    let logs: Vec<&Value> = match record["logs"].as_array() {
        Some(logs) => logs.iter().collect(),
        None => logs.collect(),
    };
    let number = |v: &Value| u64::from_str_radix(&v.as_str().expect("hex")[2..], 16).expect("a quantity");
    let address = |v: &Value| format!("0x{}", &v.as_str().expect("a word")[26..]).parse().expect("an address");
    logs.into_iter()
        .filter(|log| {
            let topics = log["topics"].as_array().expect("topics");
            topics.len() == 3 && topics[0] == json!(TRANSFER) && log["data"].as_str().is_some_and(|d| d.len() == 66)
        })
        .map(|log| Transfer {
            block: number(&log["blockNumber"]),
            log_index: number(&log["logIndex"]),
            block_hash: log["blockHash"].as_str().expect("a hash").parse().expect("a hash"),
            tx: log["transactionHash"].as_str().expect("a hash").parse().expect("a hash"),
            token: log["address"].as_str().expect("an address").parse().expect("an address"),
            from: address(&log["topics"][1]),
            to: address(&log["topics"][2]),
            value: log["data"].as_str().expect("a word").parse().expect("a number"),
        })
        .collect()
}

#[test]
fn mainnets_transfers_are_all_found_and_no_other() {
    let names = ["chain/mainnet-17686110-17686117.ndjson.gz", "chain/mainnet-17686118-17686124.ndjson.gz"];
    let Some(paths) = names.iter().map(|name| data(name)).collect::<Option<Vec<_>>>() else { return };
    let mut truth: Vec<Transfer> = paths.iter().flat_map(|p| lines(p)).flat_map(|r| transfers_of(&r)).collect();
    truth.sort();
    assert!(truth.len() > 1_500, "only {} transfers in fifteen blocks of mainnet", truth.len());
    let output = Command::new(env!("CARGO_BIN_EXE_chainweir"))
        .arg("replay")
        .args(&paths)
        .arg("--plugin")
        .arg(guests::wasm("erc20-transfers"))
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events: Vec<Value> = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    let ledger = Ledger::of(&events);
    assert_eq!(ledger.repeats, 0);
    assert_eq!(ledger.transfers(), truth);
}

struct Session {
    server: SessionServer,
    folder: tempfile::TempDir,
    truth: Vec<Transfer>,
}

async fn session(name: &str) -> Option<Session> {
    let blocks = data(&format!("reorg/{name}.blocks.ndjson.gz"))?;
    let server = SessionServer::start(&data(&format!("reorg/{name}.session.ndjson.gz"))?).await;
    let folder = folder(&["erc20-transfers"]);
    let canonical = lines(&blocks).filter(|record| record["canonical"] != json!(false));
    let mut truth: Vec<Transfer> = canonical.flat_map(|record| transfers_of(&record)).collect();
    truth.sort();
    assert!(truth.len() > 200, "{name}: only {} transfers", truth.len());
    Some(Session { server, folder, truth })
}

impl Session {
    async fn start(&self, first: u64, depth: u64) -> Process {
        let config = format!(
            "[chain.polygon]\nrpc = \"{}\"\nverify = \"bloom\"\npoll_ms = 20\nstart = {first}\nfinality = {{ depth = {depth} }}\n\
             [output.rows]\ntype = \"sqlite\"\npath = \"rows.db\"\n\
             [[route]]\nfrom = \"erc20-transfers.transfers\"\nto = [\"rows\"]\n",
            self.server.url
        );
        Process::start(self.folder.path(), &config).await
    }

    /// Plays the rest, head by head: each is seen before the next one comes.
    async fn play(&self, process: &Process) {
        loop {
            let (_, hash) = self.server.head();
            until("the head to be followed", || async {
                let status = process.status().await?;
                (status["chains"][0]["head"]["hash"] == json!(hash)).then_some(())
            })
            .await;
            if !self.server.advance() {
                break;
            }
        }
        let (_, hash) = self.server.head();
        process.until_at(&hash).await;
    }

    async fn check(&self, process: &Process, from: u64) {
        let truth: Vec<_> = self.truth.iter().filter(|t| t.block >= from).cloned().collect();
        let feed = process.feed("erc20-transfers.transfers").await;
        assert_eq!(Ledger::of(&feed).transfers(), truth, "the feed");
        until("the rows to be the chain's", || async {
            let db = rusqlite::Connection::open(self.folder.path().join("rows.db")).ok()?;
            let mut rows = db.prepare("SELECT _block_hash, log_index FROM erc20_transfers_transfers").ok()?;
            let rows = rows.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, u64>(1)?))).ok()?;
            let mut rows = rows.collect::<Result<Vec<_>, _>>().ok()?;
            let mut expected: Vec<_> = truth.iter().map(|t| (t.block_hash.to_string(), t.log_index)).collect();
            rows.sort();
            expected.sort();
            (rows == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polygons_session_gives_its_canonical_chain() {
    for (name, first) in [("polygon-13522111", 13_522_111), ("polygon-13522175", 13_522_175)] {
        let Some(session) = session(name).await else { return };
        // As deep as the path begins, the recording has to go back.
        while session.server.head().0 < first + 8 {
            assert!(session.server.advance());
        }
        let process = session.start(first, 8).await;
        session.play(&process).await;
        session.check(&process, first).await;
        let status = process.status().await.expect("it answers");
        let reorgs = status["chains"][0]["reorgs"].as_u64();
        assert_eq!(reorgs, Some(u64::from(name == "polygon-13522175")), "{name}");
    }
}

/// This session begins in the middle of a reorg: the chain leaves the very first block that was seen, which stood as final
/// once there was one on top of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polygons_reorg_of_the_first_block_halts_until_a_person_accepts_it() {
    let Some(session) = session("polygon-13522239").await else { return };
    let first = session.server.head().0;
    while session.server.head().0 == first {
        assert!(session.server.advance());
    }
    let process = session.start(first, 1).await;
    until("the first block", || async {
        let status = process.status().await?;
        status["plugins"][0]["chains"][0]["cursor"]["number"].as_u64().filter(|n| *n >= first)
    })
    .await;
    until("the chain to halt", || async {
        let status = process.status().await?;
        if status["chains"][0]["state"] == "halted" {
            return Some(());
        }
        session.server.advance();
        None
    })
    .await;
    let before = process.feed("erc20-transfers.transfers").await;
    let said = Command::new(env!("CARGO_BIN_EXE_chainweir"))
        .args(["accept-reorg", "polygon", "--url", &process.url])
        .output()
        .expect("the program runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    session.play(&process).await;
    let after = process.feed("erc20-transfers.transfers").await;
    assert_eq!(after[..before.len()], before, "what was said of final blocks stays said");
    let told: Vec<Transfer> = Ledger::of(&after[before.len()..]).transfers();
    let from = told.first().expect("transfers after the halt").block;
    let truth: Vec<_> = session.truth.iter().filter(|t| t.block >= from).cloned().collect();
    assert_eq!(told, truth);
}
