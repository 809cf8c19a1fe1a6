//! The batch layout of `sdk/ABI.md`, host side: events are encoded, verdicts are read.
//!
//! A record is encoded once, whatever the number of plugins; a batch is a header and copied records.
//! Verdicts come from a plugin and are hostile: every length is checked before it is used.

use super::{ContentType, Header, Log, Transaction};

pub const LAYOUT_VERSION: u32 = 1;
const EVENTS_MAGIC: [u8; 4] = *b"CWB1";
const EVENTS_HEADER: usize = 24;
const VERDICTS_MAGIC: [u8; 4] = *b"CWV1";
const VERDICTS_HEADER: usize = 16;
const BLOCK_FIXED: u16 = 168;
const TRANSACTION_FIXED: u16 = 208;
const LOG_FIXED: u16 = 80;
const FLAG_SUBSCRIBED: u8 = 1;

/// Writes one record: fixed fields in order, then the variable part.
struct Record<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Record<'a> {
    fn new(out: &'a mut Vec<u8>, kind: u8, flags: u8, fixed: u16) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0, 0, 0, 0, kind, flags]);
        out.extend_from_slice(&fixed.to_le_bytes());
        Self { out, start }
    }
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }
    fn zeros(&mut self, n: usize) -> &mut Self {
        self.out.resize(self.out.len() + n, 0);
        self
    }
    fn end(self) {
        let len = (self.out.len() - self.start).next_multiple_of(8);
        self.out.resize(self.start + len, 0);
        // A record is bounded by what a chain can put into a block, far below 4 GiB.
        let len = u32::try_from(len).expect("a record is smaller than 4 GiB");
        self.out[self.start..self.start + 4].copy_from_slice(&len.to_le_bytes());
    }
}

pub fn encode_block(header: &Header, subscribed: bool, out: &mut Vec<u8>) {
    let mut r = Record::new(out, 1, u8::from(subscribed), BLOCK_FIXED);
    r.u64(header.at.number).u64(header.at.time).u64(header.gas_used).u64(header.gas_limit);
    r.u64(header.base_fee.unwrap_or(u64::MAX));
    r.u32(header.transaction_count.unwrap_or(u32::MAX)).zeros(4);
    r.put(header.at.hash.as_slice()).put(header.at.parent.as_slice());
    r.put(header.beneficiary.as_slice()).zeros(28);
    r.end();
}

pub fn encode_transaction(tx: &Transaction, out: &mut Vec<u8>) {
    let mut r = Record::new(out, 2, FLAG_SUBSCRIBED, TRANSACTION_FIXED);
    let status = tx.success.map_or(2, u8::from);
    let flags = u8::from(tx.to.is_some()) | u8::from(tx.created.is_some()) << 1;
    r.u32(tx.index).put(&[status, tx.kind, flags, 0]);
    r.u64(tx.nonce).u64(tx.gas_limit).u64(tx.gas_used.unwrap_or(0));
    r.put(&tx.gas_price.to_le_bytes());
    r.put(tx.hash.as_slice()).put(&tx.value.to_be_bytes::<32>());
    r.put(tx.from.as_slice()).put(tx.to.unwrap_or_default().as_slice());
    r.put(tx.created.unwrap_or_default().as_slice());
    r.u32(tx.input.len() as u32).zeros(24).put(&tx.input);
    r.end();
}

pub fn encode_log(log: &Log, out: &mut Vec<u8>) {
    let mut r = Record::new(out, 3, FLAG_SUBSCRIBED, LOG_FIXED);
    r.u32(log.index).u32(log.transaction_index).put(log.transaction_hash.as_slice());
    r.put(log.address.as_slice()).put(&[log.topics.len() as u8, 0, 0, 0]);
    r.u32(log.data.len() as u32).zeros(4);
    for topic in &log.topics {
        r.put(topic.as_slice());
    }
    r.put(&log.data);
    r.end();
}

/// A batch in the making: a header and records, all copied into one buffer that is used again.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    records: u32,
}

impl BatchBuilder {
    pub fn begin(&mut self, chain: super::ChainId) {
        self.records = 0;
        self.bytes.clear();
        self.bytes.extend_from_slice(&EVENTS_MAGIC);
        self.bytes.extend_from_slice(&(EVENTS_HEADER as u16).to_le_bytes());
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&chain.0.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
    }
    /// Appends `count` whole records and returns the index of the first.
    pub fn push(&mut self, records: &[u8], count: u32) -> u32 {
        let first = self.records;
        self.bytes.extend_from_slice(records);
        self.records += count;
        first
    }
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }
    pub fn records(&self) -> u32 {
        self.records
    }
    pub fn finish(&mut self) -> &[u8] {
        self.bytes[16..20].copy_from_slice(&self.records.to_le_bytes());
        &self.bytes
    }
}

