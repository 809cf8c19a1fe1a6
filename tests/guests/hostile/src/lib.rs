//! A guest that does what its configuration says: `{"mode":"count","evil":"trap","at":[3,7]}`.
//!
//! `mode` is what it does with every event, `evil` what it does wrong, `at` the events (by the u32 at byte 8 of
//! their record: log index, transaction index, low half of a block number) at which it does it; without `at`, always.
//! `name`, `version` and `state_version` (as texts) are what it says of itself. A test that needs many builds writes
//! such a configuration into `SLOT` in the .wasm: it then stands in for the one that the host gives.
//! Written against the bytes of sdk/ABI.md, not against the SDK, so that each checks the other.

wit_bindgen::generate!({ path: "../../../sdk/wit", world: "plugin" });

use chainweir::plugin::{config, log, state};
use exports::chainweir::plugin::processor::{EventKind, Fault, Guest, InSet, Manifest, Place, Stream, Subscription};

struct Hostile;
export!(Hostile);

const SLOT_BYTES: usize = 512;
/// Found in the .wasm by its beginning; `harness::guests::build` writes behind it.
#[used]
static SLOT: [u8; SLOT_BYTES] = {
    let mut slot = [b' '; SLOT_BYTES];
    let mark = b"hostile slot:";
    let mut at = 0;
    while at < mark.len() {
        slot[at] = mark[at];
        at += 1;
    }
    slot
};

fn slot() -> String {
    // What stands there is not what the compiler saw.
    let slot = unsafe { std::ptr::read_volatile(&raw const SLOT) };
    String::from_utf8_lossy(&slot[b"hostile slot:".len()..]).trim().to_string()
}

/// The topic that mode "filter" lets pass: 32 times 0xdd.
const TOPIC: [u8; 32] = [0xdd; 32];

struct Settings {
    name: String,
    version: String,
    state_version: u32,
    mode: String,
    evil: String,
    at: Option<Vec<u32>>,
}

/// Enough of JSON for a configuration written by ourselves, without spaces.
fn settings() -> Settings {
    let json = Some(slot()).filter(|slot| !slot.is_empty()).unwrap_or_else(config::get);
    let text = |key: &str| {
        let from = json.find(&format!("\"{key}\":\""))? + key.len() + 4;
        Some(json[from..].split('"').next()?.to_string())
    };
    let at = json.find("\"at\":[").map(|from| {
        let list = json[from + 6..].split(']').next().unwrap_or("");
        list.split(',').filter_map(|n| n.trim().parse().ok()).collect()
    });
    Settings {
        name: text("name").unwrap_or("hostile".into()),
        version: text("version").unwrap_or("0.1.0".into()),
        state_version: text("state_version").and_then(|v| v.parse().ok()).unwrap_or(1),
        mode: text("mode").unwrap_or_default(),
        evil: text("evil").unwrap_or_default(),
        at,
    }
}

fn cached() -> &'static Settings {
    static SETTINGS: std::sync::OnceLock<Settings> = std::sync::OnceLock::new();
    SETTINGS.get_or_init(|| {
        std::panic::set_hook(Box::new(|panic| log::write(log::Level::Error, &panic.to_string())));
        settings()
    })
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Ids above it are of blocks: tests that count on it begin at a higher block.
const SMALL: u32 = 500;

struct Answer {
    bytes: Vec<u8>,
    records: u32,
}

