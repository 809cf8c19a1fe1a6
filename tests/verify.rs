//! Promise: what a node says is believed only as far as the header proves it. On real blocks, true and damaged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chainweir::model::{ChainId, Wanted};
use chainweir::proof::Quirks;
use chainweir::source::record::{Line, Reader};
use chainweir::source::wire::{self, Trouble};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

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
    let Some(root) = data("INDEX.md") else { return };
    // Every file of blocks that lies there is in the table, but for one that has no blocks.
    let mut there: Vec<String> = ["chain", "reorg"]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(root.with_file_name(folder)).unwrap().map(move |e| (folder, e.unwrap())))
        .map(|(folder, entry)| format!("{folder}/{}", entry.file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".ndjson.gz") && !name.ends_with(".session.ndjson.gz"))
        .filter(|name| name != "chain/mainnet-23839610-23839612-receipts-only.ndjson.gz")
        .collect();
    let mut known: Vec<&str> = table.iter().map(|row| row.0).collect();
    there.sort();
    known.sort();
    assert_eq!(there, known);
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

/// `tests/blocks/other-chains.ndjson`: blocks as Base, Arbitrum One and Gnosis (before its merge) have them; the receipt of
/// Base's block, which is not to be had, is the one that its root proves. `made.ndjson` is what `make.py` beside it hashed
/// with other libraries: every form of unsigned transaction.
fn rollups() -> Vec<Line> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blocks");
    let lines = ["other-chains.ndjson", "made.ndjson"].map(|name| Reader::open(&folder.join(name)).unwrap());
    lines.into_iter().flatten().map(|line| line.unwrap().1).collect()
}

#[test]
fn other_chains_are_proven_by_their_own_forms() {
    let lines = rollups();
    assert_eq!(lines.len(), 7);
    let mut kinds = std::collections::BTreeSet::new();
    for line in &lines {
        let mut doubts = Vec::new();
        let block = line.to_block(&held(line), &Quirks::of(line.chain()), &mut doubts);
        let block = block.unwrap_or_else(|e| panic!("{} block {}: {e}", line.chain(), line.number));
        assert_eq!(doubts, Vec::<String>::new(), "{} block {}", line.chain(), line.number);
        kinds.extend(block.transactions.iter().map(|tx| tx.kind));
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [2, 0x64, 0x65, 0x66, 0x68, 0x69, 0x6a, 0x7e]);
}

#[test]
fn an_op_stack_is_told_by_name_where_its_chain_id_is_not_known() {
    let lines = rollups();
    let isthmus = lines.iter().find(|l| l.number == 3_000).unwrap();
    let mut quirks = Quirks::default();
    assert!(matches!(isthmus.to_block(&held(isthmus), &quirks, &mut vec![]), Err(Trouble::False(_))));
    assert!(quirks.enable("op-stack"));
    assert!(isthmus.to_block(&held(isthmus), &quirks, &mut vec![]).is_ok());
}

#[test]
fn no_field_of_an_unsigned_transaction_can_be_changed() {
    // Told, and not hashed.
    let free = |kind: &str, field: &str| match field {
        "blockNumber" | "gasPrice" | "v" | "r" | "s" | "yParity" | "depositReceiptVersion" | "type" => true,
        "nonce" => matches!(kind, "0x7e" | "0x64" | "0x66" | "0x69" | "0x6a" | "0x2"),
        "to" | "value" | "input" if kind == "0x69" => true,
        "to" | "value" | "gas" => kind == "0x6a",
        "maxPriorityFeePerGas" | "maxFeePerGas" | "chainId" | "accessList" => kind == "0x2",
        _ => false,
    };
    let mut changed = 0;
    for line in rollups() {
        let block: Value = serde_json::from_str(line.block.as_ref().unwrap().get()).unwrap();
        for (i, tx) in block["transactions"].as_array().unwrap().iter().enumerate() {
            for (field, value) in tx.as_object().unwrap() {
                let other = match value {
                    Value::String(s) if s == "0x" => "0x01".into(),
                    Value::String(s) if s.ends_with('1') => format!("{}2", &s[..s.len() - 1]).into(),
                    Value::String(s) => format!("{}1", &s[..s.len() - 1]).into(),
                    Value::Bool(b) => (!b).into(),
                    _ if field == "to" => "0x0000000000000000000000000000000000000001".into(),
                    _ => continue,
                };
                if free(tx["type"].as_str().unwrap(), field) {
                    continue;
                }
                let mut lie = line.clone();
                change(&mut lie.block, |v| v["transactions"][i][field] = other);
                let answer = lie.to_block(&held(&lie), &Quirks::of(line.chain()), &mut vec![]);
                assert!(matches!(answer, Err(Trouble::False(_))), "{field} of transaction {i} in {}", line.number);
                changed += 1;
            }
        }
    }
    assert!(changed > 100, "{changed} lies");
}

#[test]
fn no_receipt_of_a_rollup_can_be_changed() {
    for line in rollups().into_iter().filter(|l| l.receipts.is_some() && l.chain_id != 8453) {
        let lies: [fn(&mut Value); 4] = [
            |v| v[0]["status"] = "0x0".into(),
            |v| v[1]["gasUsed"] = "0x1".into(),
            |v| v[1]["cumulativeGasUsed"] = "0x1".into(),
            |v| drop(v.as_array_mut().unwrap().pop()),
        ];
        let deposit: [fn(&mut Value); 2] =
            [|v| v[0]["depositNonce"] = "0x55".into(), |v| v[1]["depositReceiptVersion"] = "0x2".into()];
        let canyon = line.number == 3_000;
        for lie in lies.iter().chain(deposit.iter().filter(|_| canyon)) {
            let mut line = line.clone();
            change(&mut line.receipts, lie);
            let answer = line.to_block(&held(&line), &Quirks::of(line.chain()), &mut vec![]);
            assert!(matches!(answer, Err(Trouble::False(_))), "block {}: {answer:?}", line.number);
        }
    }
}

