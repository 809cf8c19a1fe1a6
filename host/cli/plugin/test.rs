//! `chainweir plugin test`: the built plugin on recorded blocks, against a golden file.
//!
//! The plugin runs as it does in production, through the whole flow; reorgs in the recording give retractions.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::build;
use crate::cli::offline::{self, Offline};
use crate::cli::{Exit, Trouble, artifact};
use crate::model::{ContentType, Delivery, EventPosition};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The .wasm, or the folder of the plugin's source, which is built first
    #[arg(default_value = ".")]
    plugin: PathBuf,
    /// Recorded blocks, as 'chainweir record' writes them (.ndjson or .ndjson.gz)
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    blocks: Vec<PathBuf>,
    /// The plugin's configuration
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = artifact::parse_config)]
    config: serde_json::Map<String, Value>,
    /// What it is to emit, one emission a line; without it what it emits is printed
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Write the golden file instead of comparing
    #[arg(long, requires = "golden")]
    bless: bool,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let built;
    let wasm = if args.plugin.is_dir() {
        let out = args.plugin.join("target/chainweir");
        built = build::build(&args.plugin, &out, &args.config).await?.path;
        &built
    } else {
        &args.plugin
    };
    let mut lines: Vec<String> = vec![];
    let offline = Offline { blocks: args.blocks, wasm: wasm.clone(), config: args.config, progress: true };
    offline::play(offline, |delivery| {
        lines.push(line(&delivery));
        Ok(())
    })
    .await?;
    let Some(golden) = args.golden else {
        lines.iter().for_each(|line| println!("{line}"));
        eprintln!("{} emissions; keep them as the golden file with --golden FILE --bless", lines.len());
        return Ok(Exit::Done);
    };
    if args.bless {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&golden, text).with_context(|| format!("cannot write {}", golden.display()))?;
        println!("{}: {} emissions", golden.display(), lines.len());
        return Ok(Exit::Done);
    }
    compare(&golden, &lines)
}

/// One emission as a golden file has it: what the plugin decides, and where it stands; no id and no offset.
fn line(delivery: &Delivery) -> String {
    let emission = &delivery.emission;
    let event = match emission.position {
        EventPosition::Block => "block".to_owned(),
        EventPosition::Transaction(index) => format!("transaction {index}"),
        EventPosition::Log(index) => format!("log {index}"),
        EventPosition::Transfer(index) => format!("transfer {index}"),
        EventPosition::Pending(_) => "pending".to_owned(),
    };
    let data = match emission.content_type {
        ContentType::Json => serde_json::from_slice(&emission.payload).ok(),
        ContentType::Text => std::str::from_utf8(&emission.payload).ok().map(Value::from),
        ContentType::Bytes => None,
    };
    json!({
        "op": delivery.op.as_str(),
        "stream": emission.stream.to_string(),
        "block": emission.block.number,
        "event": event,
        "key": emission.lane_key,
        "data": data.unwrap_or_else(|| alloy_primitives::hex::encode_prefixed(&emission.payload).into()),
    })
    .to_string()
}

fn compare(golden: &Path, found: &[String]) -> anyhow::Result<Exit> {
    let text = std::fs::read_to_string(golden).map_err(|error| {
        let what = format!("cannot read {}: {error}", golden.display());
        Trouble::usage(what, "make it from what the plugin emits now: add --bless, then read it")
    })?;
    let expected: Vec<&str> = text.lines().collect();
    let differences = differences(&expected, found);
    if differences.is_empty() {
        println!("{} emissions, as in {}", found.len(), golden.display());
        return Ok(Exit::Done);
    }
    for difference in differences.iter().take(MOST_SHOWN) {
        println!("{difference}");
    }
    if differences.len() > MOST_SHOWN {
        println!("... and {} more", differences.len() - MOST_SHOWN);
    }
    let what = format!("the plugin emits something else than {}: {} lines differ", golden.display(), differences.len());
    Err(Trouble::new(what, "mend the plugin, or, where it is right, run again with --bless").into())
}

/// Lines of a difference that a person reads.
const MOST_SHOWN: usize = 40;

/// `- line` is missing, `+ line` is new, each with its number in its own file. Lines are first matched from both
/// ends; what is between is small in practice, and matched by its longest common subsequence.
fn differences(expected: &[&str], found: &[String]) -> Vec<String> {
    let same_head = expected.iter().zip(found).take_while(|(a, b)| **a == b.as_str()).count();
    let (e, f) = (&expected[same_head..], &found[same_head..]);
    let same_tail = e.iter().rev().zip(f.iter().rev()).take_while(|(a, b)| **a == b.as_str()).count();
    let (e, f) = (&e[..e.len() - same_tail], &f[..f.len() - same_tail]);
    let minus = |i: usize| format!("- {}: {}", same_head + i + 1, e[i]);
    let plus = |j: usize| format!("+ {}: {}", same_head + j + 1, f[j]);
    // 4 million cells, 16 MiB: beyond that nobody reads the difference line by line.
    if e.len().saturating_mul(f.len()) > 4_000_000 {
        return (0..e.len()).map(minus).chain((0..f.len()).map(plus)).collect();
    }
    let width = f.len() + 1;
    let mut common = vec![0u32; (e.len() + 1) * width];
    for i in (0..e.len()).rev() {
        for j in (0..f.len()).rev() {
            common[i * width + j] = if e[i] == f[j].as_str() {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, vec![]);
    while i < e.len() || j < f.len() {
        if i < e.len() && j < f.len() && e[i] == f[j].as_str() {
            (i, j) = (i + 1, j + 1);
        } else if i < e.len() && (j == f.len() || common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            out.push(minus(i));
            i += 1;
        } else {
            out.push(plus(j));
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_differs_alone() {
        let found = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert!(differences(&["a", "b"], &found(&["a", "b"])).is_empty());
        assert_eq!(differences(&["a", "b", "c"], &found(&["a", "x", "c"])), ["- 2: b", "+ 2: x"]);
        assert_eq!(differences(&["a", "b", "c", "d"], &found(&["b", "c", "e", "d"])), ["- 1: a", "+ 3: e"]);
        assert_eq!(differences(&[], &found(&["a"])), ["+ 1: a"]);
        assert_eq!(differences(&["a", "a"], &found(&["a"])), ["- 2: a"]);
    }
}
