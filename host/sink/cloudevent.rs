//! What leaves on every sink: a delivery as a CloudEvents 1.0 event. `Delivery -> bytes`, or [`Message`] where the protocol
//! has headers and the output says `content_mode` ([`Mode`]).
//!
//! In the structured mode an event is one line of JSON without a line break, so that an event is also a line of NDJSON. Nothing here can fail: what
//! cannot be written as it claims to be is written as base64, which the JSON format allows for every content type.
//!
//! | attribute | value |
//! |---|---|
//! | `specversion` | `1.0` |
//! | `id` | the delivery id: the same at every attempt |
//! | `source` | the chain, as CAIP-2: `eip155:1` |
//! | `type` | `{plugin}.{stream}` |
//! | `subject` | the lane key; left out where it is empty |
//! | `time` | the block's time, RFC 3339, UTC; where `op` is `pending`, that of the newest block then |
//! | `datacontenttype` | of `data` |
//! | `op` | `apply`, `retract`, or `pending`: of a transaction that is in no block yet, and part of no promise |
//! | `emission` | the one id of the emission's whole life |
//! | `block`, `blockhash` | of the emission's block; `block` is a decimal text; left out where `op` is `pending` |
//! | `cursor` | the journal's offset, a decimal text |
//! | `data` or `data_base64` | the payload: JSON as it is, text as a string, bytes as base64 |
//!
//! `block` and `cursor` are texts: an Integer of the CloudEvents type system has 32 bits with sign (CloudEvents 1.0,
//! "Type System"), larger numbers are to be texts, and a type that changes at 2^31 would break a consumer years later.

use alloy_primitives::hex::Buffer;
use base64::Engine;
use serde_json::value::RawValue;

use super::SinkError;
use super::options::Options;
use crate::model::{ChainId, ContentType, Delivery, Op};

/// Of a whole event in JSON ("structured mode").
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Every event begins with these bytes.
pub const BEGINS: &str = "{\"specversion\":\"1.0\",";

/// How an event lies in a message, by the option `content_mode`. The first two are those of CloudEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The whole event is the body, as JSON.
    Structured,
    /// The payload is the body, the attributes are headers.
    Binary,
    /// The payload alone. It does not say whether it applies or retracts.
    Bare,
}

impl Mode {
    pub const HELP: &str = "structured: the CloudEvents event as JSON; binary: the payload, with the attributes as \
                            headers; bare: the payload alone; structured";

    pub fn of(options: &Options) -> Result<Self, SinkError> {
        Ok(match options.word("content_mode", &["structured", "binary", "bare"])? {
            "binary" => Self::Binary,
            "bare" => Self::Bare,
            _ => Self::Structured,
        })
    }
}

