//! A range of a stream at once: as lines of JSON to the end, or as a Parquet file. `merge -> download -> reader`

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::feed::read_page;
use super::merge::Ask;
use super::{App, Problem};
use crate::model::StreamSpec;
use crate::sink::{Layout, Retract, parquet_file};

/// Of a Parquet file, which is made in memory.
pub(super) const MOST_ROWS: usize = 100_000;
pub(super) const MOST_BYTES: usize = 64 << 20;

/// Every event after the cursor, up to the last that there is now. A body that breaks off is incomplete: HTTP says so, and a
/// reader goes on after the `cursor` of its last whole line.
pub(super) fn lines(app: App, ask: Ask, after: u64, limit: usize, last: u64, place: OwnedSemaphorePermit) -> Response {
    struct Rest {
        app: App,
        ask: Ask,
        after: u64,
        left: usize,
        _place: OwnedSemaphorePermit,
    }
    let ask = Ask { limit: ask.limit.min(limit), ..ask };
    let begin = Rest { app, ask, after, left: limit, _place: place };
    let chunks = futures::stream::try_unfold(begin, move |mut rest| async move {
        if rest.left == 0 || rest.after >= last {
            return Ok(None);
        }
        let page =
            read_page(&rest.app, &rest.ask, rest.after).await.map_err(|Problem(_, why)| std::io::Error::other(why))?;
        rest.after = page.next;
        let mut text = Vec::new();
        for item in page.items.iter().take(rest.left).take_while(|item| item.delivery.offset <= last) {
            text.extend_from_slice(&item.event);
            text.push(b'\n');
        }
        rest.left -= page.items.len().min(rest.left);
        Ok::<_, std::io::Error>(Some((text, rest)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(chunks)).into_response()
}

/// What there is after the cursor up to `last`, as far as one file goes; the header `chainweir-next` says where the next begins.
pub(super) async fn parquet(
    app: &App,
    ask: &Ask,
    mut after: u64,
    last: u64,
    spec: StreamSpec,
) -> Result<Response, Problem> {
    let (mut deliveries, mut bytes) = (Vec::new(), 0);
    let (limit, most) = (ask.limit, ask.bytes);
    while after < last && deliveries.len() < limit && bytes < most {
        let ask = Ask { limit: limit - deliveries.len(), bytes: most - bytes, ..ask.clone() };
        let page = read_page(app, &ask, after).await?;
        after = page.next;
        bytes += page.items.iter().map(|item| item.event.len()).sum::<usize>();
        deliveries.extend(page.items.into_iter().map(|item| item.delivery));
    }
    let made = tokio::task::spawn_blocking(move || {
        let layout = Layout::of(&spec, Retract::Append);
        parquet_file(&layout, deliveries.iter().map(|delivery| (delivery, layout.row_or_why(delivery))).collect())
    });
    let failed = |why: String| Problem(StatusCode::INTERNAL_SERVER_ERROR, format!("the file cannot be made: {why}"));
    let file = made.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    let mut response = ([(header::CONTENT_TYPE, "application/vnd.apache.parquet")], file).into_response();
    response.headers_mut().insert("chainweir-next", HeaderValue::from(after));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Server;
    use ::parquet::file::reader::{FileReader, SerializedFileReader};

    #[tokio::test]
    async fn a_range_is_read_at_once_as_lines_or_as_a_file() {
        let server = Server::start(&[("p.s", 1), ("p.s", 2), ("p.other", 1)]).await;
        for i in 0..3_000 {
            server.journal.add(i % 3, format!("{{\"a\": {i}}}").as_bytes());
        }
        let ours: Vec<u64> = (1..=3_000).filter(|offset| offset % 3 != 0).collect();
        let get = |query: &str| server.http.get(format!("{}/streams/p.s{query}", server.at));
        let cursors = |text: &str| {
            let cursor = |line: &str| {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                event["cursor"].as_str().unwrap().parse::<u64>().unwrap()
            };
            text.lines().map(cursor).collect::<Vec<_>>()
        };
        let lines = get("").header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(lines.headers()["content-type"], "application/x-ndjson");
        assert_eq!(cursors(&lines.text().await.unwrap()), ours);
        let some = get("?format=ndjson&after=1499&limit=150").send().await.unwrap().text().await.unwrap();
        assert_eq!(cursors(&some), ours.iter().copied().filter(|c| *c > 1499).take(150).collect::<Vec<_>>());
        // The fake's entries are in blocks of their own numbers.
        let blocks = get("?format=ndjson&from_block=100&to_block=110&chain=eip155:1").send().await.unwrap();
        assert_eq!(cursors(&blocks.text().await.unwrap()), [100, 103, 106, 109]);

        let file = get("?format=parquet&limit=1500").send().await.unwrap();
        assert_eq!(file.headers()["chainweir-next"], "2249");
        let reader = SerializedFileReader::new(file.bytes().await.unwrap()).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 1_500);
        let row = reader.get_row_iter(None).unwrap().next().unwrap().unwrap().to_string();
        assert!(row.contains("_op") && row.contains("apply"), "{row}");
        let empty = get("?format=parquet&after=latest").send().await.unwrap();
        assert_eq!((empty.status().as_u16(), &empty.headers()["chainweir-next"]), (200, &"3000".parse().unwrap()));

        for (query, code) in
            [("?format=xml", 400), ("?from_block=2&to_block=1", 400), ("?format=parquet&limit=100001", 400)]
        {
            assert_eq!(get(query).send().await.unwrap().status(), code, "{query}");
        }
        // What has gone cannot be read in full.
        server.journal.window.store(2_000, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(get("?format=parquet&after=10").send().await.unwrap().status(), 410);
        // Before the first line, or behind some.
        let lines = async { get("?format=ndjson&after=10").send().await?.text().await };
        assert!(lines.await.is_err(), "it breaks off");
    }

    #[tokio::test]
    async fn a_filter_leaves_out_the_rest_and_ends_where_the_stream_does() {
        let server = Server::start(&[("p.s", 1)]).await;
        for _ in 0..45_000 {
            server.journal.add(0, b"{}");
        }
        // Nothing has this key, and a page looks at so many entries only.
        let mut after = String::from("0");
        let mut pages = 0;
        loop {
            let url = format!("{}/streams/p.s?lane_key=nobody&after={after}", server.at);
            let page: serde_json::Value = server.http.get(url).send().await.unwrap().json().await.unwrap();
            assert_eq!(page["items"], serde_json::json!([]));
            let next = page["next"].as_str().unwrap().to_owned();
            if next == after {
                break;
            }
            (after, pages) = (next, pages + 1);
        }
        assert_eq!((after.as_str(), pages), ("45000", 3));
        let url = format!("{}/streams/p.s?from_block=44999&wait=5", server.at);
        let page: serde_json::Value = server.http.get(url).send().await.unwrap().json().await.unwrap();
        assert_eq!(page["items"].as_array().unwrap().len(), 2, "whoever waits is not told of what was left out");
    }
}
