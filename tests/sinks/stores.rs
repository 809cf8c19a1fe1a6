//! What others do to a store under the sink: it is read-only, a table is locked, changed or dropped.

use mysql_async::prelude::Queryable;

use super::*;
use crate::harness::servers::{PASSWORD, Server, USER};

/// Nothing of a batch was done, and every delivery says why.
async fn waits(sink: &dyn Sink, numbers: std::ops::RangeInclusive<u64>, because: &[&str]) {
    let outcomes = sink.deliver(&track(), &applies(numbers)).await;
    for outcome in &outcomes {
        let told = matches!(outcome, Outcome::Retry { why, .. } if because.iter().any(|part| why.contains(part)));
        assert!(told, "{because:?}: {outcome:?}");
    }
}

/// `run` runs SQL as somebody else, `count` are the rows that are there.
async fn changed_under_it(sink: &dyn Sink, run: impl AsyncFn(&str), count: impl AsyncFn() -> u64) {
    sink.prepare(&stream(), &spec()).await.unwrap();
    deliver_to_the_end(sink, &applies(1..=10)).await;

    // A column is gone, and comes back.
    run("ALTER TABLE whale_large_moves DROP COLUMN value").await;
    waits(sink, 11..=20, &["value"]).await;
    // As the next start does it.
    sink.prepare(&stream(), &spec()).await.unwrap();
    deliver_to_the_end(sink, &applies(11..=20)).await;
    assert_eq!(count().await, 20);

    // One more, which is nobody's business.
    run("ALTER TABLE whale_large_moves ADD COLUMN note varchar(20)").await;
    deliver_to_the_end(sink, &applies(21..=30)).await;
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (30, Some(30)));

    // The table is gone. What it held is not invented again, what comes is not lost.
    run("DROP TABLE whale_large_moves").await;
    waits(sink, 31..=40, &["whale_large_moves"]).await;
    assert_eq!(sink.position(&track()).await.unwrap(), Some(30));
    sink.prepare(&stream(), &spec()).await.unwrap();
    deliver_to_the_end(sink, &applies(31..=40)).await;
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (10, Some(40)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_read_only_or_changed_is_waited_for_with_the_reason() {
    let Some(server) = Postgres::start().await else { return };
    let sink = open("postgres", &format!("url = '{}'", server.url()), Path::new(".")).await.unwrap();
    let client = server.client().await;
    let run = async |sql: &str| client.batch_execute(sql).await.unwrap();
    let count =
        async || client.query_one("SELECT count(*) FROM whale_large_moves", &[]).await.unwrap().get::<_, i64>(0);
    changed_under_it(&*sink, run, async || count().await as u64).await;

    run("ALTER SYSTEM SET default_transaction_read_only = on").await;
    run("SELECT pg_reload_conf()").await;
    // The sink's own connection hears of it when it is told to read its settings anew.
    until("the server to be read-only", || async {
        let outcomes = sink.deliver(&track(), &applies(41..=41)).await;
        let told = matches!(&outcomes[0], Outcome::Retry { why, .. } if why.contains("read-only transaction"));
        told.then_some(())
    })
    .await;
    let before = sink.position(&track()).await.unwrap();
    waits(&*sink, 42..=50, &["read-only transaction"]).await;
    assert_eq!(sink.position(&track()).await.unwrap(), before);
    run("SET default_transaction_read_only = off").await;
    run("ALTER SYSTEM RESET default_transaction_read_only").await;
    run("SELECT pg_reload_conf()").await;
    deliver_to_the_end(&*sink, &applies(41..=50)).await;
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (20, Some(50)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mysql_that_is_locked_or_changed_is_waited_for_with_the_reason() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    let url = format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{}/shop?prefer_socket=false", server.port);
    let client = async || until("MariaDB to answer", || async { mysql_async::Conn::from_url(&url).await.ok() }).await;
    client().await;
    let sink = open("mysql", &format!("url = '{url}'\ntimeout_ms = 2000"), Path::new(".")).await.unwrap();
    let run = async |sql: &str| client().await.query_drop(sql).await.unwrap();
    let count = async || client().await.query_first("SELECT count(*) FROM whale_large_moves").await.unwrap().unwrap();
    changed_under_it(&*sink, run, count).await;

    let mut locker = client().await;
    locker.query_drop("LOCK TABLES whale_large_moves READ").await.unwrap();
    waits(&*sink, 41..=50, &["no answer within 2000 ms"]).await;
    locker.query_drop("UNLOCK TABLES").await.unwrap();
    deliver_to_the_end(&*sink, &applies(41..=50)).await;
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (20, Some(50)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sqlite_file_that_is_locked_or_changed_is_waited_for_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let sink = open("sqlite", "path = 'out.db'", folder.path()).await.unwrap();
    let client = || {
        let db = rusqlite::Connection::open(folder.path().join("out.db")).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        db
    };
    let run = async |sql: &str| client().execute_batch(sql).unwrap();
    let count = async || {
        client().query_row("SELECT count(*) FROM whale_large_moves", [], |row| row.get::<_, i64>(0)).unwrap() as u64
    };
    changed_under_it(&*sink, run, count).await;

    let locker = client();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    waits(&*sink, 41..=50, &["database is locked"]).await;
    locker.execute_batch("ROLLBACK").unwrap();
    deliver_to_the_end(&*sink, &applies(41..=50)).await;
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (20, Some(50)));
}
