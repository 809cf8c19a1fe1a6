//! The SDK reads and writes the shared vectors of `sdk/vectors`, which it did not make.

use std::path::PathBuf;

use chainweir_sdk::alloy_primitives::hex;
use chainweir_sdk::batch::{Batch, Malformed, Record};
use chainweir_sdk::serde_json::{self, Value, json};
use chainweir_sdk::subscription::Place;
use chainweir_sdk::testing::answer::{self, Verdict};
use chainweir_sdk::verdict::{ContentType, Verdicts};

fn load(name: &str) -> Option<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../vectors").join(name);
    // A copy of the SDK beside a plugin comes without them.
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: {} is not there", path.display());
        return None;
    };
    Some(serde_json::from_str(&text).expect("the vectors are JSON"))
}

fn bytes(case: &Value) -> Vec<u8> {
    hex::decode(case["hex"].as_str().expect("hex")).expect("hex")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().expect("a list")
}

fn hx(bytes: impl AsRef<[u8]>) -> String {
    hex::encode_prefixed(bytes)
}

/// The places and names of all sets in the vectors that a view says it is in.
fn sets(is_in: impl Fn(Place, &str) -> bool) -> Vec<(String, String)> {
    let places = [
        ("address", Place::Address),
        ("topic0", Place::Topic(0)),
        ("topic1", Place::Topic(1)),
        ("topic2", Place::Topic(2)),
        ("topic3", Place::Topic(3)),
        ("sender", Place::Sender),
        ("receiver", Place::Receiver),
        ("hash", Place::Hash),
    ];
    let long = "x".repeat(64);
    let names = ["tokens", "a", "b", "c", "d", "deposit_addresses-2", long.as_str()];
    let mut found = Vec::new();
    for (said, place) in places {
        found.extend(names.iter().filter(|n| is_in(place, n)).map(|n| (said.to_owned(), (*n).to_owned())));
    }
    found
}

/// What the views say of a batch, in the words of the vectors.
fn read(batch: &[u8]) -> Result<(u64, Vec<(u32, Value)>), Malformed> {
    let batch = Batch::read(batch)?;
    let mut found = Vec::new();
    for event in batch.events() {
        let event = event?;
        let subscribed = event.subscribed;
        let fields = match event.record {
            Record::Block(b) => {
                assert_eq!(b.chain_id(), batch.chain_id());
                json!({
                    "kind": "block", "subscribed": subscribed, "number": b.number().to_string(), "time": b.timestamp().to_string(),
                    "gas_used": b.gas_used().to_string(), "gas_limit": b.gas_limit().to_string(),
                    "base_fee": b.base_fee().map(|fee| fee.to_string()), "transaction_count": b.transaction_count(),
                    "hash": hx(b.hash()), "parent": hx(b.parent_hash()), "beneficiary": hx(b.beneficiary()),
                })
            }
            Record::Transaction(t) | Record::Pending(t) => json!({
                "kind": if matches!(event.record, Record::Pending(_)) { "pending" } else { "transaction" }, "subscribed": subscribed, "index": t.index(), "success": t.success(),
                "type": t.transaction_type(), "nonce": t.nonce().to_string(), "gas_limit": t.gas_limit().to_string(),
                "gas_used": t.gas_used().unwrap_or(0).to_string(), "gas_price": t.gas_price().to_string(), "hash": hx(t.hash()),
                "value": t.value().to_string(), "from": hx(t.from()), "to": t.to().map(hx), "created": t.created().map(hx),
                "input": hx(t.input()), "sets": sets(|place, name| t.is_in(place, name)),
            }),
            Record::Transfer(t) => json!({
                "kind": "transfer", "subscribed": subscribed, "index": t.index(), "transaction_index": t.tx_index(),
                "how": format!("{:?}", t.how()).to_lowercase(), "depth": t.depth(), "transaction_hash": hx(t.tx_hash()),
                "value": t.value().to_string(), "from": hx(t.from()), "to": hx(t.to()), "sets": sets(|place, name| t.is_in(place, name)),
            }),
            Record::Log(l) => json!({
                "kind": "log", "subscribed": subscribed, "index": l.index(), "transaction_index": l.tx_index(),
                "transaction_hash": hx(l.tx_hash()), "address": hx(l.address()),
                "topics": l.topics().iter().map(hx).collect::<Vec<_>>(), "data": hx(l.data()),
                "decoded": l.decoded(), "made": l.is_made(), "sets": sets(|place, name| l.is_in(place, name)),
            }),
        };
        found.push((event.index, fields));
    }
    Ok((batch.chain_id(), found))
}