/// An event for a protocol with headers.
pub struct Message {
    pub content_type: &'static str,
    /// The attributes but `datacontenttype`, with their names as CloudEvents has them; empty but in the binary mode. The
    /// protocol's binding says how a name and a text become a header: `subject` may hold any character.
    pub attributes: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

pub fn message(delivery: &Delivery, mode: Mode) -> Message {
    let content_type = delivery.emission.content_type.mime();
    let payload = || delivery.emission.payload.clone();
    match mode {
        Mode::Structured => Message { content_type: CONTENT_TYPE, attributes: vec![], body: encode(delivery) },
        Mode::Binary => {
            let mut said = vec![];
            attributes(delivery, |name, value| {
                // Which the protocol has a place of its own for.
                if name != "datacontenttype" {
                    said.push((name, value.to_owned()));
                }
            });
            Message { content_type, attributes: said, body: payload() }
        }
        Mode::Bare => Message { content_type, attributes: vec![], body: payload() },
    }
}

/// Says each attribute, in the order of the contract, as a text. Many a million of these are made: without format strings.
fn attributes(delivery: &Delivery, mut say: impl FnMut(&'static str, &str)) {
    let emission = &*delivery.emission;
    let (stream, block) = (&emission.stream, &emission.block);
    let (mut id, mut hash, mut number) = (Buffer::<16>::new(), Buffer::<32, true>::new(), itoa::Buffer::new());
    say("specversion", "1.0");
    say("id", id.format(&delivery.id.0));
    say("source", &[ChainId::NAMESPACE, number.format(block.chain.0)].concat());
    say("type", &[stream.plugin.as_str(), ".", stream.stream.as_str()].concat());
    if !emission.lane_key.is_empty() {
        say("subject", &emission.lane_key);
    }
    if let Some(time) = rfc3339(block.time) {
        say("time", &time);
    }
    say("datacontenttype", emission.content_type.mime());
    say("op", delivery.op.as_str());
    say("emission", id.format(&emission.id.0));
    if delivery.op != Op::Pending {
        say("block", number.format(block.number));
        say("blockhash", hash.format(&block.hash.0));
    }
    say("cursor", number.format(delivery.offset));
}

/// A text as the value of an HTTP header, by CloudEvents' HTTP binding, section 3.1.3.2: what is not printable ASCII, the
/// space, the double quote and the percent sign are percent-encoded. No text can end a header and begin another.
pub fn header(text: &str) -> String {
    let mut header = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'"' && byte != b'%' {
            header.push(byte as char);
        } else {
            header += &format!("%{byte:02X}");
        }
    }
    header
}

/// The event as one line of JSON, without the line break at its end.
pub fn encode(delivery: &Delivery) -> Vec<u8> {
    let mut event = Vec::with_capacity(ATTRIBUTES + delivery.emission.payload.len());
    encode_to(&mut event, delivery);
    event
}

/// Most of what is around a payload.
const ATTRIBUTES: usize = 512;

/// The same, behind what is there.
pub fn encode_to(event: &mut Vec<u8>, delivery: &Delivery) {
    let emission = &*delivery.emission;
    let mut before = b"{\"";
    attributes(delivery, |name, value| {
        event.extend_from_slice(before);
        before = b",\"";
        event.extend_from_slice(name.as_bytes());
        event.extend_from_slice(b"\":");
        // A plugin chooses the subject. The others are our own names and numbers: nothing in them is to be escaped.
        if name == "subject" {
            return text(event, value);
        }
        event.push(b'"');
        event.extend_from_slice(value.as_bytes());
        event.push(b'"');
    });
    let payload = one_line(emission);
    let whole = std::str::from_utf8(&payload);
    match (emission.content_type, whole) {
        (ContentType::Json, Ok(whole)) if serde_json::from_str::<&RawValue>(whole).is_ok() => {
            event.extend_from_slice(b",\"data\":");
            // As a parser has it: without the white space around it.
            event.extend_from_slice(whole.trim_matches([' ', '\t']).as_bytes());
        }
        (ContentType::Text, Ok(whole)) => {
            event.extend_from_slice(b",\"data\":");
            text(event, whole);
        }
        _ => {
            event.extend_from_slice(b",\"data_base64\":");
            text(event, &base64::engine::general_purpose::STANDARD.encode(&emission.payload));
        }
    }
    event.push(b'}');
}

/// A text in JSON.
fn text(to: &mut Vec<u8>, text: &str) {
    // Neither a text nor memory refuses it.
    let _ = serde_json::to_writer(to, text);
}

/// A JSON payload with its line breaks, which can only be white space between tokens, as spaces.
fn one_line(emission: &crate::model::Emission) -> std::borrow::Cow<'_, [u8]> {
    let payload = emission.payload.as_slice();
    if emission.content_type == ContentType::Json && memchr::memchr2(b'\n', b'\r', payload).is_some() {
        payload.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect::<Vec<_>>().into()
    } else {
        payload.into()
    }
}

