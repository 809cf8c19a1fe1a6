//! What leaves on every sink: a delivery as a CloudEvents 1.0 event in JSON. `Delivery -> bytes`.
//!
//! One line of JSON without a line break, so that an event is also a line of NDJSON. Nothing here can fail: what
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

use base64::Engine;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::model::{ContentType, Delivery, Op};

/// Of a whole event in JSON ("structured mode").
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Every event begins with these bytes.
pub const BEGINS: &str = "{\"specversion\":\"1.0\",";

#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: String,
    source: String,
    r#type: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    datacontenttype: &'static str,
    op: &'static str,
    emission: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blockhash: Option<String>,
    cursor: String,
    #[serde(flatten)]
    data: Data<'a>,
}

#[derive(Serialize)]
enum Data<'a> {
    #[serde(rename = "data")]
    Json(&'a RawValue),
    #[serde(rename = "data")]
    Text(&'a str),
    #[serde(rename = "data_base64")]
    Base64(String),
}

/// The event as one line of JSON, without the line break at its end.
pub fn encode(delivery: &Delivery) -> Vec<u8> {
    let emission = &*delivery.emission;
    let payload = one_line(emission);
    let data = match emission.content_type {
        ContentType::Json => serde_json::from_slice::<&RawValue>(&payload).ok().map(Data::Json),
        ContentType::Text => std::str::from_utf8(&payload).ok().map(Data::Text),
        ContentType::Bytes => None,
    };
    let block = (delivery.op != Op::Pending).then_some(&emission.block);
    let event = Event {
        specversion: "1.0",
        id: delivery.id.to_string(),
        source: emission.block.chain.to_string(),
        r#type: emission.stream.to_string(),
        subject: &emission.lane_key,
        time: rfc3339(emission.block.time),
        datacontenttype: emission.content_type.mime(),
        op: delivery.op.as_str(),
        emission: emission.id.to_string(),
        block: block.map(|at| at.number.to_string()),
        blockhash: block.map(|at| at.hash.to_string()),
        cursor: delivery.offset.to_string(),
        data: data.unwrap_or_else(|| Data::Base64(base64::engine::general_purpose::STANDARD.encode(&emission.payload))),
    };
    serde_json::to_vec(&event).expect("texts and checked JSON always serialise")
}

/// A JSON payload with its line breaks, which can only be white space between tokens, as spaces.
fn one_line(emission: &crate::model::Emission) -> std::borrow::Cow<'_, [u8]> {
    fn is_break(byte: &u8) -> bool {
        matches!(byte, b'\n' | b'\r')
    }
    if emission.content_type == ContentType::Json && emission.payload.iter().any(is_break) {
        emission.payload.iter().map(|b| if is_break(b) { b' ' } else { *b }).collect::<Vec<_>>().into()
    } else {
        emission.payload.as_slice().into()
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
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
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
