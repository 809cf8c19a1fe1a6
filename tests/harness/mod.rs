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
use std::time::{Duration, Instant};

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

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
