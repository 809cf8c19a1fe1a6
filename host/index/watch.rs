//! Watch sets in memory: of which sets a value is a member, as of a block. Pure; who edits and who remembers is
//! elsewhere (`router`, `journal`).
//!
//! All sets share two tables, of addresses and of other words, so that a look-up costs the same whatever the number
//! of sets: open addressing with linear probing, in shards that grow alone. An entry is the value, its set and the
//! edit that added it: 28 bytes an address, 40 a word, at 64 to 80 % load 35 to 44, or 50 to 63.
//!
//! An edit holds from a block on, which may differ from chain to chain. What was removed is kept aside with both of
//! its edits: whoever reads an earlier block still sees it there.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use alloy_primitives::{Address, B256};
use foldhash::{HashMap, fast::RandomState};

use crate::model::{ChainId, EditId, Member, SetName};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

const SHARDS: usize = 64;
const FREE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot<const N: usize> {
    key: [u8; N],
    set: u32,
    edit: u32,
}

/// One table of them, for all who match and the one who edits.
#[derive(Clone, Debug, Default)]
pub struct SharedSets(Arc<RwLock<Sets>>);

impl SharedSets {
    pub fn new(sets: Sets) -> Self {
        Self(Arc::new(RwLock::new(sets)))
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Sets> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, Sets> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One kind of value: a multimap from it to its sets.
struct Members<const N: usize> {
    shards: Vec<Vec<Slot<N>>>,
    used: Vec<usize>,
    /// Random: whoever chooses addresses must not choose where they are filed.
    hash: RandomState,
}

impl<const N: usize> Default for Members<N> {
    fn default() -> Self {
        Self { shards: vec![Vec::new(); SHARDS], used: vec![0; SHARDS], hash: RandomState::default() }
    }
}

impl<const N: usize> Members<N> {
    const EMPTY: Slot<N> = Slot { key: [0; N], set: FREE, edit: 0 };

    fn hash(&self, key: &[u8; N]) -> (usize, u64) {
        let mut hasher = self.hash.build_hasher();
        hasher.write(key);
        let hash = hasher.finish();
        (hash as usize % SHARDS, hash)
    }

    /// Where a value's run of slots begins: the upper bits, spread over any length.
    fn home(hash: u64, len: usize) -> usize {
        ((u128::from(hash) * len as u128) >> 64) as usize
    }

    fn find(&self, key: &[u8; N], mut each: impl FnMut(u32, u32)) {
        let (shard, hash) = self.hash(key);
        let slots = &self.shards[shard];
        if slots.is_empty() {
            return;
        }
        let mut at = Self::home(hash, slots.len());
        while slots[at].set != FREE {
            if slots[at].key == *key {
                each(slots[at].set, slots[at].edit);
            }
            at = if at + 1 == slots.len() { 0 } else { at + 1 };
        }
    }

    /// False where it is there already.
    fn insert(&mut self, key: [u8; N], set: u32, edit: u32) -> bool {
        let (shard, hash) = self.hash(&key);
        let len = self.shards[shard].len();
        // At most 80 % full, at least 64 % after it grew.
        if (self.used[shard] + 1) * 5 > len * 4 {
            self.grow(shard, len + len / 4 + 8);
        }
        let slots = &mut self.shards[shard];
        let mut at = Self::home(hash, slots.len());
        while slots[at].set != FREE {
            if slots[at].set == set && slots[at].key == key {
                return false;
            }
            at = if at + 1 == slots.len() { 0 } else { at + 1 };
        }
        slots[at] = Slot { key, set, edit };
        self.used[shard] += 1;
        true
    }

    fn grow(&mut self, shard: usize, len: usize) {
        let old = std::mem::replace(&mut self.shards[shard], vec![Self::EMPTY; len]);
        for slot in old.into_iter().filter(|slot| slot.set != FREE) {
            let (_, hash) = self.hash(&slot.key);
            let slots = &mut self.shards[shard];
            let mut at = Self::home(hash, len);
            while slots[at].set != FREE {
                at = if at + 1 == len { 0 } else { at + 1 };
            }
            slots[at] = slot;
        }
    }

    /// The edit that had added it.
    fn remove(&mut self, key: &[u8; N], set: u32) -> Option<u32> {
        let (shard, hash) = self.hash(key);
        let len = self.shards[shard].len();
        if len == 0 {
            return None;
        }
        let mut at = Self::home(hash, len);
        let next = |at: usize| if at + 1 == len { 0 } else { at + 1 };
        loop {
            let slot = self.shards[shard][at];
            if slot.set == FREE {
                return None;
            }
            if slot.set == set && slot.key == *key {
                break;
            }
            at = next(at);
        }
        let edit = self.shards[shard][at].edit;
        // What follows moves up, unless that would put it before its home: runs stay whole without tombstones.
        let (mut hole, mut probe) = (at, next(at));
        while self.shards[shard][probe].set != FREE {
            let home = Self::home(self.hash(&self.shards[shard][probe].key).1, len);
            let between = if hole <= probe { hole < home && home <= probe } else { hole < home || home <= probe };
            if !between {
                self.shards[shard][hole] = self.shards[shard][probe];
                hole = probe;
            }
            probe = next(probe);
        }
        self.shards[shard][hole] = Self::EMPTY;
        self.used[shard] -= 1;
        Some(edit)
    }

    fn all(&self) -> impl Iterator<Item = &Slot<N>> {
        self.shards.iter().flatten().filter(|slot| slot.set != FREE)
    }

    fn bytes(&self) -> usize {
        self.shards.iter().map(|slots| slots.capacity() * size_of::<Slot<N>>()).sum()
    }
}

/// Every set, and every edit's first block on every chain.
#[derive(Default)]
pub struct Sets {
    names: Vec<SetName>,
    ids: HashMap<SetName, SetId>,
    counts: Vec<u64>,
    addresses: Members<20>,
    words: Members<32>,
    /// What was removed: from the one edit to the other it was a member.
    gone: HashMap<Member, Vec<(SetId, EditId, EditId)>>,
    /// By edit, the first block on which it holds.
    begins: HashMap<ChainId, Vec<u64>>,
    edits: u32,
}

impl std::fmt::Debug for Sets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sets").field("names", &self.names).field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Sets {
    /// The number of a set, which is made where it is not there: a set that nobody filled is empty.
    pub fn id(&mut self, name: &SetName) -> SetId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = SetId(self.names.len() as u32);
        self.names.push(name.clone());
        self.counts.push(0);
        self.ids.insert(name.clone(), id);
        id
    }

