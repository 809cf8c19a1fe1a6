//! An event as its ABI has it, and what a log of it says, as JSON.
//!
//! The types are read by alloy; the bytes are walked here. Whoever can write a log chooses its bytes: arrays whose elements all
//! point at the same place grow without bound in a decoder that follows them, and one that takes the low bits of a dirty
//! word invents a value. So no byte is read twice, and what is not as the ABI has it is an error that is told, never a guess.

use std::sync::Arc;

use alloy_dyn_abi::DynSolType;
use alloy_json_abi::{Event, Param};
use alloy_primitives::{Address, B256, I256, U256, hex};

use super::Log;

/// Bytes of one event's text.
const TEXT_MOST: usize = 4096;
/// Types within types: the walk is a recursion.
const DEPTH_MOST: usize = 16;
/// Bytes of an argument's name: it is written once for each value in a list.
const NAME_MOST: usize = 64;
/// Characters of an event's text in what is said of it.
const SHOWN: usize = 120;
const WORD: usize = 32;

/// An event as it was declared: in human-readable ABI, `event Transfer(address indexed from, address indexed to, uint256 value)`,
/// or as a JSON ABI has it, `{"type": "event", "name": …}`, which names the parts of tuples as well.
#[derive(Clone, Debug)]
pub struct EventAbi {
    /// As it was given.
    text: String,
    signature: String,
    name: String,
    /// `None` where it is anonymous.
    topic0: Option<B256>,
    args: Vec<Arg>,
    topics: usize,
}

impl PartialEq for EventAbi {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Eq for EventAbi {}

impl std::fmt::Display for EventAbi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.signature)
    }
}

#[derive(Clone, Debug)]
struct Arg {
    key: String,
    indexed: bool,
    kind: Kind,
}

/// A type, with the names that its ABI gives.
#[derive(Clone, Debug)]
enum Kind {
    Bool,
    Address,
    Uint(usize),
    Int(usize),
    /// So many bytes, at the front of a word.
    Fixed(usize),
    Bytes,
    Text,
    List(Box<Kind>),
    Array(Box<Kind>, usize),
    /// With a key each where all have names of their own.
    Tuple(Vec<Kind>, Option<Vec<String>>),
}

/// Why a log is not the event.
type Wrong = String;

