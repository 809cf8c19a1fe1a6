//! The plugin of `chainweir bench`: passes the logs whose topic 2 (an ERC-20 transfer's receiver) is the one that its
//! configuration names, `{"to":"0x..."}`; all logs where it names none. Written against the bytes of sdk/ABI.md, so
//! that what is measured is the boundary and not an SDK. `"name":"..."` gives it another name.
//!
//! `cargo x filter` builds it into host/cli/bench/filter.wasm, which is part of the program.

wit_bindgen::generate!({ path: "../../../sdk/wit", world: "plugin" });

use std::sync::OnceLock;

use chainweir::plugin::config;
use exports::chainweir::plugin::processor::{EventKind, Fault, Guest, Manifest, Stream, Subscription};

struct Filter;
export!(Filter);

/// Enough of JSON for a configuration written by the benchmarks.
fn text(json: &str, key: &str) -> Option<String> {
    let from = json.find(&["\"", key, "\":\""].concat())? + key.len() + 4;
    Some(json[from..].split('"').next()?.into())
}

fn digit(byte: u8) -> u8 {
    (byte as char).to_digit(16).unwrap_or(0) as u8
}

fn wanted() -> &'static Option<[u8; 32]> {
    static WANTED: OnceLock<Option<[u8; 32]>> = OnceLock::new();
    WANTED.get_or_init(|| {
        let to = text(&config::get(), "to")?;
        let mut word = [0; 32];
        for (byte, pair) in word.iter_mut().zip(to.as_bytes()[2..].chunks_exact(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Some(word)
    })
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

impl Guest for Filter {
    fn describe() -> Manifest {
        Manifest {
            name: text(&config::get(), "name").unwrap_or("filter".into()),
            version: "0.1.0".into(),
            description: "passes the transfers to one receiver".into(),
            state_version: 1,
            batch_layout: 1,
            subscriptions: vec![Subscription {
                kind: EventKind::Log,
                addresses: vec![],
                topics: vec![],
                senders: vec![],
                receivers: vec![],
                success: None,
                chains: vec![],
                min_value: None,
                sets: vec![],
                factory: None,
                decode: vec![],
            }],
            streams: vec![Stream { name: "passed".into(), description: String::new(), schema: "{}".into() }],
        }
    }

    fn process(batch: Vec<u8>) -> Result<Vec<u8>, Fault> {
        let wanted = wanted();
        let mut answer = b"CWV1\x10\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        let (mut at, mut index, mut passed) = (24, 0u32, 0u32);
        while at < batch.len() {
            let record = &batch[at..];
            let fits = |word: &[u8; 32]| record[68] > 2 && record[144..176] == *word;
            if record[4] == 3 && wanted.as_ref().is_none_or(fits) {
                answer.extend_from_slice(&[12, 0, 0, 0, 1, 0, 0, 0]);
                answer.extend_from_slice(&index.to_le_bytes());
                passed += 1;
            }
            at += u32_at(record, 0) as usize;
            index += 1;
        }
        answer[8..12].copy_from_slice(&passed.to_le_bytes());
        Ok(answer)
    }
}
