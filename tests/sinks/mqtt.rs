//! MQTT 5, by mosquitto: at least once, and what is read here is read without repeats.

use std::sync::Mutex;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};

use super::*;
use crate::harness::servers::Server;

const TOPIC: &str = "chainweir/whale/large-moves/1";

/// A subscriber with a session that outlives its connection, and the broker's.
pub struct Reader {
    client: AsyncClient,
    read: Arc<Mutex<Vec<Publish>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reader {
    pub async fn start(port: u16) -> Self {
        Self::start_as("reader", port).await
    }

    async fn start_as(name: &str, port: u16) -> Self {
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_clean_start(false).set_session_expiry_interval(Some(3_600)).set_max_packet_size(Some(1 << 24));
        let (client, mut events) = AsyncClient::new(options, 100);
        let read = Arc::<Mutex<Vec<Publish>>>::default();
        let to = read.clone();
        let (say, mut ready) = tokio::sync::mpsc::channel(1);
        let subscribed = client.clone();
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        subscribed.try_subscribe("#", QoS::AtLeastOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => drop(say.try_send(())),
                    Ok(Event::Incoming(Packet::Publish(message))) => to.lock().unwrap().push(message),
                    Ok(_) => {}
                    // The broker is away.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        ready.recv().await.unwrap();
        Self { client, read, task }
    }

    /// All that the broker had until now: it hands a subscriber one message after another.
    pub async fn messages(&self) -> Vec<Publish> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let mark = format!("mark {}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.client.publish("mark", QoS::AtLeastOnce, false, mark.clone()).await.unwrap();
        until("the reader to hear its own mark", || async {
            self.read.lock().unwrap().iter().any(|message| message.payload == mark.as_bytes()).then_some(())
        })
        .await;
        self.read.lock().unwrap().iter().filter(|message| &*message.topic != b"mark").cloned().collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Mqtt {
    server: Server,
    reader: Reader,
}

#[async_trait::async_trait]
impl Place for Mqtt {
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        Some(("mqtt", format!("url = 'mqtt://127.0.0.1:{}'", self.server.port), self.server.port))
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        let messages = self.reader.messages().await;
        for message in &messages {
            assert_eq!(&*message.topic, TOPIC.as_bytes());
            let properties = message.properties.as_ref().unwrap();
            assert_eq!(properties.content_type.as_deref(), Some("application/cloudevents+json"));
        }
        Some(without_repeats(messages.iter().map(|message| event(&message.payload)).collect()))
    }
    fn keeps_position(&self) -> bool {
        false
    }
    fn kill(&mut self) -> bool {
        self.server.kill();
        true
    }
    async fn restart(&mut self) {
        self.server.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_keeps_the_contract() {
    let Some(server) = Server::mosquitto(&["allow_anonymous true"]).await else { return };
    let reader = Reader::start(server.port).await;
    contract(Mqtt { server, reader }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_the_mqtt_broker_is_refused_alone() {
    let Some(server) = Server::mosquitto(&["allow_anonymous true", "max_packet_size 20000"]).await else { return };
    let reader = Reader::start(server.port).await;
    let table = format!("url = 'mqtt://127.0.0.1:{}'\ncontent_mode = 'binary'\nretain = true", server.port);
    let sink = open("mqtt", &table, Path::new(".")).await.unwrap();
    let mut batch = applies(1..=5);
    batch[2] = said(Op::Apply, 3, 3, format!(r#"{{"n": 3, "more": "{}"}}"#, "x".repeat(30_000)));
    let outcomes = sink.deliver(&track(), &batch).await;
    assert!(matches!(&outcomes[2], Outcome::Refused { why } if why.contains("20000 at most")), "{outcomes:?}");
    all_delivered(&[&outcomes[..2], &outcomes[3..]].concat());
    let messages = reader.messages().await;
    let bodies: Vec<String> = messages.iter().map(|m| String::from_utf8(m.payload.to_vec()).unwrap()).collect();
    assert_eq!(bodies, [payload(1), payload(2), payload(4), payload(5)]);
    let properties = messages[0].properties.as_ref().unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert!(properties.user_properties.contains(&("specversion".into(), "1.0".into())), "{properties:?}");
    assert!(properties.user_properties.contains(&("op".into(), "apply".into())), "{properties:?}");
    // Whoever comes later gets the last one.
    let late = Reader::start_as("late", server.port).await;
    let kept = late.messages().await;
    assert_eq!(kept.iter().map(|m| &*m.payload).collect::<Vec<_>>(), [payload(5).as_bytes()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_wants_the_right_password() {
    let Some(server) = Server::mosquitto(&["allow_anonymous false"]).await else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "hush-hush").unwrap();
    let table = format!("url = 'mqtt://127.0.0.1:{}'\nusername = 'weir'\npassword_file = 'password'", server.port);
    let sink = open("mqtt", &table, folder.path()).await.unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("output.orders") && told.contains("check username"), "{told}");
    let told = why(open("mqtt", "url = 'mqtt://a:hush-hush@h'", Path::new(".")).await.err().unwrap());
    assert!(told.contains("set username"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_loses_nothing_when_the_wire_breaks() {
    let Some(server) = Server::mosquitto(&["allow_anonymous true"]).await else { return };
    let reader = Reader::start(server.port).await;
    cuts(Mqtt { server, reader }).await;
}
