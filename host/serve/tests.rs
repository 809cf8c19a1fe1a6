//! The listener over a real socket, on a journal in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::B256;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::merge::{Ask, Page, Read as Got, read};
use super::serve;
use crate::journal::*;
use crate::model::*;
use crate::router::handle::{Answer, Command, Handle};
use crate::telemetry;

type Midst = Box<dyn FnOnce(&Memory) + Send>;
type Read<T> = Result<T, JournalError>;

/// Only what the listener reads.
pub(super) struct Memory {
    entries: Mutex<Vec<(TrackId, Entry)>>,
    tracks: Vec<TrackInfo>,
    dead: Mutex<Vec<DeadLetter>>,
    tail: watch::Sender<u64>,
    /// Entries handed out by reads.
    read: std::sync::atomic::AtomicUsize,
    /// Runs within a read of entries: what another task commits in the midst of a page.
    midst: Mutex<Option<Midst>>,
    pub(super) window: std::sync::atomic::AtomicU64,
}

impl Memory {
    fn new(tracks: &[(&str, u64)]) -> Arc<Self> {
        let track = |(i, (stream, chain)): (usize, &(&str, u64))| {
            let stream: StreamId = stream.parse().unwrap();
            let spec = StreamSpec {
                name: stream.stream.clone(),
                description: "<b>what it is</b>".into(),
                schema: Some(json!({"type": "object"})),
            };
            let (id, consumer) = (TrackId(i as i64), ConsumerId(i as i64));
            TrackInfo { id, consumer, stream, chain: ChainId(*chain), spec, last_offset: 0 }
        };
        Arc::new(Self {
            entries: Mutex::default(),
            tracks: tracks.iter().enumerate().map(track).collect(),
            dead: Mutex::default(),
            tail: watch::channel(0).0,
            read: Default::default(),
            midst: Mutex::default(),
            window: Default::default(),
        })
    }

    pub(super) fn add(&self, track: usize, payload: &[u8]) -> u64 {
        let mut entries = self.entries.lock().unwrap();
        let offset = entries.len() as u64 + 1;
        let chain = self.tracks[track].chain;
        let block = BlockRef { chain, number: offset, hash: B256::ZERO, parent: B256::ZERO, time: 1_700_000_000 };
        let entry = Entry {
            offset,
            op: if offset.is_multiple_of(5) { Op::Retract } else { Op::Apply },
            emission: EmissionId([offset as u8; 16]),
            block,
            position: EventPosition::Block,
            ordinal: 0,
            lane_key: String::new(),
            content_type: ContentType::Json,
            payload: payload.to_vec(),
            retracted: None,
        };
        entries.push((TrackId(track as i64), entry));
        drop(entries);
        self.tail.send_replace(offset);
        offset
    }
}

