//! What it costs to cross into the sandbox: ns an event, for a filter by topic, at several batch sizes, against
//! the same filter in native code and memcpy of the same bytes. `cargo bench --bench crossing`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bytes};
use chainweir::model::batch::{BatchBuilder, encode_block, encode_log};
use chainweir::model::{BlockRef, ChainId, EventPosition, Header, Log, PluginName};
use chainweir::plugin::capabilities::Grants;
use chainweir::plugin::engine::Engine;
use chainweir::plugin::step::{Setup, Worker};
use chainweir::plugin::{BlockEvents, Limits, OnPoison, StateRead};

#[path = "../tests/harness/guests.rs"]
mod guests;

const CHAIN: ChainId = ChainId(1);
const WANTED: B256 = B256::repeat_byte(0xdd);
/// Each figure is the best of so many rounds: the others had a neighbour.
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(200);

struct Nothing;

impl StateRead for Nothing {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }
    fn scan(&self, _: &[u8], _: Option<&[u8]>, _: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
        Ok(vec![])
    }
}

/// An ERC-20 transfer, one in a hundred of the wanted topic.
fn log(index: u32) -> Vec<u8> {
    let topic0 = if index.is_multiple_of(100) { WANTED } else { B256::repeat_byte(0x11) };
    let log = Log {
        index,
        transaction_index: index / 3,
        transaction_hash: B256::repeat_byte(9),
        address: Address::repeat_byte(8),
        topics: vec![topic0, B256::repeat_byte(1), B256::repeat_byte(2)],
        data: Bytes::from(vec![0; 32]),
    };
    let mut bytes = Vec::new();
    encode_log(&log, &mut bytes);
    bytes
}

fn native(batch: &[u8]) -> Vec<u32> {
    let (mut at, mut index, mut passed) = (24, 0, Vec::new());
    while at < batch.len() {
        let record = &batch[at..];
        let len = u32::from_le_bytes(record[..4].try_into().expect("four bytes")) as usize;
        if record[4] == 3 && record[68] > 0 && record[80..112] == WANTED.0 {
            passed.push(index);
        }
        at += len;
        index += 1;
    }
    passed
}

/// The best round's ns an event. `act` says how long the part that counts took.
fn measure(events: usize, mut act: impl FnMut() -> Duration) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let (began, mut counted, mut calls) = (Instant::now(), Duration::ZERO, 0u32);
        while began.elapsed() < ROUND {
            for _ in 0..16 {
                counted += act();
                calls += 1;
            }
        }
        best = best.min(counted.as_nanos() as f64 / f64::from(calls) / events as f64);
    }
    best
}

fn timed(act: impl FnOnce()) -> Duration {
    let began = Instant::now();
    act();
    began.elapsed()
}

fn main() {
    let wasm = std::fs::read(guests::hostile()).expect("the guest was just built");
    let compiled = Engine::new(None).and_then(|engine| engine.load(&wasm)).expect("the guest is a plugin");
    let setup = Setup {
        plugin: PluginName::new("bench").expect("a name"),
        chain: CHAIN,
        streams: 2,
        limits: Limits::default(),
        on_poison: OnPoison::Wait,
        config: r#"{"mode":"filter"}"#.into(),
        grants: Grants::default(),
    };
    let mut worker = Worker::new(&compiled, setup).expect("it links");
    let at = BlockRef { chain: CHAIN, number: 1, hash: B256::ZERO, parent: B256::ZERO, time: 0 };
    let header =
        Header { at, gas_used: 0, gas_limit: 0, base_fee: None, beneficiary: Address::ZERO, transaction_count: None };
    let mut block_record = Vec::new();
    encode_block(&header, false, &mut block_record);

    println!("ns an event      memcpy   native     call     step   call/memcpy  call/native");
    for events in [1usize, 16, 512] {
        let logs: Vec<Vec<u8>> = (0..events as u32).map(log).collect();
        let mut batch = BatchBuilder::default();
        batch.begin(CHAIN);
        batch.push(&block_record, 1);
        logs.iter().for_each(|log| {
            batch.push(log, 1);
        });
        let bytes = batch.finish().to_vec();
        let mut copy = vec![0u8; bytes.len()];
        // Two clock readings around every call are in each figure alike.
        let memcpy = measure(events, || timed(|| black_box(&mut copy).copy_from_slice(black_box(&bytes))));
        let native = measure(events, || {
            timed(|| {
                black_box(native(black_box(&bytes)));
            })
        });
        let mut step = |whole: bool| {
            measure(events, || {
                let positions = logs.iter().enumerate().map(|(i, log)| (EventPosition::Log(i as u32), log.as_slice()));
                let block = BlockEvents {
                    at,
                    block_record: &block_record,
                    block_subscribed: false,
                    events: positions.collect(),
                };
                let began = Instant::now();
                let out = worker.step(CHAIN, &[block], Box::new(Nothing)).expect("the filter works");
                if whole { began.elapsed() } else { out.call_time }
            })
        };
        let (call, step) = (step(false), step(true));
        println!(
            "{events:>4} a call  {memcpy:>9.1} {native:>8.1} {call:>8.1} {step:>8.1} {:>13.1} {:>12.1}",
            call / memcpy,
            call / native
        );
    }
}