impl Answer {
    fn new() -> Self {
        let mut bytes = b"CWV1".to_vec();
        bytes.extend_from_slice(&[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        Self { bytes, records: 0 }
    }
    fn head(&mut self, len: usize, kind: u8, a: u8, b: u16, event: u32) {
        self.bytes.extend_from_slice(&(len as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[kind, a]);
        self.bytes.extend_from_slice(&b.to_le_bytes());
        self.bytes.extend_from_slice(&event.to_le_bytes());
        self.records += 1;
    }
    fn pass(&mut self, event: u32, stream: u16) {
        self.head(12, 1, 0, stream, event);
    }
    fn emit(&mut self, event: u32, stream: u16, key: &str, payload: &[u8]) {
        let used = 20 + key.len() + payload.len();
        self.head(used.next_multiple_of(4), 2, 0, stream, event);
        self.bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len() + used.next_multiple_of(4) - used, 0);
    }
    fn fault(&mut self, event: u32, kind: u8, message: &str) {
        let used = 16 + message.len();
        self.head(used.next_multiple_of(4), 3, kind, 0, event);
        self.bytes.extend_from_slice(&(message.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(message.as_bytes());
        self.bytes.resize(self.bytes.len() + used.next_multiple_of(4) - used, 0);
    }
    fn done(mut self) -> Vec<u8> {
        self.bytes[8..12].copy_from_slice(&self.records.to_le_bytes());
        self.bytes
    }
}

#[inline(never)]
fn recurse(n: u64) -> u64 {
    let mut room = [n; 32];
    std::hint::black_box(&mut room);
    if n == u64::MAX { 0 } else { recurse(n + 1) + room[7] }
}

fn spin() -> ! {
    loop {
        std::hint::black_box(());
    }
}

/// Mode "filter": nothing but the test of one topic, as fast as it goes.
fn filter(batch: &[u8]) -> Vec<u8> {
    let mut answer = Answer::new();
    let (mut at, mut index) = (24, 0);
    while at < batch.len() {
        let record = &batch[at..];
        let len = u32_at(record, 0) as usize;
        if record[4] == 3 && record[68] > 0 && record[80..112] == TOPIC {
            answer.pass(index, 0);
        }
        at += len;
        index += 1;
    }
    answer.done()
}

fn evil(what: &str, event: u32, id: u32, answer: &mut Answer) -> Option<Result<Vec<u8>, Fault>> {
    match what {
        "" => {}
        "trap" => unreachable(),
        "panic" => panic!("cannot stand event {id}"),
        "loop" => spin(),
        "recurse" => {
            std::hint::black_box(recurse(0));
        }
        "bomb" => loop {
            let block = vec![1u8; 1 << 20];
            std::mem::forget(std::hint::black_box(block));
        },
        "reject" => answer.fault(event, 2, "do not like it"),
        "reject-batch" => return Some(Err(Fault::Reject(format!("saw {id}")))),
        "retry" => answer.fault(event, 1, "not yet"),
        "retry-batch" => return Some(Err(Fault::Retry("not yet".into()))),
        "flood" => (0..200_000).for_each(|_| answer.emit(event, 0, "", b"1")),
        "log-flood" => (0..100_000).for_each(|n| log::write(log::Level::Info, &format!("line {n}\nmore"))),
        "huge" => answer.emit(event, 0, "", &vec![b'1'; 20 << 20]),
        "garbage" => return Some(Ok((0..1000u32).map(|n| ((n * 7919) >> 3) as u8).collect())),
        "bad-json" => answer.emit(event, 0, "", b"{nope"),
        "bad-event" => answer.pass(u32::MAX, 0),
        "bad-stream" => answer.pass(event, 77),
        "state-bomb" => (0..=u64::MAX).for_each(|n| state::set(&n.to_le_bytes(), &[0; 1000])),
        "state-value" => state::set(b"big", &vec![0; 2 << 20]),
        "get-bomb" => {
            state::set(b"big", &vec![0; 1 << 20]);
            let keys = vec![b"big".to_vec(); 10_000];
            std::hint::black_box(state::get_many(&keys));
        }
        // As much as is allowed, so that nothing stops it.
        "much-emitted" if id > SMALL => (0..90_000).for_each(|_| answer.emit(event, 0, "", b"1")),
        "much-kept" if id > SMALL => {
            for chunk in 0..30u64 {
                let key = |n: u64| (chunk * 10_000 + n).to_be_bytes().to_vec();
                let entries: Vec<_> = (0..10_000).map(|n| (key(n), id.to_le_bytes().repeat(2))).collect();
                state::set_many(&entries);
            }
        }
        "much-emitted" | "much-kept" => {}
        "leak" => std::mem::forget(std::hint::black_box(vec![1u8; 1 << 20])),
        other => panic!("no such evil: {other}"),
    }
    None
}

impl Guest for Hostile {
    fn describe() -> Manifest {
        let settings = cached();
        match settings.evil.as_str() {
            "describe-trap" => unreachable(),
            "describe-loop" => spin(),
            "describe-state" => {
                state::get(b"k");
            }
            _ => {}
        }
        let stream = |name: &str| Stream { name: name.into(), description: String::new(), schema: "{}".into() };
        let all = |kind| Subscription {
            kind,
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
        };
        let mut manifest = Manifest {
            name: settings.name.clone(),
            version: settings.version.clone(),
            description: "does what it is told".into(),
            state_version: settings.state_version,
            batch_layout: 1,
            subscriptions: vec![all(EventKind::Block), all(EventKind::Transaction), all(EventKind::Log)],
            streams: vec![stream("one"), stream("two")],
        };
        if settings.mode == "odd-pending" {
            manifest.subscriptions = vec![all(EventKind::Pending)];
        }
        match settings.evil.as_str() {
            "bad-name" => manifest.name = "No Good\n".into(),
            "bad-layout" => manifest.batch_layout = 2,
            "bad-schema" => manifest.streams[0].schema = "{".into(),
            "two-alike" => manifest.streams[1].name = "one".into(),
            "bad-address" => manifest.subscriptions[2].addresses.push(vec![0; 19]),
            "bad-topic" => manifest.subscriptions[2].topics.push(vec![vec![0; 31]]),
            "bad-abi" => manifest.subscriptions[2].decode.push("event A(".into()),
            "bad-set" => manifest.subscriptions[2].sets.push(InSet { place: Place::Topic1, name: "No Name".into() }),
            "five-topics" => manifest.subscriptions[2].topics = vec![vec![]; 5],
            "many-streams" => manifest.streams = (0..60_000).map(|n| stream(&format!("s{n}"))).collect(),
            "many-subscriptions" => manifest.subscriptions = (0..60_000).map(|_| all(EventKind::Log)).collect(),
            "many-addresses" => {
                manifest.subscriptions[2].addresses =
                    (0..250_000u32).map(|n| [n; 5].map(u32::to_le_bytes).concat()).collect();
            }
            "long-schema" => manifest.streams[0].schema = format!("{{\"title\":\"{}\"}}", "x".repeat(1 << 20)),
            "wrong-kind" => manifest.subscriptions[1].addresses.push(vec![0; 20]),
            _ => {}
        }
        manifest
    }

    fn process(batch: Vec<u8>) -> Result<Vec<u8>, Fault> {
        let settings = cached();
        if settings.mode == "filter" {
            return Ok(filter(&batch));
        }
        let mut answer = Answer::new();
        let (mut at, mut index) = (24, 0);
        while at < batch.len() {
            let record = &batch[at..];
            let (len, subscribed, id) = (u32_at(record, 0) as usize, record[5] & 1 == 1, u32_at(record, 8));
            if subscribed {
                match settings.mode.as_str() {
                    "count" => {
                        let seen = state::get(b"seen").map_or(0, |v| u64::from_le_bytes(v.try_into().unwrap())) + 1;
                        state::set(b"seen", &seen.to_le_bytes());
                        state::set_many(&[([b"event/", &record[8..12]].concat(), vec![record[4]])]);
                        if id % 4 == 0 {
                            state::delete(&[b"event/".as_slice(), &id.wrapping_sub(1).to_le_bytes()].concat());
                        }
                        let known = state::scan(b"event/", None, 5).len();
                        answer.emit(index, 0, "", format!("{{\"seen\":{seen},\"known\":{known}}}").as_bytes());
                    }
                    // The last byte of its value.
                    "odd-pending" if record[119] & 1 == 1 => unreachable(),
                    "odd-pending" => answer.pass(index, 0),
                    "echo" => {
                        let key = if id % 3 == 0 { "three" } else { "" };
                        for _ in 0..1 + u32::from(id % 5 == 0) {
                            let payload = format!("{{\"kind\":{},\"id\":{id}}}", record[4]);
                            answer.emit(index, (id % 2) as u16, key, payload.as_bytes());
                        }
                    }
                    _ => {}
                }
                if settings.at.as_ref().is_none_or(|at| at.contains(&id))
                    && let Some(answer) = evil(&settings.evil, index, id, &mut answer)
                {
                    return answer;
                }
            }
            at += len;
            index += 1;
        }
        Ok(answer.done())
    }
}

/// The wasm instruction; on other targets, where the guest is only linted, a panic.
fn unreachable() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    panic!("unreachable");
}
