//! What an author may write, and what then happens.

use chainweir_sdk::prelude::*;
use chainweir_sdk::serde_json::{Value, from_str, json};
use chainweir_sdk::testing::{At, Block, Log, Tester, Tx};
use chainweir_sdk::{Fault, host::Level};

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);
    event Paused(address account);
}

const TOKEN: Address = address!("0x00000000000000000000000000000000000000aa");
const OTHER: Address = address!("0x00000000000000000000000000000000000000bb");
const ALICE: Address = address!("0x000000000000000000000000000000000000a11c");
const BOB: Address = address!("0x0000000000000000000000000000000000000b0b");

fn moved(value: u64) -> Transfer {
    Transfer { from: ALICE, to: BOB, value: U256::from(value) }
}

/// Everything at once.
#[config]
struct Everything {
    #[default]
    tokens: Vec<Address>,
    #[default(U256::from(10))]
    min: U256,
    /// Absent is fine.
    limit: Option<U256>,
    #[default]
    levels: Vec<(Address, U256)>,
    #[internal]
    sorted: Vec<Address>,
}

/// A large one.
#[stream(key = to)]
struct Large<'a> {
    to: Address,
    value: U256,
    fee: Option<U256>,
    parts: Vec<U256>,
    memo: &'a str,
    nested: Nested,
}

#[json]
#[derive(Clone, Debug, PartialEq)]
struct Nested {
    amount: U256,
    who: Option<Address>,
    kind: Kind,
}

#[json]
#[derive(Clone, Debug, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Small,
    Of(U256),
}

#[stream(text)]
struct Note(String);

#[stream(name = "raw_bytes", bytes)]
struct Raw<'a>(&'a [u8]);

#[stream(pass)]
struct AsItIs;

const SEEN: Item<u64> = Item::new("seen");

#[plugin(name = "everything", state_version = 3, streams(Large<'_>, Note, Raw<'_>, AsItIs))]
impl Everything {
    #[init]
    fn prepare(&mut self) -> Result {
        self.sorted = self.tokens.clone();
        self.sorted.sort();
        if self.limit == Some(U256::ZERO) {
            reject!("`limit` is at least 1");
        }
        Ok(())
    }

    #[log(addresses = self.tokens, topic1 = ALICE, topic2 = [BOB, TOKEN])]
    fn transfer(&self, t: Transfer, log: &LogView, block: &BlockView, out: &mut Out<Self>) -> Result {
        assert_eq!(log.block().number(), block.number());
        if t.value < self.min {
            return Ok(());
        }
        if t.value == U256::from(13) {
            out.emit(&Note("never seen".into()))?;
            SEEN.set(&99)?;
            reject!("{} is an unlucky number", t.value);
        }
        if t.value == U256::from(404) {
            retry!("no price for {} yet", log.address());
        }
        SEEN.update(|seen| Ok(seen.unwrap_or(0) + 1))?;
        let nested = Nested { amount: t.value, who: None, kind: Kind::Of(t.value) };
        out.emit(&Large { to: t.to, value: t.value, fee: None, parts: vec![t.value, U256::MAX], memo: "m", nested })
    }

    #[log]
    fn approval(&self, a: Decoded<Approval>, out: &mut Out<Self>) -> Result {
        out.emit_keyed(
            7,
            &Note(match a {
                Ok(a) => format!("approved {}", a.value),
                Err(why) => why.to_string(),
            }),
        )
    }

    #[log(undecodable = "reject", pass = "paused")]
    fn paused(_event: Paused) -> bool {
        true
    }

    #[transaction(receivers = self.sorted, success = true)]
    fn call(&self, tx: &TransactionView, out: &mut Out<Self>) -> Result {
        let first: [u8; 4] = tx.input().get(..4).ok_or(std::fmt::Error)?.try_into()?;
        out.emit(&Raw(&first))?;
        out.emit(&AsItIs)
    }

    #[block(pass = "blocks")]
    fn block(block: &BlockView) -> Result<bool> {
        info!("block {}", block.number());
        Ok(block.number().is_multiple_of(2))
    }
}

fn everything() -> Tester<Everything> {
    Tester::with_config(&json!({"tokens": [TOKEN, OTHER], "levels": [[TOKEN, "5"]]}).to_string())
}

