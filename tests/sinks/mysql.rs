//! MySQL, by MariaDB's server.

use mysql_async::prelude::Queryable;

use super::*;
use crate::harness::servers::{PASSWORD, Server, USER};

pub(super) struct MySql(pub Server, pub &'static str);

fn url(server: &Server, password: &str) -> String {
    format!("mysql://{USER}:{password}@127.0.0.1:{}/shop?prefer_socket=false", server.port)
}

async fn client(server: &Server) -> mysql_async::Conn {
    let url = url(server, PASSWORD);
    until("MariaDB to answer", || async { mysql_async::Conn::from_url(&url).await.ok() }).await
}

#[async_trait::async_trait]
impl Place for MySql {
    async fn sink(&self) -> Arc<dyn Sink> {
        client(&self.0).await;
        let (kind, table, _) = self.wire().unwrap();
        open(kind, &table, Path::new(".")).await.unwrap()
    }
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        Some(("mysql", format!("url = '{}'\n{}", url(&self.0, PASSWORD), self.1), self.0.port))
    }
    async fn net(&self) -> BTreeSet<u64> {
        if let Some(log) = self.log().await {
            return net_of(&log);
        }
        let mark = if self.1.contains("mark") { "WHERE _retracted_at_cursor IS NULL" } else { "" };
        let select = format!("SELECT n FROM whale_large_moves {mark}");
        client(&self.0).await.query::<u64, _>(select).await.unwrap().into_iter().collect()
    }
    async fn log(&self) -> Option<Vec<String>> {
        if !self.1.contains("append") {
            return None;
        }
        let select = "SELECT CONCAT(_op, ' ', n) FROM whale_large_moves ORDER BY _cursor";
        Some(client(&self.0).await.query(select).await.unwrap())
    }
    fn kill(&mut self) -> bool {
        self.0.kill();
        true
    }
    async fn restart(&mut self) {
        self.0.restart().await;
        client(&self.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_keeps_the_contract() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    contract(MySql(server, "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_that_marks_keeps_the_contract() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    contract(MySql(server, "retract = 'mark'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_that_appends_keeps_the_contract() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    contract(MySql(server, "retract = 'append'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_mysql_refuses_is_refused_alone() {
    let Some(server) = Server::mariadb(&["--max-allowed-packet=2M"]).await else { return };
    let place = MySql(server, "");
    let sink = place.sink().await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    let mut client = client(&place.0).await;
    client.query_drop("ALTER TABLE whale_large_moves ADD CHECK (n <> -5)").await.unwrap();
    let mut batch = applies(1..=7);
    // Found by the host, by a constraint of the user's, and by the server as more than it reads at once.
    batch[1] = said(Op::Apply, 2, 2, r#"{"n": 9223372036854775808}"#.into());
    batch[3] = said(Op::Apply, 4, 4, r#"{"n": -5}"#.into());
    batch[5] = said(Op::Apply, 6, 6, format!(r#"{{"n": 6, "more": "{}"}}"#, "x".repeat(3 << 20)));
    let outcomes = sink.deliver(&track(), &batch).await;
    for (index, outcome) in outcomes.iter().enumerate() {
        let refused = [1, 3, 5].contains(&index);
        assert_eq!(matches!(outcome, Outcome::Refused { .. }), refused, "{index}: {outcome:?}");
        assert_eq!(*outcome == Outcome::Delivered, !refused, "{index}: {outcome:?}");
    }
    assert_eq!(sink.position(&track()).await.unwrap(), Some(1), "what was refused is not passed before it is settled");
    all_delivered(&sink.deliver(&track(), &applies(8..=8)).await);
    // From the dead letters: an old offset is written and does not move the position back.
    all_delivered(&sink.deliver(&track(), &applies(4..=4)).await);
    assert_eq!(sink.position(&track()).await.unwrap(), Some(8));
    let select =
        "SELECT value, `to`, tags, _extra, _chain, _block, CAST(_time AS CHAR) FROM whale_large_moves WHERE n = 4";
    let row: (String, String, String, String, String, u64, String) = client.query_first(select).await.unwrap().unwrap();
    assert_eq!(row.0, MAX, "a uint256 keeps every digit");
    assert_eq!((row.1.as_str(), row.2.as_str(), row.3.as_str()), ("0xab'\";--4", "[\"é\", 4]", r#"{"more":1.10}"#));
    assert_eq!((row.4.as_str(), row.5, row.6.as_str()), ("eip155:1", 4, "2023-11-14 22:13:24"));
}

/// Every text comes back as it went in.
#[tokio::test(flavor = "multi_thread")]
async fn no_text_is_read_as_sql() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    let place = MySql(server, "");
    let sink = place.sink().await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    let texts = [
        "'); DROP TABLE whale_large_moves; --",
        "\\'); DROP TABLE whale_large_moves; -- ",
        "\\",
        "a\0b\x08\t\r\n\x1a\"`%_",
        "\u{bf27}\u{5c}' 縗\\ 🐋",
        "",
    ];
    for (n, text) in (1..).zip(texts) {
        let payload = serde_json::json!({ "n": n, "to": text }).to_string();
        all_delivered(&sink.deliver(&track(), &[said(Op::Apply, n, n, payload)]).await);
    }
    let kept: Vec<String> =
        client(&place.0).await.query("SELECT `to` FROM whale_large_moves ORDER BY n").await.unwrap();
    assert_eq!(kept, texts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mysql_table_grows_with_the_schema_and_refuses_a_changed_type() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    let mut wider = spec();
    wider.schema.as_mut().unwrap()["properties"]["more"] = serde_json::json!({ "type": "number" });
    let mut changed = spec();
    changed.schema.as_mut().unwrap()["properties"]["n"] = serde_json::json!({ "type": "string" });
    let place = MySql(server, "");
    let sink = place.sink().await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(1..=2)).await);
    sink.prepare(&stream(), &wider).await.unwrap();
    sink.prepare(&stream(), &wider).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(3..=4)).await);
    let told = why(sink.prepare(&stream(), &changed).await.unwrap_err());
    assert!(told.contains("column n of the table") && told.contains("bigint"), "{told}");
    let twin: StreamId = "whale.large_moves".parse().unwrap();
    assert!(why(sink.prepare(&twin, &spec()).await.unwrap_err()).contains("have the same table"));
    let counts: (u64, u64) = client(&place.0)
        .await
        .query_first("SELECT count(more), count(_extra) FROM whale_large_moves")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(counts, (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_wants_the_right_password() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    client(&server).await;
    let sink = open("mysql", &format!("url = '{}'", url(&server, "hush-hush")), Path::new(".")).await.unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("output.orders") && told.contains("Access denied"), "{told}");
    let table = format!("url = '{}'\ntls = true", url(&server, PASSWORD));
    let sink = open("mysql", &table, Path::new(".")).await.unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(
        told.to_lowercase().contains("ssl") || told.contains("TLS"),
        "a server without TLS is not talked to: {told}"
    );
    assert!(
        why(open("mysql", "url = 'mysql://a:hush-hush@h:1'", Path::new(".")).await.err().unwrap())
            .contains("no database")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_loses_and_doubles_nothing_when_the_wire_breaks() {
    let Some(server) = Server::mariadb(&[]).await else { return };
    client(&server).await;
    cuts(MySql(server, "batch = 50")).await;
}
