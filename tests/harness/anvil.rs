//! A real anvil, from the npm package in `target/tools` (`cargo x setup` puts it there).
//!
//! `Anvil::start(&[...])` gives `None`, with a line on stderr, where it is not installed: the test is then skipped
//! visibly. The process is killed when the value is dropped. Knows nothing of what it is used for.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

pub struct Anvil {
    child: Child,
    pub port: u16,
}

pub fn program() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools/node_modules/.bin/anvil");
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: anvil is not installed; run `cargo x setup`");
    None
}

/// The executable behind npm's launcher: killing a launcher would leave its child.
fn native(launcher: PathBuf) -> PathBuf {
    let scope = launcher.ancestors().nth(2).map(|m| m.join("@foundry-rs"));
    let packages = scope.and_then(|s| std::fs::read_dir(s).ok()).into_iter().flatten().flatten();
    packages.map(|p| p.path().join("bin/anvil")).find(|p| p.exists() && is_elf(p)).unwrap_or(launcher)
}

fn is_elf(path: &std::path::Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(path).is_ok_and(|mut f| f.read_exact(&mut magic).is_ok()) && magic == *b"\x7fELF"
}

impl Anvil {
    /// On a free port, with these further arguments.
    pub fn start(arguments: &[&str]) -> Option<Self> {
        Self::on(super::free_port(), arguments)
    }

    /// On this port: to start again where one was killed.
    pub fn on(port: u16, arguments: &[&str]) -> Option<Self> {
        let mut child = Command::new(native(program()?))
            .args(["--port", &port.to_string(), "--host", "127.0.0.1"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("anvil starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let listening =
            lines.by_ref().map_while(Result::ok).find_map(|l| l.split_once("Listening on ").map(|(_, a)| a.to_owned()));
        let Some(address) = listening else {
            let status = child.wait().expect("anvil has ended");
            panic!("anvil ended before it listened: {status}");
        };
        let port = address.trim().rsplit(':').next().and_then(|p| p.parse().ok()).expect("an address with a port");
        // Its log must be read, or the pipe fills and anvil stops.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, port })
    }

    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn ws(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// One JSON-RPC call; panics on an error, with its text.
    pub async fn call(&self, method: &str, params: Value) -> Value {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = reqwest::Client::new().post(self.http()).json(&body).send().await.expect("anvil answers");
        let mut answer: Value = answer.json().await.expect("anvil answers in JSON");
        assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
        answer["result"].take()
    }

    /// All that it knows now, as a file for `--load-state`.
    pub async fn state(&self) -> Vec<u8> {
        use std::io::Read;
        let packed = self.call("anvil_dumpState", json!([])).await;
        let packed = alloy_primitives::hex::decode(packed.as_str().expect("hex")).expect("hex");
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut text).expect("gzip");
        text
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// SIGTERM, which lets it write its state; waits until it is gone.
    pub fn terminate(mut self) {
        self.signal("TERM");
        self.child.wait().expect("our own child can be waited for");
    }

    pub async fn mine(&self, blocks: u64) {
        self.call("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
