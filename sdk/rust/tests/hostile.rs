//! Whatever the bytes, a reader says that they are malformed or reads what is in them; and the state is what a plain map would be.

use std::collections::BTreeMap;

use chainweir_sdk::batch::{Batch, Record};
use chainweir_sdk::prelude::*;
use chainweir_sdk::testing::{Block, Log, Tester, Tx, answer, encode_batch};
use chainweir_sdk::verdict::{ContentType, Verdicts};
use proptest::collection::vec;
use proptest::prelude::*;

/// Touches everything that the views give; returns the number of events.
fn read_all(bytes: &[u8]) -> Option<usize> {
    let mut count = 0;
    for event in Batch::read(bytes).ok()?.events() {
        match event.ok()?.record {
            Record::Block(b) => {
                let _ = (b.number(), b.timestamp(), b.base_fee(), b.transaction_count(), b.hash(), b.beneficiary());
            }
            Record::Transaction(t) | Record::Pending(t) => {
                let _ = (t.value(), t.fee(), t.from(), t.to(), t.created(), t.gas_price(), t.hash(), format!("{t:?}"));
                assert!(t.input().len() <= bytes.len());
            }
            Record::Log(l) => {
                let _ = (l.address(), l.tx_hash(), l.block().number(), l.topics().concat(), format!("{l:?}"));
                let _ = (l.decoded(), l.is_in(Place::Address, "a"), l.is_made());
                assert!(l.data().len() <= bytes.len() && l.topics().len() <= 4);
            }
            Record::Transfer(t) => {
                let _ =
                    (t.value(), t.from(), t.to(), t.how(), t.tx_hash(), t.is_in(Place::Sender, "a"), format!("{t:?}"));
            }
        }
        count += 1;
    }
    Some(count)
}

prop_compose! {
    fn log()(address: [u8; 20], topics in vec(any::<[u8; 32]>(), 0..=4), data in vec(any::<u8>(), 0..100)) -> Log {
        Log::raw(address.into(), topics.into_iter().map(B256::from).collect::<Vec<_>>(), data)
    }
}

prop_compose! {
    fn tx()(from: [u8; 20], to: Option<[u8; 20]>, created: Option<[u8; 20]>, value: [u8; 32], input in vec(any::<u8>(), 0..100),
            nonce: u64, gas_used: u64, gas_price: u128, success: Option<bool>, logs in vec(log(), 0..4)) -> Tx {
        let mut tx = Tx::new(from.into(), Address::ZERO).value(U256::from_be_bytes(value)).input(input);
        tx.to = to.map(Address::from);
        tx.created = created.map(Address::from);
        (tx.nonce, tx.gas_used, tx.gas_price, tx.success, tx.logs) = (nonce, gas_used, gas_price, success, logs);
        tx
    }
}

prop_compose! {
    fn block()(number: u64, timestamp: u64, base_fee in proptest::option::of(0..u64::MAX), txs in vec(tx(), 0..4)) -> Block {
        let mut block = txs.into_iter().fold(Block::new(number), Block::tx);
        (block.timestamp, block.base_fee) = (timestamp, base_fee);
        block
    }
}

fn encode(block: &Block) -> Vec<u8> {
    let mut records = vec![block.encode(true)];
    let mut log_index = 0;
    for (i, tx) in block.transactions.iter().enumerate() {
        records.push(block.encode_tx(i));
        for log in &tx.logs {
            records.push(block.encode_log(i, log, log_index));
            log_index += 1;
        }
    }
    encode_batch(block.chain_id, &records)
}

/// Writes to the state as the data of a log says: pairs of a key and a value; value 0 deletes, 255 at the end rejects.
#[config]
struct Writer;