impl EventAbi {
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_MOST {
            return Err(format!("an event of {} bytes; at most {TEXT_MOST}", text.len()));
        }
        // Before the parser, which is a recursion as well.
        let deepest = text.chars().scan(0usize, |depth, c| {
            *depth = if c == '(' { *depth + 1 } else { depth.saturating_sub(usize::from(c == ')')) };
            Some(*depth)
        });
        if deepest.max() > Some(DEPTH_MOST) {
            return Err(format!("an event with types within types, more than {DEPTH_MOST} deep"));
        }
        let shown: String = text.chars().take(SHOWN).collect();
        let event = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|e| format!("'{shown}' is not an event of a JSON ABI: {e}"))?,
            false => Event::parse(text).map_err(|e| format!("'{shown}' is not an event in human-readable ABI: {e}"))?,
        };
        let keys = keys(event.inputs.iter().map(|input| input.name.as_str()));
        let mut args = Vec::with_capacity(event.inputs.len());
        for (input, key) in event.inputs.iter().zip(keys) {
            let known = DynSolType::parse(&input.selector_type()).map_err(|e| format!("'{shown}': {e}"))?;
            let kind = Kind::of(&known, &input.components, 0).map_err(|e| format!("'{shown}': {key}: {e}"))?;
            args.push(Arg { key, indexed: input.indexed, kind });
        }
        let topic0 = (!event.anonymous).then(|| event.selector());
        let topics = args.iter().filter(|arg| arg.indexed).count() + usize::from(!event.anonymous);
        if topics > 4 {
            return Err(format!("'{shown}' has too many indexed arguments: a log has at most 4 topics"));
        }
        Ok(Self { text: text.to_owned(), signature: event.full_signature(), name: event.name, topic0, args, topics })
    }

    /// `None` where it is anonymous.
    pub fn topic0(&self) -> Option<B256> {
        self.topic0
    }

    /// `{"event": "Transfer", "args": {"from": "0x…", "value": "17"}}` by the first of some events that the log is;
    /// `{"event": "Transfer", "error": "…"}` where it names one and is not as its ABI has it; `{"error": "…"}` where it is none.
    ///
    /// Integers are decimal strings, bytes and addresses `0x` and lower-case hex; a tuple is an object where all its parts
    /// have names, else a list. An argument without a name of its own has its place (`"0"`) for a key. An indexed argument
    /// that is longer than a word is `{"hash": "0x…"}`: its value is not in the log.
    pub fn read(events: &[Arc<Self>], log: &Log, out: &mut Vec<u8>) {
        let start = out.len();
        let named =
            || events.iter().filter(|event| event.topic0.is_some() && event.topic0.as_ref() == log.topics.first());
        // One signature, but other arguments indexed: as in the two kinds of tokens' Transfer.
        if let Some(event) = named().find(|event| event.topics == log.topics.len()).or_else(|| named().next()) {
            if let Err(why) = event.write(log, out) {
                out.truncate(start);
                object(out, |out| {
                    entry(out, "event", &event.name);
                    entry(out, "error", &why);
                });
            }
            return;
        }
        for event in events.iter().filter(|event| event.topic0.is_none()) {
            match event.write(log, out) {
                Ok(()) => return,
                Err(_) => out.truncate(start),
            }
        }
        object(out, |out| entry(out, "error", "it is none of the events that are to be decoded"));
    }

    fn write(&self, log: &Log, out: &mut Vec<u8>) -> Result<(), Wrong> {
        if log.topics.len() != self.topics {
            return Err(format!("it has {} topics, {} has {}", log.topics.len(), self.signature, self.topics));
        }
        let mut topics = log.topics.iter().skip(usize::from(self.topic0.is_some()));
        let mut walk = Walk { left: log.data.len() };
        let mut at = 0;
        let mut result = Ok(());
        object(out, |out| {
            entry(out, "event", &self.name);
            key(out, "args");
            object(out, |out| {
                for arg in &self.args {
                    key(out, &arg.key);
                    let done = match topics.next_if_indexed(arg) {
                        Some(topic) => arg.kind.write_topic(topic, out),
                        None => walk.value(&arg.kind, &log.data, &mut at, out),
                    };
                    if let Err(why) = done {
                        result = Err(format!("{}: {why}", arg.key));
                        return;
                    }
                }
            });
        });
        result
    }
}

trait Topics<'a> {
    fn next_if_indexed(&mut self, arg: &Arg) -> Option<&'a B256>;
}

impl<'a, T: Iterator<Item = &'a B256>> Topics<'a> for T {
    fn next_if_indexed(&mut self, arg: &Arg) -> Option<&'a B256> {
        if arg.indexed { self.next() } else { None }
    }
}

/// Each one's name, or its place where it has none of its own, or a long one.
fn keys<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (i, name) in names.enumerate() {
        let own = !name.is_empty() && name.len() <= NAME_MOST && !keys.iter().any(|other| other == name);
        keys.push(if own { name.to_owned() } else { i.to_string() });
    }
    keys
}

impl Kind {
    fn of(known: &DynSolType, parts: &[Param], depth: usize) -> Result<Self, String> {
        if depth > DEPTH_MOST {
            return Err(format!("types within types, more than {DEPTH_MOST} deep"));
        }
        let inner = |known: &DynSolType| Self::of(known, parts, depth + 1).map(Box::new);
        Ok(match known {
            DynSolType::Bool => Self::Bool,
            DynSolType::Address => Self::Address,
            DynSolType::Uint(bits) => Self::Uint(*bits),
            DynSolType::Int(bits) => Self::Int(*bits),
            DynSolType::FixedBytes(len) => Self::Fixed(*len),
            DynSolType::Function => Self::Fixed(24),
            DynSolType::Bytes => Self::Bytes,
            DynSolType::String => Self::Text,
            DynSolType::Array(element) => Self::List(inner(element)?),
            // It would take no bytes: a list of them may have any length.
            DynSolType::FixedArray(_, 0) => return Err("an array of no elements".into()),
            DynSolType::FixedArray(element, len) => Self::Array(inner(element)?, *len),
            DynSolType::Tuple(all) if all.is_empty() => return Err("a tuple of nothing".into()),
            DynSolType::Tuple(all) => {
                let none = Vec::new();
                let within = |i: usize| parts.get(i).map_or(&none, |part| &part.components);
                let kinds = all.iter().enumerate().map(|(i, known)| Self::of(known, within(i), depth + 1));
                let keys = keys(parts.iter().map(|part| part.name.as_str()));
                let named = keys.len() == all.len() && parts.iter().zip(&keys).all(|(part, key)| part.name == *key);
                Self::Tuple(kinds.collect::<Result<_, _>>()?, named.then_some(keys))
            }
        })
    }