#[async_trait::async_trait]
impl Journal for Memory {
    fn id(&self) -> &str {
        "memory"
    }
    async fn commit(&self, _: Write) -> Read<Committed> {
        unreachable!("the listener writes nothing")
    }
    fn tail(&self) -> watch::Receiver<u64> {
        self.tail.subscribe()
    }
    fn moves(&self, _: ConsumerId) -> u64 {
        unreachable!("the listener follows all of them")
    }
    fn tracks(&self) -> Read<Vec<TrackInfo>> {
        let entries = self.entries.lock().unwrap();
        let last = |id| entries.iter().rev().find(|(t, _)| *t == id).map_or(0, |(_, e)| e.offset);
        Ok(self.tracks.iter().map(|t| TrackInfo { last_offset: last(t.id), ..t.clone() }).collect())
    }
    fn entries(&self, track: TrackId, after: u64, limit: usize, _: Option<&str>) -> Read<(Marks, Vec<Entry>)> {
        let found: Vec<Entry> = {
            let entries = self.entries.lock().unwrap();
            let ours = entries.iter().skip(after as usize).filter(|(t, _)| *t == track);
            ours.take(limit).map(|(_, e)| e.clone()).collect()
        };
        self.read.fetch_add(found.len(), std::sync::atomic::Ordering::SeqCst);
        if let Some(midst) = self.midst.lock().unwrap().take() {
            midst(self);
        }
        Ok((Marks::default(), found))
    }
    fn dead(&self, filter: &DeadFilter, after: i64, limit: usize) -> Read<Vec<DeadLetter>> {
        let fits = |d: &&DeadLetter| {
            d.id > after
                && filter.id.is_none_or(|id| id == d.id)
                && filter.output.as_ref().is_none_or(|o| *o == d.output)
        };
        Ok(self.dead.lock().unwrap().iter().filter(fits).take(limit).cloned().collect())
    }
    fn dead_count(&self, _: &OutputName) -> Read<u64> {
        unreachable!()
    }
    fn finalized(&self, _: ChainId) -> Read<Option<BlockRef>> {
        unreachable!()
    }
    fn consumers(&self) -> Read<Vec<Consumer>> {
        unreachable!()
    }
    fn steps(&self, _: ConsumerId) -> Read<Vec<BlockRef>> {
        unreachable!()
    }
    fn incarnation(&self, _: ConsumerId, _: &B256) -> Read<u32> {
        unreachable!()
    }
    fn state_get(&self, _: ConsumerId, _: &[u8]) -> Read<Option<Vec<u8>>> {
        unreachable!()
    }
    fn state_scan(&self, _: ConsumerId, _: &[u8], _: Option<&[u8]>, _: u32) -> Read<Vec<(Vec<u8>, Vec<u8>)>> {
        unreachable!()
    }
    fn position(&self, _: &OutputName, _: TrackId) -> Read<Option<u64>> {
        unreachable!()
    }
    fn parked(&self, _: &OutputName, _: TrackId) -> Read<Vec<Parked>> {
        unreachable!()
    }
    fn redo(&self, _: &OutputName, _: TrackId) -> Read<Vec<u64>> {
        unreachable!()
    }
    fn backlog(&self, _: TrackId, _: u64) -> Read<u64> {
        unreachable!()
    }
    fn weight(&self, _: TrackId, _: u64) -> Read<u64> {
        unreachable!()
    }
    fn written_ms(&self, _: u64) -> Read<Option<u64>> {
        unreachable!()
    }
    fn replaying(&self, _: &OutputName) -> Read<u64> {
        unreachable!()
    }
    fn window(&self) -> u64 {
        self.window.load(std::sync::atomic::Ordering::Relaxed)
    }
    fn forgotten(&self, _: TrackId) -> Read<u64> {
        unreachable!()
    }
    fn edits(&self, _: &mut dyn FnMut(Edit)) -> Result<(), JournalError> {
        Ok(())
    }
    fn asks(&self, _: ChainId, _: usize) -> Read<Vec<(i64, Vec<u8>)>> {
        unreachable!()
    }
    fn catch_ups(&self, _: ConsumerId) -> Result<Vec<crate::journal::CatchUp>, JournalError> {
        Ok(vec![])
    }
    fn versions(&self, _: &PluginName) -> Read<Vec<Version>> {
        unreachable!()
    }
    fn size(&self) -> Read<JournalSize> {
        unreachable!()
    }
    fn close(&self, _: Duration) -> Read<()> {
        Ok(())
    }
}

pub(super) struct Server {
    pub(super) at: String,
    pub(super) journal: Arc<Memory>,
    status: watch::Sender<Arc<Status>>,
    commands: mpsc::Receiver<(Command, oneshot::Sender<Answer>)>,
    pub(super) stop: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<()>,
    pub(super) http: reqwest::Client,
}

