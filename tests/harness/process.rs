//! The real program as a process of its own, to be asked over HTTP, stopped in order, or killed.
//!
//! ```ignore
//! let process = Process::start(dir, CONFIG).await;   // CONFIG without [http]: the port is chosen here
//! let status = process.status().await.unwrap();
//! process.kill();                                     // SIGKILL; the folder stays
//! let process = Process::start(dir, CONFIG).await;
//! let (code, log) = process.terminate().await;        // SIGTERM
//! ```

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chainweir");

pub struct Process {
    child: Child,
    pub url: String,
    pub log: PathBuf,
    http: reqwest::Client,
}

/// A temporary folder with these plugins in `plugins/`.
pub fn folder(plugins: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("plugins")).expect("a folder");
    for plugin in plugins {
        let file = folder.path().join(format!("plugins/{plugin}.wasm"));
        std::fs::copy(super::guests::wasm(plugin), file).expect("the plugin was built");
    }
    folder
}

impl Process {
    /// Writes `chainweir.toml` into the folder, runs it there, and waits until it answers. Its stderr is added to
    /// `chainweir.log`.
    pub async fn start(dir: &Path, config: &str) -> Self {
        Self::start_with(dir, config, &[]).await
    }

    /// The same with environment variables.
    pub async fn start_with(dir: &Path, config: &str, env: &[(&str, &str)]) -> Self {
        let mut process = Self::spawn(Command::new(PROGRAM), dir, config, env);
        process.answers().await;
        process
    }

    /// The same without waiting for anything.
    pub fn begin(dir: &Path, config: &str, env: &[(&str, &str)]) -> Self {
        Self::spawn(Command::new(PROGRAM), dir, config, env)
    }

