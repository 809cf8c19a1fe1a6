//! What the unit tests of this stage share: a committed state in memory, blocks of events, and the hostile guest.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use alloy_primitives::{Address, B256, Bytes};

use super::capabilities::Grants;
use super::engine::{Compiled, Engine};
use super::step::{Setup, Worker};
use super::{BlockEvents, Limits, OnPoison, StateRead};
use crate::model::batch::{encode_block, encode_log};
use crate::model::{BlockRef, ChainId, EventPosition, Header, Log, PluginName};

#[path = "../../tests/harness/guests.rs"]
mod guests;

pub(crate) const CHAIN: ChainId = ChainId(31337);

#[derive(Clone, Default)]
pub(crate) struct MapState(pub Arc<BTreeMap<Vec<u8>, Vec<u8>>>);

impl StateRead for MapState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        Ok(self.0.get(key).cloned())
    }
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
        let fits = |k: &[u8]| k.starts_with(prefix) && after.is_none_or(|a| k > a);
        Ok(self.0.iter().filter(|(k, _)| fits(k)).take(limit as usize).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(None).expect("an engine without a cache starts"))
}

pub(crate) fn hostile_wasm() -> Vec<u8> {
    std::fs::read(guests::hostile()).expect("the guest was just built")
}

pub(crate) fn hostile() -> &'static Compiled {
    static HOSTILE: OnceLock<Compiled> = OnceLock::new();
    HOSTILE.get_or_init(|| engine().load(&hostile_wasm()).expect("the hostile guest is a plugin"))
}

pub(crate) fn setup(config: &str, limits: Limits, on_poison: OnPoison) -> Setup {
    Setup {
        plugin: PluginName::new("hostile").expect("a name"),
        chain: CHAIN,
        streams: 2,
        limits,
        on_poison,
        config: config.into(),
        grants: Grants::default(),
    }
}

pub(crate) fn worker(config: &str, limits: Limits, on_poison: OnPoison) -> Worker {
    Worker::new(hostile(), setup(config, limits, on_poison)).expect("it links")
}

/// A deadline that a busy machine does not reach, for tests of anything else.
pub(crate) fn patient() -> Limits {
    Limits { deadline_ms: 20_000, ..Limits::default() }
}

/// Blocks with their encoded records, to borrow [`BlockEvents`] from.
pub(crate) struct Blocks(Vec<Encoded>);

type Encoded = (BlockRef, Vec<u8>, bool, Vec<(EventPosition, Vec<u8>)>);

impl Blocks {
    /// Block n has `logs[n]` logs; log indexes count on over all blocks so that each event has an id of its own.
    /// Block 0 has number 1000 and blocks are subscribed to where `subscribed` says so.
    pub(crate) fn new(logs: &[usize], subscribed: &[bool]) -> Self {
        let mut next = 0;
        let block = |(n, count): (usize, &usize)| {
            let at = BlockRef {
                chain: CHAIN,
                number: 1000 + n as u64,
                hash: B256::repeat_byte(n as u8 + 1),
                parent: B256::repeat_byte(n as u8),
                time: 1_700_000_000 + n as u64,
            };
            let header = Header {
                at,
                gas_used: 1,
                gas_limit: 2,
                base_fee: Some(7),
                beneficiary: Address::ZERO,
                transaction_count: None,
            };
            let mut record = Vec::new();
            encode_block(&header, n % 2 == 0, &mut record);
            let events = (0..*count).map(|_| {
                let log = Log {
                    index: next,
                    transaction_index: next / 3,
                    transaction_hash: B256::repeat_byte(9),
                    address: Address::repeat_byte(8),
                    topics: vec![B256::repeat_byte(if next % 10 == 0 { 0xdd } else { 0x11 })],
                    data: Bytes::from(vec![next as u8; (next % 7) as usize * 9]),
                };
                next += 1;
                let mut bytes = Vec::new();
                encode_log(&log, &[], &[], &mut bytes);
                (EventPosition::Log(log.index), bytes)
            });
            let events = events.collect();
            (at, record, subscribed.get(n).copied().unwrap_or(false), events)
        };
        Self(logs.iter().enumerate().map(block).collect())
    }

    pub(crate) fn events(&self) -> Vec<BlockEvents<'_>> {
        self.0
            .iter()
            .map(|(at, record, subscribed, events)| BlockEvents {
                at: *at,
                block_record: record,
                block_subscribed: *subscribed,
                events: events.iter().map(|(position, bytes)| (*position, bytes.as_slice())).collect(),
            })
            .collect()
    }
}
