//! A real anvil of our own, and JSON-RPC over plain HTTP to it.
//!
//! It speaks to loopback only: no TLS, no redirects, no answers in chunks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::shell::which;

pub struct Anvil {
    process: Child,
    address: String,
}

impl Anvil {
    pub fn start(args: &[&str]) -> Result<Self> {
        let program = which("anvil").context("there is no anvil: run `cargo x setup`")?;
        let mut process = Command::new(program)
            .args(["--port", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start anvil")?;
        let mut lines = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let address = loop {
            let Some(line) = lines.next() else { bail!("anvil ended before it listened") };
            if let Some(address) = line?.strip_prefix("Listening on ") {
                break address.to_owned();
            }
        };
        // Read on, or anvil stops when the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { process, address })
    }

    pub fn call(&self, method: &str, params: Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let mut stream = TcpStream::connect(&self.address).context("cannot connect to anvil")?;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("anvil's answer has no body")?;
        let mut json: Value = serde_json::from_str(body).with_context(|| format!("{method}: not JSON: {body}"))?;
        if let Some(error) = json.get("error") {
            bail!("{method}: {error}");
        }
        Ok(json["result"].take())
    }

    /// A call whose answer is text: a hash, a number, an address.
    pub fn text(&self, method: &str, params: Value) -> Result<String> {
        let answer = self.call(method, params)?;
        answer.as_str().map(str::to_owned).with_context(|| format!("{method}: {answer} is not text"))
    }

    pub fn head(&self) -> Result<u64> {
        let head = self.text("eth_blockNumber", json!([]))?;
        u64::from_str_radix(head.trim_start_matches("0x"), 16).context("eth_blockNumber: not a number")
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
