//! Promise: what a node says is believed only as far as the header proves it. On real blocks, true and damaged.

use std::path::{Path, PathBuf};

use chainweir::model::{ChainId, Wanted};
use chainweir::proof::Quirks;
use chainweir::source::record::{Line, Reader};
use chainweir::source::wire::Trouble;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

/// The shared data, or `None` with a line on stderr.
pub fn data(inside: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(inside);
    if !path.exists() {
        eprintln!("SKIPPED: ../shared/data/{inside} is not beside the checkout");
        return None;
    }
    Some(path)
}

/// Everything that a line holds, and nothing more.
fn held(line: &Line) -> Wanted {
    let full = line.block.as_ref().is_some_and(|b| {
        let block: Value = serde_json::from_str(b.get()).unwrap();
        block["transactions"].as_array().is_some_and(|t| t.first().is_none_or(Value::is_object))
    });
    let (receipts, logs) = (line.receipts.is_some(), line.logs.is_some());
    Wanted {
        blocks: true,
        transactions: full,
        receipts: receipts && full,
        logs: receipts || logs,
        ..Default::default()
    }
}

#[test]
fn every_real_block_passes_and_gives_what_the_index_counts() {
    // File, blocks, transactions where given in full, logs.
    let table = [
        ("chain/mainnet-17686110-17686117.ndjson.gz", 8, 1311, 3034),
        ("chain/mainnet-17686118-17686124.ndjson.gz", 7, 1409, 3228),
        ("chain/mainnet-fork-boundaries.ndjson.gz", 6, 531, 1929),
        ("chain/mainnet-22431080-22431090-blocks-only.ndjson.gz", 11, 1479, 0),
        ("chain/mainnet-one-per-fork-blocks-only.ndjson.gz", 16, 1372, 0),
        ("chain/mainnet-singles.ndjson.gz", 5, 467, 791),
        ("chain/mainnet-21925176-hashes-plus-receipts.ndjson.gz", 1, 0, 463),
        ("chain/mainnet-18000000.ndjson.gz", 1, 94, 291),
        ("chain/mainnet-21854576-hashes-plus-receipts.ndjson.gz", 1, 0, 89),
        ("chain/sepolia-8229385-8229390-blocks-only.ndjson.gz", 6, 760, 0),
        ("reorg/polygon-13522111.blocks.ndjson.gz", 59, 284, 1789),
        ("reorg/polygon-13522175.blocks.ndjson.gz", 57, 405, 1961),
        ("reorg/polygon-13522239.blocks.ndjson.gz", 62, 324, 1471),
        ("reorg/sepolia-179712-179967-uncles.blocks.ndjson.gz", 768, 0, 0),
    ];
    for (name, blocks, transactions, logs) in table {
        let Some(path) = data(name) else { return };
        let mut found = (0, 0, 0);
        for line in Reader::open(&path).unwrap() {
            let (n, line) = line.unwrap();
            let mut doubts = Vec::new();
            let block = line.to_block(&held(&line), &Quirks::of(line.chain()), &mut doubts);
            let block = block.unwrap_or_else(|e| panic!("{name}, line {n}: {e}"));
            assert_eq!(doubts, Vec::<String>::new(), "{name}, line {n}");
            found = (found.0 + 1, found.1 + block.transactions.len(), found.2 + block.logs.len());
        }
        assert_eq!(found, (blocks, transactions, logs), "{name}");
    }
}

#[test]
fn what_a_recording_lacks_is_named_and_never_empty() {
    let Some(path) = data("chain/mainnet-23839610-23839612-receipts-only.ndjson.gz") else { return };
    let (_, line) = Reader::open(&path).unwrap().next().unwrap().unwrap();
    let none = Quirks::default();
    assert_eq!(line.to_block(&Wanted::all(), &none, &mut vec![]), Err(Trouble::Lacks("block and header")));
    let Some(path) = data("chain/mainnet-22431080-22431090-blocks-only.ndjson.gz") else { return };
    let (_, line) = Reader::open(&path).unwrap().next().unwrap().unwrap();
    let logs = Wanted { logs: true, ..Default::default() };
    assert_eq!(line.to_block(&logs, &none, &mut vec![]), Err(Trouble::Lacks("logs")));
    assert_eq!(line.to_block(&Wanted::all(), &none, &mut vec![]), Err(Trouble::Lacks("receipts")));
}

