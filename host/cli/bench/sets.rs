//! Watch sets of ten million entries: memory an entry, what matching costs beside it, how fast a set is filled into the
//! journal and read back at the start.

use std::time::Instant;

use alloy_primitives::{Address, B256};
use rand::RngCore;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::lab::{CHAIN, Lab, block, timed, transfers};
use super::{Aim, Figure};
use crate::index::Index;
use crate::index::watch::Sets;
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{Journal, Write};
use crate::model::{Edit, EditId, EventKind, Member, Place, SetName, Subscription};
use crate::router::edits;

/// Of as many addresses: more than a cache holds.
const LOGS: u32 = 100_000;
/// Of one edit, as the HTTP interface does it.
const AT_ONCE: u64 = 2_000;

fn addresses(count: u64) -> impl Iterator<Item = Member> {
    let mut random = SmallRng::seed_from_u64(1);
    (0..count).map(move |_| {
        let mut address = Address::ZERO;
        random.fill_bytes(address.as_mut_slice());
        address.into()
    })
}

fn words(count: u64) -> impl Iterator<Item = Member> {
    let mut random = SmallRng::seed_from_u64(2);
    (0..count).map(move |_| {
        let mut word = B256::ZERO;
        random.fill_bytes(word.as_mut_slice());
        word.into()
    })
}

fn filled(name: &SetName, members: impl Iterator<Item = Member>) -> Sets {
    let mut sets = Sets::default();
    let id = sets.id(name);
    for member in members {
        sets.add(id, member, EditId(0));
    }
    sets
}

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let name = SetName::new("deposits")?;
    let count = lab.either(10_000_000, 10_000);
    let mut figures = Vec::new();
    let per_entry = |what: &str, sets: &Sets| {
        let bytes = sets.bytes() as f64 / count as f64;
        Figure::new(what, (bytes, "bytes"), (64.0, "64 bytes"), Aim::AtMost(1.0))
    };
    let of_words = filled(&name, words(count));
    figures.push(per_entry("sets_bytes_word", &of_words));
    drop(of_words);
    let mut large = filled(&name, addresses(count));
    figures.push(per_entry("sets_bytes_address", &large));

    // Each log is looked up by sender and by receiver; one in a hundred is of a member.
    let mut small = filled(&name, addresses(1_000));
    let sides = [1, 2].map(|place| {
        let mut s = Subscription::all(EventKind::Log);
        s.sets.push((Place::Topic(place), name.clone()));
        s
    });
    let mut logs = transfers(LOGS, 100);
    let mut member = addresses(1);
    if let Some(Member::Address(member)) = member.next() {
        for (n, log) in logs.iter_mut().enumerate() {
            let other = Address::from_word(alloy_primitives::keccak256(n.to_be_bytes()));
            log.topics[2] = if n % 100 == 0 { member } else { other }.into_word();
        }
    }
    let block = block(1, logs);
    let mut unset = sides.clone();
    unset.iter_mut().zip([1, 2]).for_each(|(s, place)| {
        s.sets.clear();
        s.topics[place] = vec![B256::repeat_byte(9)];
    });
    let index_few = Index::new(CHAIN, [(0, sides.as_slice())], &mut small);
    let index_many = Index::new(CHAIN, [(0, sides.as_slice())], &mut large);
    let index_none = Index::new(CHAIN, [(0, unset.as_slice())], &mut Sets::default());
    let none = Sets::default();
    let [plain, few, many] = lab.best(
        LOGS as usize,
        [
            &mut || timed(|| index_none.match_block(&block, none.at(CHAIN, 1))),
            &mut || timed(|| index_few.match_block(&block, small.at(CHAIN, 1))),
            &mut || timed(|| index_many.match_block(&block, large.at(CHAIN, 1))),
        ],
    );
    figures.push(Figure::new("sets_match_1000", (few, "ns/event"), (plain, "no set"), Aim::None));
    figures.push(Figure::new("sets_match_10m", (many, "ns/event"), (few, "a set of 1,000"), Aim::None));
    drop(large);

    let path = lab.dir("sets")?.join("journal.db");
    let stored = lab.either(1_000_000, 10_000);
    let journal = SqliteJournal::open(&path)?;
    let mut members = addresses(stored);
    let began = Instant::now();
    for id in 1..=stored / AT_ONCE {
        let add = members.by_ref().take(AT_ONCE as usize).collect();
        let edit = Edit { id: EditId(id as u32), set: name.clone(), begins: vec![(CHAIN, id)], add, remove: vec![] };
        journal.commit(Write::Watch { edit, catch_up: vec![] }).await?;
    }
    let filling = stored as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let sets = edits::load(&*journal)?;
    let loading = stored as f64 / began.elapsed().as_secs_f64();
    anyhow::ensure!(sets.list().map(|(_, n)| n).sum::<u64>() == stored, "not all members came back");
    journal.close(std::time::Duration::from_secs(10))?;
    let unit = "entries/s";
    figures.push(Figure::new("sets_filled", (filling, unit), (loading, "reading them back"), Aim::None));
    figures.push(Figure::new("sets_loaded", (loading, unit), (filling, "filling them in"), Aim::None));
    Ok(figures)
}
