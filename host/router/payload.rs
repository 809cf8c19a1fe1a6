//! What the host writes itself about an event: the payload of one that passed as it is, and the lane key of
//! one for which the plugin chose none. Read from the encoded record, which the host made.

use alloy_primitives::{Address, B256, U256, hex};
use serde_json::json;

use crate::model::{ChainId, EventPosition};

fn u32_at(r: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([r[at], r[at + 1], r[at + 2], r[at + 3]])
}
fn u64_at(r: &[u8], at: usize) -> u64 {
    u64::from(u32_at(r, at)) | u64::from(u32_at(r, at + 4)) << 32
}
fn word_at(r: &[u8], at: usize) -> B256 {
    B256::from_slice(&r[at..at + 32])
}
fn address_at(r: &[u8], at: usize) -> Address {
    Address::from_slice(&r[at..at + 20])
}
/// Lower case, as everywhere in what leaves.
fn text(address: Address) -> String {
    format!("{address:?}")
}

/// `eip155:1/0xcontract` for a log, `eip155:1/0xreceiver` for a transaction or transfer, `eip155:1` for a block.
pub fn lane_key(chain: ChainId, position: EventPosition, record: &[u8]) -> String {
    match position {
        EventPosition::Block => chain.to_string(),
        EventPosition::Transaction(_) | EventPosition::Pending(_) => {
            format!("{chain}/{}", text(address_at(record, 140)))
        }
        EventPosition::Log(_) => format!("{chain}/{}", text(address_at(record, 48))),
        EventPosition::Transfer(_) => format!("{chain}/{}", text(address_at(record, 108))),
    }
}

/// Of an encoded transaction, in a block or not.
pub fn transaction_hash(record: &[u8]) -> B256 {
    word_at(record, 56)
}

/// The words for [`crate::model::How`], by its code.
const HOW: [&str; 6] = ["transaction", "creation", "call", "create", "create2", "selfdestruct"];

/// The event as JSON. Numbers that may pass 2^53 are decimal strings.
pub fn as_json(position: EventPosition, record: &[u8]) -> serde_json::Value {
    let fixed = usize::from(u16::from_le_bytes([record[6], record[7]]));
    match position {
        EventPosition::Block => json!({
            "number": u64_at(record, 8),
            "time": u64_at(record, 16),
            "hash": word_at(record, 56),
            "parent_hash": word_at(record, 88),
            "gas_used": u64_at(record, 24).to_string(),
            "beneficiary": text(address_at(record, 120)),
        }),
        EventPosition::Transaction(index) => json!({
            "tx": word_at(record, 56),
            "transaction_index": index,
            "from": text(address_at(record, 120)),
            "to": (record[14] & 1 == 1).then(|| text(address_at(record, 140))),
            "created": (record[14] & 2 == 2).then(|| text(address_at(record, 160))),
            "value": U256::from_be_bytes(word_at(record, 88).0).to_string(),
            "success": match record[12] { 0 => Some(false), 1 => Some(true), _ => None },
            "nonce": u64_at(record, 16).to_string(),
            "input": hex::encode_prefixed(&record[fixed..fixed + u32_at(record, 180) as usize]),
        }),
        EventPosition::Pending(_) => json!({
            "tx": word_at(record, 56),
            "from": text(address_at(record, 120)),
            "to": (record[14] & 1 == 1).then(|| text(address_at(record, 140))),
            "value": U256::from_be_bytes(word_at(record, 88).0).to_string(),
            "nonce": u64_at(record, 16).to_string(),
            "input": hex::encode_prefixed(&record[fixed..fixed + u32_at(record, 180) as usize]),
        }),
        EventPosition::Log(index) => {
            let topics = usize::from(record[68]);
            let data = fixed + 32 * topics;
            let decoded = data + u32_at(record, 72) as usize;
            let mut log = json!({
                "address": text(address_at(record, 48)),
                "topics": (0..topics).map(|i| word_at(record, fixed + 32 * i)).collect::<Vec<_>>(),
                "data": hex::encode_prefixed(&record[data..decoded]),
                "log_index": index,
                "transaction_index": u32_at(record, 12),
                "tx": word_at(record, 16),
            });
            // There where the plugin asked for it alone.
            if let Ok(told) =
                serde_json::from_slice::<serde_json::Value>(&record[decoded..][..u32_at(record, 76) as usize])
            {
                log["decoded"] = told;
            }
            log
        }
        EventPosition::Transfer(index) => json!({
            "tx": word_at(record, 24),
            "transaction_index": u32_at(record, 12),
            "transfer_index": index,
            "how": HOW.get(usize::from(record[16])),
            "depth": u16::from_le_bytes([record[18], record[19]]),
            "from": text(address_at(record, 88)),
            "to": text(address_at(record, 108)),
            "value": U256::from_be_bytes(word_at(record, 56).0).to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Log, batch};
    use alloy_primitives::Bytes;

    #[test]
    fn a_log_that_passes_is_written_as_the_chain_has_it() {
        let log = Log {
            index: 3,
            transaction_index: 1,
            transaction_hash: B256::repeat_byte(7),
            address: Address::repeat_byte(0xab),
            topics: vec![B256::repeat_byte(1), B256::repeat_byte(2)],
            data: Bytes::from_static(&[1, 2, 3]),
        };
        let mut record = Vec::new();
        batch::encode_log(&log, &[], &[], &mut record);
        let position = EventPosition::Log(3);
        assert_eq!(lane_key(ChainId(5), position, &record), "eip155:5/0xabababababababababababababababababababab");
        let json = as_json(position, &record);
        assert_eq!(json["data"], "0x010203");
        assert_eq!(json["topics"][1], format!("0x{}", "02".repeat(32)));
        assert_eq!(json["log_index"], 3);
        assert_eq!(json.get("decoded"), None);
        record.clear();
        batch::encode_log(&log, br#"{"event":"Sold","args":{"price":"7"}}"#, &[], &mut record);
        assert_eq!(as_json(position, &record)["decoded"]["args"]["price"], "7");
    }
}
