//! What a process of its own costs: from its start, with compiled code in the cache, to the first event at a receiver; and
//! the memory that each further plugin takes when all there is to read has been read.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::lab::{FILTER, Lab, PATIENCE, RECORDING, Receiver, WANTED, drop_plugin, median, variant};
use super::{Aim, Figure};
use crate::source::record::Reader;

/// This very program, running. It is killed when this is dropped.
struct Running(Child);

impl Running {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").current_dir(dir).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn set_up(dir: &Path, more: &str) -> anyhow::Result<()> {
    std::fs::write(dir.join("chain.ndjson.gz"), RECORDING)?;
    let chain = "[http]\nlisten = \"off\"\n[chain.demo]\nsource = \"recorded\"\nfiles = [\"chain.ndjson.gz\"]\n\
                 start = 0\nfinality = { depth = 12 }\n";
    std::fs::write(dir.join("chainweir.toml"), format!("{chain}{more}"))?;
    Ok(())
}

/// Without what the last run left, but for the compiled code.
fn forget(dir: &Path) -> std::io::Result<()> {
    for file in ["chainweir.db", "chainweir.db-wal", "chainweir.db-shm"] {
        match std::fs::remove_file(dir.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// `chainweir run` -> the first webhook, with compiled code in the cache, an empty journal and a recorded chain.
pub async fn start(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let dir = lab.dir("start")?;
    let mut took = Vec::new();
    let mut cold = 0.0;
    for round in 0..lab.either(10, 2) {
        let mut receiver = Receiver::start().await?;
        set_up(
            &dir,
            &format!(
                "[output.hook]\ntype = \"webhook\"\nurl = \"{}\"\nallow_private = true\n\
                 [[route]]\nfrom = \"filter.passed\"\nto = [\"hook\"]\n",
                receiver.url()
            ),
        )?;
        if round == 0 {
            drop_plugin(&dir, "filter.wasm", FILTER)?;
        }
        let began = Instant::now();
        let running = Running::start(&dir)?;
        let ms = (receiver.next().await? - began).as_secs_f64() * 1e3;
        drop(running);
        forget(&dir)?;
        match round {
            0 => cold = ms,
            _ => took.push(ms),
        }
        // A file that was touched within the last second may be being written: that is not what is measured.
        if round == 0 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    let warm = median(took);
    Ok(vec![
        Figure::new("start_to_event", (warm, "ms"), (150.0, "the aim, 150 ms"), Aim::AtMost(1.0)),
        Figure::new("start_to_event_cold", (cold, "ms"), (warm, "a start with a warm cache"), Aim::None),
    ])
}

fn resident_bytes(process: u32) -> anyhow::Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{process}/status")).context("only Linux tells a process's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

/// Resident bytes of a process with so many plugins, each of other code, all at the end of the recording.
async fn resident(lab: &Lab, plugins: u32) -> anyhow::Result<f64> {
    let dir = lab.dir(&format!("memory-{plugins}"))?;
    let mut tables = String::new();
    for n in 0..plugins {
        drop_plugin(&dir, &format!("filter-{n}.wasm"), &variant(FILTER, n))?;
        tables += &format!("[plugin.filter-{n}]\nconfig = {{ name = \"filter-{n}\", to = \"{WANTED}\" }}\n");
    }
    set_up(&dir, &tables)?;
    let last = Reader::open(&dir.join("chain.ndjson.gz"))?.last().context("the recording is empty")??.1.number;
    // The first run compiles, and leaves a heap that compiling needed.
    let mut resident = 0.0;
    for round in 0..2 {
        forget(&dir)?;
        let running = Running::start(&dir)?;
        let began = Instant::now();
        while standing_at(&dir, last).unwrap_or(0) < plugins {
            ensure!(began.elapsed() < PATIENCE, "{plugins} plugins did not come to the end of the recording");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if round == 0 {
            continue;
        }
        // Threads that catching up needed end after 10 s.
        tokio::time::sleep(lab.either(Duration::from_secs(12), Duration::ZERO)).await;
        resident = resident_bytes(running.0.id())?;
    }
    Ok(resident)
}

/// Consumers that stand at this height. An error is a journal that is not there yet.
fn standing_at(dir: &Path, height: u64) -> rusqlite::Result<u32> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(dir.join("chainweir.db"), flags)?;
    db.query_row("SELECT count(*) FROM consumer WHERE number = ?1", [height], |row| row.get(0))
}

/// With all its pages, an instance's own among them.
pub async fn memory(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let more = lab.either(32, 2);
    let (few, many) = (resident(&lab, 1).await?, resident(&lab, 1 + more).await?);
    let each = (many - few) / f64::from(more) / 1024.0;
    Ok(vec![Figure::new("plugin_memory", (each, "KiB"), (1024.0, "the aim, 1 MiB"), Aim::AtMost(1.0))])
}
