//! What a new user does first: `chainweir dev`, `plugin new`, `plugin build`, `plugin test`. The real program and the
//! real cargo, offline, in temporary folders; compiled dependencies are those of this workspace.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{free_port, process::Ledger};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// With cargo's ways as in this workspace: its target folder, its lock file's versions, its profile, no network.
fn command(program: &str, dir: &Path) -> Command {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null()).env_remove("RUST_LOG").env("CARGO_NET_OFFLINE", "true");
    command.env("CARGO_TARGET_DIR", target).envs([
        ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true"),
        ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ("CARGO_PROFILE_RELEASE_INCREMENTAL", "true"),
    ]);
    command
}

fn chainweir(dir: &Path) -> Command {
    command(env!("CARGO_BIN_EXE_chainweir"), dir)
}

/// A crate outside the workspace resolves to the versions that are here already.
fn lock(dir: &Path) {
    std::fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock")).expect("a copy of the lock file");
}

/// `chainweir dev` that runs: what it prints, line by line.
struct Dev {
    child: Child,
    out: Arc<Mutex<Vec<String>>>,
    err: Arc<Mutex<Vec<String>>>,
}

fn lines(from: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let all = Arc::<Mutex<Vec<String>>>::default();
    let kept = all.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            kept.lock().expect("nobody panics with it").push(line);
        }
    });
    all
}