impl Server {
    pub(super) async fn start(tracks: &[(&str, u64)]) -> Self {
        // Only the first of a process is taken; the others find it there, which is as good.
        _ = rustls::crypto::ring::default_provider().install_default();
        let journal = Memory::new(tracks);
        let (status, receive) = watch::channel(Arc::new(Status { ready: true, ..Status::default() }));
        let (send, commands) = mpsc::channel(1);
        let handle = Handle { commands: send, status: receive, sets: Default::default(), journal: journal.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let metrics = telemetry::recorder().handle();
        let done = tokio::spawn(serve(listener, handle, metrics, async move { _ = stopped.await }));
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap();
        Self { at, journal, status, commands, stop: Some(stop), done, http }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.http.get(format!("{}{path}", self.at)).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The head and beginning of the answer to a request written by hand.
    async fn raw(&self, request: &str) -> String {
        let mut socket = TcpStream::connect(self.at.trim_start_matches("http://")).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(10), socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }
}

fn cursors(answer: &Value) -> Vec<u64> {
    answer["items"].as_array().unwrap().iter().map(|i| i["cursor"].as_str().unwrap().parse().unwrap()).collect()
}

fn page(journal: &Memory, ask: &Ask, after: u64) -> Page {
    match read(journal, ask, after).unwrap() {
        Got::Page(page) => page,
        Got::Gone(kept) => panic!("{after} has gone, {kept} is kept"),
    }
}

#[test]
fn a_cursor_before_the_window_is_told_so_and_the_beginning_is_where_it_begins() {
    let journal = Memory::new(&[("p.s", 1), ("p.s", 2)]);
    for track in [0, 1, 0, 1, 0] {
        journal.add(track, b"{}");
    }
    let ask =
        Ask { stream: "p.s".parse().unwrap(), chain: None, lane_key: None, blocks: None, limit: 10, bytes: 100_000 };
    let cursors = |page: Page| page.items.iter().map(|i| i.delivery.offset).collect::<Vec<_>>();
    assert_eq!(cursors(page(&journal, &ask, 0)), [1, 2, 3, 4, 5]);
    journal.window.store(3, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(cursors(page(&journal, &ask, 0)), [4, 5]);
    assert_eq!(cursors(page(&journal, &ask, 3)), [4, 5], "all before it was given");
    assert!(matches!(read(&*journal, &ask, 2), Ok(Got::Gone(3))));
    // It moves while a page is read.
    for after in [0, 3] {
        *journal.midst.lock().unwrap() =
            Some(Box::new(|journal| journal.window.store(4, std::sync::atomic::Ordering::Relaxed)));
        journal.window.store(3, std::sync::atomic::Ordering::Relaxed);
        match (after, read(&*journal, &ask, after).unwrap()) {
            (0, Got::Page(page)) => assert_eq!(cursors(page), [5]),
            (3, Got::Gone(4)) => {}
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    /// Reading on from `next` gives every entry of the stream once, in offset order, while more are written.
    #[test]
    fn paging_neither_skips_nor_repeats(
        before in proptest::collection::vec(0_usize..4, 0..400),
        midst in proptest::collection::vec(0_usize..4, 0..40),
        limit in 1_usize..150,
        bytes in prop_oneof![Just(1_usize), Just(2_000), Just(1 << 20)],
        chain in prop_oneof![Just(None), (1_u64..4).prop_map(|c| Some(ChainId(c)))],
    ) {
        let journal = Memory::new(&[("p.s", 1), ("p.s", 2), ("p.s", 3), ("p.other", 1)]);
        for track in &before {
            journal.add(*track, b"{}");
        }
        let written = midst.clone();
        *journal.midst.lock().unwrap() = Some(Box::new(move |journal| {
            for track in written {
                journal.add(track, b"{}");
            }
        }));
        let ask = Ask { stream: "p.s".parse().unwrap(), chain, lane_key: None, blocks: None, limit, bytes };
        let (mut seen, mut after) = (Vec::new(), 0);
        loop {
            let page = page(&journal, &ask, after);
            prop_assert!(page.items.len() <= limit);
            prop_assert!(page.next >= after);
            if page.items.is_empty() {
                break;
            }
            after = page.next;
            seen.extend(page.items.iter().map(|i| i.delivery.offset));
        }
        let entries = journal.entries.lock().unwrap();
        let ours = |t: &TrackId| t.0 < 3 && chain.is_none_or(|c| c.0 == t.0 as u64 + 1);
        let model: Vec<u64> = entries.iter().filter(|(t, _)| ours(t)).map(|(_, e)| e.offset).collect();
        prop_assert_eq!(seen, model);
    }
}

#[test]
fn an_entry_that_is_missing_is_an_error_and_not_the_end() {
    let journal = Memory::new(&[("p.s", 1)]);
    journal.add(0, b"{}");
    // The fake finds entries by their place: after 1 it finds nothing, though its track ends at 2.
    journal.entries.lock().unwrap()[0].1.offset = 2;
    journal.tail.send_replace(2);
    let ask = Ask { stream: "p.s".parse().unwrap(), chain: None, lane_key: None, blocks: None, limit: 10, bytes: 1000 };
    assert!(matches!(read(&*journal, &ask, 1), Err(JournalError::Halt { .. })));
}

#[tokio::test]
async fn a_feed_is_read_by_pages() {
    let server = Server::start(&[("p.s", 1), ("p.s", 137), ("p.empty", 1)]).await;
    for i in 0..7 {
        server.journal.add(i % 2, br#"{"value":100000000000000000001}"#);
    }
    let (status, page) = server.get("/streams/p.s?limit=4").await;
    assert_eq!((status, cursors(&page)), (200, vec![1, 2, 3, 4]));
    assert_eq!(page["next"], "4");
    let first = &page["items"][0];
    assert_eq!((&first["specversion"], &first["type"], &first["op"]), (&json!("1.0"), &json!("p.s"), &json!("apply")));
    assert_eq!(first["id"], DeliveryId::of(EmissionId([1; 16]), None, Op::Apply).to_string());
    let (_, page) = server.get("/streams/p.s?after=4").await;
    assert_eq!(cursors(&page), [5, 6, 7]);
    assert_eq!(page["items"][0]["op"], "retract");
    let (_, page) = server.get("/streams/p.s?chain=eip155:137").await;
    assert_eq!(cursors(&page), [2, 4, 6]);
    let (_, page) = server.get("/streams/p.s?after=latest").await;
    assert_eq!(page, json!({"items": [], "next": "7"}));
    let (_, list) = server.get("/streams").await;
    let ours = &list["streams"][1];
    assert_eq!((&ours["name"], &ours["chains"]), (&json!("p.s"), &json!(["eip155:1", "eip155:137"])));
    assert_eq!((&ours["cursor"], &ours["schema"]), (&json!("7"), &json!({"type": "object"})));
}

#[tokio::test]
async fn what_is_asked_wrongly_is_told() {
    let server = Server::start(&[("whale.large", 1)]).await;
    server.journal.add(0, b"{}");
    for (path, status, says) in [
        ("/streams/whale.larg", 404, "did you mean whale.large?"),
        ("/streams/whale.large?limit=0", 400, "1 to 1000"),
        ("/streams/whale.large?limit=1001", 400, "1 to 1000"),
        ("/streams/whale.large?limit=%2B1", 400, "1 to 1000"),
        ("/streams/whale.large?wait=61", 400, "0 to 60"),
        ("/streams/whale.large?after=-1", 400, "\"next\""),
        ("/streams/whale.large?after=newest", 400, "latest"),
        ("/streams/whale.large?after=2", 410, "another journal"),
        ("/streams/whale.large?after=18446744073709551616", 400, "\"next\""),
        ("/streams/whale.large?afer=1", 400, "did you mean after?"),
        ("/streams/whale.large?limit=1&limit=2", 400, "twice"),
        ("/streams/whale.large?chain=1", 400, "eip155:1"),
        ("/streams/whale.large?chain=eip155:5", 404, "eip155:1"),
        ("/dead?limit=x", 400, "1 to 1000"),
        ("/dead?output=orders", 404, "no output 'orders'"),
        ("/dead/77", 404, "GET /dead"),
        ("/nowhere", 404, "GET /"),
        ("/plugins/a/retry", 405, "POST"),
    ] {
        let (got, answer) = server.get(path).await;
        let why = answer["error"].as_str().unwrap_or_default();
        assert!(got == status && why.contains(says), "{path}: {got} {answer}");
    }
}

#[tokio::test]
async fn a_long_poll_wakes_on_a_commit_and_ends_with_its_time() {
    let server = Server::start(&[("p.s", 1), ("p.other", 1)]).await;
    let (_, page) = server.get("/streams/p.s?wait=1").await;
    assert_eq!(page, json!({"items": [], "next": "0"}));
    let began = std::time::Instant::now();
    let polled = server.get("/streams/p.s?after=0&wait=60");
    let writes = async {
        // It waits: the commit of another stream does not end it, its own does.
        server.journal.tail.send_replace(0);
        tokio::time::timeout(Duration::from_secs(10), async {
            while server.journal.tail.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the poll waits for the tail");
        server.journal.add(1, b"{}");
        server.journal.add(0, b"{}")
    };
    let ((_, page), offset) = tokio::join!(polled, writes);
    assert_eq!(cursors(&page), [offset]);
    assert!(began.elapsed() < Duration::from_secs(20));
}

/// Reads events until `count` have come: (id, op, data).
async fn read_events(answer: &mut reqwest::Response, count: usize) -> Vec<(u64, String, Value)> {
    let mut text = String::new();
    loop {
        let events: Vec<_> = text
            .rsplit_once("\n\n")
            .map_or("", |(whole, _)| whole)
            .split("\n\n")
            .filter_map(|e| {
                let fields: HashMap<&str, &str> = e.lines().filter_map(|l| l.split_once(": ")).collect();
                let data = serde_json::from_str(fields.get("data")?).unwrap();
                Some((fields["id"].parse().unwrap(), fields["event"].to_owned(), data))
            })
            .collect();
        if events.len() >= count {
            return events;
        }
        text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().expect("the stream goes on")).unwrap());
    }
}

#[tokio::test]
async fn server_sent_events_go_on_after_the_last_event_id() {
    let server = Server::start(&[("p.s", 1), ("p.s", 2)]).await;
    for i in 0..200 {
        server.journal.add(i % 2, b"{\"a\":\n1}");
    }
    let ask = |last: Option<&str>, query: &str| {
        let request =
            server.http.get(format!("{}/streams/p.s{query}", server.at)).header("accept", "text/event-stream");
        last.map_or(request.try_clone().unwrap(), |id| request.header("last-event-id", id)).send()
    };
    let mut answer = ask(None, "").await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let events = read_events(&mut answer, 200).await;
    assert_eq!(events.iter().map(|e| e.0).collect::<Vec<_>>(), (1..=200).collect::<Vec<u64>>());
    assert_eq!((events[4].1.as_str(), &events[4].2["op"]), ("retract", &json!("retract")));
    server.journal.add(0, b"{}");
    assert_eq!(read_events(&mut answer, 1).await[0].0, 201, "what is committed later comes by itself");
    drop(answer);
    // EventSource repeats the address that it began with: the header wins.
    let mut answer = ask(Some("150"), "?after=latest").await.unwrap();
    assert_eq!(read_events(&mut answer, 51).await[0].0, 151);
    assert_eq!(ask(Some("999"), "").await.unwrap().status(), 410);
    assert_eq!(ask(Some("x"), "").await.unwrap().status(), 400);
}

#[tokio::test]
async fn a_reader_that_stands_still_is_not_read_for() {
    let server = Server::start(&[("p.s", 1)]).await;
    let payload = format!("\"{}\"", "x".repeat(16 << 10));
    const ENTRIES: usize = 4_000; // 64 MiB: more than sockets hold
    for _ in 0..ENTRIES {
        server.journal.add(0, payload.as_bytes());
    }
    let mut socket = TcpStream::connect(server.at.trim_start_matches("http://")).await.unwrap();
    socket
        .write_all(b"GET /streams/p.s HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n")
        .await
        .unwrap();
    let read = || server.journal.read.load(std::sync::atomic::Ordering::SeqCst);
    // Settled: nothing more was read in a whole second.
    let settled = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if read() == before && before > 0 {
                return before;
            }
            before = read();
        }
    };
    let held = tokio::time::timeout(Duration::from_secs(30), settled).await.unwrap();
    assert!(held < ENTRIES / 2, "{held} of {ENTRIES} entries were read for a reader that reads nothing");
    // And when it reads on, nothing is missing.
    let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    let last = format!("id: {ENTRIES}\n");
    while !text.windows(last.len()).rev().take(2 << 20).any(|w| w == last.as_bytes()) {
        let n = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0);
        text.extend_from_slice(&buffer[..n]);
    }
    let text = String::from_utf8(text).unwrap();
    let ids: Vec<usize> =
        text.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).filter(|i| *i > 0).collect();
    assert!(ids.iter().copied().eq(1..=ENTRIES));
}

#[tokio::test]
async fn a_stop_ends_what_waits() {
    let mut server = Server::start(&[("p.s", 1)]).await;
    let events = server.http.get(format!("{}/streams/p.s", server.at)).header("accept", "text/event-stream");
    let mut events = events.send().await.unwrap();
    assert!(events.chunk().await.unwrap().unwrap().starts_with(b"retry: "));
    let poll = tokio::spawn(server.http.get(format!("{}/streams/p.s?wait=60", server.at)).send());
    tokio::time::timeout(Duration::from_secs(10), async {
        while server.journal.tail.receiver_count() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("both wait");
    server.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(4), &mut server.done).await.expect("before the drain's end").unwrap();
    assert_eq!(poll.await.unwrap().unwrap().text().await.unwrap(), "{\"items\":[],\"next\":\"0\"}\n");
    assert_eq!(events.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn strangers_pages_are_kept_out() {
    let server = Server::start(&[("p.s", 1)]).await;
    let get =
        |host: &str, more: &str| format!("GET /status HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n");
    let post = |more: &str| {
        format!(
            "POST /plugins/p/retry HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n{more}\r\n"
        )
    };
    let json = "content-type: application/json\r\n";
    for (request, status) in [
        (get("localhost:1", ""), "200"),
        (get("evil.example", ""), "421"),
        (get("localhost", "host: evil.example\r\n"), "4"),
        (get("localhost", "sec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n"), "403"),
        (get("localhost", "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n"), "200"),
        ("GET /status HTTP/1.0\r\n\r\n".into(), "421"),
        (post(""), "415"),
        (post("content-type: text/plain\r\n"), "415"),
        (post("content-type: application/x-www-form-urlencoded\r\n"), "415"),
        (post(&format!("{json}origin: http://evil.example\r\n")), "403"),
        (post(&format!("{json}origin: null\r\n")), "403"),
        (post("content-type: application/json\r\n").replace("content-length: 0", "content-length: 65537"), "413"),
    ] {
        let answer = server.raw(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) || answer.starts_with(&format!("HTTP/1.0 {status}")),
            "{request}\n{answer}"
        );
    }
    assert!(server.commands.is_empty());
}

#[tokio::test]
async fn commands_are_asked_of_the_router_and_its_answer_told() {
    let mut server = Server::start(&[("p.s", 1)]).await;
    let mut commands = std::mem::replace(&mut server.commands, mpsc::channel(1).1);
    let (at, http) = (&server.at, &server.http);
    let router = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some((command, answer)) = commands.recv().await {
            let refuse = matches!(command, Command::Rollback { .. });
            seen.push(format!("{command:?}"));
            answer.send(if refuse { Err("there is no version before".into()) } else { Ok("done".into()) }).unwrap();
            if seen.len() == 7 {
                break;
            }
        }
        seen
    });
    let json_type = ("content-type", "application/json");
    for (path, body, status, answer) in [
        ("/plugins/p/rollback", "", 409, json!({"error": "there is no version before"})),
        ("/plugins/p/retry", "{}", 200, json!({"ok": "done"})),
        ("/plugins/p/upgrade", "", 200, json!({"ok": "done"})),
        ("/outputs/orders/resume", "", 200, json!({"ok": "done"})),
        ("/chains/mainnet/accept-reorg", "", 200, json!({"ok": "done"})),
        ("/dead/retry", r#"{"ids":[1,2]}"#, 200, json!({"ok": "done"})),
        ("/dead/drop", r#"{"ids":[3]}"#, 200, json!({"ok": "done"})),
    ] {
        let sent = http.post(format!("{at}{path}")).header(json_type.0, json_type.1).body(body).send().await.unwrap();
        assert_eq!((sent.status().as_u16(), sent.json::<Value>().await.unwrap()), (status, answer), "{path}");
    }
    for (path, body, status) in [
        ("/dead/retry", "{}", 400),
        ("/dead/retry", r#"{"ids":[]}"#, 400),
        ("/dead/drop", r#"{"ids":["1"]}"#, 400),
        ("/plugins/p/retry", r#"{"now":true}"#, 400),
        ("/plugins/P/retry", "", 404),
    ] {
        let sent = http.post(format!("{at}{path}")).header(json_type.0, json_type.1).body(body).send().await.unwrap();
        assert_eq!(sent.status().as_u16(), status, "{path} {body}");
    }
    let seen = router.await.unwrap();
    assert_eq!(seen[0], "Rollback { plugin: p }");
    assert_eq!(seen[5], "Dead { ids: [1, 2], again: true }");
    assert_eq!(seen[6], "Dead { ids: [3], again: false }");
    let late = http.post(format!("{at}/plugins/p/retry")).header(json_type.0, json_type.1).send().await.unwrap();
    assert_eq!(late.status(), 409, "a router that has ended says so");
}

#[tokio::test]
async fn a_dead_letter_is_shown_with_its_event() {
    let server = Server::start(&[("p.s", 1), ("p.s", 2)]).await;
    server.journal.add(0, b"{}");
    let offset = server.journal.add(1, br#"{"value":1.10}"#);
    server.journal.dead.lock().unwrap().push(DeadLetter {
        id: 4,
        output: OutputName::new("orders").unwrap(),
        stream: "p.s".parse().unwrap(),
        chain: ChainId(2),
        offset,
        lane_key: "k".into(),
        delivery: DeliveryId([9; 16]),
        op: Op::Apply,
        attempts: 10,
        why: "410 Gone".into(),
        at_ms: 1_700_000_000_000,
    });
    let (_, list) = server.get("/dead?output=orders").await;
    assert_eq!((&list["items"][0]["id"], &list["next"]), (&json!(4), &json!("4")));
    let (_, shown) = server.get("/dead/4").await;
    assert_eq!((&shown["why"], &shown["time"]), (&json!("410 Gone"), &json!("2023-11-14T22:13:20Z")));
    assert_eq!((&shown["event"]["id"], &shown["event"]["cursor"]), (&shown["delivery"], &json!("2")));
    let raw = server.http.get(format!("{}/dead/4", server.at)).send().await.unwrap().text().await.unwrap();
    assert!(raw.contains(r#""data":{"value":1.10}"#), "{raw}");
}

#[tokio::test]
async fn health_readiness_and_metrics_are_told() {
    let server = Server::start(&[]).await;
    assert_eq!(server.get("/healthz").await.0, 200);
    assert_eq!(server.get("/readyz").await, (200, json!({"ready": true})));
    server.status.send_replace(Arc::new(Status {
        chains: vec![ChainStatus {
            name: "mainnet".into(),
            state: "unreachable".into(),
            why: Some("refused".into()),
            ..Default::default()
        }],
        ..Default::default()
    }));
    let (status, answer) = server.get("/readyz").await;
    assert_eq!((status, &answer["reasons"]), (503, &json!(["chain mainnet is unreachable: refused"])));
    assert_eq!(server.get("/healthz").await.0, 200);
    let (_, status) = server.get("/status").await;
    assert_eq!(serde_json::from_value::<Status>(status).unwrap().chains[0].name, "mainnet");
    let answer = server.http.get(format!("{}/metrics", server.at)).send().await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text().await.unwrap();
    assert!(text.contains("chainweir_build_info{version="), "{text}");
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with("# HELP ") && !l.starts_with("# TYPE ")) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("chainweir_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn hostile_names_stay_text_on_the_page() {
    let server = Server::start(&[("p.s", 1)]).await;
    let hostile = || "<script>alert(1)</script>\"'&".to_owned();
    let refused = RefusedFile { file: hostile(), digest: String::new(), why: hostile() };
    let at = ConsumerStatus { chain: hostile(), state: hostile(), why: Some(hostile()), ..Default::default() };
    server.status.send_replace(Arc::new(Status {
        version: hostile(),
        journal: JournalStatus { paused: Some(hostile()), ..Default::default() },
        chains: vec![ChainStatus {
            name: hostile(),
            chain: hostile(),
            state: hostile(),
            why: Some(hostile()),
            ..Default::default()
        }],
        plugins: vec![PluginStatus {
            name: hostile(),
            version: hostile(),
            description: hostile(),
            streams: vec![hostile()],
            chains: vec![at],
            refused: Some(refused.clone()),
            ..Default::default()
        }],
        refused_files: vec![RefusedFile { digest: "of another content".into(), ..refused }],
        outputs: vec![OutputStatus {
            name: hostile(),
            kind: hostile(),
            state: hostile(),
            why: Some(hostile()),
            ..Default::default()
        }],
        ..Default::default()
    }));
    let answer = server.http.get(&server.at).send().await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"));
    let html = answer.text().await.unwrap();
    assert_eq!(html.matches("<script>").count(), 1, "the page's own alone");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
    assert!(html.contains("&lt;b&gt;what it is&lt;/b&gt;"));
}