    pub fn get(&self, name: &SetName) -> Option<SetId> {
        self.ids.get(name).copied()
    }

    pub fn name(&self, id: SetId) -> &SetName {
        &self.names[id.0 as usize]
    }

    /// Every set with the number of its members.
    pub fn list(&self) -> impl Iterator<Item = (&SetName, u64)> {
        self.names.iter().zip(self.counts.iter().copied())
    }

    pub fn last_edit(&self) -> EditId {
        EditId(self.edits)
    }

    /// Notes an edit's first block on each chain; chains that are not named have it from their beginning.
    pub fn edit(&mut self, edit: EditId, begins: impl IntoIterator<Item = (ChainId, u64)>) {
        self.edits = self.edits.max(edit.0);
        for (chain, block) in begins {
            let all = self.begins.entry(chain).or_default();
            if all.len() <= edit.0 as usize {
                all.resize(edit.0 as usize + 1, 0);
            }
            all[edit.0 as usize] = block;
        }
    }

    /// False where it is a member already.
    pub fn add(&mut self, set: SetId, member: Member, edit: EditId) -> bool {
        let added = match member {
            Member::Address(address) => self.addresses.insert(address.into(), set.0, edit.0),
            Member::Word(word) => self.words.insert(word.into(), set.0, edit.0),
        };
        self.counts[set.0 as usize] += u64::from(added);
        added
    }