impl Dev {
    fn start(dir: &Path) -> Self {
        let child = chainweir(dir).args(["dev", "."]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the program runs");
        let out = lines(child.stdout.take().expect("piped"));
        let err = lines(child.stderr.take().expect("piped"));
        Self { child, out, err }
    }

    /// The first line from `from` on that is as wanted, and its place. A build may take its time.
    async fn until(&self, of: &Mutex<Vec<String>>, from: usize, what: &str, wanted: impl Fn(&str) -> bool) -> usize {
        let began = Instant::now();
        loop {
            let found = of.lock().expect("sound").iter().skip(from).position(|line| wanted(line));
            if let Some(at) = found {
                return from + at;
            }
            if began.elapsed() > Duration::from_secs(120) {
                let tail = |of: &Mutex<Vec<String>>| {
                    let all = of.lock().expect("sound");
                    all[all.len().saturating_sub(30)..].join("\n")
                };
                panic!("waited for {what}:\n{}\n---\n{}", tail(&self.out), tail(&self.err));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn says(&self, from: usize, words: &str) -> usize {
        self.until(&self.err, from, words, |line| line.contains(words)).await
    }

    /// Lines that were printed, when no more come: of two streams, one may be read a little later.
    async fn said_all(&self) -> usize {
        let mut len = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.out.lock().expect("sound").len();
            if now == std::mem::replace(&mut len, now) {
                return now;
            }
        }
    }

    /// Ctrl-C; it ends in order.
    fn interrupt(mut self) {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        let status = self.child.wait().expect("our own child");
        assert!(status.success(), "{status}: {:?}", self.err.lock().expect("sound").last());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// examples/quickstart as a user has it, but for the port, the pace and the place of the SDK.
fn quickstart(dir: &Path, pace: &str, lib: &str) -> u16 {
    let from = root().join("examples/quickstart");
    std::fs::create_dir_all(dir.join("plugin/src")).expect("a folder");
    std::fs::copy(from.join("chain.ndjson.gz"), dir.join("chain.ndjson.gz")).expect("the recording");
    let port = free_port();
    let config = std::fs::read_to_string(from.join("chainweir.toml")).expect("its configuration");
    assert!(config.contains("\npace = 10\n"), "{config}");
    let config = config.replace("\npace = 10\n", &format!("\npace = {pace}\n"));
    std::fs::write(dir.join("chainweir.toml"), format!("{config}\n[http]\nlisten = \"127.0.0.1:{port}\"\n"))
        .expect("written");
    let manifest = std::fs::read_to_string(from.join("plugin/Cargo.toml")).expect("its manifest");
    let sdk = root().join("sdk/rust");
    // A name of its own for the file that cargo makes: the workspace makes one, too.
    let manifest = manifest
        .replace("../../../sdk/rust", &sdk.display().to_string())
        .replace("[lib]\n", &format!("[lib]\nname = \"{lib}\"\n"));
    std::fs::write(dir.join("plugin/Cargo.toml"), format!("{manifest}\n[workspace]\n")).expect("written");
    std::fs::copy(from.join("plugin/src/lib.rs"), source(dir)).expect("its source");
    lock(&dir.join("plugin"));
    port
}

fn source(dir: &Path) -> PathBuf {
    dir.join("plugin/src/lib.rs")
}

fn edit(dir: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(source(dir)).expect("its source");
    assert!(text.contains(from), "there is no {from} in:\n{text}");
    std::fs::write(source(dir), text.replace(from, to)).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_edited_while_it_runs_and_the_change_is_seen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path();
    // 168 s of blocks: an edit in the middle is built and swapped in long before the end, though other tests build too.
    let port = quickstart(dir, "2", "whale_while_it_runs");
    let dev = Dev::start(dir);
    dev.says(0, "running; streams are at http://127.0.0.1").await;
    dev.says(0, "loaded whale 0.1.0").await;
    dev.until(&dev.out, 0, "an emission", |line| line.starts_with("+ apply   whale.large ")).await;
    let retracted = dev.until(&dev.out, 0, "a retraction", |line| line.starts_with("- retract whale.large ")).await;
    let line = dev.out.lock().expect("sound")[retracted].clone();
    assert!(line.contains(r#""count":"#), "the whole payload is shown where it is piped on: {line}");

    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://127.0.0.1:{port}/streams/whale.large?limit=1000");
    let page: Value = http.get(url).send().await.expect("the feed answers").json().await.expect("in JSON");
    let events = page["items"].as_array().expect("items");
    assert!(events.iter().any(|e| e["op"] == "retract"), "the feed has what the terminal has");
    Ledger::of(events);

    // What does not build changes nothing.
    edit(dir, "if t.value < self.min {", "if t.value < self.minimum {");
    let at = dev.says(0, "what ran before goes on").await;
    let errors = dev.err.lock().expect("sound")[..at].join("\n");
    assert!(errors.contains("no field `minimum`") && errors.contains("lib.rs"), "{errors}");
    let seen = dev.out.lock().expect("sound").len();
    dev.until(&dev.out, seen, "the old one goes on", |line| line.contains(r#""count":"#)).await;

    edit(dir, "self.minimum", "self.min");
    edit(dir, "count: u64,", "nth: u64,");
    edit(dir, "value: t.value, count }", "value: t.value, nth: count }");
    dev.says(at, "reloaded whale 0.1.0").await;
    dev.until(&dev.out, seen, "the changed output", |line| line.starts_with("+") && line.contains(r#""nth":"#)).await;
    dev.interrupt();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_after_the_recording_has_ended_is_seen_as_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path();
    quickstart(dir, "\"as-fast-as-possible\"", "whale_after_the_end");
    let dev = Dev::start(dir);
    let ended = dev.says(0, "the recording has ended").await;
    let seen = dev.said_all().await;
    edit(dir, "count: u64,", "nth: u64,");
    edit(dir, "value: t.value, count }", "value: t.value, nth: count }");
    let again = dev.says(ended, "playing the recording again").await;
    dev.says(again, "the recording has ended").await;
    dev.until(&dev.out, seen, "the changed output", |line| line.contains(r#""nth":"#)).await;
    dev.said_all().await;
    // The other edit may have been built alone first, which does not build: nothing was played then.
    let all = dev.out.lock().expect("sound");
    let (old, new) = all.split_at(seen);
    let plain =
        |lines: &[String]| -> Vec<String> { lines.iter().map(|l| l.replace("\"nth\":", "\"count\":")).collect() };
    assert_eq!(plain(new), old, "the same blocks, the same output but for the change");
    drop(all);
    dev.interrupt();
}

fn done(mut command: Command) -> String {
    let output = command.output().expect("it runs");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_plugin_builds_passes_its_tests_and_is_tested_against_a_golden_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (dir, name) = (folder.path(), "fresh-whale");
    let mut new = chainweir(dir);
    new.args(["plugin", "new", name]);
    let said = done(new);
    assert!(said.contains("cargo test") && said.contains("fresh-whale/src/lib.rs"), "{said}");
    let plugin = dir.join(name);
    lock(&plugin);

    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut tests = command(&cargo, &plugin);
    // As the workspace builds: in the profile that is compiled already.
    tests.args(["test", "--release"]);
    let said = done(tests);
    assert!(said.contains("2 passed"), "{said}");

    let mut build = chainweir(&plugin);
    build.args(["plugin", "build"]);
    let said = done(build);
    assert!(said.contains("fresh-whale 0.1.0"), "{said}");
    let wasm = plugin.join("plugins/fresh-whale.wasm");
    assert!(wasm.is_file());

    let blocks = root().join("examples/quickstart/chain.ndjson.gz");
    let test = |golden: &[&str]| {
        let mut test = chainweir(&plugin);
        test.args(["plugin", "test", "plugins/fresh-whale.wasm", "--blocks"]).arg(&blocks);
        test.args(["--config", r#"{"min":"1000000000000000000"}"#]).args(golden);
        test
    };
    let said = done(test(&["--golden", "golden.ndjson", "--bless"]));
    assert!(said.contains("golden.ndjson"), "{said}");
    let golden = std::fs::read_to_string(plugin.join("golden.ndjson")).expect("blessed");
    assert!(golden.lines().count() > 100 && golden.contains(r#""op":"retract""#), "{} lines", golden.lines().count());
    let said = done(test(&["--golden", "golden.ndjson"]));
    assert!(said.contains(&format!("{} emissions, as in golden.ndjson", golden.lines().count())), "{said}");
    // A golden file that says something else is told apart, line by line.
    let other: Vec<&str> = golden.lines().skip(1).collect();
    std::fs::write(plugin.join("golden.ndjson"), other.join("\n") + "\n").expect("written");
    let output = test(&["--golden", "golden.ndjson"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("+ 1: "), "{said}");
}
