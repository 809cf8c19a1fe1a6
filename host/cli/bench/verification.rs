//! What it costs to believe nobody: the share of one core that the proofs take where 100 blocks a second arrive. Of blocks
//! of 1,000 made-up transfers, with their logs alone or with receipts; and of recorded blocks, with `--blocks FILE`, where
//! parsing is not counted.

use std::time::Instant;

use alloy_consensus::Eip658Value;
use alloy_primitives::{Address, keccak256};
use anyhow::Context;

use super::lab::{Lab, timed, transfer};
use super::{Aim, Figure};
use crate::model::{Log, Wanted};
use crate::proof::{self, Quirks, ReceiptFacts};
use crate::source::record::{Line, Reader};
use crate::source::wire;

const LOGS: u32 = 1_000;
const LOGS_IN_A_RECEIPT: usize = 4;
const BLOCKS_A_SECOND: f64 = 100.0;
/// Per cent of a core.
const AIM: (f64, &str) = (15.0, "the aim, 15 %");

/// Per cent of a core, of nanoseconds a block.
fn share(ns: f64) -> f64 {
    ns * BLOCKS_A_SECOND / 1e9 * 100.0
}

pub fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    // Fifty tokens; nobody trades twice.
    let logs: Vec<Log> = (0..LOGS)
        .map(|n| {
            let mut log = transfer(n, Address::from_word(keccak256((n % 50).to_be_bytes())), false);
            log.transaction_index = n / LOGS_IN_A_RECEIPT as u32;
            let party =
                |side: u8| Address::from_word(keccak256([&[side], n.to_be_bytes().as_slice()].concat())).into_word();
            (log.topics[1], log.topics[2]) = (party(0), party(1));
            log
        })
        .collect();
    let receipts: Vec<ReceiptFacts<'_>> = logs
        .chunks(LOGS_IN_A_RECEIPT)
        .zip(1..)
        .map(|(logs, n)| ReceiptFacts {
            kind: 2,
            outcome: Eip658Value::Eip658(true),
            cumulative_gas_used: 100_000 * n,
            logs,
            deposit: None,
        })
        .collect();
    let quirks = Quirks::default();
    let mut header = alloy_consensus::Header {
        logs_bloom: proof::bloom_of(&logs),
        receipts_root: proof::receipts_root(&receipts).0,
        base_fee_per_gas: Some(7),
        ..Default::default()
    };
    header.number = 18_000_000;
    let hash = header.hash_slow();
    let place = (header.number, hash);
    let sealed = || {
        let own = proof::hash_of(&header, None);
        proof::header_hash(header.number, own, hash, &[], &quirks).expect("it is its own");
    };
    let mut by_logs = || {
        timed(|| {
            sealed();
            proof::all_logs(place, &header.logs_bloom, &logs, None, &quirks).expect("they are its own");
        })
    };
    let mut by_receipts = || {
        timed(|| {
            sealed();
            let (_, bloom) = proof::receipts(&receipts, header.receipts_root, &quirks).expect("they are its own");
            proof::all_logs(place, &header.logs_bloom, &logs, Some(bloom), &quirks).expect("they are its own");
        })
    };
    let [by_logs, by_receipts] = lab.best(1, [&mut by_logs, &mut by_receipts]);
    let figure = |name: &str, ns: f64, aim| Figure::new(name, (share(ns), "% of a core"), AIM, aim);
    let mut figures = vec![
        figure("verification_logs", by_logs, Aim::AtMost(1.0)),
        figure("verification_receipts", by_receipts, Aim::AtMost(1.0)),
    ];
    if let Some(path) = &lab.blocks {
        let lines: Vec<Line> = Reader::open(path)?.map(|l| l.map(|(_, line)| line)).collect::<Result<_, _>>()?;
        let logs = Wanted { logs: true, ..Wanted::default() };
        figures.push(figure("verification_recorded_logs", recorded(lab, &lines, &logs)?, Aim::AtMost(1.0)));
        figures.push(figure("verification_recorded_all", recorded(lab, &lines, &Wanted::all())?, Aim::None));
    }
    Ok(figures)
}

/// ns a block of proving and taking what is wanted, parsing left out.
fn recorded(lab: &Lab, lines: &[Line], wanted: &Wanted) -> anyhow::Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..lab.either(10, 1) {
        let mut took = 0;
        for line in lines {
            let parts = line.parts().with_context(|| format!("block {}", line.number))?;
            let (chain, quirks) = (line.chain(), Quirks::of(line.chain()));
            let began = Instant::now();
            std::hint::black_box(wire::assemble(chain, parts, wanted, &quirks, &mut vec![]))?;
            took += began.elapsed().as_nanos();
        }
        best = best.min(took as f64 / lines.len() as f64);
    }
    Ok(best)
}
