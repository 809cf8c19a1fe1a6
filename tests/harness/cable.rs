//! The wire between the program and a node, to be broken at a byte, in the middle of whatever is said just then.
//!
//! `Cable::to(port)` listens on a port of its own and passes everything on. [`Cable::break_after`] and
//! [`Cable::break_after_asked`] say when it breaks, and how; [`Cable::mend`] lets new connections through again. Connections
//! that were broken stay so, as behind a router that has forgotten them.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Every connection is closed, and new ones at once.
    Cut,
    /// Connections stay open and nothing comes any more.
    Silence,
}

pub struct Cable {
    pub port: u16,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

/// Whose bytes are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Node,
}

struct Shared {
    /// Bytes that still come through before it breaks, whose, and how it does.
    left: Mutex<Option<(u64, Side, Break)>>,
    broken: watch::Sender<Option<Break>>,
}

impl Cable {
    /// To a node on the loopback.
    pub async fn to(node: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared { left: Mutex::new(None), broken: watch::Sender::new(None) });
        let state = shared.clone();
        let server = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("the loopback accepts");
                tokio::spawn(state.clone().carry(client, node));
            }
        });
        Self { port, shared, server }
    }

    /// After so many bytes that the node says.
    pub fn break_after(&self, bytes: u64, how: Break) {
        *self.shared.left.lock().unwrap() = Some((bytes, Side::Node, how));
    }

    /// After so many bytes that are said to the node.
    pub fn break_after_asked(&self, bytes: u64, how: Break) {
        *self.shared.left.lock().unwrap() = Some((bytes, Side::Client, how));
    }

    pub fn is_broken(&self) -> bool {
        self.shared.broken.borrow().is_some()
    }

    pub fn mend(&self) {
        self.shared.broken.send_replace(None);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    async fn carry(self: Arc<Self>, client: TcpStream, node: u16) {
        let mut broken = self.broken.subscribe();
        let kept = async {
            // The node may be gone: then this end is closed, too.
            let Ok(node) = TcpStream::connect(("127.0.0.1", node)).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_node, to_node) = node.into_split();
            tokio::select! {
                () = self.pass(from_client, to_node, Side::Client) => {}
                () = self.pass(from_node, to_client, Side::Node) => {}
            }
        };
        let mut silent = false;
        tokio::pin!(kept);
        loop {
            tokio::select! {
                () = &mut kept, if !silent => return,
                how = broken.wait_for(Option::is_some) => match how.map(|how| *how) {
                    Ok(Some(Break::Silence)) => silent = true,
                    _ => return,
                },
            }
            if silent {
                // For good: this connection is held and forgotten.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn pass(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, whose: Side) {
        let mut buffer = [0; 4096];
        loop {
            let read = match from.read(&mut buffer).await {
                Ok(read) if read > 0 => read,
                _ => return,
            };
            let passed = self.passed(read, whose);
            if to.write_all(&buffer[..passed]).await.is_err() {
                return;
            }
            if passed < read {
                // Everything ends in `carry`.
                return std::future::pending().await;
            }
        }
    }

    /// How many of these bytes come through.
    fn passed(&self, bytes: usize, whose: Side) -> usize {
        let mut left = self.left.lock().unwrap();
        let Some((remaining, _, how)) = left.filter(|left| left.1 == whose) else { return bytes };
        if remaining >= bytes as u64 {
            *left = Some((remaining - bytes as u64, whose, how));
            return bytes;
        }
        *left = None;
        self.broken.send_replace(Some(how));
        remaining as usize
    }
}
