//! What others do to a store under the sink: it is read-only, a table is locked, changed or dropped.

use mysql_async::prelude::Queryable;
use serde_json::json;

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
    let sink = open("mysql", &format!("url = '{url}'"), Path::new(".")).await.unwrap();
    let run = async |sql: &str| client().await.query_drop(sql).await.unwrap();
    let count = async || client().await.query_first("SELECT count(*) FROM whale_large_moves").await.unwrap().unwrap();
    changed_under_it(&*sink, run, count).await;

    drop(sink);
    let sink = open("mysql", &format!("url = '{url}'\ntimeout_ms = 2000"), Path::new(".")).await.unwrap();
    until("the sink to be ready", || async { sink.prepare(&stream(), &spec()).await.ok() }).await;
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

/// Texts that COPY has an escape for, or takes for one.
const TEXTS: [&str; 8] = ["", "\\N", "\\.", "a\tb", "a\nb\r\n", "a\\\\b\\", "\u{e9}\u{1f4a5}\"'", "{1,2}"];

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_copied_into_postgres_are_those_that_are_inserted() {
    let Some(server) = Postgres::start().await else { return };
    let client = server.client().await;
    let schema = json!({ "type": "object", "properties": {
        "n": { "type": "integer" }, "value": { "type": "string", "format": "uint256" }, "ratio": { "type": "number" },
        "ok": { "type": "boolean" }, "text": { "type": "string" }, "tags": { "type": "array" },
    } });
    let row = |n: u64| {
        let text = TEXTS[n as usize % TEXTS.len()];
        let payload = match n % 5 {
            0 => json!({}),
            1 => json!([text, n]),
            _ => json!({ "n": n, "value": MAX, "ratio": 1.0 / n as f64, "ok": n.is_multiple_of(2), "text": text,
                         "tags": [text, null], "more": { "text": text } }),
        };
        said(Op::Apply, n, n, payload.to_string())
    };
    let rows: Vec<Delivery> = (1..=120).map(row).collect();
    for schema in [Some(schema), None] {
        let spec = StreamSpec { schema, ..spec() };
        let mut held = vec![];
        for (way, batch) in [("copy", 1_000), ("insert", 40)] {
            let of = format!("{way}_{}", spec.schema.is_some());
            let table = format!("url = '{}'\nschema = '{of}'\nbatch = {batch}", server.url());
            let sink = open("postgres", &table, Path::new(".")).await.unwrap();
            sink.prepare(&stream(), &spec).await.unwrap();
            // The server says itself how each row came.
            let hear = format!(
                "CREATE TABLE {of}.heard (way text); CREATE FUNCTION {of}.hear() RETURNS trigger LANGUAGE plpgsql AS $$ \
                 BEGIN INSERT INTO {of}.heard VALUES (lower(split_part(current_query(), ' ', 1))); RETURN NEW; END $$; \
                 CREATE TRIGGER hear BEFORE INSERT ON {of}.whale_large_moves FOR EACH ROW EXECUTE FUNCTION {of}.hear()"
            );
            client.batch_execute(&hear).await.unwrap();
            // Without a position that is known, rows may be there.
            assert_eq!(sink.position(&track()).await.unwrap(), None);
            deliver_to_the_end(&*sink, &rows).await;
            let heard = client.query_one(&format!("SELECT string_agg(DISTINCT way, ' ') FROM {of}.heard"), &[]).await;
            assert_eq!(heard.unwrap().get::<_, String>(0), way);
            let select = format!("SELECT t::text FROM {of}.whale_large_moves AS t ORDER BY _cursor");
            let rows = client.query(&select, &[]).await.unwrap();
            held.push(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>());
        }
        assert_eq!(held[0].len(), 120);
        assert_eq!(held[0], held[1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_does_not_copy_is_inserted() {
    let Some(server) = Postgres::start().await else { return };
    let client = server.client().await;
    let fresh = async || open("postgres", &format!("url = '{}'", server.url()), Path::new(".")).await.unwrap();
    let count = async || {
        let rows = client.query_one("SELECT count(*) FROM whale_large_moves", &[]).await;
        rows.unwrap().get::<_, i64>(0)
    };
    let sink = fresh().await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    deliver_to_the_end(&*sink, &applies(1..=100)).await;

    // What lies before the position, as a replay sends it.
    deliver_to_the_end(&*sink, &applies(1..=100)).await;
    // Rows are there, but the position is lost.
    client.batch_execute("DELETE FROM chainweir_positions").await.unwrap();
    let sink = fresh().await;
    assert_eq!(sink.position(&track()).await.unwrap(), None);
    sink.prepare(&stream(), &spec()).await.unwrap();
    deliver_to_the_end(&*sink, &applies(51..=150)).await;
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (150, Some(150)));

    // One row of many that it does not take, by any way.
    let mut rows = applies(151..=250);
    rows[70] = said(Op::Apply, 221, 221, r#"{"to": "\u0000"}"#.into());
    let outcomes = sink.deliver(&track(), &rows).await;
    for (index, outcome) in outcomes.iter().enumerate() {
        assert_eq!(matches!(outcome, Outcome::Refused { .. }), index == 70, "{index}: {outcome:?}");
    }
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (249, Some(220)));

    // A view takes an insert, but no copy.
    let view = "ALTER TABLE whale_large_moves RENAME TO held; CREATE VIEW whale_large_moves AS SELECT * FROM held";
    client.batch_execute(view).await.unwrap();
    deliver_to_the_end(&*sink, &applies(251..=350)).await;
    deliver_to_the_end(&*sink, &applies(351..=450)).await;
    assert_eq!((count().await, sink.position(&track()).await.unwrap()), (449, Some(450)));
}

/// The server waits for more rows and heeds no timeout meanwhile; it has the position's lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_a_silent_wire_left_behind_is_ended_with_no_more_than_ones_own_rights() {
    let Some(server) = Postgres::start().await else { return };
    let client = server.client().await;
    let user = format!("CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'; CREATE SCHEMA plain AUTHORIZATION plain");
    client.batch_execute(&user).await.unwrap();
    let cable = Cable::to(server.port()).await;
    let url = format!("postgres://plain:{PASSWORD}@127.0.0.1:{}/postgres", cable.port);
    let table = format!("url = '{url}'\nschema = 'plain'\ntimeout_ms = 5000");
    let sink = open("postgres", &table, Path::new(".")).await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    deliver_to_the_end(&*sink, &applies(1..=200)).await;

    cable.break_after_asked(20_000, Break::Silence);
    waits(&*sink, 201..=400, &["no answer within 5000 ms"]).await;
    let left =
        "SELECT pid FROM pg_stat_activity WHERE usename = 'plain' AND query LIKE 'COPY%' AND wait_event = 'ClientRead'";
    until("the server to wait for more", || async { (client.query(left, &[]).await.ok()?.len() == 1).then_some(()) })
        .await;
    cable.mend();
    deliver_to_the_end(&*sink, &applies(201..=400)).await;
    assert_eq!(client.query(left, &[]).await.unwrap().len(), 0);

    // Without the right even to that, a session that is gone by itself is followed all the same.
    let revoke = "REVOKE EXECUTE ON FUNCTION pg_terminate_backend(integer, bigint) FROM PUBLIC";
    client.batch_execute(revoke).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'plain'";
    client.query(end, &[]).await.unwrap();
    deliver_to_the_end(&*sink, &applies(401..=500)).await;
    assert_eq!(sink.position(&track()).await.unwrap(), Some(500));
    let rows = client.query_one("SELECT count(*) FROM plain.whale_large_moves", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 500);
}