#[test]
fn the_manifest_says_all_of_it() {
    let manifest = everything().manifest();
    assert_eq!((&*manifest.name, manifest.state_version), ("everything", 3));
    assert_eq!(
        (&*manifest.version, &*manifest.description),
        (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_DESCRIPTION"))
    );
    let names: Vec<&str> = manifest.streams.iter().map(|s| &*s.name).collect();
    assert_eq!(names, ["large", "note", "raw_bytes", "as-it-is", "paused", "blocks"]);
    assert_eq!(manifest.streams[0].description, "A large one.");
    assert!(manifest.streams[1..].iter().all(|s| s.schema.is_empty()), "only JSON has a schema");
    assert_eq!(
        manifest.subscriptions,
        [
            Subscription::event::<Transfer>().addresses(&[TOKEN, OTHER]).topic(1, &ALICE).topic(2, &[BOB, TOKEN]),
            Subscription::event::<Approval>(),
            Subscription::event::<Paused>(),
            Subscription::transactions().receivers(&[TOKEN, OTHER]).success(true),
            Subscription::blocks(),
        ]
    );
}

#[test]
fn the_schema_says_how_money_is_written_at_every_depth() {
    let schema: Value = from_str(&everything().manifest().streams[0].schema).expect("JSON");
    let of = |path: &str| schema.pointer(path).unwrap_or_else(|| panic!("no {path} in {schema}")).clone();
    assert_eq!(of("/properties/value"), json!({"type": "string", "format": "uint256", "pattern": "^[0-9]+$"}));
    assert_eq!(of("/properties/fee/type"), json!(["string", "null"]));
    assert_eq!(of("/properties/fee/format"), "uint256");
    assert_eq!(of("/properties/parts/items/format"), "uint256");
    assert_eq!(of("/properties/to/pattern"), "^0x[0-9a-f]{40}$");
    assert_eq!(of("/properties/nested/properties/amount/format"), "uint256");
    assert_eq!(of("/properties/nested/properties/who/format"), "address");
    assert_eq!(of("/required"), json!(["to", "value", "fee", "parts", "memo", "nested"]));
    assert!(!schema.to_string().contains("$ref"), "a store reads one flat schema");
}

#[test]
fn payloads_keep_every_digit_and_lane_keys_are_plain() {
    let emissions = everything().try_block(&Block::new(1).event(TOKEN, &moved(10))).expect("no fault").emissions;
    assert_eq!(emissions.len(), 1);
    assert_eq!(emissions[0].lane_key, "0x0000000000000000000000000000000000000b0b");
    let max = U256::MAX.to_string();
    assert_eq!(
        emissions[0].text(),
        format!(
            r#"{{"to":"0x0000000000000000000000000000000000000b0b","value":"10","fee":null,"parts":["10","{max}"],"memo":"m","nested":{{"amount":"10","who":null,"kind":{{"of":"10"}}}}}}"#
        )
    );
}

#[test]
fn a_handler_gets_what_its_own_filter_names_and_nothing_else() {
    let to_nobody = Transfer { from: ALICE, to: ALICE, value: U256::from(50) };
    let block = Block::new(1)
        .event(Address::repeat_byte(1), &moved(50))
        .event(TOKEN, &to_nobody)
        .event(OTHER, &moved(50))
        .tx(Tx::new(ALICE, TOKEN).input(vec![1, 2, 3, 4, 5]).reverted())
        .tx(Tx::new(ALICE, BOB).input(vec![1, 2, 3, 4, 5]));
    let answer = everything().try_block(&block).expect("no fault");
    // The transaction that carried the log calls OTHER with no input: its handler rejects by `?`.
    assert_eq!(answer.rejected.len(), 2, "{answer:?}");
    let told: Vec<(At, &str)> = answer.emissions.iter().map(|e| (e.at, &*e.stream)).collect();
    assert_eq!(told, [(At::Log(2), "large")]);
}

#[test]
fn a_rejected_event_says_nothing_writes_nothing_and_holds_up_no_other() {
    let mut plugin = everything();
    let block = Block::new(2)
        .log(Log::event(TOKEN, &moved(11)))
        .log(Log::event(TOKEN, &moved(13)))
        .log(Log::event(TOKEN, &moved(12)));
    let answer = plugin.try_block(&block).expect("no fault");
    let large: Vec<At> = answer.emissions.iter().filter(|e| e.stream == "large").map(|e| e.at).collect();
    assert_eq!(large, [At::Log(0), At::Log(2)]);
    assert!(answer.emissions.iter().all(|e| e.stream != "note"));
    assert!(answer.rejected.contains(&(At::Log(1), "13 is an unlucky number".into())), "{:?}", answer.rejected);
    assert_eq!(plugin.state(|| SEEN.get()).expect("readable"), Some(2));
}

#[test]
fn retry_holds_the_whole_batch_back_and_keeps_nothing() {
    let mut plugin = everything();
    let block = Block::new(2).log(Log::event(TOKEN, &moved(11))).log(Log::event(TOKEN, &moved(404)));
    match plugin.try_block(&block) {
        Err(Fault::Retry(why)) => assert!(why.starts_with("no price for 0x") && why.contains("block 2"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(plugin.entries().count(), 0);
}

#[test]
fn a_log_that_only_looks_like_the_event_is_left_out_or_shown_or_rejected_as_the_handler_asks() {
    let looks_like = |hash, topics: usize| {
        let topics: Vec<B256> = [hash, ALICE.into_word(), BOB.into_word()][..topics].to_vec();
        Block::new(1).log(Log::raw(TOKEN, topics, vec![1]))
    };
    let quiet = |block: &Block| {
        let mut answer = everything().try_block(block).expect("no fault");
        answer.rejected.retain(|(at, _)| matches!(at, At::Log(_)));
        answer
    };
    let skipped = quiet(&looks_like(Transfer::SIGNATURE_HASH, 3));
    assert!(skipped.emissions.is_empty() && skipped.rejected.is_empty());
    let shown = quiet(&looks_like(Approval::SIGNATURE_HASH, 3));
    assert!(shown.emissions[0].text().contains("not an encoding"), "{shown:?}");
    assert_eq!(shown.emissions[0].lane_key, "7");
    let rejected = quiet(&looks_like(Paused::SIGNATURE_HASH, 1));
    assert!(rejected.emissions.is_empty() && rejected.rejected[0].1.contains("not an encoding"));
}

#[test]
fn text_bytes_and_events_as_they_are_go_their_ways() {
    let mut plugin = everything();
    let approval = Approval { owner: ALICE, spender: BOB, value: U256::from(3) };
    let block = Block::new(4).tx(Tx::new(ALICE, TOKEN)
        .input(vec![1, 2, 3, 4, 5])
        .log(Log::event(BOB, &approval))
        .log(Log::event(BOB, &Paused { account: BOB })));
    let emissions = plugin.block(&block);
    let told: Vec<(At, &str)> = emissions.iter().map(|e| (e.at, &*e.stream)).collect();
    assert_eq!(
        told,
        [
            (At::Block, "blocks"),
            (At::Tx(0), "raw_bytes"),
            (At::Tx(0), "as-it-is"),
            (At::Log(0), "note"),
            (At::Log(1), "paused"),
        ]
    );
    assert_eq!(emissions[3].text(), "approved 3");
    assert!(emissions[0].payload.is_none() && emissions[2].payload.is_none());
    assert_eq!(plugin.lines(), [(Level::Info, "block 4".to_owned())]);
}

#[test]
fn a_wrong_configuration_is_refused_by_the_name_of_the_field() {
    let why = |config: &str| {
        Tester::<Everything>::try_with_config(config).err().unwrap_or_else(|| panic!("accepted: {config}"))
    };
    for (config, field) in [
        (r#"{"min": "10x"}"#, "`min`"),
        (r#"{"min": ""}"#, "`min`"),
        (r#"{"min": "-1"}"#, "`min`"),
        (r#"{"min": -1}"#, "`min`"),
        (r#"{"min": 1e30}"#, "`min`"),
        (r#"{"min": "0b11"}"#, "`min`"),
        (r#"{"limit": true}"#, "`limit`"),
        (r#"{"tokens": "0x00000000000000000000000000000000000000aa"}"#, "`tokens`"),
        (r#"{"tokens": ["00000000000000000000000000000000000000aa"]}"#, "`tokens[0]`"),
        // A checksum with one wrong letter.
        (r#"{"tokens": ["0xD8dA6BF26964aF9D7eEd9e03E53415D37aA96045"]}"#, "`tokens[0]`"),
        (r#"{"levels": [["0x00000000000000000000000000000000000000aa", "x"]]}"#, "`levels[0][1]`"),
        (r#"{"tokenz": []}"#, "unknown field `tokenz`"),
        (r#"{"sorted": []}"#, "unknown field `sorted`"),
        (r#"{"limit": "0"}"#, "`limit` is at least 1"),
    ] {
        let why = why(config);
        assert!(why.starts_with("configuration: ") && why.contains(field), "{config}: {why}");
        assert!(!why.contains("line"), "{why}");
    }
    let plugin = |config: &str| Tester::<Everything>::with_config(config);
    // A text of digits is decimal: "10" is ten, and not sixteen.
    assert_eq!(plugin(r#"{"min": "10"}"#).plugin().min, U256::from(10));
    assert_eq!(plugin(r#"{"min": "0x10"}"#).plugin().min, U256::from(16));
    assert_eq!(plugin(r#"{"min": 18446744073709551615}"#).plugin().min, U256::from(u64::MAX));
    assert_eq!(plugin("{}").plugin().limit, None);
    assert_eq!(plugin(r#"{"limit": "7"}"#).plugin().limit, Some(U256::from(7)));
    assert_eq!(
        plugin(r#"{"levels": [["0x00000000000000000000000000000000000000aa", "5"]]}"#).plugin().levels,
        [(TOKEN, U256::from(5))]
    );
}

#[test]
fn what_is_written_is_read_back() {
    use chainweir_sdk::serde_json::to_string;
    for nested in [
        Nested { amount: U256::MAX, who: Some(ALICE), kind: Kind::Small },
        Nested { amount: U256::from(u64::MAX) + U256::from(1), who: None, kind: Kind::Of(U256::ZERO) },
    ] {
        let text = to_string(&nested).expect("JSON");
        assert_eq!(from_str::<Nested>(&text).expect("JSON"), nested, "{text}");
    }
    assert_eq!(from_str::<Nested>(r#"{"amount": "1", "kind": "small"}"#).expect("JSON").who, None);
}
