//! The batch layout of `sdk/ABI.md`, host side: events are encoded, verdicts are read.
//!
//! A record is encoded once, whatever the number of plugins; a batch is a header and copied records.
//! Verdicts come from a plugin and are hostile: every length is checked before it is used.

use super::{ContentType, Header, Log, Place, Transaction, Transfer};

pub const LAYOUT_VERSION: u32 = 1;
const EVENTS_MAGIC: [u8; 4] = *b"CWB1";
const EVENTS_HEADER: usize = 24;
const VERDICTS_MAGIC: [u8; 4] = *b"CWV1";
const VERDICTS_HEADER: usize = 16;
const BLOCK_FIXED: u16 = 168;
const TRANSACTION_FIXED: u16 = 208;
const LOG_FIXED: u16 = 80;
const TRANSFER_FIXED: u16 = 128;
const FLAG_SUBSCRIBED: u8 = 1;
const FLAG_MADE: u8 = 2;

/// Writes one record: fixed fields in order, then the variable part.
struct Record<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Record<'a> {
    /// `variable`: bytes behind the fixed fields. Room is made once.
    fn new(out: &'a mut Vec<u8>, kind: u8, flags: u8, fixed: u16, variable: usize) -> Self {
        let start = out.len();
        out.reserve(usize::from(fixed) + variable + 8);
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
    let mut r = Record::new(out, 1, u8::from(subscribed), BLOCK_FIXED, 0);
    r.u64(header.at.number).u64(header.at.time).u64(header.gas_used).u64(header.gas_limit);
    r.u64(header.base_fee.unwrap_or(u64::MAX));
    r.u32(header.transaction_count.unwrap_or(u32::MAX)).zeros(4);
    r.put(header.at.hash.as_slice()).put(header.at.parent.as_slice());
    r.put(header.beneficiary.as_slice()).zeros(28);
    r.end();
}

