//! JSON-RPC over WebSocket. `endpoint -> [ws] -> the node`.
//!
//! What is small goes at once, both ways. A block and its receipts are asked for side by side: with Nagle's algorithm here,
//! the second question waits for the acknowledgement of the first, a whole round trip. With it at the node, as anvil has
//! it, the second answer waits for ours, which Linux holds back for 40 ms where it is not told otherwise.

use std::time::Duration;

use alloy_json_rpc::PubSubItem;
use alloy_pubsub::{ConnectionHandle, ConnectionInterface, PubSubConnect};
use alloy_transport::{TransportErrorKind, TransportResult};
use base64::Engine;
use futures::{SinkExt, StreamExt};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use url::Url;

use super::transport::ANSWER_MOST;

/// A node of which nothing was heard for so long is asked whether it is there, and has as long to say so.
const QUIET: Duration = Duration::from_secs(10);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[derive(Clone)]
pub(super) struct Ws {
    pub url: Url,
    pub headers: HeaderMap,
}

impl Ws {
    async fn open(&self) -> Result<Socket, Error> {
        let mut request = self.url.as_str().into_client_request()?;
        request.headers_mut().extend(self.headers.clone());
        if !self.url.username().is_empty() && !self.headers.contains_key(AUTHORIZATION) {
            let who = format!("{}:{}", self.url.username(), self.url.password().unwrap_or_default());
            let who = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(who));
            let mut who = HeaderValue::from_str(&who).expect("base64 is a header's value");
            who.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, who);
        }
        let config = WebSocketConfig::default().max_message_size(Some(ANSWER_MOST)).max_frame_size(Some(ANSWER_MOST));
        let without_nagle = true;
        Ok(tokio_tungstenite::connect_async_with_config(request, Some(config), without_nagle).await?.0)
    }
}

impl PubSubConnect for Ws {
    fn is_local(&self) -> bool {
        alloy_transport::utils::guess_local_url(self.url.as_str())
    }

    async fn connect(&self) -> TransportResult<ConnectionHandle> {
        let socket = self.open().await.map_err(TransportErrorKind::custom)?;
        let (handle, interface) = ConnectionHandle::new();
        tokio::spawn(carry(socket, interface));
        // One try: reconnecting is decided where other providers are known of.
        Ok(handle.with_max_retries(1))
    }
}

/// Until one of the two ends is gone.
async fn carry(mut socket: Socket, mut interface: ConnectionInterface) {
    let (mut asked_whether_there, mut patient_until) = (false, Instant::now() + QUIET);
    let broken = loop {
        tokio::select! {
            asked = interface.recv_from_frontend() => match asked {
                Some(asked) if socket.send(Message::text(asked.get())).await.is_ok() => {}
                Some(_) => break true,
                None => break false,
            },
            // Not from the last question on: a node that is dead is asked again and again.
            heard = tokio::time::timeout_at(patient_until, socket.next()) => match heard {
                Ok(Some(Ok(message))) => {
                    (asked_whether_there, patient_until) = (false, Instant::now() + QUIET);
                    acknowledge(&socket);
                    match message {
                        Message::Text(text) => match serde_json::from_str::<PubSubItem>(&text) {
                            Ok(item) => {
                                if interface.send_to_frontend(item).is_err() {
                                    break false;
                                }
                            }
                            Err(_) => break true,
                        },
                        Message::Ping(_) | Message::Pong(_) => {}
                        Message::Binary(_) | Message::Close(_) | Message::Frame(_) => break true,
                    }
                }
                Ok(_) => break true,
                Err(_) if asked_whether_there || socket.send(Message::Ping("".into())).await.is_err() => break true,
                Err(_) => (asked_whether_there, patient_until) = (true, Instant::now() + QUIET),
            }
        }
    };
    if broken {
        interface.close_with_error();
    }
}

/// Now, not when there is something to send with it. Linux forgets this wish, so it is said each time.
#[cfg(target_os = "linux")]
fn acknowledge(socket: &Socket) {
    let tcp = match socket.get_ref() {
        MaybeTlsStream::Plain(tcp) => tcp,
        MaybeTlsStream::Rustls(tls) => tls.get_ref().0,
        _ => return,
    };
    // Where it is refused, answers come as late as they did.
    let _ = socket2::SockRef::from(tcp).set_tcp_quickack(true);
}

#[cfg(not(target_os = "linux"))]
fn acknowledge(_socket: &Socket) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    #[tokio::test(start_paused = true)]
    async fn a_node_of_which_nothing_is_heard_is_given_up_though_it_is_asked_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            drop(listener);
            let _silent = tokio_tungstenite::accept_async(stream).await.unwrap();
            std::future::pending::<()>().await;
        });
        let ws = Ws { url, headers: HeaderMap::new() };
        let client = alloy_rpc_client::ClientBuilder::default().pubsub(ws).await.unwrap();
        let began = Instant::now();
        let answer = loop {
            let asking = client.request_noparams::<serde_json::Value>("eth_chainId");
            match tokio::time::timeout(Duration::from_secs(1), asking).await {
                Ok(answer) => break answer,
                Err(_) => assert!(began.elapsed() < 6 * QUIET, "it is asked and asked"),
            }
        };
        assert!(answer.is_err(), "{answer:?}");
    }

    #[tokio::test]
    async fn questions_go_at_once_with_the_headers_and_the_name_of_the_url() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = std::sync::Arc::new(Mutex::new(HeaderMap::new()));
        let own = seen.clone();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let look = |request: &Request, response: Response| {
                *own.lock().unwrap() = request.headers().clone();
                Ok(response)
            };
            let mut socket = tokio_tungstenite::accept_hdr_async(stream, look).await.unwrap();
            while socket.next().await.is_some() {}
        });
        let headers = HeaderMap::from_iter([("x-key".parse().unwrap(), HeaderValue::from_static("k"))]);
        let ws = Ws { url: format!("ws://me:secret@127.0.0.1:{port}/v1").parse().unwrap(), headers };
        let socket = ws.open().await.unwrap();
        let MaybeTlsStream::Plain(tcp) = socket.get_ref() else { panic!("no TLS was asked for") };
        assert!(tcp.nodelay().unwrap());
        let seen = seen.lock().unwrap();
        assert!(seen["x-key"] == "k" && seen["authorization"] == "Basic bWU6c2VjcmV0", "{seen:?}");
    }
}
