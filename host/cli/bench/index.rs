//! What it costs to find out who gets an event: ns an event of matching and encoding, with 1, 100 and 10,000
//! subscriptions filed. `one` of them gets the events, or they are `spread` over all.

use alloy_primitives::{Address, keccak256};

use super::lab::{Lab, block, timed, transfer};
use super::{Aim, Figure};
use crate::index::Index;
use crate::model::{EventKind, Subscription};

const LOGS: u32 = 200;

fn token(number: u32) -> Address {
    Address::from_word(keccak256(number.to_be_bytes()))
}

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, spread) in [("one", false), ("spread", true)] {
        let mut base = None;
        for count in [1u32, 100, 10_000] {
            let topic = keccak256("Transfer(address,address,uint256)");
            let subscriptions: Vec<[Subscription; 1]> = (0..count)
                .map(|n| {
                    let mut s = Subscription::all(EventKind::Log);
                    (s.addresses, s.topics[0]) = (vec![token(n)], vec![topic]);
                    [s]
                })
                .collect();
            let index = Index::new(subscriptions.iter().enumerate().map(|(n, s)| (n as u32, s.as_slice())));
            let logs = (0..LOGS).map(|n| transfer(n, token(if spread { n * 37 % count } else { 0 }), false));
            let block = block(1, logs.collect());
            let ns = lab.best(LOGS as usize, || timed(|| index.match_block(&block)));
            let one = *base.get_or_insert(ns);
            figures.push(Figure::new(
                format!("index_{name}_{count}"),
                (ns, "ns/event"),
                (one, "one subscription"),
                Aim::AtMost(2.0),
            ));
        }
    }
    Ok(figures)
}
