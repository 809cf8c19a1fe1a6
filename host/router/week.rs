//! A week of a node's life, in seconds: 50,400 slots of 12 s under paused time, by a seed. The real driver ([`Follow`]), the
//! real follower and the real rule of the next step stand between two providers of a made-up network and a consumer. The
//! network reorganises, misses slots and stops to finalize; the providers lag, stand on branches that have lost, fail now
//! and then and are down for hours; the process is killed and started again, minutes or hours later. At every quiet moment
//! the consumer holds what a replay of the canonical chain gives, and what it took as final is never taken back.
//!
//! A day by default, a week with `CHAINWEIR_LONG=1`; `CHAINWEIR_SEED=n` plays that one again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::B256;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::follow::{Follow, News};
use super::next::{Next, next};
use super::trees::{Consumer, hash, index};
use crate::chain::Follower;
use crate::config::Finality;
use crate::model::{Block, BlockRef, BlockUpdate, ChainId, Wanted};
use crate::source::{Range, ReadError, Source, Tag};

const SLOT: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_secs(2);
const EPOCH: usize = 32;
const CHAIN: ChainId = ChainId(1);

#[derive(Default, Debug)]
struct Tally {
    reorgs: u32,
    deepest: usize,
    missed_slots: u32,
    finality_stalls: u32,
    outages: u32,
    failed_reads: u32,
    switches: u32,
    stale_forks: u32,
    restarts: u32,
    new_paths: u32,
    undone: u32,
}

/// What one provider holds for the canonical chain, by height.
struct Provider {
    path: Vec<usize>,
    down_until: u64,
    /// Slots until it looks at the network again; on whatever branch it stands.
    blind: u32,
}

struct World {
    rng: StdRng,
    blocks: Vec<BlockRef>,
    path: Vec<usize>,
    finalized: usize,
    stalled_until: u64,
    slot: u64,
    providers: [Provider; 2],
    current: usize,
    /// Nothing goes wrong: the check's hour.
    calm: bool,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> Self {
        let genesis = BlockRef { chain: CHAIN, number: 0, hash: hash(0), parent: B256::ZERO, time: 0 };
        let provider = || Provider { path: vec![0], down_until: 0, blind: 0 };
        Self {
            rng: StdRng::seed_from_u64(seed),
            blocks: vec![genesis],
            path: vec![0],
            finalized: 0,
            stalled_until: 0,
            slot: 0,
            providers: [provider(), provider()],
            current: 0,
            calm: false,
            tally: Tally::default(),
        }
    }

    fn push(&mut self) {
        let parent = self.blocks[self.path[self.path.len() - 1]];
        let next = self.blocks.len();
        let time = self.slot * SLOT.as_secs();
        self.blocks.push(BlockRef { number: parent.number + 1, hash: hash(next), parent: parent.hash, time, ..parent });
        self.path.push(next);
    }

    fn sync(&mut self, which: usize) {
        let theirs = &mut self.providers[which].path;
        let mut same = theirs.len().min(self.path.len());
        while theirs[same - 1] != self.path[same - 1] {
            same -= 1;
        }
        theirs.truncate(same);
        theirs.extend_from_slice(&self.path[same..]);
    }

    /// Twelve seconds of the network.
    fn tick(&mut self) {
        self.slot += 1;
        let misfortune = |rng: &mut StdRng, one_in: u32, calm: bool| !calm && rng.random_ratio(1, one_in);
        let calm = self.calm;
        if misfortune(&mut self.rng, 60, calm) {
            let deep = if self.rng.random_ratio(1, 20) { 40 } else { 4 };
            let depth = self.rng.random_range(1..deep).min(self.path.len() - 1 - self.finalized);
            self.path.truncate(self.path.len() - depth);
            (0..depth).for_each(|_| self.push());
            self.tally.reorgs += u32::from(depth > 0);
            self.tally.deepest = self.tally.deepest.max(depth);
        }
        if misfortune(&mut self.rng, 30, calm) {
            self.tally.missed_slots += 1
        } else {
            self.push()
        }
        if misfortune(&mut self.rng, 3_000, calm) {
            self.stalled_until = self.slot + self.rng.random_range(100..900);
            self.tally.finality_stalls += 1;
        }
        if self.slot >= self.stalled_until {
            // The epoch before the last whole one.
            let safe = ((self.path.len() - 1) / EPOCH * EPOCH).saturating_sub(2 * EPOCH);
            self.finalized = self.finalized.max(safe);
        }
        for which in 0..2 {
            if misfortune(&mut self.rng, 800, calm) {
                self.providers[which].down_until = self.slot + self.rng.random_range(1..400);
                self.tally.outages += 1;
            }
            if misfortune(&mut self.rng, 60, calm) {
                self.providers[which].blind = self.rng.random_range(1..30);
            }
            let provider = &mut self.providers[which];
            if provider.blind > 0 && !calm {
                provider.blind -= 1;
                let stale = provider.path.last() != self.path.get(provider.path.len() - 1);
                self.tally.stale_forks += u32::from(stale);
            } else {
                self.sync(which);
            }
        }
    }