/// The watch sets that values of an event are members of, each with its place: they stand at the end of a record.
pub type Hits<'a> = &'a [(Place, &'a str)];

fn hits_len(hits: Hits<'_>) -> usize {
    hits.iter().map(|(_, name)| 2 + name.len()).sum()
}

impl Record<'_> {
    fn hits(&mut self, hits: Hits<'_>) {
        for (place, name) in hits {
            // A set's name has at most 64 bytes.
            self.put(&[place.code(), name.len() as u8]).put(name.as_bytes());
        }
    }
}

pub fn encode_transaction(tx: &Transaction, hits: Hits<'_>, out: &mut Vec<u8>) {
    encode_as(2, tx, hits, out);
}

/// Of a transaction that is in no block.
pub fn encode_pending(tx: &Transaction, hits: Hits<'_>, out: &mut Vec<u8>) {
    encode_as(5, tx, hits, out);
}

fn encode_as(kind: u8, tx: &Transaction, hits: Hits<'_>, out: &mut Vec<u8>) {
    let mut r = Record::new(out, kind, FLAG_SUBSCRIBED, TRANSACTION_FIXED, tx.input.len() + hits_len(hits));
    let status = tx.success.map_or(2, u8::from);
    let flags = u8::from(tx.to.is_some()) | u8::from(tx.created.is_some()) << 1;
    r.u32(tx.index).put(&[status, tx.kind, flags, hits.len() as u8]);
    r.u64(tx.nonce).u64(tx.gas_limit).u64(tx.gas_used.unwrap_or(0));
    r.put(&tx.gas_price.to_le_bytes());
    r.put(tx.hash.as_slice()).put(&tx.value.to_be_bytes::<32>());
    r.put(tx.from.as_slice()).put(tx.to.unwrap_or_default().as_slice());
    r.put(tx.created.unwrap_or_default().as_slice());
    r.u32(tx.input.len() as u32).zeros(24).put(&tx.input).hits(hits);
    r.end();
}

/// `decoded`: what the host decoded of it, as JSON; empty where nobody asked for it.
pub fn encode_log(log: &Log, decoded: &[u8], hits: Hits<'_>, out: &mut Vec<u8>) {
    let variable = 32 * log.topics.len() + log.data.len() + decoded.len() + hits_len(hits);
    let mut r = Record::new(out, 3, FLAG_SUBSCRIBED, LOG_FIXED, variable);
    r.u32(log.index).u32(log.transaction_index).put(log.transaction_hash.as_slice());
    r.put(log.address.as_slice()).put(&[log.topics.len() as u8, hits.len() as u8, 0, 0]);
    r.u32(log.data.len() as u32).u32(decoded.len() as u32);
    for topic in &log.topics {
        r.put(topic.as_slice());
    }
    r.put(&log.data).put(decoded).hits(hits);
    r.end();
}

pub fn encode_transfer(transfer: &Transfer, hits: Hits<'_>, out: &mut Vec<u8>) {
    let mut r = Record::new(out, 4, FLAG_SUBSCRIBED, TRANSFER_FIXED, hits_len(hits));
    r.u32(transfer.index).u32(transfer.transaction_index);
    r.put(&[transfer.how.code(), hits.len() as u8]).put(&transfer.depth.to_le_bytes()).zeros(4);
    r.put(transfer.transaction_hash.as_slice()).put(&transfer.value.to_be_bytes::<32>());
    r.put(transfer.from.as_slice()).put(transfer.to.as_slice()).hits(hits);
    r.end();
}

/// A copy of an encoded log that says: a factory of the plugin made its contract.
pub fn marked_as_made(record: &[u8]) -> Vec<u8> {
    let mut copy = record.to_vec();
    copy[5] |= FLAG_MADE;
    copy
}

/// The contract of an encoded log.
pub fn log_address(record: &[u8]) -> alloy_primitives::Address {
    alloy_primitives::Address::from_slice(&record[48..68])
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
    /// Gives back what is beyond `keep` bytes of room.
    pub fn trim(&mut self, keep: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep);
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
        if len < 12 || !len.is_multiple_of(4) || len > rest.len() {
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

#[cfg(test)]
mod tests {
    use alloy_primitives::{Address, B256, Bytes, U256};
    use proptest::prelude::*;

    use super::*;
    use crate::model::{BlockRef, ChainId};

    /// A reader of the layout written from sdk/ABI.md alone.
    struct Read<'a>(&'a [u8]);

    impl<'a> Read<'a> {
        fn u(&self, at: usize, len: usize) -> u128 {
            self.0[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u128::from(*b))
        }
        fn bytes(&self, at: usize, len: usize) -> &'a [u8] {
            &self.0[at..at + len]
        }
        fn records(&self) -> Vec<Read<'a>> {
            assert_eq!(self.bytes(0, 4), b"CWB1");
            let (mut at, mut records) = (self.u(4, 2) as usize, vec![]);
            while at < self.0.len() {
                let len = Read(&self.0[at..]).u(0, 4) as usize;
                assert_eq!(len % 8, 0);
                records.push(Read(&self.0[at..at + len]));
                at += len;
            }
            assert_eq!(self.u(16, 4) as usize, records.len());
            records
        }
    }

    fn word() -> impl Strategy<Value = B256> {
        any::<[u8; 32]>().prop_map(B256::from)
    }
    fn address() -> impl Strategy<Value = Address> {
        any::<[u8; 20]>().prop_map(Address::from)
    }
    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..100).prop_map(Bytes::from)
    }

    prop_compose! {
        fn header()(chain in any::<u64>(), number in any::<u64>(), time in any::<u64>(), hash in word(), parent in word(),
            gas_used in any::<u64>(), gas_limit in any::<u64>(), base_fee in any::<Option<u64>>(), beneficiary in address(),
            transaction_count in any::<Option<u32>>()) -> Header {
            let at = BlockRef { chain: ChainId(chain), number, hash, parent, time };
            Header { at, gas_used, gas_limit, base_fee, beneficiary, transaction_count }
        }
    }
    prop_compose! {
        fn transaction()(index in any::<u32>(), hash in word(), from in address(), to in prop::option::of(address()),
            created in prop::option::of(address()), value in any::<[u8; 32]>(), input in bytes(), nonce in any::<u64>(),
            kind in any::<u8>(), gas_limit in any::<u64>(), gas_used in any::<Option<u64>>(), (gas_price, success) in any::<(u128, Option<bool>)>()) -> Transaction {
            Transaction { index, hash, from, to, created, value: U256::from_be_bytes(value), input, nonce, kind, gas_limit, gas_used, gas_price, success }
        }
    }
    prop_compose! {
        fn log()(index in any::<u32>(), transaction_index in any::<u32>(), transaction_hash in word(), address in address(),
            topics in prop::collection::vec(word(), 0..5), data in bytes()) -> Log {
            Log { index, transaction_index, transaction_hash, address, topics, data }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_as_the_page_says(h in header(), t in transaction(), l in log(), subscribed in any::<bool>()) {
            let mut batch = BatchBuilder::default();
            // Used again, it forgets.
            batch.begin(ChainId(5));
            batch.push(&[0; 8], 1);
            batch.begin(h.at.chain);
            let mut record = Vec::new();
            encode_block(&h, subscribed, &mut record);
            prop_assert_eq!(batch.push(&record, 1), 0);
            record.clear();
            encode_transaction(&t, &[], &mut record);
            encode_log(&l, &[], &[], &mut record);
            prop_assert_eq!(batch.push(&record, 2), 1);
            let whole = Read(batch.finish());
            prop_assert_eq!(whole.u(8, 8) as u64, h.at.chain.0);
            let r = whole.records();
            prop_assert_eq!(r.len(), 3);

            let b = &r[0];
            prop_assert_eq!((b.u(4, 1), b.u(5, 1), b.u(6, 2), b.0.len()), (1, u128::from(subscribed), 168, 168));
            prop_assert_eq!([b.u(8, 8), b.u(16, 8), b.u(24, 8), b.u(32, 8)], [h.at.number, h.at.time, h.gas_used, h.gas_limit].map(u128::from));
            prop_assert_eq!(b.u(40, 8) as u64, h.base_fee.unwrap_or(u64::MAX));
            prop_assert_eq!(b.u(48, 4) as u32, h.transaction_count.unwrap_or(u32::MAX));
            prop_assert_eq!((b.bytes(56, 32), b.bytes(88, 32), b.bytes(120, 20)), (&h.at.hash[..], &h.at.parent[..], &h.beneficiary[..]));

            let x = &r[1];
            prop_assert_eq!((x.u(4, 1), x.u(5, 1), x.u(6, 2)), (2, 1, 208));
            prop_assert_eq!((x.u(8, 4) as u32, x.u(13, 1) as u8), (t.index, t.kind));
            prop_assert_eq!(x.u(12, 1), match t.success { Some(false) => 0, Some(true) => 1, None => 2 });
            prop_assert_eq!((x.u(14, 1) & 1 == 1, x.u(14, 1) & 2 == 2), (t.to.is_some(), t.created.is_some()));
            prop_assert_eq!([x.u(16, 8), x.u(24, 8), x.u(32, 8)], [t.nonce, t.gas_limit, t.gas_used.unwrap_or(0)].map(u128::from));
            prop_assert_eq!(x.u(40, 16), t.gas_price);
            prop_assert_eq!((x.bytes(56, 32), U256::from_be_slice(x.bytes(88, 32))), (&t.hash[..], t.value));
            prop_assert_eq!((x.bytes(120, 20), x.bytes(140, 20), x.bytes(160, 20)), (&t.from[..], &t.to.unwrap_or_default()[..], &t.created.unwrap_or_default()[..]));
            prop_assert_eq!(x.bytes(208, x.u(180, 4) as usize), &t.input[..]);

            let g = &r[2];
            prop_assert_eq!((g.u(4, 1), g.u(5, 1), g.u(6, 2)), (3, 1, 80));
            prop_assert_eq!((g.u(8, 4) as u32, g.u(12, 4) as u32), (l.index, l.transaction_index));
            prop_assert_eq!((g.bytes(16, 32), g.bytes(48, 20)), (&l.transaction_hash[..], &l.address[..]));
            prop_assert_eq!(g.u(68, 1) as usize, l.topics.len());
            for (i, topic) in l.topics.iter().enumerate() {
                prop_assert_eq!(g.bytes(80 + 32 * i, 32), &topic[..]);
            }
            prop_assert_eq!(g.bytes(80 + 32 * l.topics.len(), g.u(72, 4) as usize), &l.data[..]);
        }

        #[test]
        fn whatever_bytes_come_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), events in 0u32..5, streams in 0u16..3) {
            let _ = read_verdicts(&bytes, events, streams);
        }

        #[test]
        fn a_good_answer_reads_back_and_a_bent_one_never_panics(
            said in prop::collection::vec((0u8..4, 0u32..6, 0u16..3, 0u8..3, "[a-zé]{0,9}", 0u32..99), 0..12),
            bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut answer = b"CWV1\x10\0\0\0".to_vec();
            answer.extend_from_slice(&(said.len() as u32).to_le_bytes());
            answer.extend_from_slice(&[0; 4]);
            let payloads: Vec<String> = said.iter().map(|s| s.5.to_string()).collect();
            let mut expected = Vec::new();
            for ((what, event, stream, content, text, _), payload) in said.iter().zip(&payloads) {
                let (event, stream) = (*event, *stream);
                let mut body = event.to_le_bytes().to_vec();
                let n = |s: &str| (s.len() as u32).to_le_bytes();
                let (kind, five, six) = match what {
                    0 => { expected.push(Verdict::Pass { event, stream }); (1, 0, stream) }
                    1 => {
                        body.extend([n(text), n(payload)].concat());
                        body.extend_from_slice(text.as_bytes());
                        body.extend_from_slice(payload.as_bytes());
                        let content_type = ContentType::from_code(*content).unwrap();
                        expected.push(Verdict::Emit { event, stream, content_type, lane_key: text, payload: payload.as_bytes() });
                        (2, *content, stream)
                    }
                    2 => {
                        body.extend(n(text));
                        body.extend_from_slice(text.as_bytes());
                        let retry = content % 2 == 0;
                        expected.push(if retry { Verdict::Retry { event, message: text } } else { Verdict::Reject { event, message: text } });
                        (3, if retry { 1 } else { 2 }, 0)
                    }
                    // A kind of a later layout.
                    _ => (9, 77, 7777),
                };
                body.resize(body.len().next_multiple_of(4), 0);
                answer.extend_from_slice(&(body.len() as u32 + 8).to_le_bytes());
                answer.extend_from_slice(&[kind, five]);
                answer.extend_from_slice(&six.to_le_bytes());
                answer.extend_from_slice(&body);
            }
            prop_assert_eq!(read_verdicts(&answer, 6, 3), Ok(expected));
            let mut bent = answer.clone();
            for (at, bits) in &bends {
                let at = at.index(bent.len());
                bent[at] ^= bits;
            }
            let _ = read_verdicts(&bent, 6, 3);
            let _ = read_verdicts(&bent[..cut.index(bent.len())], 6, 3);
        }
    }

    #[test]
    fn a_hostile_length_reserves_nothing() {
        let mut answer = b"CWV1\x10\0\0\0\xff\xff\xff\xff\0\0\0\0".to_vec();
        assert_eq!(read_verdicts(&answer, 1, 1), Err(Malformed::Count { promised: u32::MAX, found: 0 }));
        answer
            .extend_from_slice(&[24, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(read_verdicts(&answer, 1, 1), Err(Malformed::Length { .. })));
        assert_eq!(read_verdicts(&[], 1, 1), Ok(vec![]));
    }
}
