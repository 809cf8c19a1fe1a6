//! Promise 1 when the process dies: nothing lost, nothing doubled where a destination can know, and the same id where it
//! cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::belt::{Belt, Via, seed, sorted, times, transfer, waited};
use crate::harness::chain::Transfer;
use crate::harness::process::Ledger;
use crate::harness::receiver::Answer;
use crate::harness::servers::{PASSWORD, Server, USER};
use crate::harness::{guests, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_loses_and_doubles_nothing() {
    let seed = seed();
    let via = if seed.is_multiple_of(2) { Via::WebSocket } else { Via::Http };
    let Some(mut belt) = Belt::new(seed, via).await else { return };
    belt.load(10, false).await;
    for kill in 0..times(50, 300) {
        belt.live_and_die(600).await;
        if kill % 10 == 9 {
            // It goes on from there by itself, and then dies again.
            belt.start().await;
            belt.check().await;
            belt.kill();
        }
    }
    belt.start().await;
    belt.check().await;
    let repeats = {
        let events: Vec<_> = belt.receiver.received().iter().map(|r| r.event()).collect();
        crate::harness::process::Ledger::of(&events).repeats
    };
    println!("{repeats} webhooks came again, each with its id");
}

/// The kinds that the belt does not have: a database more, a stream, and objects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_no_other_kind_of_output_loses_or_doubles() {
    use mysql_async::prelude::Queryable;
    let (Some(mysql), Some(redis)) = (Server::mariadb(&[]).await, Server::redis(&[]).await) else { return };
    let Some(mut belt) = Belt::new(seed(), Via::WebSocket).await else { return };
    let mysql_url = format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{}/shop?prefer_socket=false", mysql.port);
    let redis_url = format!("redis://127.0.0.1:{}/0", redis.port);
    until("MariaDB to answer", || async { mysql_async::Conn::from_url(&mysql_url).await.ok() }).await;
    let objects = belt.dir().join("objects");
    belt.more = format!(
        "[output.mysql]\ntype = \"mysql\"\nurl = \"{mysql_url}\"\n[output.redis]\ntype = \"redis\"\nurl = \"{redis_url}\"\n\
         [output.appended]\ntype = \"sqlite\"\npath = \"appended.db\"\nretract = \"append\"\n\
         [output.newest]\ntype = \"sqlite\"\npath = \"newest.db\"\nkey = [\"token\", \"to\"]\n\
         [output.objects]\ntype = \"object_store\"\nurl = \"file://{}\"\nroll_seconds = 1\n\
         [[route]]\nfrom = \"erc20-transfers.transfers\"\nto = [\"mysql\", \"redis\", \"appended\", \"newest\", \"objects\"]\n",
        objects.display()
    );
    let truth = belt.survive(times(20, 100)).await;
    waited("MySQL", &truth, || async {
        let select = "SELECT CAST(_block AS CHAR), CAST(log_index AS CHAR), _block_hash, tx, token, `from`, `to`, value \
                      FROM erc20_transfers_transfers";
        let mut client = mysql_async::Conn::from_url(&mysql_url).await.ok()?;
        let rows: Vec<mysql_async::Row> = client.query(select).await.ok()?;
        Some(sorted(rows.into_iter().map(|row| transfer(|at| row.get::<String, _>(at).expect("a text")))))
    })
    .await;
    waited("Redis", &truth, || async {
        let client = ::redis::Client::open(redis_url.as_str()).expect("a URL");
        let mut client = client.get_multiplexed_async_connection().await.ok()?;
        let range = ::redis::cmd("XRANGE").arg("chainweir:erc20-transfers:transfers:31337").arg("-").arg("+").clone();
        let entries: Vec<(String, Vec<(String, Vec<u8>)>)> = range.query_async(&mut client).await.ok()?;
        let event = |entry: &(String, Vec<(String, Vec<u8>)>)| {
            let (_, body) = entry.1.iter().find(|(name, _)| name == "event").expect("an event");
            serde_json::from_slice(body).expect("JSON")
        };
        held_once("Redis", entries.iter().map(event).collect())
    })
    .await;
    waited("the objects", &truth, || async {
        let folder = objects.join("erc20-transfers/transfers/chain=31337");
        let mut files: Vec<_> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
        // A kill while a file is written leaves what was to be renamed, `....ndjson#1`: no object.
        files.retain(|file| file.extension().is_some_and(|extension| extension == "ndjson"));
        files.sort();
        let text: String = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        held_once("the objects", text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect())
    })
    .await;
    let net = "a WHERE _op = 'apply' AND NOT EXISTS \
               (SELECT 1 FROM erc20_transfers_transfers r WHERE r._op = 'retract' AND r._emission = a._emission)";
    let appended = || async { belt.stored("appended.db", net).ok() };
    waited("the appended rows", &truth, appended).await;
    // Sorted by block and index: the last of each token and receiver stays.
    let newest: BTreeMap<_, _> = truth.iter().map(|t| ((t.token, t.to), t.clone())).collect();
    let rows = || async { belt.stored("newest.db", "").ok() };
    waited("the newest rows", &sorted(newest.into_values()), rows).await;
}