    /// The provider that is asked: the one in use, or the other where that is down.
    fn ask(&mut self) -> Result<&Provider, ReadError> {
        let down = |p: &Provider, slot| p.down_until > slot;
        let again = |why: &str| Err(ReadError::Again { why: why.into(), after: None });
        if !self.calm && self.rng.random_ratio(1, 150) {
            self.tally.failed_reads += 1;
            return again("it failed");
        }
        if down(&self.providers[self.current], self.slot) && !self.calm {
            self.current = 1 - self.current;
            self.tally.switches += 1;
            if down(&self.providers[self.current], self.slot) {
                return again("nobody answers");
            }
        }
        Ok(&self.providers[self.current])
    }

    fn at(&mut self, number: u64) -> Result<BlockRef, ReadError> {
        let found = self.ask()?.path.get(number as usize).copied();
        found.map(|i| self.blocks[i]).ok_or_else(|| ReadError::Unknown { what: format!("block {number}") })
    }
}

struct Network(Mutex<World>);

impl Network {
    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().expect("no panic while held")
    }
}

#[async_trait::async_trait]
impl Source for Network {
    fn chain(&self) -> ChainId {
        CHAIN
    }
    async fn head(&self) -> Result<BlockRef, ReadError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut world = self.world();
        let height = world.ask()?.path.len() as u64 - 1;
        world.at(height)
    }
    async fn tagged(&self, _: Tag) -> Result<Option<BlockRef>, ReadError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut world = self.world();
        let finalized = world.finalized;
        let known = world.ask()?.path.len() - 1;
        world.at(known.min(finalized) as u64).map(Some)
    }
    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut world = self.world();
        world.ask()?;
        Ok(world.blocks[index(hash)])
    }
    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.world().at(number)
    }
    async fn block(&self, _: &BlockRef, _: &Wanted) -> Result<Block, ReadError> {
        unreachable!("nobody asks for events here")
    }
    async fn range(&self, _: u64, _: u64, _: &Wanted) -> Result<Range, ReadError> {
        unreachable!("nobody asks for events here")
    }
    async fn changed(&self) {
        tokio::time::sleep(POLL).await;
    }
}

/// One life of the process: until a time, or a kill.
struct Life {
    network: Arc<Network>,
    news: mpsc::Receiver<(String, News)>,
    driver: tokio::task::JoinHandle<()>,
    path: Option<Follower>,
}

impl Life {
    /// `finalized` as a journal has it.
    fn begin(network: &Arc<Network>, finalized: Option<BlockRef>) -> Self {
        let (tell, news) = mpsc::channel(16);
        let follow = Follow {
            name: "week".into(),
            source: network.clone(),
            finality: Finality::Tags,
            finalized,
            news: tell,
            accept: Arc::new(Notify::new()),
        };
        Self { network: network.clone(), news, driver: tokio::spawn(follow.run()), path: None }
    }

    async fn live(&mut self, consumer: &mut Consumer, until: Instant) {
        loop {
            let heard = tokio::time::timeout_at(until, self.news.recv()).await;
            let Ok(heard) = heard else { return };
            match heard.expect("the driver lives").1 {
                News::Pending(_) | News::NewTrack | News::Tracking(_) => unreachable!("nobody asks for it"),
                News::Anchored { path, .. } => {
                    self.network.world().tally.new_paths += 1;
                    consumer.place.verified = false;
                    self.path = Some(path);
                }
                News::Changed { path, updates, .. } => {
                    let before = self.path.as_ref().expect("a path changes").finalized().number;
                    let removed = updates.iter().filter_map(|u| match u {
                        BlockUpdate::Removed(block) => Some(block.number),
                        _ => None,
                    });
                    removed.for_each(|number| assert!(number > before, "a final block is removed"));
                    assert!(path.finalized().number >= before, "finalized goes back");
                    self.path = Some(path);
                }
                News::Well | News::Trouble { .. } => {}
                News::Halted { why } => panic!("halted: {why}"),
                News::Ended => panic!("a chain does not end"),
            }
            self.work(consumer);
        }
    }