    fn is_dynamic(&self) -> bool {
        match self {
            Self::Bytes | Self::Text | Self::List(_) => true,
            Self::Array(element, _) => element.is_dynamic(),
            Self::Tuple(all, _) => all.iter().any(Self::is_dynamic),
            _ => false,
        }
    }

    fn write_topic(&self, topic: &B256, out: &mut Vec<u8>) -> Result<(), Wrong> {
        match self {
            Self::Bytes | Self::Text | Self::List(_) | Self::Array(..) | Self::Tuple(..) => {
                object(out, |out| entry(out, "hash", &topic.to_string()));
                Ok(())
            }
            _ => self.write_word(topic, out),
        }
    }

    /// Of a type that is one word.
    fn write_word(&self, word: &B256, out: &mut Vec<u8>) -> Result<(), Wrong> {
        let dirty = |what: &str| Err(format!("{word} is not {what}"));
        let number = U256::from_be_bytes(word.0);
        match self {
            Self::Bool if number > U256::from(1) => return dirty("a bool"),
            Self::Bool => out.extend_from_slice(if number.is_zero() { b"false" } else { b"true" }),
            Self::Address if word[..12] != [0; 12] => return dirty("an address"),
            Self::Address => string(out, &format!("{:?}", Address::from_word(*word))),
            Self::Uint(bits) if number.bit_len() > *bits => return dirty(&format!("a uint{bits}")),
            Self::Uint(_) => string(out, &number.to_string()),
            Self::Int(bits) => {
                let number = I256::from_raw(number);
                // In two's complement all bits above its own are its sign.
                let beyond = if number.is_negative() { !number.into_raw() } else { number.into_raw() };
                if beyond.bit_len() >= *bits {
                    return dirty(&format!("an int{bits}"));
                }
                string(out, &number.to_string());
            }
            Self::Fixed(len) if word[*len..].iter().any(|b| *b != 0) => return dirty(&format!("a bytes{len}")),
            Self::Fixed(len) => string(out, &hex::encode_prefixed(&word[..*len])),
            // Not of one word: `Walk::value` has them.
            Self::Bytes | Self::Text | Self::List(_) | Self::Array(..) | Self::Tuple(..) => {}
        }
        Ok(())
    }
}

/// Reads each byte of a log's data once at most: what is encoded as the ABI says needs no more.
struct Walk {
    left: usize,
}