#[test]
fn headers_of_other_chains_cannot_be_changed_either() {
    for line in rollups() {
        for field in ["parentHash", "timestamp", "extraData", "stateRoot", "gasUsed", "miner", "l1BlockNumber"] {
            let block: Value = serde_json::from_str(line.block.as_ref().unwrap().get()).unwrap();
            let Some(value) = block[field].as_str() else { continue };
            let other = if value == "0x" { "0x01".into() } else { format!("{}0", &value[..value.len() - 1]) };
            let other = if other == value { format!("{}1", &value[..value.len() - 1]) } else { other };
            let mut lie = line.clone();
            change(&mut lie.block, |v| v[field] = other.into());
            let answer = lie.to_block(&held(&lie), &Quirks::of(line.chain()), &mut vec![]);
            // Arbitrum tells its parent chain's block beside the header; what is hashed of it stands in `mixHash`.
            assert_eq!(answer.is_err(), field != "l1BlockNumber", "{field} of {} block {}", line.chain(), line.number);
        }
    }
}

#[test]
fn transactions_of_unknown_types_pass_as_data_and_the_doubt_is_named() {
    let mut line = rollups().into_iter().find(|l| l.number == 2_000).unwrap();
    change(&mut line.block, |v| v["transactions"][1]["type"] = "0x7b".into());
    change(&mut line.receipts, |v| v[1]["type"] = "0x7b".into());
    let mut doubts = Vec::new();
    let block = line.to_block(&held(&line), &Quirks::of(line.chain()), &mut doubts).unwrap();
    assert_eq!((block.transactions[1].kind, block.transactions[1].to, block.logs.len()), (0x7b, None, 2));
    assert_eq!(doubts, ["a receipt has the type 0x7b", "a transaction has the type 0x7b"]);
}

#[test]
fn a_chain_with_headers_of_its_own_is_doubted_and_not_refused() {
    let Some(path) = data("chain/mainnet-18000000.ndjson.gz") else { return };
    let (_, mut line) = Reader::open(&path).unwrap().next().unwrap().unwrap();
    line.chain_id = 324;
    let nothing = alloy_primitives::B256::ZERO.to_string();
    for field in ["transactionsRoot", "receiptsRoot", "logsBloom"] {
        let zero = if field == "logsBloom" { format!("0x{}", "0".repeat(512)) } else { nothing.clone() };
        change(&mut line.block, |v| v[field] = zero.into());
    }
    let mut doubts = Vec::new();
    let block = line.to_block(&Wanted::all(), &Quirks::of(ChainId(324)), &mut doubts).unwrap();
    assert_eq!((block.transactions.len(), block.logs.len(), doubts.len()), (94, 291, 3), "{doubts:?}");
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
        ("another price", |l| change(&mut l.receipts, |v| v[3]["effectiveGasPrice"] = "0x1".into())),
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

#[test]
fn no_field_of_a_pending_transaction_can_be_changed() {
    let Some(path) = data("chain/mainnet-22431080-22431090-blocks-only.ndjson.gz") else { return };
    let mut kinds = BTreeSet::new();
    for line in Reader::open(&path).unwrap().take(4) {
        let (_, line) = line.unwrap();
        let block: Value = serde_json::from_str(line.block.as_ref().unwrap().get()).unwrap();
        for mined in block["transactions"].as_array().unwrap() {
            let read = |tx: &Value, chain| wire::pending(&tx.to_string(), ChainId(chain));
            assert_eq!(read(mined, 1), Ok(None), "it is in a block");
            let mut tx = mined.clone();
            (tx["blockHash"], tx["blockNumber"], tx["transactionIndex"]) = (Value::Null, Value::Null, Value::Null);
            let told = read(&tx, 1).unwrap().expect("as it was before");
            assert_eq!(json!(told.hash), tx["hash"]);
            if !kinds.insert(told.kind) {
                continue;
            }
            let kind = told.kind;
            assert!(kind == 0 || read(&tx, 5).is_err(), "type {kind}: it is signed for mainnet");
            for field in ["from", "to", "value", "nonce", "gas", "input", "hash", "r", "s", "v", "yParity"] {
                let Some(Value::String(text)) = tx.get(field) else { continue };
                let mut changed = tx.clone();
                // Another hexadecimal digit at the end.
                let last = u8::from_str_radix(&text[text.len() - 1..], 16).unwrap_or(0);
                changed[field] = match text.len() {
                    0..=2 => json!("0x01"),
                    len => json!(format!("{}{:x}", &text[..len - 1], last ^ 1)),
                };
                // Of a legacy one, parity is said by v alone; told twice, one of them is read.
                let twice = matches!(field, "v" | "yParity") && kind > 0;
                assert!(
                    twice || read(&changed, 1).is_err(),
                    "type {kind}: {field} can be changed to {}",
                    changed[field]
                );
            }
        }
    }
    assert_eq!(kinds, BTreeSet::from([0, 1, 2, 3]), "the types that these blocks have");
    assert_eq!(wire::pending("null", ChainId(1)), Ok(None));
}
