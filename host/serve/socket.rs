//! A stream over a WebSocket (RFC 6455): each event is a text message, as the pages have it. `feed -> socket -> reader`
//!
//! What the reader says is not listened to. When it cannot go on, the close says why; a reader goes on after the `cursor` of the
//! last event that it had.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::feed::{KEEP_ALIVE, read_page};
use super::merge::Ask;
use super::{App, Problem};

/// Of what a reader may say.
const SAID: usize = 4 << 10;
/// For the reader to take one message.
const TAKES: Duration = Duration::from_secs(60);
/// Bytes of a reason (RFC 6455, section 5.5).
const REASON: usize = 123;

pub(super) fn open(upgrade: WebSocketUpgrade, app: App, ask: Ask, after: u64, place: OwnedSemaphorePermit) -> Response {
    let upgrade = upgrade.max_message_size(SAID).max_frame_size(SAID);
    upgrade.on_upgrade(move |mut socket| async move {
        let _place = place;
        if let Some((code, why)) = run(&mut socket, &app, &ask, after).await {
            let end = (0..=why.len().min(REASON)).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
            let reason = Utf8Bytes::from(&why[..end]);
            let close = Message::Close(Some(CloseFrame { code, reason }));
            // Who has gone need not be told.
            drop(tokio::time::timeout(Duration::from_secs(1), socket.send(close)).await);
        }
    })
}

/// Why it ended, unless it was the reader.
async fn run(socket: &mut WebSocket, app: &App, ask: &Ask, mut after: u64) -> Option<(u16, String)> {
    let mut tail = app.handle.journal.tail();
    let mut stopping = app.stopping.clone();
    let mut keep_alive = tokio::time::interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    loop {
        if *stopping.borrow() {
            return Some((close_code::AWAY, "the process stops: come again".into()));
        }
        let page = match read_page(app, ask, after).await {
            Ok(page) => page,
            Err(Problem(axum::http::StatusCode::GONE, why)) => return Some((close_code::POLICY, why)),
            Err(Problem(_, why)) => return Some((close_code::AGAIN, why)),
        };
        after = page.next;
        for item in page.items {
            let text = String::from_utf8(item.event).expect("an event is JSON");
            if !send(socket, Message::Text(text.into())).await {
                return None;
            }
        }
        let silent = tokio::select! {
            more = tail.wait_for(|tail| *tail > after) => if more.is_err() { return None } else { false },
            _ = keep_alive.tick() => true,
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => false,
            },
            _ = stopping.wait_for(|s| *s) => false,
        };
        if silent && !send(socket, Message::Ping(Default::default())).await {
            return None;
        }
    }
}

/// False where the reader takes nothing any more.
async fn send(socket: &mut WebSocket, message: Message) -> bool {
    matches!(tokio::time::timeout(TAKES, socket.send(message)).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
    use tokio_tungstenite::tungstenite::{Error, Message};

    use super::super::tests::Server;

    #[tokio::test]
    async fn a_web_socket_gives_what_there_is_and_what_comes_and_says_why_it_ends() {
        let mut server = Server::start(&[("p.s", 1), ("p.s", 2)]).await;
        for i in 0..300 {
            server.journal.add(i % 2, b"{}");
        }
        let at = server.at.replace("http://", "ws://");
        let cursor = |message: Option<Result<Message, Error>>| match message {
            Some(Ok(Message::Text(text))) => {
                let event: serde_json::Value = serde_json::from_str(&text).unwrap();
                event["cursor"].as_str().unwrap().parse::<u64>().unwrap()
            }
            other => panic!("{other:?}"),
        };
        let (mut socket, _) = tokio_tungstenite::connect_async(format!("{at}/streams/p.s?after=100")).await.unwrap();
        for expected in 101..=300 {
            assert_eq!(cursor(socket.next().await), expected);
        }
        // What is said to it is no matter.
        futures::SinkExt::send(&mut socket, Message::text("hello")).await.unwrap();
        server.journal.add(0, b"{}");
        assert_eq!(cursor(socket.next().await), 301);

        // A page of another site opens none.
        let mut strange = format!("{at}/streams/p.s").into_client_request().unwrap();
        strange.headers_mut().insert("origin", "http://evil.example".parse().unwrap());
        let Err(Error::Http(refused)) = tokio_tungstenite::connect_async(strange).await else {
            panic!("it was let in")
        };
        assert_eq!(refused.status(), 403);

        // What has gone, and the end.
        server.journal.window.store(200, std::sync::atomic::Ordering::Relaxed);
        let (mut late, _) = tokio_tungstenite::connect_async(format!("{at}/streams/p.s?after=5")).await.unwrap();
        match late.next().await {
            Some(Ok(Message::Close(Some(frame)))) => {
                assert!(frame.code == CloseCode::Policy && frame.reason.contains("cursor 5"), "{frame:?}");
            }
            other => panic!("{other:?}"),
        }
        server.stop.take().unwrap().send(()).unwrap();
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(Some(frame)))) => break assert_eq!(frame.code, CloseCode::Away),
                Some(Ok(Message::Ping(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
