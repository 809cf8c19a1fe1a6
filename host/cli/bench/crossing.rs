//! What it costs to cross into the sandbox and back: ns an event, for a filter by topic, at several batch sizes, against
//! the same filter in native code and a copy of the same bytes.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Instant;

use super::lab::{CHAIN, FILTER, Lab, WANTED, block, timed, transfers};
use super::{Aim, Figure};
use crate::model::batch::{BatchBuilder, encode_block, encode_log};
use crate::model::{EventPosition, PluginName};
use crate::plugin::capabilities::Grants;
use crate::plugin::engine::Engine;
use crate::plugin::step::{Setup, Worker};
use crate::plugin::{BlockEvents, Limits, OnPoison, StateRead};

struct Nothing;

impl StateRead for Nothing {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }
    fn scan(&self, _: &[u8], _: Option<&[u8]>, _: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
        Ok(vec![])
    }
}

/// As the plugin does it.
fn native(batch: &[u8]) -> Vec<u32> {
    let (mut at, mut index, mut passed) = (24, 0, Vec::new());
    while at < batch.len() {
        let record = &batch[at..];
        let len = u32::from_le_bytes([record[0], record[1], record[2], record[3]]) as usize;
        if record[4] == 3 && record[68] > 2 && record[144..176] == WANTED.0 {
            passed.push(index);
        }
        at += len;
        index += 1;
    }
    passed
}

pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let compiled = Engine::new(None)?.load(FILTER)?;
    let setup = Setup {
        plugin: PluginName::new("filter")?,
        chain: CHAIN,
        streams: 1,
        limits: Limits::default(),
        on_poison: OnPoison::Wait,
        config: format!(r#"{{"to":"{WANTED}"}}"#).into(),
        grants: Grants::default(),
    };
    let worker = RefCell::new(Worker::new(&compiled, setup)?);
    let failed = RefCell::new(None);
    let header = block(1, vec![]).header;
    let mut block_record = Vec::new();
    encode_block(&header, false, &mut block_record);

    let mut figures = Vec::new();
    for events in [1, 16, 512] {
        let records = transfers(events, 100).into_iter().map(|log| {
            let mut record = Vec::new();
            encode_log(&log, &[], &[], &mut record);
            record
        });
        let records: Vec<Vec<u8>> = records.collect();
        let mut batch = BatchBuilder::default();
        batch.begin(CHAIN);
        batch.push(&block_record, 1);
        for record in &records {
            batch.push(record, 1);
        }
        let bytes = batch.finish().to_vec();
        let mut copy = vec![0u8; bytes.len()];
        let count = events as usize;
        let step = || {
            let positions = records.iter().enumerate().map(|(i, r)| (EventPosition::Log(i as u32), r.as_slice()));
            let block = BlockEvents {
                at: header.at,
                block_record: &block_record,
                block_subscribed: false,
                events: positions.collect(),
            };
            let began = Instant::now();
            let stepped = worker.borrow_mut().step(CHAIN, &[block], Box::new(Nothing));
            let took = began.elapsed();
            let call = stepped.map_or_else(
                |error| {
                    failed.replace(Some(error));
                    took
                },
                |out| out.call_time,
            );
            (call, took)
        };
        // Two clock readings around every call are in each figure alike.
        let [memcpy, native, call, step] = lab.best(
            count,
            [
                &mut || timed(|| black_box(&mut copy).copy_from_slice(black_box(&bytes))),
                &mut || timed(|| native(black_box(&bytes))),
                &mut || step().0,
                &mut || step().1,
            ],
        );
        if let Some(error) = failed.take() {
            return Err(error.into());
        }
        let unit = "ns/event";
        let aim = if events == 512 { Aim::AtMost(3.0) } else { Aim::None };
        figures.extend([
            Figure::new(format!("crossing_{events}"), (call, unit), (memcpy, "memcpy of the same bytes"), aim),
            Figure::new(
                format!("crossing_{events}_native"),
                (call, unit),
                (native, "the same filter, native"),
                Aim::None,
            ),
            Figure::new(format!("crossing_{events}_step"), (step, unit), (call, "the call alone"), Aim::None),
        ]);
    }
    Ok(figures)
}