#[test]
fn every_event_vector_is_read_as_it_was_meant() {
    let Some(vectors) = load("events.json") else { return };
    for case in list(&vectors, "cases") {
        let (chain, found) = read(&bytes(case)).unwrap_or_else(|e| panic!("{}: {e}", case["name"]));
        assert_eq!(chain.to_string(), case["chain"].as_str().expect("a chain"));
        let expected: Vec<(u32, Value)> =
            (0u32..).zip(list(case, "records").iter().cloned()).filter(|(_, r)| r["kind"] != "unknown").collect();
        assert_eq!(found, expected, "{}", case["name"]);
    }
}

#[test]
fn every_malformed_batch_is_refused() {
    let Some(vectors) = load("events.json") else { return };
    for case in list(&vectors, "malformed") {
        assert!(read(&bytes(case)).is_err(), "{}: {}", case["name"], case["about"]);
    }
}

fn verdict(fields: &Value) -> Verdict {
    let number = |name: &str| fields[name].as_u64().expect("a number");
    let text = |name: &str| fields[name].as_str().expect("a text").to_owned();
    let event = number("event") as u32;
    match fields["verdict"].as_str().expect("a verdict") {
        "pass" => Verdict::Pass { event, stream: number("stream") as u16 },
        "emit" => Verdict::Emit {
            event,
            stream: number("stream") as u16,
            content_type: match &*text("content_type") {
                "json" => ContentType::Json,
                "text" => ContentType::Text,
                _ => ContentType::Bytes,
            },
            lane_key: text("lane_key"),
            payload: hex::decode(text("payload")).expect("hex"),
        },
        "retry" => Verdict::Retry { event, message: text("message") },
        _ => Verdict::Reject { event, message: text("message") },
    }
}

#[test]
fn every_verdict_vector_is_written_to_the_byte_and_read_as_it_was_meant() {
    let Some(vectors) = load("verdicts.json") else { return };
    for case in list(&vectors, "cases") {
        let (name, bytes) = (&case["name"], bytes(case));
        let expected: Vec<Verdict> = list(case, "verdicts").iter().map(verdict).collect();
        let (events, streams) =
            (case["events"].as_u64().expect("a number"), case["streams"].as_u64().expect("a number"));
        assert_eq!(answer::read(&bytes, events as u32, streams as u16).as_ref(), Some(&expected), "{name}");
        // An answer without records is written as zero bytes, which the layout says is the same.
        if case["canonical"] == true && !expected.is_empty() {
            let mut out = Verdicts::new();
            for verdict in &expected {
                match verdict {
                    Verdict::Pass { event, stream } => out.pass(*event, *stream),
                    Verdict::Emit { event, stream, content_type, lane_key, payload } => {
                        out.emit(*event, *stream, *content_type, lane_key, payload);
                    }
                    Verdict::Retry { event, message } => out.retry(*event, message),
                    Verdict::Reject { event, message } => out.reject(*event, message),
                }
            }
            assert_eq!(hex::encode(out.finish()), hex::encode(&bytes), "{name}");
        }
    }
    assert!(Verdicts::new().finish().is_empty());
}

#[test]
fn the_testers_reader_is_as_strict_as_the_hosts() {
    let Some(vectors) = load("verdicts.json") else { return };
    for case in list(&vectors, "malformed") {
        let (events, streams) =
            (case["events"].as_u64().expect("a number"), case["streams"].as_u64().expect("a number"));
        assert_eq!(
            answer::read(&bytes(case), events as u32, streams as u16),
            None,
            "{}: {}",
            case["name"],
            case["about"]
        );
    }
}