/// Seconds since 1970 as `2026-01-31T23:59:59Z`; `None` after the year 9999, which RFC 3339 cannot write.
pub fn rfc3339(seconds: u64) -> Option<String> {
    const END_OF_9999: u64 = 253_402_300_799;
    if seconds > END_OF_9999 {
        return None;
    }
    // Days to a date of the Gregorian calendar: a year is taken to begin on the 1st of March, so that the leap day is
    // its last; 719,468 days lie between 0000-03-01 and 1970-01-01, and 400 years have 146,097 days.
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    // Every event and every row has one: without a format string.
    let mut text = *b"0000-00-00T00:00:00Z";
    let pairs = [(0, year / 100), (2, year % 100), (5, month), (8, day), (11, hour), (14, minute), (17, second)];
    for (at, number) in pairs {
        text[at] += (number / 10) as u8;
        text[at + 1] += (number % 10) as u8;
    }
    String::from_utf8(text.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::*;
    use alloy_primitives::B256;
    use std::sync::Arc;

    fn delivery(content_type: ContentType, payload: &[u8]) -> Delivery {
        let stream: StreamId = "whale.large".parse().unwrap();
        let block = BlockRef {
            chain: ChainId(1),
            number: 3_000_000_000,
            hash: B256::repeat_byte(7),
            parent: B256::ZERO,
            time: 1_700_000_000,
        };
        Delivery {
            id: DeliveryId([1; 16]),
            op: Op::Apply,
            offset: 5_000_000_000,
            emission: Arc::new(Emission {
                id: EmissionId([2; 16]),
                stream,
                block,
                position: EventPosition::Log(3),
                ordinal: 0,
                lane_key: "0xabc".into(),
                content_type,
                payload: payload.to_vec(),
            }),
        }
    }

    #[test]
    fn an_event_has_exactly_the_attributes_of_the_contract() {
        let line = encode(&delivery(ContentType::Json, b"{\"value\": 1000000000000000000001,\n \"b\":[1.10]}"));
        assert_eq!(
            std::str::from_utf8(&line).unwrap(),
            concat!(
                r#"{"specversion":"1.0","id":"01010101010101010101010101010101","source":"eip155:1","type":"whale.large","#,
                r#""subject":"0xabc","time":"2023-11-14T22:13:20Z","datacontenttype":"application/json","op":"apply","#,
                r#""emission":"02020202020202020202020202020202","block":"3000000000","#,
                r#""blockhash":"0x0707070707070707070707070707070707070707070707070707070707070707","#,
                r#""cursor":"5000000000","data":{"value": 1000000000000000000001,  "b":[1.10]}}"#
            ),
            "the payload's own digits are kept, its line breaks are not"
        );
        assert!(line.starts_with(BEGINS.as_bytes()));
    }

    #[test]
    fn the_binary_mode_says_in_headers_what_the_structured_one_says_in_json() {
        let delivery = delivery(ContentType::Json, b"{\"a\": 1}");
        let event: serde_json::Value = serde_json::from_slice(&encode(&delivery)).unwrap();
        let binary = message(&delivery, Mode::Binary);
        assert_eq!((binary.content_type, binary.body.as_slice()), ("application/json", b"{\"a\": 1}".as_slice()));
        for (name, value) in &binary.attributes {
            assert_eq!(event[name], value.as_str());
        }
        // But for datacontenttype and data.
        assert_eq!(binary.attributes.len() + 2, event.as_object().unwrap().len());
        let bare = message(&delivery, Mode::Bare);
        assert_eq!((bare.attributes.len(), bare.body), (0, binary.body));
        assert_eq!(message(&delivery, Mode::Structured).body, encode(&delivery));
    }

    #[test]
    fn no_text_ends_a_header() {
        assert_eq!(header("a b\r\nX: \"1\" 100% €"), "a%20b%0D%0AX:%20%221%22%20100%25%20%E2%82%AC");
    }

    #[test]
    fn every_payload_can_be_written() {
        let data = |content_type, payload: &[u8]| {
            let event: serde_json::Value = serde_json::from_slice(&encode(&delivery(content_type, payload))).unwrap();
            (event.get("data").cloned(), event.get("data_base64").cloned())
        };
        assert_eq!(data(ContentType::Text, "é\n".as_bytes()), (Some("é\n".into()), None));
        assert_eq!(data(ContentType::Text, &[0xff]), (None, Some("/w==".into())));
        assert_eq!(data(ContentType::Bytes, b"\0\x01"), (None, Some("AAE=".into())));
        assert_eq!(data(ContentType::Json, b"{"), (None, Some("ew==".into())));
        assert_eq!(data(ContentType::Json, b"null"), (Some(serde_json::Value::Null), None));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds).as_deref(), Some(text));
        }
        assert_eq!(rfc3339(253_402_300_800), None);
    }
}
