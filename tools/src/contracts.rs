//! Compiles tests/contracts/*.sol into tests/contracts/out/*.json, which is committed: whoever runs the tests
//! needs no compiler.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::setup;
use crate::shell::{command, root, tools};

fn folder() -> PathBuf {
    root().join("tests/contracts")
}

/// A compiled contract, as tests and the corpus use it.
pub struct Contract {
    bytecode: String,
    methods: Value,
}

impl Contract {
    pub fn read(name: &str) -> Result<Self> {
        let file = folder().join("out").join(format!("{name}.json"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut json: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
        let bytecode = json["bytecode"].as_str().context("no bytecode")?.to_owned();
        Ok(Self { bytecode, methods: json["methods"].take() })
    }

    /// What a creating transaction carries: the code and the constructor's arguments.
    pub fn creation(&self, args: &[Word]) -> String {
        self.bytecode.clone() + &words(args)
    }

    /// What a calling transaction carries. Methods are named by their whole signature.
    pub fn call(&self, method: &str, args: &[Word]) -> Result<String> {
        let selector = self.methods[method].as_str().with_context(|| format!("no method {method}"))?;
        Ok(format!("0x{selector}{}", words(args)))
    }
}

/// One argument of an ABI call. Text is left to the caller of `creation`: see `Word::Text`.
#[derive(Clone)]
pub enum Word {
    Address(String),
    Uint(u128),
    /// At most 32 bytes; its own tail comes after the heads.
    Text(&'static str),
}

/// ABI encoding: the heads in order, then the tails of what is dynamic.
fn words(args: &[Word]) -> String {
    let mut heads = String::new();
    let mut tails = String::new();
    for arg in args {
        match arg {
            Word::Address(address) => heads += &format!("{:0>64}", address.trim_start_matches("0x")),
            Word::Uint(value) => heads += &format!("{value:064x}"),
            Word::Text(text) => {
                heads += &format!("{:064x}", args.len() * 32 + tails.len() / 2);
                let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
                tails += &format!("{:064x}{hex:0<64}", text.len());
            }
        }
    }
    heads + &tails
}

pub fn run(args: &[String]) -> Result<()> {
    let check = args.iter().any(|arg| arg == "--check");
    setup::install();
    let mut sources = serde_json::Map::new();
    for entry in fs::read_dir(folder()).context("cannot look into tests/contracts")? {
        let file = entry?.path();
        if file.extension().is_some_and(|end| end == "sol") {
            let name = file.file_name().context("a file without a name")?.to_string_lossy().into_owned();
            sources.insert(name, json!({ "content": fs::read_to_string(&file)? }));
        }
    }
    sources.sort_keys();
    let input = json!({
        "language": "Solidity",
        "sources": sources,
        "settings": {
            "optimizer": { "enabled": true, "runs": 200 },
            "evmVersion": "shanghai",
            // Without a hash of the sources at its end, the code does not change with a comment.
            "metadata": { "appendCBOR": false, "bytecodeHash": "none" },
            "outputSelection": { "*": { "*": ["abi", "evm.bytecode.object", "evm.methodIdentifiers"] } },
        },
    });
    let output = compile(&input.to_string())?;
    for error in output["errors"].as_array().into_iter().flatten() {
        eprintln!("{}", error["formattedMessage"].as_str().unwrap_or("an error without a message"));
    }
    let contracts = output["contracts"].as_object().context("nothing was compiled")?;
    fs::create_dir_all(folder().join("out"))?;
    for (name, contract) in contracts.values().filter_map(Value::as_object).flatten() {
        let code = contract["evm"]["bytecode"]["object"].as_str().unwrap_or_default();
        if code.is_empty() {
            continue; // An interface.
        }
        let json = json!({
            "contract": name,
            "methods": contract["evm"]["methodIdentifiers"],
            "abi": contract["abi"],
            "bytecode": format!("0x{code}"),
        });
        let text = serde_json::to_string_pretty(&json)? + "\n";
        let file = folder().join("out").join(format!("{name}.json"));
        if check {
            if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
                bail!(
                    "tests/contracts/out/{name}.json is not what tests/contracts compiles to: run `cargo x contracts`"
                );
            }
        } else {
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            eprintln!("tests/contracts/out/{name}.json: {} bytes of code", code.len() / 2);
        }
    }
    Ok(())
}

fn compile(input: &str) -> Result<Value> {
    let solc = tools().join("node_modules/solc/solc.js");
    let mut child = command("node", [solc.as_os_str(), "--standard-json".as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start node")?;
    // Dropped at the end of the statement: the compiler reads to the end of its input.
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes()).context("cannot write to the compiler")?;
    let output = child.wait_with_output().context("cannot read from the compiler")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |at| &text[at..]);
    serde_json::from_str(json).context("what the compiler says is not JSON")
}