impl Walk {
    fn take<'a>(&mut self, from: &'a [u8], at: usize, len: usize) -> Result<&'a [u8], Wrong> {
        let end = at.checked_add(len).filter(|end| *end <= from.len());
        let end = end.ok_or("the data ends before it does")?;
        self.left = self.left.checked_sub(len).ok_or("its parts overlap")?;
        Ok(&from[at..end])
    }

    fn word(&mut self, from: &[u8], at: usize) -> Result<B256, Wrong> {
        Ok(B256::from_slice(self.take(from, at, WORD)?))
    }

    /// A length, or an offset.
    fn count(&mut self, from: &[u8], at: usize) -> Result<usize, Wrong> {
        let word = U256::from_be_bytes(self.word(from, at)?.0);
        // No data is as long as that, whatever it counts.
        usize::try_from(word).map_err(|_| format!("a length or an offset of {word}"))
    }

    /// Of the sequence `of`, the value whose head is `at`, which is moved to the next one's.
    fn value(&mut self, kind: &Kind, of: &[u8], at: &mut usize, out: &mut Vec<u8>) -> Result<(), Wrong> {
        if !kind.is_dynamic() {
            return match kind {
                Kind::Array(..) | Kind::Tuple(..) => self.parts(kind, of, at, out),
                _ => {
                    let word = self.word(of, *at)?;
                    *at += WORD;
                    kind.write_word(&word, out)
                }
            };
        }
        let offset = self.count(of, *at)?;
        *at += WORD;
        let tail = of.get(offset..).ok_or("it begins beyond the end of the data")?;
        match kind {
            Kind::Bytes | Kind::Text => {
                let len = self.count(tail, 0)?;
                let bytes = self.take(tail, WORD, len)?;
                match (kind, std::str::from_utf8(bytes)) {
                    (Kind::Bytes, _) => string(out, &hex::encode_prefixed(bytes)),
                    (_, Ok(text)) => string(out, text),
                    (_, Err(_)) => return Err("a string that is not UTF-8".into()),
                }
                Ok(())
            }
            Kind::List(element) => {
                let len = self.count(tail, 0)?;
                self.list(element, len, &tail[WORD..], &mut 0, out)
            }
            _ => self.parts(kind, tail, &mut 0, out),
        }
    }

    /// What has a known number of parts, one after the other.
    fn parts(&mut self, kind: &Kind, of: &[u8], at: &mut usize, out: &mut Vec<u8>) -> Result<(), Wrong> {
        match kind {
            Kind::Array(element, len) => self.list(element, *len, of, at, out),
            Kind::Tuple(all, names) => {
                out.push(if names.is_some() { b'{' } else { b'[' });
                for (i, kind) in all.iter().enumerate() {
                    match names {
                        Some(names) => key(out, &names[i]),
                        None => comma(out),
                    }
                    self.value(kind, of, at, out)?;
                }
                out.push(if names.is_some() { b'}' } else { b']' });
                Ok(())
            }
            _ => self.value(kind, of, at, out),
        }
    }

    fn list(&mut self, element: &Kind, len: usize, of: &[u8], at: &mut usize, out: &mut Vec<u8>) -> Result<(), Wrong> {
        out.push(b'[');
        for _ in 0..len {
            comma(out);
            self.value(element, of, at, out)?;
        }
        out.push(b']');
        Ok(())
    }
}

fn object(out: &mut Vec<u8>, inside: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'{');
    inside(out);
    out.push(b'}');
}

/// Before all but the first.
fn comma(out: &mut Vec<u8>) {
    if !matches!(out.last(), Some(b'{' | b'[')) {
        out.push(b',');
    }
}

fn key(out: &mut Vec<u8>, name: &str) {
    comma(out);
    string(out, name);
    out.push(b':');
}

fn entry(out: &mut Vec<u8>, name: &str, value: &str) {
    key(out, name);
    string(out, value);
}

fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is written to memory");
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_dyn_abi::DynSolValue;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn log(topics: Vec<B256>, data: Vec<u8>) -> Log {
        Log {
            index: 0,
            transaction_index: 0,
            transaction_hash: B256::ZERO,
            address: Address::ZERO,
            topics,
            data: data.into(),
        }
    }

    fn read(events: &[&str], log: &Log) -> Value {
        let events: Vec<_> = events.iter().map(|e| Arc::new(EventAbi::parse(e).unwrap())).collect();
        let mut out = b"before".to_vec();
        EventAbi::read(&events, log, &mut out);
        serde_json::from_slice(&out[6..]).expect("it is JSON")
    }

    fn words(all: &[u64]) -> Vec<u8> {
        all.iter().flat_map(|n| U256::from(*n).to_be_bytes::<32>()).collect()
    }

    const ERC20: &str = "event Transfer(address indexed from, address indexed to, uint256 value)";
    const ERC721: &str = "event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)";

    fn topic0(event: &str) -> B256 {
        EventAbi::parse(event).unwrap().topic0.unwrap()
    }

    #[test]
    fn of_two_events_with_one_signature_the_topics_tell_which_it_is() {
        let party = |n: u8| Address::repeat_byte(n).into_word();
        let topics = vec![topic0(ERC20), party(1), party(2)];
        let fungible = read(&[ERC721, ERC20], &log(topics.clone(), words(&[7])));
        let args = json!({
            "from": "0x0101010101010101010101010101010101010101", "to": "0x0202020202020202020202020202020202020202", "value": "7",
        });
        assert_eq!(fungible, json!({ "event": "Transfer", "args": args }));
        let token = log([topics.as_slice(), &[B256::with_last_byte(9)]].concat(), vec![]);
        assert_eq!(read(&[ERC20, ERC721], &token)["args"]["tokenId"], "9");
        // Known by one of them alone, it is an error and not the other.
        assert_eq!(read(&[ERC20], &token)["event"], "Transfer");
        assert!(read(&[ERC20], &token)["error"].as_str().unwrap().contains("4 topics"));
        assert_eq!(read(&[ERC20], &log(vec![B256::ZERO], vec![])).as_object().unwrap().len(), 1);
    }

    #[test]
    fn names_are_keys_where_they_are_their_own() {
        let part = |name: &str, kind: &str| json!({ "name": name, "type": kind });
        let flat = |name: &str, kind: &str| json!({ "name": name, "type": kind, "indexed": false });
        let tuple = |name: &str, kind: &str, parts: [Value; 2]| json!({ "name": name, "type": kind, "components": parts, "indexed": false });
        let inputs = [
            tuple("lots", "tuple[]", [part("price", "uint256"), part("buyer", "address")]),
            tuple("pairs", "tuple[2]", [part("a", "uint8"), part("", "bool")]),
            flat("", "int8"),
            flat("lots", "int8"),
            flat("", "bytes4"),
        ];
        let event = json!({ "type": "event", "name": "Sold", "inputs": inputs, "anonymous": false }).to_string();
        // A bytes4 has its bytes in front.
        let data = words(&[8 * 32, 1, 1, 2, 0, 3, 4, 5, 1, 11, 0xbb]);
        let told = read(&[&event], &log(vec![topic0(&event)], data.clone()));
        assert_eq!(told["error"], format!("4: {} is not a bytes4", B256::with_last_byte(5)));
        let event = event.replace("bytes4", "uint64");
        let told = read(&[&event], &log(vec![topic0(&event)], data));
        assert_eq!(
            told["args"],
            json!({
                "lots": [{ "price": "11", "buyer": "0x00000000000000000000000000000000000000bb" }],
                "pairs": [["1", true], ["2", false]], "2": "3", "3": "4", "4": "5",
            })
        );
    }

    #[test]
    fn what_an_argument_cannot_be_is_told_and_not_guessed() {
        let one = |kind: &str, word: B256| {
            let event = format!("event A({kind} a)");
            read(&[&event], &log(vec![topic0(&event)], word.to_vec()))
        };
        let ones = B256::repeat_byte(0xff);
        for kind in ["bool", "address", "uint8", "uint248", "bytes31", "int8 indexed", "bool indexed"] {
            let kind_of = kind.trim_end_matches(" indexed");
            let event = format!("event A({kind} a)");
            let dirty = if kind_of == "int8" { B256::with_last_byte(0x80) } else { ones };
            let told = match kind == kind_of {
                true => one(kind, dirty),
                false => read(&[&event], &log(vec![topic0(&event), dirty], vec![])),
            };
            assert_eq!(
                told,
                json!({ "event": "A", "error": format!("a: {dirty} is not {} {kind_of}", if kind_of == "address" || kind_of == "int8" { "an" } else { "a" }) })
            );
        }
        assert_eq!(one("int8", ones)["args"]["a"], "-1");
        assert_eq!(one("int256", B256::from(U256::from(1) << 255))["args"]["a"], I256::MIN.to_string());
        assert_eq!(one("uint256", ones)["args"]["a"], U256::MAX.to_string());
        let text = "event A(string a)";
        let data = [words(&[32, 2]), vec![0xc3, 0x28]].concat();
        assert_eq!(read(&[text], &log(vec![topic0(text)], data))["error"], "a: a string that is not UTF-8");
    }

    /// Each element of each list points at the same place: followed, it would be 64^4 values.
    #[test]
    fn a_bomb_is_an_error_that_costs_what_it_is_long() {
        let event = "event A(uint256[][][][] a)";
        let mut data = words(&[32]);
        for level in 0..4u64 {
            data.extend(words(&[64]));
            data.extend(words(&[if level == 3 { 1 } else { 64 * 32 }; 64]));
        }
        let told = read(&[event], &log(vec![topic0(event)], data));
        assert_eq!(told, json!({ "event": "A", "error": "a: its parts overlap" }));
        let event = "event A(bytes[] a)";
        let data = [words(&[32, 100]), words(&[3200; 100]), words(&[6400]), vec![1; 6400]].concat();
        assert_eq!(read(&[event], &log(vec![topic0(event)], data))["error"], "a: its parts overlap");
    }

    #[test]
    fn an_abi_that_is_none_is_refused_with_the_reason() {
        let deep = format!("event A({}uint256{} a)", "(".repeat(20), ")".repeat(20));
        let lists = format!("event A(uint256{} a)", "[]".repeat(20));
        let long = format!("event A(uint256 {})", "a".repeat(5000));
        let many = "event A(bool indexed, bool indexed, bool indexed, bool indexed)";
        for (event, why) in [
            ("function a()", "not an event"),
            ("event A(uint7 a)", "uint7"),
            ("event A(uint256[0] a)", "A"),
            (many, "at most 4 topics"),
            (&deep, "deep"),
            (&lists, "deep"),
            (&long, "at most 4096"),
        ] {
            let told = EventAbi::parse(event).expect_err(event);
            assert!(told.contains(why), "{told}");
        }
        assert!(EventAbi::parse("event A(bool indexed, bool indexed, bool indexed, bool indexed) anonymous").is_ok());
    }

    fn kind() -> impl Strategy<Value = DynSolType> {
        let leaf = prop_oneof![
            Just(DynSolType::Bool),
            Just(DynSolType::Address),
            (1usize..=32).prop_map(|n| DynSolType::Uint(n * 8)),
            (1usize..=32).prop_map(|n| DynSolType::Int(n * 8)),
            (1usize..=32).prop_map(DynSolType::FixedBytes),
            Just(DynSolType::Bytes),
            Just(DynSolType::String),
        ];
        leaf.prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|t| DynSolType::Array(Box::new(t))),
                (inner.clone(), 1usize..4).prop_map(|(t, n)| DynSolType::FixedArray(Box::new(t), n)),
                proptest::collection::vec(inner, 1..4).prop_map(DynSolType::Tuple),
            ]
        })
    }

    /// A value of a type, out of a heap of random bytes.
    fn value(kind: &DynSolType, heap: &mut impl Iterator<Item = u8>) -> DynSolValue {
        let mut some = |n: usize| heap.take(n).collect::<Vec<u8>>();
        let word = |front: Vec<u8>| B256::right_padding_from(&front);
        match kind {
            DynSolType::Bool => (some(1)[0] % 2 == 1).into(),
            DynSolType::Address => Address::from_slice(&some(20)).into(),
            DynSolType::Uint(bits) => DynSolValue::Uint(U256::from_be_slice(&some(bits / 8)), *bits),
            DynSolType::Int(bits) => {
                let raw = I256::from_raw(U256::from_be_slice(&some(32)));
                DynSolValue::Int(raw.asr(256 - bits), *bits)
            }
            DynSolType::FixedBytes(len) => DynSolValue::FixedBytes(word(some(*len)), *len),
            DynSolType::Bytes => {
                let len = usize::from(some(1)[0] % 70);
                DynSolValue::Bytes(some(len))
            }
            DynSolType::String => {
                let len = usize::from(some(1)[0] % 40);
                DynSolValue::String(String::from_utf8_lossy(&some(len)).into_owned())
            }
            DynSolType::Array(of) => {
                let len = some(1)[0] % 4;
                DynSolValue::Array((0..len).map(|_| value(of, heap)).collect())
            }
            DynSolType::FixedArray(of, len) => DynSolValue::FixedArray((0..*len).map(|_| value(of, heap)).collect()),
            DynSolType::Tuple(all) => DynSolValue::Tuple(all.iter().map(|kind| value(kind, heap)).collect()),
            other => unreachable!("{other} is not made here"),
        }
    }

    fn expected(value: &DynSolValue) -> Value {
        match value {
            DynSolValue::Bool(b) => json!(b),
            DynSolValue::Int(n, _) => json!(n.to_string()),
            DynSolValue::Uint(n, _) => json!(n.to_string()),
            DynSolValue::FixedBytes(word, len) => json!(hex::encode_prefixed(&word[..*len])),
            DynSolValue::Address(a) => json!(hex::encode_prefixed(a)),
            DynSolValue::Bytes(b) => json!(hex::encode_prefixed(b)),
            DynSolValue::String(s) => json!(s),
            DynSolValue::Array(all) | DynSolValue::FixedArray(all) | DynSolValue::Tuple(all) => {
                all.iter().map(expected).collect()
            }
            other => unreachable!("{other:?} is not made here"),
        }
    }

    proptest! {
        #[test]
        fn what_alloy_encodes_reads_back_and_bent_it_is_what_alloy_reads_or_an_error(
            kinds in proptest::collection::vec((kind(), any::<bool>()), 1..5),
            heap in proptest::collection::vec(any::<u8>(), 200),
            bends in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut indexed_most = 3;
            let kinds: Vec<(DynSolType, bool)> = kinds.into_iter().map(|(kind, indexed)| {
                let indexed = indexed && indexed_most > 0;
                indexed_most -= usize::from(indexed);
                (kind, indexed)
            }).collect();
            let args: Vec<String> = kinds.iter().map(|(kind, indexed)| format!("{kind}{}", if *indexed { " indexed" } else { "" })).collect();
            let event = format!("event A({})", args.join(", "));
            let mut heap = heap.into_iter().cycle();
            let values: Vec<DynSolValue> = kinds.iter().map(|(kind, _)| value(kind, &mut heap)).collect();
            let is_word = |kind: &DynSolType| kind.minimum_words() == 1 && !kind.is_dynamic()
                && !matches!(kind, DynSolType::Tuple(_) | DynSolType::FixedArray(..));
            let mut topics = vec![topic0(&event)];
            let (mut body, mut args) = (vec![], serde_json::Map::new());
            for (i, ((kind, indexed), value)) in kinds.iter().zip(&values).enumerate() {
                let told = match (indexed, value.as_word()) {
                    (true, Some(word)) if is_word(kind) => {
                        topics.push(word);
                        expected(value)
                    }
                    (true, _) => {
                        topics.push(B256::repeat_byte(7));
                        json!({ "hash": B256::repeat_byte(7) })
                    }
                    (false, _) => {
                        body.push(value.clone());
                        expected(value)
                    }
                };
                args.insert(i.to_string(), told);
            }
            let body_kind = DynSolType::Tuple(kinds.iter().filter(|(_, indexed)| !indexed).map(|(kind, _)| kind.clone()).collect());
            let mut data = DynSolValue::Tuple(body).abi_encode_params();
            let told = read(&[&event], &log(topics.clone(), data.clone()));
            prop_assert_eq!(&told, &json!({ "event": "A", "args": args }));
            if data.is_empty() {
                return Ok(());
            }
            for (at, bits) in bends {
                let at = at.index(data.len());
                data[at] ^= bits;
            }
            let told = read(&[&event], &log(topics, data.clone()));
            let theirs = body_kind.abi_decode_params(&data);
            match (told.get("args"), theirs) {
                (Some(args), Ok(values)) => {
                    let values = expected(&values);
                    let mut values = values.as_array().unwrap().iter();
                    for (i, (_, indexed)) in kinds.iter().enumerate() {
                        if !indexed {
                            prop_assert_eq!(Some(&args[i.to_string()]), values.next());
                        }
                    }
                }
                (Some(args), Err(why)) => prop_assert!(false, "read as {args}, where alloy says {why}"),
                (None, _) => prop_assert!(told["error"].is_string()),
            }
        }
    }
}