    /// False where it is no member.
    pub fn remove(&mut self, set: SetId, member: Member, edit: EditId) -> bool {
        let added = match &member {
            Member::Address(address) => self.addresses.remove(address, set.0),
            Member::Word(word) => self.words.remove(word, set.0),
        };
        let Some(added) = added else { return false };
        self.counts[set.0 as usize] -= 1;
        self.gone.entry(member).or_default().push((set, EditId(added), edit));
        true
    }

    pub fn contains(&self, set: SetId, member: &Member) -> bool {
        let mut found = false;
        self.find(member, |other, _| found |= other == set);
        found
    }

    /// The members of one set now, in no order. Looks at all that there is.
    pub fn members(&self, set: SetId) -> impl Iterator<Item = Member> {
        let of = move |slot: u32| slot == set.0;
        let addresses = self.addresses.all().filter(move |s| of(s.set)).map(|s| Member::Address(Address::from(s.key)));
        let words = self.words.all().filter(move |s| of(s.set)).map(|s| Member::Word(B256::from(s.key)));
        addresses.chain(words)
    }

    /// The first so many members after one, addresses before words, in the order of their bytes. Looks at all that there is.
    pub fn page(&self, set: SetId, after: Option<Member>, limit: usize) -> Vec<Member> {
        let mut page: std::collections::BinaryHeap<Member> = Default::default();
        for member in self.members(set).filter(|m| after.is_none_or(|after| *m > after)) {
            if page.len() < limit {
                page.push(member);
            } else if let Some(mut last) = page.peek_mut()
                && *last > member
            {
                *last = member;
            }
        }
        page.into_sorted_vec()
    }

    fn find(&self, member: &Member, mut each: impl FnMut(SetId, EditId)) {
        let each = |set, edit| each(SetId(set), EditId(edit));
        match member {
            Member::Address(address) => self.addresses.find(address, each),
            Member::Word(word) => self.words.find(word, each),
        }
    }

    /// As a block of a chain has it.
    pub fn at(&self, chain: ChainId, block: u64) -> View<'_> {
        View { sets: self, begins: self.begins.get(&chain).map_or(&[], Vec::as_slice), block, most: EditId(u32::MAX) }
    }

    /// Bytes in memory that members take.
    pub fn bytes(&self) -> usize {
        let gone = size_of::<(Member, Vec<()>)>() + size_of::<(SetId, EditId, EditId)>() + 1;
        let begins: usize = self.begins.values().map(|b| b.capacity() * 8).sum();
        self.addresses.bytes() + self.words.bytes() + self.gone.len() * gone * 2 + begins
    }
}

/// The sets as one block has them, by the edits up to one.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    sets: &'a Sets,
    begins: &'a [u64],
    block: u64,
    most: EditId,
}

impl<'a> View<'a> {
    /// As if this edit had been the last.
    pub fn upto(self, edit: EditId) -> Self {
        Self { most: edit, ..self }
    }

