//! Promise 1 where it is the journal's file that fails: no room, damage, another version, another owner. Nothing is
//! lost, and whoever runs it is told what to do.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::chain::{Chain, Town, Transfer};
use crate::harness::process::{Ledger, Process, folder, refused};
use crate::harness::receiver::Receiver;
use crate::harness::until;

/// A chain with traffic, one webhook, and a folder to run in.
struct Scene {
    _anvil: Anvil,
    chain: Chain,
    town: Town,
    receiver: Receiver,
    folder: tempfile::TempDir,
    config: String,
}

impl Scene {
    async fn new(seed: u64) -> Option<Self> {
        let anvil = Anvil::start(&["--no-mining"])?;
        let chain = Chain::connect(&anvil.http()).await;
        let town = Town::found(&chain, seed).await;
        let receiver = Receiver::start().await;
        let folder = folder(&["erc20-transfers"]);
        let config = format!(
            r#"
[chain.local]
rpc = "{}"
poll_ms = 50
start = 0
finality = {{ depth = 12 }}

[output.shop]
type = "webhook"
url = "{}"
allow_private = true

[[route]]
from = "erc20-transfers.transfers"
to = ["shop"]
"#,
            anvil.ws(),
            receiver.url()
        );
        Some(Self { _anvil: anvil, chain, town, receiver, folder, config })
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn journal(&self) -> std::path::PathBuf {
        self.dir().join("chainweir.db")
    }

    async fn start(&self) -> Process {
        Process::start(self.dir(), &self.config).await
    }

    async fn blocks(&mut self, count: u64) {
        for _ in 0..count {
            self.town.block(&self.chain, 5).await;
        }
    }

    fn delivered(&self) -> Vec<Transfer> {
        let events: Vec<Value> = self.receiver.received().iter().map(|r| r.event()).collect();
        Ledger::of(&events).transfers()
    }

    /// Waits until the feed and the webhook have what the chain has.
    async fn check(&self, process: &Process) {
        let head = self.chain.head().await;
        let (hash, truth) = (self.chain.hash(head).await.to_string(), self.chain.transfers(0..=head).await);
        assert!(!truth.is_empty());
        process.until_at(&hash).await;
        until("all of it in the feed", || async {
            (Ledger::of(&process.feed("erc20-transfers.transfers").await).transfers() == truth).then_some(())
        })
        .await;
        until("all of it at the webhook", || async { (self.delivered() == truth).then_some(()) }).await;
    }
}

/// The most bytes that a file of this process may have, from now on: how a disk without room is made without a mount
/// and without root. `None`, said aloud, where the tool is missing.
fn limit_files(process: &Process, bytes: &str) -> Option<()> {
    // The soft limit alone: a hard one could not be raised again.
    let limit =
        Command::new("prlimit").args(["--pid", &process.pid().to_string(), &format!("--fsize={bytes}:")]).status();
    match limit {
        Ok(status) => assert!(status.success(), "prlimit: {status}"),
        Err(error) => {
            eprintln!("SKIPPED: prlimit is not to be had ({error}); install it by: apt-get install -y util-linux");
            return None;
        }
    }
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_can_be_written_it_pauses_serves_and_goes_on_by_itself() {
    let Some(mut scene) = Scene::new(31).await else { return };
    // As under a service manager that ignores the signal: the write fails, and the process is not killed for it.
    let mut process = Process::start_after("trap '' XFSZ", scene.dir(), &scene.config).await;
    let paused = |status: &Value| status["journal"]["paused"].as_str().map(str::to_owned);
    for round in 0..2 {
        scene.blocks(10).await;
        scene.check(&process).await;
        let Some(()) = limit_files(&process, "1") else { return };
        // Its log, which is a file too, takes nothing any more either.
        scene.blocks(3).await;
        let why = until("it to say that it is paused", || async { paused(&process.status().await?) }).await;
        assert!(why.contains("disk"), "{why}");
        let status = process.status().await.expect("it answers");
        let plugin = &status["plugins"][0]["chains"][0];
        assert_eq!((&plugin["state"], &plugin["why"]), (&json!("paused"), &json!(why)), "{plugin}");
        assert!(process.get("/readyz").await.is_none(), "not ready");
        assert!(process.get("/healthz").await.is_some(), "but alive");
        let (ok, said) = process.cli(&["status"]);
        assert!(ok && said.contains("paused"), "{said}");
        let before = Ledger::of(&process.feed("erc20-transfers.transfers").await).transfers();
        assert_eq!(before, scene.delivered(), "what is there is served");
        scene.blocks(3).await;
        scene.town.reorg(&scene.chain, 8, 3).await;
        if round == 1 {
            // The note of an orderly end finds no room either; the next start does without.
            let (status, took) = process.terminate().await;
            assert_eq!(status.code(), Some(0), "nothing is lost by ending now");
            assert!(took < Duration::from_secs(10), "{took:?}");
            process = scene.start().await;
        } else {
            limit_files(&process, "unlimited");
        }
        until("it to go on by itself", || async { paused(&process.status().await?).is_none().then_some(()) }).await;
        scene.blocks(3).await;
        scene.check(&process).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_is_refused_and_a_backup_of_it_goes_on() {
    let Some(mut scene) = Scene::new(32).await else { return };
    let process = scene.start().await;
    scene.blocks(30).await;
    scene.check(&process).await;
    let (status, _) = process.terminate().await;
    assert!(status.success(), "{status}");
    let backup = std::fs::read(scene.journal()).expect("all of it is in one file after an orderly end");
    let process = scene.start().await;
    scene.blocks(30).await;
    scene.check(&process).await;
    process.kill();

    // A disk that lost some sectors: all of the file but its head, and of what was not copied into it yet.
    let mut bytes = std::fs::read(scene.journal()).expect("it is there");
    for page in (4096..bytes.len()).step_by(4096).skip(1) {
        bytes[page..page + 1024].fill(0x5a);
    }
    std::fs::write(scene.journal(), &bytes).expect("it can be written");
    for end in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", scene.journal().display())).expect("it was left by the crash");
    }
    for _ in 0..2 {
        let (code, said) = refused(scene.dir(), &scene.config).await;
        assert_eq!(code, Some(1), "{said}");
        for word in ["chainweir.db", "is damaged", "restore it from a backup", "move it away"] {
            assert!(said.contains(word), "no '{word}' in: {said}");
        }
    }
    // The promise of the message: what happened since the backup is read again, and has the same ids.
    std::fs::write(scene.journal(), backup).expect("it can be written");
    let process = scene.start().await;
    scene.blocks(3).await;
    scene.check(&process).await;
    let events: Vec<Value> = scene.receiver.received().iter().map(|r| r.event()).collect();
    assert!(Ledger::of(&events).repeats > 0, "what came after the backup comes again, with its id");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_has_one_owner_and_no_older_program() {
    let Some(mut scene) = Scene::new(33).await else { return };
    let process = scene.start().await;
    scene.blocks(5).await;
    let (code, said) = refused(scene.dir(), &scene.config).await;
    assert_eq!(code, Some(1), "{said}");
    for word in ["chainweir.db", &format!("belongs to process {}", process.pid()), "[journal] path"] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    // The owner does not notice.
    scene.blocks(5).await;
    scene.check(&process).await;
    let (status, _) = process.terminate().await;
    assert!(status.success(), "{status}");

    let version = |journal: &Path, to: Option<i64>| {
        let db = rusqlite::Connection::open(journal).expect("a database");
        if let Some(to) = to {
            db.pragma_update(None, "user_version", to).expect("it can be written");
        }
        db.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).expect("a number")
    };
    let ours = version(&scene.journal(), None);
    version(&scene.journal(), Some(1_000));
    let (code, said) = refused(scene.dir(), &scene.config).await;
    assert_eq!(code, Some(1), "{said}");
    for word in ["chainweir.db", "written by a newer Chainweir (schema 1000", "run that one"] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    assert_eq!(version(&scene.journal(), None), 1_000, "it was left alone");
    version(&scene.journal(), Some(ours));
    let process = scene.start().await;
    scene.blocks(5).await;
    scene.check(&process).await;
}