    /// The same in a shell that does something first and then becomes the program: it hands down what it set.
    pub async fn start_after(shell: &str, dir: &Path, config: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\""), PROGRAM]);
        let mut process = Self::spawn(command, dir, config, &[]);
        process.answers().await;
        process
    }

    fn spawn(mut program: Command, dir: &Path, config: &str, env: &[(&str, &str)]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = super::free_port();
        let text = format!("[http]\nlisten = \"127.0.0.1:{port}\"\n\n{config}");
        std::fs::write(dir.join("chainweir.toml"), text).expect("a file in the test's folder");
        let log = dir.join("chainweir.log");
        let stderr = std::fs::File::options().create(true).append(true).open(&log).expect("a log in the folder");
        let child = program
            .arg("run")
            .current_dir(dir)
            .env_remove("RUST_LOG")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the program runs");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().expect("a client");
        Self { child, url: format!("http://127.0.0.1:{port}"), log, http }
    }

    async fn answers(&mut self) {
        let began = Instant::now();
        while self.get("/healthz").await.is_none() {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                panic!("it ended at once ({status}):\n{}", self.log());
            }
            assert!(began.elapsed() < Duration::from_secs(30), "it does not answer:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The body of a GET, where it is JSON or text with status 200.
    pub async fn get(&self, path: &str) -> Option<String> {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        answer.text().await.ok()
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub async fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/status").await?).ok()
    }

    /// A command, as docs/guides/operations.md has them; the whole answer.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.http.post(format!("{}{path}", self.url)).json(body).send().await.expect("it answers");
        let code = answer.status().as_u16();
        (code, answer.json().await.unwrap_or(Value::Null))
    }

    /// Everything in a stream's feed, in order.
    pub async fn feed(&self, stream: &str) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), String::from("0"));
        loop {
            let page =
                self.get(&format!("/streams/{stream}?after={after}&limit=1000")).await.expect("the feed answers");
            let page: Value = serde_json::from_str(&page).expect("a feed answers in JSON");
            let items = page["items"].as_array().expect("a page has items");
            if items.is_empty() {
                return all;
            }
            all.extend(items.iter().cloned());
            after = page["next"].as_str().map_or_else(|| page["next"].to_string(), str::to_owned);
        }
    }

    /// Waits until its first plugin stands at this block of its first chain.
    pub async fn until_at(&self, hash: &str) {
        super::until("the plugin to reach the block", || async {
            let status = self.status().await?;
            (status["plugins"][0]["chains"][0]["cursor"]["hash"] == hash).then_some(())
        })
        .await;
    }

    /// Another command of the program, told where this one listens: whether it did it, and all that it said.
    pub fn cli(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(PROGRAM).args(args).args(["--url", &self.url]).output().expect("the program runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Of a command that answers in JSON: its stdout alone. Panics where it fails.
    pub fn cli_json(&self, args: &[&str]) -> Value {
        let output = Command::new(PROGRAM).args(args).args(["--json", "--url", &self.url]).output();
        let output = output.expect("the program runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("--json answers in JSON")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it holds now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("it lives");
        text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("statm") * 4096
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// SIGTERM; how it ended, and after how long. Panics after 30 s.
    pub async fn terminate(mut self) -> (ExitStatus, Duration) {
        self.signal("TERM");
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return (status, began.elapsed());
            }
            assert!(began.elapsed() < Duration::from_secs(30), "it does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A start that is to fail: the exit code and what it says. Panics where it still runs after 20 s.
pub async fn refused(dir: &Path, config: &str) -> (Option<i32>, String) {
    let text = format!("[http]\nlisten = \"127.0.0.1:{}\"\n\n{config}", super::free_port());
    // A file of its own: the one of a running process stays.
    std::fs::write(dir.join("refused.toml"), text).expect("a file in the test's folder");
    let mut child = tokio::process::Command::new(PROGRAM)
        .args(["run", "refused.toml"])
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program runs");
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let ended = async {
        let mut said = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut said).await.expect("it speaks UTF-8");
        (child.wait().await.expect("our own child").code(), said)
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it runs where it should refuse")
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.char_indices().rev().nth(6_000).map_or(0, |(at, _)| at);
            eprintln!("--- the end of {}:\n{}", self.log.display(), &log[from..]);
        }
    }
}

/// Follows a stream of CloudEvents as a consumer does: applies and retracts by emission. What is said twice (the same
/// id) counts once.
#[derive(Default)]
pub struct Ledger {
    held: std::collections::BTreeMap<String, Value>,
    said: std::collections::BTreeSet<String>,
    pub repeats: usize,
}

impl Ledger {
    pub fn take(&mut self, event: &Value) {
        if !self.said.insert(event["id"].as_str().expect("an id").to_owned()) {
            self.repeats += 1;
            return;
        }
        let emission = event["emission"].as_str().expect("an emission").to_owned();
        match event["op"].as_str() {
            Some("apply") => {
                assert!(self.held.insert(emission, event.clone()).is_none(), "applied twice: {event}");
            }
            Some("retract") => {
                let taken = self.held.remove(&emission);
                assert!(taken.is_some(), "retracted unheard: {event}");
                assert_eq!(
                    taken.map(|e| e["data"].clone()),
                    Some(event["data"].clone()),
                    "retracted as something else"
                );
            }
            other => panic!("unknown op {other:?}"),
        }
    }

    pub fn of<'a>(events: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut ledger = Self::default();
        events.into_iter().for_each(|event| ledger.take(event));
        ledger
    }

    /// What holds now.
    pub fn net(&self) -> Vec<&Value> {
        self.held.values().collect()
    }

    /// ERC-20 transfers of the plugin `erc20-transfers`, as the chain itself would tell them, in chain order.
    pub fn transfers(&self) -> Vec<super::chain::Transfer> {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let transfer = |e: &&Value| super::chain::Transfer {
            block: text(&e["block"]).parse().expect("a height"),
            log_index: e["data"]["log_index"].as_u64().expect("an index"),
            block_hash: text(&e["blockhash"]).parse().expect("a hash"),
            tx: text(&e["data"]["tx"]).parse().expect("a hash"),
            token: text(&e["data"]["token"]).parse().expect("an address"),
            from: text(&e["data"]["from"]).parse().expect("an address"),
            to: text(&e["data"]["to"]).parse().expect("an address"),
            value: text(&e["data"]["value"]).parse().expect("a number"),
        };
        let mut all: Vec<_> = self.net().iter().map(transfer).collect();
        all.sort();
        all
    }
}
