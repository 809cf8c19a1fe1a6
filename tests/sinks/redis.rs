//! Redis: streams exactly once, lists at least once, and channels.

use ::redis::AsyncCommands;

use super::*;
use crate::harness::servers::{PASSWORD, Server};

const KEY: &str = "chainweir:whale:large-moves:1";

struct Redis(Server, &'static str);

impl Redis {
    async fn client(&self) -> ::redis::aio::MultiplexedConnection {
        let client = ::redis::Client::open(url(&self.0)).unwrap();
        // All that there is may be much.
        let config = ::redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
        until("Redis to answer", || async { client.get_multiplexed_async_connection_with_config(&config).await.ok() })
            .await
    }

    async fn entries(&self) -> Vec<(String, Vec<(String, Vec<u8>)>)> {
        let range = ::redis::cmd("XRANGE").arg(KEY).arg("-").arg("+").clone();
        range.query_async(&mut self.client().await).await.unwrap()
    }

    async fn ids(&self) -> Vec<String> {
        self.entries().await.into_iter().map(|(id, _)| id).collect()
    }
}

fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}/0", server.port)
}

#[async_trait::async_trait]
impl Place for Redis {
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        Some(("redis", format!("url = '{}'\ncommand = '{}'", url(&self.0), self.1), self.0.port))
    }
    fn says(&self) -> u64 {
        // A line for five hundred entries.
        1_000
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        let events: Vec<Vec<u8>> = if self.1 == "rpush" {
            self.client().await.lrange(KEY, 0, -1).await.unwrap()
        } else {
            self.entries()
                .await
                .into_iter()
                .map(|(_, fields)| fields.into_iter().find(|f| f.0 == "event").unwrap().1)
                .collect()
        };
        let log = events.iter().map(|line| event(line)).collect();
        Some(if self.1 == "rpush" { without_repeats(log) } else { log })
    }
    fn kill(&mut self) -> bool {
        self.0.kill();
        true
    }
    async fn restart(&mut self) {
        self.0.restart().await;
        // It listens before it has read its file.
        self.client().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_stream_keeps_the_contract() {
    let Some(server) = Server::redis(&[]).await else { return };
    contract(Redis(server, "xadd")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_list_keeps_the_contract() {
    let Some(server) = Server::redis(&[]).await else { return };
    contract(Redis(server, "rpush")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_to_a_redis_channel_hears_it_in_order() {
    use futures::StreamExt;
    let Some(server) = Server::redis(&[]).await else { return };
    let (mut listen, mut heard) =
        ::redis::Client::open(url(&server)).unwrap().get_async_pubsub().await.unwrap().split();
    listen.subscribe(KEY).await.unwrap();
    let place = Redis(server, "publish");
    let sink = place.sink().await;
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    for n in 1..=3 {
        assert_eq!(event(heard.next().await.unwrap().get_payload_bytes()), format!("apply {n}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_may_write_to_trim_and_to_delete_a_redis_stream() {
    let Some(server) = Server::redis(&[]).await else { return };
    let place = Redis(server, "xadd");
    let mut client = place.client().await;
    let sink = place.sink().await;
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    assert_eq!(place.ids().await, ["0-1", "0-2", "0-3"]);
    let foreign = ::redis::cmd("XADD").arg(KEY).arg("7-2").arg("event").arg(r#"{"specversion":"1.0"}"#).clone();
    foreign.exec_async(&mut client).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(4..=5)).await);
    assert_eq!(place.ids().await, ["0-1", "0-2", "0-3", "7-2", "7-4", "7-5"]);
    ::redis::cmd("XTRIM").arg(KEY).arg("MAXLEN").arg(0).exec_async(&mut client).await.unwrap();
    // What was read and trimmed or deleted is not sent again, by this process or the next.
    all_delivered(&place.sink().await.deliver(&track(), &applies(4..=6)).await);
    assert_eq!(place.ids().await, ["7-6"]);
    let _: u64 = client.del(KEY).await.unwrap();
    let sink = place.sink().await;
    all_delivered(&sink.deliver(&track(), &applies(5..=7)).await);
    assert_eq!(place.log().await.unwrap(), ["apply 7"]);
    assert_eq!(place.sink().await.position(&track()).await.unwrap(), Some(7));
    // A dead letter that a person put back is added, and leaves the position where it is.
    all_delivered(&sink.deliver(&track(), &applies(2..=2)).await);
    all_delivered(&sink.deliver(&track(), &applies(8..=8)).await);
    assert_eq!(place.log().await.unwrap(), ["apply 7", "apply 2", "apply 8"]);
    assert_eq!(place.sink().await.position(&track()).await.unwrap(), Some(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tracks_share_a_redis_stream() {
    let Some(server) = Server::redis(&[]).await else { return };
    let place = Redis(server, "xadd");
    let table = format!("url = '{}'\nkey = '{KEY}'", url(&place.0));
    let sink = open("redis", &table, Path::new(".")).await.unwrap();
    let other = Track { chain: ChainId(5), ..track() };
    all_delivered(&sink.deliver(&track(), &applies(10..=11)).await);
    all_delivered(&sink.deliver(&other, &applies(4..=5)).await);
    all_delivered(&sink.deliver(&track(), &applies(12..=12)).await);
    all_delivered(&open("redis", &table, Path::new(".")).await.unwrap().deliver(&other, &applies(5..=6)).await);
    assert_eq!(place.ids().await, ["0-10", "0-11", "1-4", "1-5", "1-12", "2-6"]);
    assert_eq!(sink.position(&track()).await.unwrap(), Some(12));
}

/// What Redis 7.0 makes of a file that ends inside of a batch: it goes on behind it.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_batch_that_redis_finds_in_its_file_later_is_not_doubled() {
    let Some(server) = Server::redis(&[]).await else { return };
    let mut place = Redis(server, "xadd");
    let sink = place.sink().await;
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    place.kill();
    let folder = place.0.folder().join("appendonlydir");
    let file = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.to_str().unwrap().ends_with("incr.aof")).unwrap();
    let mut text = std::fs::read(&file).unwrap();
    let add = |id: &str| {
        format!("*5\r\n$4\r\nXADD\r\n${}\r\n{KEY}\r\n$3\r\n{id}\r\n$5\r\nevent\r\n$2\r\n{{}}\r\n", KEY.len())
    };
    text.extend(format!("*1\r\n$5\r\nMULTI\r\n{}{}*5\r\n$4\r\nXA", add("0-4"), add("0-5")).into_bytes());
    std::fs::write(&file, text).unwrap();
    place.restart().await;
    deliver_to_the_end(&*sink, &applies(4..=9)).await;
    place.kill();
    place.restart().await;
    deliver_to_the_end(&*sink, &applies(10..=10)).await;
    assert_eq!(place.ids().await, (1..=10).map(|n| format!("0-{n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_too_large_for_redis_is_refused_alone() {
    let Some(server) = Server::redis(&["--proto-max-bulk-len", "1mb"]).await else { return };
    let place = Redis(server, "xadd");
    let sink = place.sink().await;
    let mut batch = applies(1..=5);
    batch[2] = said(Op::Apply, 3, 3, format!(r#"{{"n": 3, "more": "{}"}}"#, "x".repeat(2_000_000)));
    let outcomes = sink.deliver(&track(), &batch).await;
    all_delivered(&outcomes[..2]);
    assert!(matches!(&outcomes[2], Outcome::Refused { why } if why.contains("1048576 at most")), "{outcomes:?}");
    // What is behind it would move the position past a refusal that nobody has written down yet.
    assert!(outcomes[3..].iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");
    assert_eq!(place.sink().await.position(&track()).await.unwrap(), Some(2));
    all_delivered(&sink.deliver(&track(), &batch[3..]).await);
    assert_eq!(place.log().await.unwrap(), ["apply 1", "apply 2", "apply 4", "apply 5"]);
    // More than one script's worth.
    let large = |n| said(Op::Apply, n, n, format!(r#"{{"n": {n}, "more": "{}"}}"#, "x".repeat(900_000)));
    all_delivered(&sink.deliver(&track(), &(6..=25).map(large).collect::<Vec<_>>()).await);
    assert_eq!(place.ids().await.len(), 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_that_writes_to_redis_is_noticed_and_nothing_is_doubled() {
    let Some(server) = Server::redis(&[]).await else { return };
    let place = Redis(server, "xadd");
    let (one, two) = (place.sink().await, place.sink().await);
    all_delivered(&one.deliver(&track(), &applies(1..=5)).await);
    all_delivered(&two.deliver(&track(), &applies(1..=8)).await);
    let outcomes = one.deliver(&track(), &applies(6..=9)).await;
    assert!(
        outcomes.iter().all(|o| matches!(o, Outcome::Retry { why, .. } if why.contains("second process"))),
        "{outcomes:?}"
    );
    deliver_to_the_end(&*one, &applies(6..=9)).await;
    assert_eq!(place.log().await.unwrap(), (1..=9).map(|n| format!("apply {n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_full_takes_nothing_and_goes_on_when_there_is_room() {
    let Some(server) = Server::redis(&["--maxmemory-policy", "noeviction"]).await else { return };
    let place = Redis(server, "xadd");
    let sink = place.sink().await;
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    let mut client = place.client().await;
    let set = |bytes: &str| ::redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).clone();
    set("1").exec_async(&mut client).await.unwrap();
    let outcomes = sink.deliver(&track(), &applies(4..=6)).await;
    assert!(
        outcomes.iter().all(|o| matches!(o, Outcome::Retry { why, .. } if why.contains("maxmemory"))),
        "{outcomes:?}"
    );
    set("0").exec_async(&mut client).await.unwrap();
    deliver_to_the_end(&*sink, &applies(4..=6)).await;
    assert_eq!(place.log().await.unwrap(), (1..=6).map(|n| format!("apply {n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_wants_the_right_password_and_a_key_of_the_right_type() {
    let Some(server) = Server::redis(&["--requirepass", PASSWORD]).await else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("wrong"), "hush-hush").unwrap();
    std::fs::write(folder.path().join("right"), PASSWORD).unwrap();
    let table = |password: &str, more: &str| format!("url = '{}'\npassword_file = '{password}'\n{more}", url(&server));
    let sink = open("redis", &table("wrong", ""), folder.path()).await.unwrap();
    let told = why(sink.position(&track()).await.unwrap_err());
    assert!(told.contains("output.orders") && told.to_lowercase().contains("password"), "{told}");
    let outcomes = sink.deliver(&track(), &applies(1..=1)).await;
    assert!(matches!(&outcomes[0], Outcome::Retry { why, .. } if !why.contains("hush-hush")), "{outcomes:?}");
    let sink = open("redis", &table("right", "key = 'here'"), folder.path()).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(1..=1)).await);
    let list = open("redis", &table("right", "key = 'here'\ncommand = 'rpush'"), folder.path()).await.unwrap();
    let outcomes = list.deliver(&track(), &applies(2..=2)).await;
    assert!(matches!(&outcomes[0], Outcome::Retry { why, .. } if why.contains("WRONGTYPE")), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_entry_in_binary_mode_has_a_field_for_each_attribute() {
    let Some(server) = Server::redis(&[]).await else { return };
    let table = format!("url = '{}'\ncontent_mode = 'binary'\nmaxlen = 1000000", url(&server));
    let sink = open("redis", &table, Path::new(".")).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(1..=1)).await);
    let place = Redis(server, "xadd");
    let mut client = place.client().await;
    let range = ::redis::cmd("XRANGE").arg(KEY).arg("-").arg("+").query_async(&mut client).await;
    let entries: Vec<(String, std::collections::HashMap<String, String>)> = range.unwrap();
    let fields = &entries[0].1;
    assert_eq!((fields["specversion"].as_str(), fields["op"].as_str()), ("1.0", "apply"));
    assert_eq!(
        (fields["datacontenttype"].as_str(), fields["data"].as_str()),
        ("application/json", payload(1).as_str())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_connection_to_redis_checks_the_certificate() {
    let Some(mut server) = Server::redis(&[]).await else { return };
    let Some(certificate) = server.encrypt().await else { return };
    let table = format!("url = 'rediss://localhost:{}/0'", server.port);
    let sink = open("redis", &table, Path::new(".")).await.unwrap();
    assert!(sink.position(&track()).await.is_err(), "nobody vouches for this certificate");
    let table = format!("{table}\nca_file = '{}'", certificate.display());
    let sink = open("redis", &table, Path::new(".")).await.unwrap();
    deliver_to_the_end(&*sink, &applies(1..=3)).await;
    assert_eq!(sink.position(&track()).await.unwrap(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_loses_and_doubles_nothing_when_the_wire_breaks() {
    let Some(server) = Server::redis(&[]).await else { return };
    cuts(Redis(server, "xadd")).await;
}
