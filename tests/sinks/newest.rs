//! Tables that hold the newest row of each key, in every store: through random reorgs, beside a plain model.

use std::collections::BTreeMap;

use mysql_async::prelude::Queryable;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::harness::belt::seed;
use crate::harness::servers::{PASSWORD, Server, USER};

/// Of the deepest reorg.
const DEPTH: u64 = 6;
const ROUNDS: u64 = 60;
const KEYED: &str = "key = ['to', '_lane_key']\nkeep_blocks = 6";

/// One emission of the chain as it is now.
#[derive(Clone, Copy)]
struct Held {
    n: u64,
    key: u64,
    block: u64,
}

impl Held {
    fn said(self, op: Op, offset: u64) -> Delivery {
        let Self { n, key, block } = self;
        let mut delivery = said(op, n, offset, format!(r#"{{"n": {n}, "to": "o'{key}\\", "value": "{MAX}"}}"#));
        let mut emission = (*delivery.emission).clone();
        emission.block.number = block;
        delivery.emission = Arc::new(emission);
        delivery
    }
}

/// A chain that grows and is reorganised. `rows` is what the table has, the emission of each key, and how many rows its history has.
async fn holds_the_newest(sink: &dyn Sink, rows: impl AsyncFn() -> (BTreeMap<String, u64>, u64)) {
    let mut rng = StdRng::seed_from_u64(seed());
    sink.prepare(&stream(), &spec()).await.unwrap();
    let (mut holds, mut head, mut emissions, mut offset) = (Vec::<Held>::new(), 0, 0, 0);
    for round in 0..ROUNDS {
        let mut batch = vec![];
        for _ in 0..rng.random_range(1..4) {
            let depth = if rng.random_range(0..3) == 0 { rng.random_range(1..=DEPTH).min(head) } else { 0 };
            head -= depth;
            while let Some(orphan) = holds.pop_if(|held| held.block > head) {
                offset += 1;
                batch.push(orphan.said(Op::Retract, offset));
            }
            // At least as long as it was.
            for _ in 0..depth + 1 {
                head += 1;
                for _ in 0..rng.random_range(0..4) {
                    (emissions, offset) = (emissions + 1, offset + 1);
                    let held = Held { n: emissions, key: rng.random_range(0..12), block: head };
                    holds.push(held);
                    batch.push(held.said(Op::Apply, offset));
                }
            }
        }
        let size = rng.random_range(1..=batch.len().max(1));
        for part in batch.chunks(size) {
            all_delivered(&sink.deliver(&track(), part).await);
            if rng.random_range(0..4) == 0 {
                all_delivered(&sink.deliver(&track(), part).await);
            }
        }
        // As from the dead letters: what holds, but is old, comes once more.
        if let Some(old) = holds.get(rng.random_range(0..holds.len().max(1))).filter(|_| round % 3 == 0) {
            all_delivered(&sink.deliver(&track(), &[old.said(Op::Apply, old.n)]).await);
        }
        let newest: BTreeMap<String, u64> = holds.iter().map(|held| (format!("o'{}\\", held.key), held.n)).collect();
        let (found, history) = rows().await;
        assert_eq!(found, newest, "round {round}");
        if round == ROUNDS - 1 {
            assert!(2 * history < holds.len() as u64, "{history} rows are kept of {} that hold", holds.len());
        }
    }
}

fn counted(keys: Vec<(String, u64)>) -> BTreeMap<String, u64> {
    let count = keys.len();
    let keys: BTreeMap<_, _> = keys.into_iter().collect();
    assert_eq!(keys.len(), count, "a key has one row");
    keys
}

const ROWS: &str = "SELECT \"to\", n FROM whale_large_moves";
const HISTORY: &str = "SELECT count(*) FROM whale_large_moves_history";

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_holds_the_newest_row_of_each_key() {
    let folder = tempfile::tempdir().unwrap();
    let sink = open("sqlite", &format!("path = 'out.db'\n{KEYED}"), folder.path()).await.unwrap();
    holds_the_newest(&*sink, async || {
        let db = rusqlite::Connection::open(folder.path().join("out.db")).unwrap();
        let mut rows = db.prepare(ROWS).unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
        (counted(rows), db.query_row(HISTORY, [], |row| row.get(0)).unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_holds_the_newest_row_of_each_key() {
    let Some(server) = Postgres::start().await else { return };
    let sink = open("postgres", &format!("url = '{}'\n{KEYED}", server.url()), Path::new(".")).await.unwrap();
    holds_the_newest(&*sink, async || {
        let client = server.client().await;
        let rows = client.query(ROWS, &[]).await.unwrap();
        let rows = rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1) as u64)).collect();
        (counted(rows), client.query_one(HISTORY, &[]).await.unwrap().get::<_, i64>(0) as u64)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_holds_the_newest_row_of_each_key() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    let url = format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{}/shop?prefer_socket=false", server.port);
    let client = async || until("MariaDB to answer", || async { mysql_async::Conn::from_url(&url).await.ok() }).await;
    client().await;
    let sink = open("mysql", &format!("url = '{url}'\n{KEYED}"), Path::new(".")).await.unwrap();
    holds_the_newest(&*sink, async || {
        let mut client = client().await;
        let rows = client.query(ROWS.replace('"', "`")).await.unwrap();
        (counted(rows), client.query_first(HISTORY).await.unwrap().unwrap())
    })
    .await;
}

/// The contract with a key that every emission has for itself.
#[tokio::test(flavor = "multi_thread")]
async fn stores_with_a_key_keep_the_contract() {
    contract(SqlitePlace(tempfile::tempdir().unwrap(), "key = 'n'")).await;
    let Some(server) = Postgres::start().await else { return };
    contract(PostgresPlace(server, "key = 'n'".into())).await;
    let Some(server) = Server::mariadb(&[]).await else { return };
    contract(super::mysql::MySql(server, "key = 'n'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = async |options: &str| open("sqlite", &format!("path = 'out.db'\n{options}"), folder.path()).await;
    let told = why(sqlite("key = 'to'\nretract = 'mark'").await.err().unwrap());
    assert!(told.contains("leave retract out"), "{told}");
    for (key, because) in [("owner", "the columns are _emission"), ("tags", "no text, whole number or flag")] {
        let told = why(sqlite(&format!("key = '{key}'")).await.unwrap().prepare(&stream(), &spec()).await.unwrap_err());
        assert!(told.contains(&format!("key names '{key}'")) && told.contains(because), "{told}");
    }
    let sink = sqlite("key = 'to'").await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    let mut batch = applies(1..=4);
    batch[1] = said(Op::Apply, 2, 2, r#"{"n": 2}"#.into());
    batch[2] = said(Op::Apply, 3, 3, format!(r#"{{"n": 3, "to": "{}"}}"#, "x".repeat(700)));
    let outcomes = sink.deliver(&track(), &batch).await;
    let refused = |at: usize, because: &str| {
        assert!(matches!(&outcomes[at], Outcome::Refused { why } if why.contains(because)), "{outcomes:?}");
    };
    refused(1, "has no 'to', by which its row is known");
    refused(2, "and 700 at most are one");
    assert_eq!((&outcomes[0], &outcomes[3]), (&Outcome::Delivered, &Outcome::Delivered));
    // What was refused when it was to be written is not missed when it is taken back.
    all_delivered(&sink.deliver(&track(), &[said(Op::Retract, 2, 5, r#"{"n": 2}"#.into())]).await);
    drop(sink);
    let told = why(sqlite("key = ['to', 'n']").await.unwrap().prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("key has changed") && told.contains("another table"), "{told}");
    let told = why(sqlite("").await.unwrap().prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("key is no longer set") && told.contains("another table"), "{told}");
}
