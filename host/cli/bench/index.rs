//! What it costs to find out who gets an event: ns an event of matching and encoding, with 1, 100 and 10,000
//! subscriptions filed. `one` of them gets the events, or they are `spread` over all.

use std::sync::LazyLock;

use alloy_primitives::{Address, keccak256};

use super::lab::{Lab, TRANSFER, block, timed, transfer};
use super::{Aim, Figure};
use crate::index::Index;
use crate::index::watch::Sets;
use crate::model::{ChainId, EventKind, Subscription};

const LOGS: u32 = 200;
const CHAIN: ChainId = ChainId(1);
static NO_SETS: LazyLock<Sets> = LazyLock::new(Sets::default);

fn token(number: u32) -> Address {
    Address::from_word(keccak256(number.to_be_bytes()))
}

pub fn measure(lab: &Lab) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (name, spread) in [("one", false), ("spread", true)] {
        let counts = [1u32, 100, 10_000];
        let filed = counts.map(|count| {
            let subscriptions = (0..count).map(|n| {
                let mut s = Subscription::all(EventKind::Log);
                (s.addresses, s.topics[0]) = (vec![token(n)], vec![TRANSFER]);
                [s]
            });
            let subscriptions: Vec<[Subscription; 1]> = subscriptions.collect();
            let mut sets = Sets::default();
            let subscribers = subscriptions.iter().enumerate().map(|(n, s)| (n as u32, s.as_slice()));
            let index = Index::new(CHAIN, subscribers, &mut sets);
            let logs = (0..LOGS).map(|n| transfer(n, token(if spread { n * 37 % count } else { 0 }), false));
            (index, block(1, logs.collect()))
        });
        let [mut few, mut some, mut many] =
            filed.map(|(index, block)| move || timed(|| index.match_block(&block, NO_SETS.at(CHAIN, 1))));
        let ns = lab.best(LOGS as usize, [&mut few, &mut some, &mut many]);
        figures.extend(counts.iter().zip(ns).map(|(count, took)| {
            let name = format!("index_{name}_{count}");
            Figure::new(name, (took, "ns/event"), (ns[0], "one subscription"), Aim::AtMost(2.0))
        }));
    }
    figures
}