#[plugin(name = "writer")]
impl Writer {
    #[log]
    fn write(&self, log: &LogView) -> Result {
        for pair in log.data().chunks_exact(2) {
            match pair[1] {
                0 => state::delete(&[b'k', pair[0]]),
                value => state::set(&[b'k', pair[0]], &[value]),
            }
            let after = [b'k', pair[0]];
            // Reads between the writes: they must not change what follows.
            let _ = (state::get(&after), state::scan(b"k", Some(&after), 3));
        }
        if log.data().last() == Some(&255) {
            reject!("told to");
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_batch_reads_back_as_what_was_encoded(block in block()) {
        let bytes = encode(&block);
        let (mut txs, mut logs) = (0, 0);
        let all: Vec<&Log> = block.transactions.iter().flat_map(|tx| &tx.logs).collect();
        for event in Batch::read(&bytes).unwrap().events() {
            match event.unwrap().record {
                Record::Block(b) => {
                    prop_assert_eq!((b.number(), b.timestamp(), b.base_fee()), (block.number, block.timestamp, block.base_fee));
                }
                Record::Transaction(t) => {
                    let tx = &block.transactions[txs];
                    prop_assert_eq!((t.from(), t.to(), t.created(), t.value()), (tx.from, tx.to, tx.created, tx.value));
                    prop_assert_eq!((t.nonce(), t.gas_price(), t.success()), (tx.nonce, tx.gas_price, tx.success));
                    prop_assert_eq!(t.gas_used(), tx.success.map(|_| tx.gas_used));
                    prop_assert_eq!(t.input(), &tx.input[..]);
                    txs += 1;
                }
                Record::Log(l) => {
                    let log = all[logs];
                    prop_assert_eq!((l.address(), l.topics(), l.data()), (log.address, &log.topics[..], &log.data[..]));
                    logs += 1;
                }
                Record::Transfer(_) | Record::Pending(_) => unreachable!("none was encoded"),
            }
        }
        prop_assert_eq!((txs, logs), (block.transactions.len(), all.len()));
    }

    #[test]
    fn a_mutated_batch_never_panics(block in block(), cut: u16, changes in vec((any::<u16>(), any::<u8>()), 0..8)) {
        let mut bytes = encode(&block);
        for (at, value) in changes {
            let len = bytes.len();
            bytes[usize::from(at) % len] = value;
        }
        read_all(&bytes);
        bytes.truncate(usize::from(cut) % (bytes.len() + 1));
        read_all(&bytes);
    }

    #[test]
    fn any_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        read_all(&[&b"CWB1\x18\0\0\0"[..], &bytes].concat());
    }

    #[test]
    fn verdicts_read_back_as_written(said in vec((any::<u8>(), 0u8..4, ".{0,9}", vec(any::<u8>(), 0..40)), 0..12)) {
        let mut out = Verdicts::new();
        let mut expected = 0;
        for (event, kind, text, bytes) in &said {
            let event = u32::from(*event);
            match kind {
                0 => out.pass(event, 1),
                1 => out.emit(event, 0, ContentType::Bytes, text, bytes),
                2 => out.reject(event, text),
                _ => {
                    // Written and taken back, as for a rejected event.
                    let mark = out.mark();
                    out.emit(event, 0, ContentType::Text, "", text.as_bytes());
                    out.rewind(mark);
                    expected -= 1;
                }
            }
            expected += 1;
        }
        let read = answer::read(&out.finish(), 256, 2).expect("well-formed");
        prop_assert_eq!(read.len() as i32, expected);
    }

    #[test]
    fn the_state_is_what_a_plain_map_would_be_and_rejected_events_leave_no_trace(
        blocks in vec(vec(vec(0u8..=255, 0..10), 0..5), 1..4), per_call in 1usize..4,
    ) {
        let mut plugin = Tester::<Writer>::new().events_per_call(per_call);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (number, logs) in blocks.iter().enumerate() {
            let block = logs.iter().fold(Block::new(number as u64), |b, data| b.log(Log::raw(Address::ZERO, [], data.clone())));
            let answer = plugin.try_block(&block).unwrap();
            let rejected = logs.iter().filter(|data| data.last() == Some(&255)).count();
            prop_assert_eq!(answer.rejected.len(), rejected);
            for data in logs.iter().filter(|data| data.last() != Some(&255)) {
                for pair in data.chunks_exact(2) {
                    match pair[1] {
                        0 => model.remove(&vec![b'k', pair[0]]),
                        value => model.insert(vec![b'k', pair[0]], vec![value]),
                    };
                }
            }
            let found: BTreeMap<Vec<u8>, Vec<u8>> = plugin.entries().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(&found, &model);
        }
    }

    #[test]
    fn a_scan_sees_the_calls_own_writes_in_key_order(
        before in vec(any::<u16>(), 0..700), writes in vec((any::<u16>(), any::<bool>()), 0..60), after: Option<u16>, limit in 0usize..900,
    ) {
        const TABLE: Table<u32, u32> = Table::new("t");
        let key = |n: u16| u32::from(n % 1000);
        let mut host = Tester::<Writer>::new();
        host.state(|| before.iter().for_each(|n| TABLE.set(&key(*n), &1).unwrap()));
        let mut model: BTreeMap<u32, u32> = before.iter().map(|n| (key(*n), 1)).collect();
        let found = host.state(|| {
            for (n, set) in &writes {
                if *set {
                    TABLE.set(&key(*n), &2).unwrap();
                } else {
                    TABLE.delete(&key(*n));
                }
            }
            TABLE.scan(after.map(key).as_ref(), limit).unwrap()
        });
        for (n, set) in &writes {
            if *set {
                model.insert(key(*n), 2);
            } else {
                model.remove(&key(*n));
            }
        }
        let expected: Vec<(u32, u32)> =
            model.into_iter().filter(|(k, _)| after.is_none_or(|after| *k > key(after))).take(limit).collect();
        prop_assert_eq!(found, expected);
    }
}