    /// All that the consumer can do now.
    fn work(&self, consumer: &mut Consumer) {
        let Some(path) = &self.path else { return };
        let finalized = path.finalized().number;
        loop {
            let world = self.network.world();
            let blocks = &world.blocks;
            // What is final is so for everybody; above it the path tells.
            let canonical =
                |number: u64| path.at(number).copied().unwrap_or_else(|| blocks[world.path[number as usize]]);
            let next = next(&consumer.place, path, finalized);
            // Providers differ in whether they know orphaned blocks: some do here.
            let knows = consumer.place.cursor.is_some_and(|at| at.number.is_multiple_of(2));
            consumer.step(&next, finalized, blocks, &canonical, knows);
            drop(world);
            match next {
                Next::Wait => return,
                Next::Undo => self.network.world().tally.undone += 1,
                _ => {}
            }
        }
    }
}

async fn live_through(seed: u64, slots: u64) -> Tally {
    let network = Arc::new(Network(Mutex::new(World::new(seed))));
    let mut rng = StdRng::seed_from_u64(!seed);
    let world = network.clone();
    let weather = tokio::spawn(async move {
        let mut slots = tokio::time::interval(SLOT);
        loop {
            slots.tick().await;
            world.world().tick();
        }
    });
    let end = Instant::now() + SLOT * u32::try_from(slots).expect("a week");
    let mut consumer = Consumer::begin_at(1, 2);
    while Instant::now() < end {
        let mut life = Life::begin(
            &network,
            (consumer.place.finalized > 0).then(|| {
                let world = network.world();
                world.blocks[world.path[consumer.place.finalized as usize]]
            }),
        );
        // From minutes to most of a day.
        let minutes = [5, 60, 700][rng.random_range(0..3)];
        life.live(&mut consumer, Instant::now() + Duration::from_secs(60 * rng.random_range(1..=minutes))).await;
        if rng.random_bool(0.5) {
            network.world().calm = true;
            life.live(&mut consumer, Instant::now() + 4 * SLOT).await;
            let tip = {
                let world = network.world();
                let path: Vec<BlockRef> = world.path.iter().map(|i| world.blocks[*i]).collect();
                let cursor = consumer.place.cursor.expect("it has begun");
                assert!(cursor.number + 1 >= path[path.len() - 1].number, "it is behind: {cursor}");
                assert_eq!(cursor, path[cursor.number as usize], "it stands on another branch");
                consumer.check(&path[..=cursor.number as usize]);
                cursor
            };
            assert_eq!(life.path.as_ref().expect("there is one").at(tip.number), Some(&tip));
            network.world().calm = false;
        }
        life.driver.abort();
        drop(life);
        network.world().tally.restarts += 1;
        let down = [1, 20, 180][rng.random_range(0..3)];
        tokio::time::sleep(Duration::from_secs(60 * rng.random_range(0..=down))).await;
    }
    weather.abort();
    std::mem::take(&mut network.world().tally)
}

#[tokio::test(start_paused = true)]
async fn a_week_of_a_nodes_life_leaves_no_trace_but_the_canonical_chain() {
    let one: Option<u64> = std::env::var("CHAINWEIR_SEED").ok().and_then(|s| s.parse().ok());
    let long = std::env::var_os("CHAINWEIR_LONG").is_some();
    let slots = if long { 50_400 } else { 7_200 };
    for seed in one.map_or_else(|| (0..if long { 20 } else { 3 }).map(|_| rand::random()).collect(), |seed| vec![seed])
    {
        println!("CHAINWEIR_SEED={seed}");
        let begun = std::time::Instant::now();
        let tally = live_through(seed, slots).await;
        println!("{slots} slots in {:.1} s: {tally:?}", begun.elapsed().as_secs_f64());
        let Tally { reorgs, missed_slots, outages, failed_reads, stale_forks, restarts, new_paths, undone, .. } = tally;
        let all = [reorgs, missed_slots, outages, failed_reads, stale_forks, restarts, new_paths, undone];
        assert!(all.iter().all(|n| *n > 0), "a quiet time shows nothing: {tally:?}");
    }
}
