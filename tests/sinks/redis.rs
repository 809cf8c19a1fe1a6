//! Redis: streams, lists and channels.

use ::redis::AsyncCommands;

use super::*;
use crate::harness::servers::{PASSWORD, Server};

const KEY: &str = "chainweir:whale:large-moves:1";

struct Redis(Server, &'static str);

impl Redis {
    async fn client(&self) -> ::redis::aio::MultiplexedConnection {
        let client = ::redis::Client::open(url(&self.0)).unwrap();
        until("Redis to answer", || async { client.get_multiplexed_async_connection().await.ok() }).await
    }
}

fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}/0", server.port)
}

#[async_trait::async_trait]
impl Place for Redis {
    async fn sink(&self) -> Arc<dyn Sink> {
        open("redis", &format!("url = '{}'\nstructure = '{}'", url(&self.0), self.1), Path::new(".")).await.unwrap()
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        let mut client = self.client().await;
        let events: Vec<Vec<u8>> = if self.1 == "list" {
            client.lrange(KEY, 0, -1).await.unwrap()
        } else {
            let range = ::redis::cmd("XRANGE").arg(KEY).arg("-").arg("+").query_async(&mut client).await;
            let entries: Vec<(String, Vec<(String, Vec<u8>)>)> = range.unwrap();
            entries.into_iter().map(|(_, fields)| fields.into_iter().find(|f| f.0 == "event").unwrap().1).collect()
        };
        Some(events.iter().map(|line| event(line)).collect())
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
    contract(Redis(server, "stream")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_list_keeps_the_contract() {
    let Some(server) = Server::redis(&[]).await else { return };
    contract(Redis(server, "list")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_to_a_redis_channel_hears_it_in_order() {
    use futures::StreamExt;
    let Some(server) = Server::redis(&[]).await else { return };
    let (mut listen, mut heard) =
        ::redis::Client::open(url(&server)).unwrap().get_async_pubsub().await.unwrap().split();
    listen.subscribe(KEY).await.unwrap();
    let place = Redis(server, "channel");
    let sink = place.sink().await;
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    for n in 1..=3 {
        assert_eq!(event(heard.next().await.unwrap().get_payload_bytes()), format!("apply {n}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_may_write_to_trim_and_to_delete_a_redis_stream() {
    let Some(server) = Server::redis(&[]).await else { return };
    let place = Redis(server, "stream");
    let mut client = place.client().await;
    let foreign = || ::redis::cmd("XADD").arg(KEY).arg("*").arg("event").arg(r#"{"specversion":"1.0"}"#).clone();
    foreign().exec_async(&mut client).await.unwrap();
    let sink = place.sink().await;
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    foreign().exec_async(&mut client).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(4..=5)).await);
    let length: u64 = ::redis::cmd("XLEN").arg(KEY).query_async(&mut client).await.unwrap();
    assert_eq!(length, 7);
    // What was read and deleted is not sent again, by this process or the next.
    let _: u64 = client.del(KEY).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(4..=6)).await);
    assert_eq!(place.log().await.unwrap(), ["apply 6"]);
    assert_eq!(place.sink().await.position(&track()).await.unwrap(), Some(6));
    // A dead letter that a person put back is added, and leaves the position where it is.
    all_delivered(&sink.deliver(&track(), &applies(2..=2)).await);
    assert_eq!(place.log().await.unwrap(), ["apply 6", "apply 2"]);
    assert_eq!(place.sink().await.position(&track()).await.unwrap(), Some(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_that_writes_to_redis_is_noticed_and_nothing_is_doubled() {
    let Some(server) = Server::redis(&[]).await else { return };
    let place = Redis(server, "stream");
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
    let place = Redis(server, "stream");
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
    let list = open("redis", &table("right", "key = 'here'\nstructure = 'list'"), folder.path()).await.unwrap();
    let outcomes = list.deliver(&track(), &applies(2..=2)).await;
    assert!(matches!(&outcomes[0], Outcome::Retry { why, .. } if why.contains("WRONGTYPE")), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_entry_in_binary_mode_has_a_field_for_each_attribute() {
    let Some(server) = Server::redis(&[]).await else { return };
    let table = format!("url = '{}'\ncontent_mode = 'binary'\nmaxlen = 1000000", url(&server));
    let sink = open("redis", &table, Path::new(".")).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(1..=1)).await);
    let mut client = ::redis::Client::open(url(&server)).unwrap().get_multiplexed_async_connection().await.unwrap();
    let range = ::redis::cmd("XRANGE").arg(KEY).arg("-").arg("+").query_async(&mut client).await;
    let entries: Vec<(String, std::collections::HashMap<String, String>)> = range.unwrap();
    let fields = &entries[0].1;
    assert_eq!((fields["specversion"].as_str(), fields["op"].as_str()), ("1.0", "apply"));
    assert_eq!(
        (fields["datacontenttype"].as_str(), fields["data"].as_str()),
        ("application/json", payload(1).as_str())
    );
}