#[test]
fn damaged_blocks_are_refused_and_genuine_ones_are_not() {
    let Some(folder) = data("negative") else { return };
    let (mut good, mut bad) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let whole: Value =
            serde_json::from_reader(flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap())).unwrap();
        let block = &whole["block"];
        let number = u64::from_str_radix(block["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
        let line = Line {
            chain_id: 5,
            number,
            hash: serde_json::from_value(block["hash"].clone()).unwrap(),
            block: Some(to_raw_value(block).unwrap()),
            receipts: None,
            logs: None,
        };
        let wanted = Wanted { blocks: true, transactions: true, ..Default::default() };
        let answer = line.to_block(&wanted, &Quirks::of(ChainId(5)), &mut vec![]);
        if whole["meta"]["fail"] == true {
            bad += 1;
            assert!(matches!(answer, Err(Trouble::False(_))), "{}: {answer:?}", path.display());
        } else {
            good += 1;
            assert!(answer.is_ok(), "{}: {answer:?}", path.display());
        }
    }
    assert_eq!((good, bad), (2, 10));
}

fn change(raw: &mut Option<Box<RawValue>>, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(raw.as_ref().unwrap().get()).unwrap();
    edit(&mut value);
    *raw = Some(to_raw_value(&value).unwrap());
}

#[test]
fn every_kind_of_lie_about_a_real_block_is_found() {
    let Some(path) = data("chain/mainnet-18000000.ndjson.gz") else { return };
    let (_, true_line) = Reader::open(&path).unwrap().next().unwrap().unwrap();
    assert!(true_line.logs.is_some() && true_line.receipts.is_some());
    type Lie = (&'static str, fn(&mut Line));
    let lies: &[Lie] = &[
        ("a log left out in the middle", |l| change(&mut l.logs, |v| drop(v.as_array_mut().unwrap().remove(100)))),
        ("no logs at all", |l| change(&mut l.logs, |v| *v = Value::Array(vec![]))),
        ("a log twice", |l| {
            change(&mut l.logs, |v| {
                let x = v[5].clone();
                v.as_array_mut().unwrap().insert(5, x);
            })
        }),
        ("a removed log", |l| change(&mut l.logs, |v| v[3]["removed"] = true.into())),
        ("another amount in a log", |l| change(&mut l.logs, |v| v[0]["data"] = "0x01".into())),
        ("another contract", |l| {
            change(&mut l.logs, |v| v[0]["address"] = "0x0000000000000000000000000000000000000001".into())
        }),
        ("a log of another block", |l| {
            change(&mut l.logs, |v| {
                let h = v[0]["transactionHash"].clone();
                v[0]["blockHash"] = h;
            })
        }),
        ("a log of another transaction", |l| {
            change(&mut l.logs, |v| {
                let h = v[200]["transactionHash"].clone();
                v[0]["transactionHash"] = h;
            })
        }),
        ("another status", |l| change(&mut l.receipts, |v| v[0]["status"] = "0x0".into())),
        ("another gas", |l| change(&mut l.receipts, |v| v[0]["gasUsed"] = "0x1".into())),
        ("a receipt left out", |l| change(&mut l.receipts, |v| drop(v.as_array_mut().unwrap().pop()))),
        ("a transaction left out", |l| change(&mut l.block, |v| drop(v["transactions"].as_array_mut().unwrap().pop()))),
        ("another sender", |l| {
            change(&mut l.block, |v| v["transactions"][0]["from"] = "0x0000000000000000000000000000000000000001".into())
        }),
        ("another value", |l| change(&mut l.block, |v| v["transactions"][0]["value"] = "0x1".into())),
        ("another transaction hash", |l| {
            change(&mut l.block, |v| {
                let h = v["parentHash"].clone();
                v["transactions"][0]["hash"] = h;
            })
        }),
        ("another time", |l| change(&mut l.block, |v| v["timestamp"] = "0x1".into())),
        ("another parent, excused by a field", |l| {
            change(&mut l.block, |v| {
                v["parentHash"] = v["stateRoot"].clone();
                v["ownField"] = "0x1".into();
            })
        }),
        ("withdrawals changed", |l| change(&mut l.block, |v| v["withdrawals"][0]["amount"] = "0x1".into())),
    ];
    let quirks = Quirks::of(ChainId(1));
    assert!(true_line.to_block(&Wanted::all(), &quirks, &mut vec![]).is_ok());
    for (name, lie) in lies {
        let mut line = true_line.clone();
        lie(&mut line);
        let answer = line.to_block(&Wanted::all(), &quirks, &mut vec![]);
        assert!(matches!(answer, Err(Trouble::False(_))), "{name}: {:?}", answer.map(|b| b.at()));
    }
}