/// What a plugin said about one event of the batch. Borrows from the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Pass { event: u32, stream: u16 },
    Emit { event: u32, stream: u16, content_type: ContentType, lane_key: &'a str, payload: &'a [u8] },
    Retry { event: u32, message: &'a str },
    Reject { event: u32, message: &'a str },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the answer does not begin with CWV1 and a whole header")]
    Header,
    #[error("record {record} at byte {at} does not fit into the answer of {len} bytes")]
    Length { record: u32, at: usize, len: usize },
    #[error("record {record} names event {event}, but the batch had {events}")]
    Event { record: u32, event: u32, events: u32 },
    #[error("record {record} names stream {stream}, but the manifest has {streams}")]
    Stream { record: u32, stream: u16, streams: u16 },
    #[error("record {record} has an unknown {what} {value}")]
    Value { record: u32, what: &'static str, value: u8 },
    #[error("record {record} has a {what} that is not UTF-8")]
    Text { record: u32, what: &'static str },
    #[error("record {record} is of type JSON, but its payload is not JSON: {why}")]
    Json { record: u32, why: String },
    #[error("the header promises {promised} records, there are {found}")]
    Count { promised: u32, found: u32 },
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Reads a plugin's answer to a batch of `events` records, for a manifest with `streams` streams.
pub fn read_verdicts(answer: &[u8], events: u32, streams: u16) -> Result<Vec<Verdict<'_>>, Malformed> {
    if answer.is_empty() {
        return Ok(Vec::new());
    }
    if answer.len() < VERDICTS_HEADER || answer[..4] != VERDICTS_MAGIC {
        return Err(Malformed::Header);
    }
    let promised = u32_at(answer, 8);
    let mut at = usize::from(u16_at(answer, 4));
    if at < VERDICTS_HEADER || at > answer.len() {
        return Err(Malformed::Header);
    }
    // A hostile count must not reserve memory: no record is shorter than 12 bytes.
    let mut verdicts = Vec::with_capacity((promised as usize).min(answer.len() / 12));
    let mut record = 0;
    while at < answer.len() {
        let misfit = Malformed::Length { record, at, len: answer.len() };
        let rest = &answer[at..];
        if rest.len() < 12 {
            return Err(misfit);
        }
        let len = u32_at(rest, 0) as usize;
        if len < 12 || len % 4 != 0 || len > rest.len() {
            return Err(misfit);
        }
        if let Some(verdict) = read_one(&rest[..len], record, events, streams, misfit)? {
            verdicts.push(verdict);
        }
        at += len;
        record += 1;
    }
    if record != promised {
        return Err(Malformed::Count { promised, found: record });
    }
    Ok(verdicts)
}

fn read_one(
    r: &[u8],
    record: u32,
    events: u32,
    streams: u16,
    misfit: Malformed,
) -> Result<Option<Verdict<'_>>, Malformed> {
    let event = u32_at(r, 8);
    if event >= events {
        return Err(Malformed::Event { record, event, events });
    }
    let slice = |from: usize, len: u32| {
        from.checked_add(len as usize).and_then(|to| r.get(from..to)).ok_or_else(|| misfit.clone())
    };
    let text = |bytes, what| std::str::from_utf8(bytes).map_err(|_| Malformed::Text { record, what });
    let stream_of = || {
        let stream = u16_at(r, 6);
        if stream < streams { Ok(stream) } else { Err(Malformed::Stream { record, stream, streams }) }
    };
    Ok(Some(match r[4] {
        1 => Verdict::Pass { event, stream: stream_of()? },
        2 => {
            if r.len() < 20 {
                return Err(misfit);
            }
            let content_type =
                ContentType::from_code(r[5]).ok_or(Malformed::Value { record, what: "content type", value: r[5] })?;
            let key_len = u32_at(r, 12);
            let lane_key = text(slice(20, key_len)?, "lane key")?;
            let payload = slice(20 + lane_key.len(), u32_at(r, 16))?;
            match content_type {
                ContentType::Json => {
                    serde_json::from_slice::<&serde_json::value::RawValue>(payload)
                        .map_err(|e| Malformed::Json { record, why: e.to_string() })?;
                }
                ContentType::Text => {
                    text(payload, "payload")?;
                }
                ContentType::Bytes => {}
            }
            Verdict::Emit { event, stream: stream_of()?, content_type, lane_key, payload }
        }
        3 => {
            if r.len() < 16 {
                return Err(misfit);
            }
            let message = text(slice(16, u32_at(r, 12))?, "message")?;
            match r[5] {
                1 => Verdict::Retry { event, message },
                2 => Verdict::Reject { event, message },
                value => return Err(Malformed::Value { record, what: "fault", value }),
            }
        }
        // A record kind of a later layout: skippable by rule.
        _ => return Ok(None),
    }))
}