/// What a destination holds that is to have everything once.
fn held_once(what: &str, events: Vec<Value>) -> Option<Vec<Transfer>> {
    let ledger = Ledger::of(&events);
    assert_eq!(ledger.repeats, 0, "{what}: something is there twice");
    Some(ledger.transfers())
}

/// What holds for a reader to whom things may be said again, but never for the first time out of order.
fn held_in_order(what: &str, events: Vec<Value>) -> Option<Vec<Transfer>> {
    let (mut said, mut reached) = (BTreeSet::new(), BTreeMap::new());
    for event in events.iter().filter(|event| said.insert(event["id"].as_str().expect("an id"))) {
        let cursor: u64 = event["cursor"].as_str().and_then(|text| text.parse().ok()).expect("an offset");
        let before = reached.insert(event["subject"].as_str(), cursor);
        assert!(before < Some(cursor), "{what}: {event} came after {before:?}");
    }
    Some(Ledger::of(&events).transfers())
}

/// Queues that somebody reads all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_kafka_has_it_once_and_rabbitmq_and_mqtt_in_order_with_repeats() {
    use crate::sinks::{kafka, mqtt, rabbitmq};
    let settings = ["allow_anonymous true"];
    let (Some(rabbit), Some(mosquitto)) = (Server::rabbitmq(&[]).await, Server::mosquitto(&settings).await) else {
        return;
    };
    let Some(mut belt) = Belt::new(seed(), Via::WebSocket).await else { return };
    let (_connection, channel) = rabbitmq::answering(&rabbit).await;
    rabbitmq::declare(&channel, rabbitmq::QUEUE, &[]).await;
    let queue = rabbitmq::Reader::start(rabbitmq::url(&rabbit));
    let subscriber = mqtt::Reader::start(mosquitto.port).await;
    let cluster = kafka::Cluster::start();
    let tansu = kafka::Tansu::start().await;
    belt.more = format!(
        "[output.rabbitmq]\ntype = \"rabbitmq\"\nurl = \"{}\"\nrouting_key = \"{}\"\n\
         [output.mqtt]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{}\"\n\
         [output.kafka]\ntype = \"kafka\"\nbootstrap_servers = \"{}\"\ntopic = \"{}\"\n\
         [[route]]\nfrom = \"erc20-transfers.transfers\"\nto = [\"rabbitmq\", \"mqtt\", \"kafka\"]\n",
        rabbitmq::url(&rabbit),
        rabbitmq::QUEUE,
        mosquitto.port,
        cluster.servers,
        kafka::TOPIC,
    );
    if let Some((tansu, _cable)) = &tansu {
        belt.more += &format!(
            "[output.tansu]\ntype = \"kafka\"\nbootstrap_servers = \"{}\"\ntopic = \"{}\"\ntransactions = false\n\
             [[route]]\nfrom = \"erc20-transfers.transfers\"\nto = [\"tansu\"]\n",
            tansu.topic.servers,
            kafka::TOPIC,
        );
    }
    let truth = belt.survive(times(20, 100)).await;
    let json = |body: &[u8]| serde_json::from_slice::<Value>(body).expect("JSON");
    let of_queue = || async { queue.messages().await.iter().map(|(_, body)| json(body)).collect::<Vec<_>>() };
    let of_topic = || async { subscriber.messages().await.iter().map(|message| json(&message.payload)).collect() };
    waited("RabbitMQ", &truth, || async { held_in_order("RabbitMQ", of_queue().await) }).await;
    waited("MQTT", &truth, || async { held_in_order("MQTT", of_topic().await) }).await;
    for topic in [Some(&*cluster), tansu.as_ref().map(|(tansu, _)| &tansu.topic)].into_iter().flatten() {
        waited("Kafka", &truth, || async {
            held_once("Kafka", topic.messages().await.iter().map(|message| json(&message.body)).collect())
        })
        .await;
    }
    let (queue, topic): (_, Vec<_>) = (of_queue().await, of_topic().await);
    println!("{} of {} messages came again from RabbitMQ", Ledger::of(&queue).repeats, queue.len());
    println!("{} of {} messages came again from MQTT", Ledger::of(&topic).repeats, topic.len());
}