    pub fn sets(&self) -> &'a Sets {
        self.sets
    }

    fn holds(&self, edit: EditId) -> bool {
        edit <= self.most && self.begins.get(edit.0 as usize).is_none_or(|first| *first <= self.block)
    }

    /// Each set that the value is a member of.
    pub fn sets_of(&self, member: impl Into<Member>, mut each: impl FnMut(SetId)) {
        let member = member.into();
        self.sets.find(&member, |set, edit| {
            if self.holds(edit) {
                each(set);
            }
        });
        if self.sets.gone.is_empty() {
            return;
        }
        for (set, from, to) in self.sets.gone.get(&member).into_iter().flatten() {
            if self.holds(*from) && !self.holds(*to) {
                each(*set);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn member(n: u8) -> Member {
        // Both kinds, and words that are addresses.
        match n % 3 {
            0 => Address::repeat_byte(n).into(),
            1 => Address::repeat_byte(n).into_word().into(),
            _ => B256::repeat_byte(n).into(),
        }
    }

    proptest! {
        /// Against a list of memberships that is looked through from end to end.
        #[test]
        fn a_value_is_in_the_sets_that_the_edits_up_to_a_block_put_it_into(
            edits in proptest::collection::vec((any::<bool>(), 0u8..3, proptest::collection::vec(0u8..12, 1..20), 0u64..20, 0u64..20), 1..40)
        ) {
            let mut sets = Sets::default();
            let ids = ["a", "b", "c"].map(|name| sets.id(&SetName::new(name).unwrap()));
            // (set, member) -> spans of edits.
            let mut spans: BTreeMap<(SetId, Member), Vec<(EditId, Option<EditId>)>> = BTreeMap::new();
            let mut begins = vec![[0, 0]];
            for (n, (add, set, members, one, two)) in edits.into_iter().enumerate() {
                let (edit, set) = (EditId(n as u32 + 1), ids[usize::from(set)]);
                sets.edit(edit, [(ChainId(1), one), (ChainId(2), two)]);
                begins.push([one, two]);
                for m in members.into_iter().map(member) {
                    let spans = spans.entry((set, m)).or_default();
                    let is = spans.last().is_some_and(|(_, end)| end.is_none());
                    prop_assert_eq!(sets.contains(set, &m), is);
                    if add {
                        prop_assert_eq!(sets.add(set, m, edit), !is);
                        if !is { spans.push((edit, None)); }
                    } else {
                        prop_assert_eq!(sets.remove(set, m, edit), is);
                        if is { spans.last_mut().unwrap().1 = Some(edit); }
                    }
                }
            }
            for (chain, number) in [(0, 1u64), (1, 2), (2, 3)] {
                for block in [0, 5, 10, 19, 25] {
                    for most in [0, 1, 5, 20, 1000] {
                        let view = sets.at(ChainId(number), block).upto(EditId(most));
                        let holds = |edit: EditId| edit.0 <= most && begins[edit.0 as usize].get(chain).is_none_or(|b| *b <= block);
                        for n in 0..12 {
                            let mut found = BTreeSet::new();
                            view.sets_of(member(n), |set| { found.insert(set); });
                            let expected: BTreeSet<SetId> = ids.into_iter().filter(|set| {
                                let spans = spans.get(&(*set, member(n))).into_iter().flatten();
                                spans.into_iter().any(|(from, to)| holds(*from) && !to.is_some_and(holds))
                            }).collect();
                            prop_assert_eq!(found, expected);
                        }
                    }
                }
            }
            for (id, (_, count)) in ids.into_iter().zip(sets.list()) {
                let mut all: Vec<Member> = sets.members(id).collect();
                all.sort();
                prop_assert_eq!(all.len() as u64, count);
                prop_assert_eq!(sets.page(id, None, 1000), &all[..]);
                if let Some(first) = all.first() {
                    prop_assert_eq!(sets.page(id, Some(*first), 2), all.iter().skip(1).take(2).copied().collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn an_entry_takes_less_than_64_bytes() {
        let mut sets = Sets::default();
        let id = sets.id(&SetName::new("s").unwrap());
        for count in [30_000u64, 100_000] {
            for n in 0..count {
                sets.add(id, alloy_primitives::keccak256(n.to_be_bytes()).into(), EditId(0));
            }
            assert!(sets.bytes() < 64 * count as usize, "{} bytes for {count}", sets.bytes());
        }
        let mut addresses = Sets::default();
        let id = addresses.id(&SetName::new("s").unwrap());
        for n in 0..100_000u64 {
            addresses.add(id, Address::from_word(alloy_primitives::keccak256(n.to_be_bytes())).into(), EditId(0));
        }
        assert!(addresses.bytes() < 46 * 100_000, "{}", addresses.bytes());
    }
}
