//! JSON-RPC over a Unix socket, as nodes open one beside themselves. `endpoint -> [ipc] -> the node`.
//!
//! Values follow each other with nothing between them: where one ends is seen by its brackets. On Unix alone.

use std::path::PathBuf;

use alloy_json_rpc::PubSubItem;
use alloy_pubsub::{ConnectionHandle, ConnectionInterface, PubSubConnect};
use alloy_transport::{TransportErrorKind, TransportResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::transport::ANSWER_MOST;

const READ: usize = 64 << 10;

#[derive(Clone, Debug)]
pub(super) struct Ipc(pub PathBuf);

impl PubSubConnect for Ipc {
    fn is_local(&self) -> bool {
        true
    }

    #[cfg(unix)]
    async fn connect(&self) -> TransportResult<ConnectionHandle> {
        let socket = tokio::net::UnixStream::connect(&self.0).await.map_err(TransportErrorKind::custom)?;
        let (handle, interface) = ConnectionHandle::new();
        tokio::spawn(carry(socket, interface));
        // One try: reconnecting is decided where other providers are known of.
        Ok(handle.with_max_retries(1))
    }

    #[cfg(not(unix))]
    async fn connect(&self) -> TransportResult<ConnectionHandle> {
        Err(TransportErrorKind::custom_str("IPC is for Unix sockets"))
    }
}

/// Until one of the two ends is gone.
#[cfg(unix)]
async fn carry(mut socket: tokio::net::UnixStream, mut interface: ConnectionInterface) {
    let (mut from_node, mut to_node) = socket.split();
    let (mut buffer, mut values) = (vec![0; READ], Values::default());
    let broken = loop {
        tokio::select! {
            asked = interface.recv_from_frontend() => match asked {
                Some(asked) if to_node.write_all(asked.get().as_bytes()).await.is_ok() => {}
                Some(_) => break true,
                None => break false,
            },
            read = from_node.read(&mut buffer) => {
                let Ok(read @ 1..) = read else { break true };
                let items = values.take(&buffer[..read]);
                let items: Result<Vec<PubSubItem>, _> = items.iter().map(|v| serde_json::from_slice(v)).collect();
                let Ok(items) = items else { break true };
                if items.into_iter().any(|item| interface.send_to_frontend(item).is_err()) {
                    break false;
                }
                if values.held.len() > ANSWER_MOST {
                    break true;
                }
            }
        }
    };
    if broken {
        interface.close_with_error();
    }
}

/// Cuts a stream of bytes into the JSON values in it.
#[derive(Default)]
struct Values {
    held: Vec<u8>,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Values {
    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = vec![];
        for byte in bytes {
            self.held.push(*byte);
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        whole.push(std::mem::take(&mut self.held));
                    }
                }
                _ => {}
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_where_their_brackets_close_whatever_the_pieces() {
        let values = [r#"{"a":"}]{","b":["\\",{"c":"\""}]}"#, "[]", r#"{"d":{}}"#];
        let text = format!("{}{}\n{}", values[0], values[1], values[2]);
        for size in 1..text.len() {
            let mut cut = Values::default();
            let found: Vec<String> = text
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| cut.take(piece))
                .map(|value| String::from_utf8(value).unwrap().trim().to_owned())
                .collect();
            assert_eq!(found, values);
        }
    }
}