/// Its receiver stumbles, its servers die too, it may die while it begins, and now and then it is asked to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_its_destinations_fail_it_loses_and_doubles_nothing() {
    let Some(mut belt) = Belt::new(seed(), Via::WebSocket).await else { return };
    belt.load(10, false).await;
    for kill in 0..times(24, 150) {
        let answers: Vec<Answer> = (0..60)
            .map(|_| match belt.town.below(20) {
                0 => Answer::Status(503),
                1 => Answer::Status(500),
                2 => Answer::Full(429, vec![("Retry-After", "1".into())], vec![]),
                3 => Answer::Close,
                4 => Answer::Hang,
                5..8 => Answer::Slow(Duration::from_millis(30), 200),
                _ => Answer::Status(204),
            })
            .collect();
        belt.receiver.drop_script();
        belt.receiver.script(answers);
        let life = Duration::from_millis(belt.town.below(1_000));
        let (process, orderly) = (belt.begin(), belt.town.below(6) == 0);
        let ended = tokio::spawn(async move {
            tokio::time::sleep(life).await;
            if !orderly {
                return process.kill();
            }
            let (status, took) = process.terminate().await;
            // Without a code: the signal came before the program did.
            assert!(matches!(status.code(), Some(0) | None), "{status}");
            assert!(took < Duration::from_secs(10), "{took:?}");
        });
        while !ended.is_finished() {
            belt.load(1, true).await;
            match belt.town.below(12) {
                0 => belt.nats.restart().await,
                1 => belt.postgres.restart().await,
                _ => {}
            }
        }
        ended.await.expect("it ended as it should");
        if kill % 12 == 11 {
            belt.receiver.drop_script();
            belt.start().await;
            // The gaps between attempts are meant for hours: a person says that all is well.
            until("nothing to wait any more", || async {
                for output in ["hook", "rows", "queue"] {
                    let (code, said) = belt.running().post(&format!("/outputs/{output}/resume"), &json!({})).await;
                    assert_eq!(code, 200, "{said}");
                }
                // By the journal: the status knows of none until the lanes have begun.
                (belt.parked() == 0).then_some(())
            })
            .await;
            belt.check().await;
            belt.kill();
        }
    }
}

/// Signals while everything hangs: in time, with the right code, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_it_in_time_whatever_hangs() {
    let Some(mut belt) = Belt::new(seed(), Via::Http).await else { return };
    belt.load(30, false).await;
    belt.receiver.otherwise(Answer::Hang);
    belt.start().await;
    belt.receiver.wait_for(1).await;
    belt.load(10, true).await;
    let (status, took) = belt.process.take().expect("it runs").terminate().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");

    // A second signal does not wait.
    let before = belt.receiver.received().len();
    belt.start().await;
    belt.receiver.wait_for(before + 1).await;
    let process = belt.process.take().expect("it runs");
    process.signal("TERM");
    // The second in this folder's log; two signals that come together are one.
    let heard = || process.log().matches("draining").count() == 2;
    until("the first signal to be heard", || async { heard().then_some(()) }).await;
    let (status, took) = process.terminate().await;
    assert_eq!(status.code(), Some(130), "{status}");
    // The code says that it did not wait; whoever looks may be late.
    assert!(took < Duration::from_secs(8), "{took:?}");

    // The provider hangs: its process is stopped, its sockets stay open.
    belt.receiver.otherwise(Answer::Status(204));
    belt.start().await;
    belt.anvil.signal("STOP");
    let (status, took) = belt.process.take().expect("it runs").terminate().await;
    belt.anvil.signal("CONT");
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");

    belt.load(5, true).await;
    belt.start().await;
    belt.check().await;
}

/// A disk of the test's own, small enough to be full: a tmpfs.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None`, said aloud, where mounting is not allowed.
    fn mount(at: &std::path::Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(at)
            .stderr(std::process::Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: a tmpfs cannot be mounted here (root only): a full disk is not tried");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_pauses_it_and_room_lets_it_go_on() {
    let Some(mut belt) = Belt::new(seed(), Via::WebSocket).await else { return };
    let Some(_disk) = SmallDisk::mount(&belt.dir().join("disk"), 8 << 20) else { return };
    belt.journal = "disk/chainweir.db";
    belt.load(20, false).await;
    belt.start().await;
    belt.check().await;
    let filler = belt.dir().join("disk/filler");
    {
        use std::io::Write;
        let mut file = std::fs::File::create(&filler).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
    }
    let paused = |status: &serde_json::Value| status["journal"]["paused"].as_str().map(str::to_owned);
    let mut why = None;
    for _ in 0..200 {
        belt.load(1, false).await;
        why = belt.running().status().await.as_ref().and_then(paused);
        if why.is_some() {
            break;
        }
    }
    let why = why.expect("it notices that the disk is full");
    assert!(why.contains("full"), "{why}");
    assert!(belt.running().get("/readyz").await.is_none(), "not ready");
    assert!(!belt.running().feed("erc20-transfers.transfers").await.is_empty(), "what is there is served");
    // A plugin that comes now is not refused for it.
    std::fs::copy(guests::wasm("native-transfers"), belt.dir().join("plugins/native-transfers.wasm"))
        .expect("the plugins' disk has room");
    until("it to be as far as it comes", || async { belt.running().log().contains("waits for room").then_some(()) })
        .await;
    belt.load(5, false).await;
    std::fs::remove_file(&filler).expect("the filler is ours");
    until("the plugin that came meanwhile to run", || async {
        let status = belt.running().status().await?;
        status["plugins"].as_array()?.iter().any(|p| p["name"] == "native-transfers").then_some(())
    })
    .await;
    until("it to go on by itself", || async {
        let status = belt.running().status().await?;
        paused(&status).is_none().then_some(())
    })
    .await;
    belt.load(5, true).await;
    belt.check().await;
    let (status, _) = belt.process.take().expect("it runs").terminate().await;
    assert_eq!(status.code(), Some(0), "{status}");
}
