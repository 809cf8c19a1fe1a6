//! What the tests stand on: servers of their own on free ports, in temporary folders, and waiting for a state.

// Not every test uses all of it.
#![allow(dead_code)]

pub mod anvil;
pub mod belt;
pub mod builds;
pub mod cable;
pub mod chain;
pub mod fake_node;
pub mod fault_proxy;
pub mod guests;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod receiver;
pub mod servers;
pub mod session;
pub mod sim;

use std::future::Future;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const FIRST_PORT: u16 = 12_000;
const PORTS: u32 = 20_000;

/// Asks again and again until there is an answer. Panics after 90 s: a provider that failed is asked again after 15 s at most,
/// and whoever needed it a little later.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(90), "waited 90 s for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a server listens. Panics where it ends instead, with what it said.
pub async fn listening(server: &mut Child, port: u16, said: impl Fn() -> String) {
    until("the server to listen", || {
        if let Some(status) = server.try_wait().expect("our own child can be waited for") {
            panic!("the server ended at once: {status}\n{}", said());
        }
        async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok() }
    })
    .await;
}

/// A port that nobody listens on, and that nobody else gets: below those that the system gives away by itself, and none
/// twice. It stays free while its server is being made, or is down. Another run of tests beside this one begins elsewhere.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    (0..PORTS)
        .map(|_| std::process::id().wrapping_mul(977).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % PORTS)
        .map(|n| FIRST_PORT + n as u16)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("the loopback has a free port")
}

/// The events of a file that may be written meanwhile: its last line may not be whole.
pub fn ndjson(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read(path).unwrap_or_default();
    let lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    lines.map(|line| serde_json::from_slice(line).expect("a line of NDJSON")).collect()
}
