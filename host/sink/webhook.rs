//! Posts every delivery to a URL as a CloudEvents event, signed as Standard Webhooks asks
//! (<https://www.standardwebhooks.com>). What an answer means is decided here; when to try again is the lane's.
//!
//! | answer | outcome | why |
//! |---|---|---|
//! | 2xx | Delivered | its body does not matter |
//! | 400, 413, 415, 422 | Refused | the receiver will not have this event as it is |
//! | 410 | Refused | the receiver wants no more |
//! | 3xx | Retry | redirects are not followed: the `url` must change, the event need not |
//! | 401, 403, 404, 405 and other 4xx | Retry | a deployment, a wrong key or a wrong path at the receiver: no fault of the event |
//! | 408, 409, 425, 429, 5xx | Retry | not now |
//! | no connection, no answer in time | Retry | |
//!
//! With `content_mode = "binary"` the payload is the body and the attributes are `ce-` headers, as the CloudEvents HTTP binding has
//! it; with `"bare"` there are no such headers. The signature is over the body in every mode.
//!
//! With `batch = N` a request holds up to N events, a JSON array of them, as the CloudEvents HTTP binding has it. One answer
//! is for all of them. A batch that is refused is halved until the event is found that the receiver will not have.
//!
//! `Retry-After`, as seconds or as a date, is passed on with every Retry, at most an hour of it.
//!
//! The URL may lead into the public internet only, unless `allow_private = true`: the address is checked when it is
//! connected to, so that a name cannot change its mind in between. Redirects are not followed and no proxy of the
//! environment is used, since both would choose the address in our place.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use hmac::{Hmac, Mac};
use reqwest::StatusCode;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use sha2::Sha256;
use url::Url;

use super::address::is_public;
use super::cloudevent::{self, Message, Mode};
use super::options::{Options, excerpt};
use super::{Kind, Shape, Sink, SinkError, Track};
use crate::model::{Delivery, Outcome};

pub const KIND: Kind = Kind {
    name: "webhook",
    options: &[
        ("url", "where to POST; http or https"),
        (
            "secret_env",
            "environment variable with the signing secret, whsec_...; several, parted by a space, while it changes",
        ),
        ("secret_file", "file with the signing secret, instead of secret_env"),
        (
            "headers",
            "table of headers to send with every request; {plugin}, {stream}, {chain} and {lane_key} in a value are filled in",
        ),
        ("content_mode", Mode::HELP),
        ("timeout_ms", "time for connecting, sending and answering together; 10000"),
        ("concurrency", "requests under way at once; 16, and 1 with batch"),
        (
            "batch",
            "most events in one request, 1 to 1000: more than 1 posts an array, application/cloudevents-batch+json; 1",
        ),
        ("ca_file", "PEM file with the certificate authorities to trust instead of the system's"),
        ("client_cert_file", "PEM file with the certificate to show to the receiver (mutual TLS), with its chain"),
        ("client_key_file", "PEM file with its key; the same file unless given"),
        ("allow_private", "true: the url may lead to a private or local address; false"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Webhook::open(open, system_lookup())?) as Arc<dyn Sink>) }),
};

const HEADER_WEBHOOK_ID: &str = "webhook-id";
const HEADER_WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
const HEADER_WEBHOOK_SIGNATURE: &str = "webhook-signature";
/// Standard Webhooks: a key has 24 to 64 bytes.
const SHORTEST_KEY: usize = 24;
const LONGEST_BODY_READ: usize = 64 * 1024;
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// For the body of a success, read only so that the connection can be used again.
const PATIENCE_AFTER_SUCCESS: Duration = Duration::from_millis(500);
const ALLOW: &str = "set allow_private = true in this output to allow it";

struct Webhook {
    client: reqwest::Client,
    url: Url,
    /// Scheme, host and port: a path may hold a token, so messages go without.
    place: String,
    headers: HeaderMap,
    /// Those of them with something to fill in.
    templates: Vec<(HeaderName, String)>,
    mode: Mode,
    /// By the key in use, and by those before it that receivers may still have.
    signers: Vec<Hmac<Sha256>>,
    timeout: Duration,
    shape: Shape,
}

impl Webhook {
    fn open(open: super::Open, lookup: Lookup) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let url = options.need("url", "https://shop.example/hooks/chain")?;
        let url = Url::parse(&url).map_err(|error| options.refused(&format!("url is not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(options.refused(&format!("url must begin with http:// or https://, not {}:", url.scheme())));
        }
        let allow_private = options.flag("allow_private", false)?;
        let literal = match url.host() {
            Some(url::Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
            Some(url::Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
            Some(url::Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                if !allow_private && (name == "localhost" || name.ends_with(".localhost")) {
                    return Err(options.refused(&format!("url leads to this machine ({name}); {ALLOW}")));
                }
                None
            }
            None => return Err(options.refused("url has no host")),
        };
        if let Some(address) = literal.filter(|address| !allow_private && !is_public(*address)) {
            return Err(
                options.refused(&format!("url leads to {address}, which is not of the public internet; {ALLOW}"))
            );
        }
        let timeout = Duration::from_millis(options.number("timeout_ms", 10_000, 1..=600_000)?);
        let batch = options.number("batch", 1, 1..=1_000)? as usize;
        let concurrency = match batch {
            1 => options.number("concurrency", 16, 1..=1_000)?,
            // A batch keeps its order by being alone.
            _ => options.number("concurrency", 1, 1..=1)?,
        } as usize;
        let mode = Mode::of(&options)?;
        if batch > 1 && mode != Mode::Structured {
            return Err(options.refused("a batch is an array of whole events: take out content_mode, or batch"));
        }
        let (headers, templates) = static_headers(&options)?;
        if let Some((name, _)) = templates.iter().find(|(_, value)| batch > 1 && value.contains("{lane_key}")) {
            return Err(options.refused(&format!("headers.{name}: the events of a batch have several lane keys")));
        }
        super::ring();
        let client = trust(&options, reqwest::Client::builder())?
            .user_agent(concat!("chainweir/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(Guard { allow_private, lookup }))
            .pool_max_idle_per_host(concurrency)
            .build()
            .map_err(|error| options.refused(&format!("cannot set up the HTTP client: {}", chain(&error))))?;
        Ok(Self {
            client,
            place: place(&url),
            url,
            headers,
            templates,
            mode,
            signers: signers(&options)?,
            timeout,
            shape: Shape { batch, concurrency },
        })
    }

    /// What the answer says of each of them.
    async fn post(&self, track: &Track, part: &[Delivery]) -> Outcome {
        let (id, message) = match part {
            [only] if self.shape.batch == 1 => (only.id.to_string(), cloudevent::message(only, self.mode)),
            // Of one lane, the first and how many they are say which they are. Sent again, it may be with others.
            [first, ..] => (format!("{}-{}", first.id, part.len()), array(part)),
            [] => return Outcome::Delivered,
        };
        let headers = match self.headers(&id, track, &part[0], &message) {
            Ok(headers) => headers,
            Err(why) => return Outcome::Refused { why },
        };
        let body = message.body;
        let request = self.client.post(self.url.clone()).headers(headers).body(body);
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut response = match tokio::time::timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return retry(format!("{}: {}", self.place, chain(&error.without_url()))),
            Err(_) => return retry(format!("{}: no answer within {} ms", self.place, self.timeout.as_millis())),
        };
        let status = response.status();
        if status.is_success() {
            let soon = deadline.min(tokio::time::Instant::now() + PATIENCE_AFTER_SUCCESS);
            read(&mut response, soon).await;
            return Outcome::Delivered;
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
        let said = excerpt(&read(&mut response, deadline).await);
        let said = if said.is_empty() { said } else { format!(": {said}") };
        match judge(status) {
            Judgement::Refused(meaning) => {
                Outcome::Refused { why: format!("{} answered {status} ({meaning}){said}", self.place) }
            }
            Judgement::Retry(meaning) => {
                Outcome::Retry { why: format!("{} answered {status} ({meaning}){said}", self.place), after }
            }
        }
    }

    fn headers(&self, id: &str, track: &Track, first: &Delivery, message: &Message) -> Result<HeaderMap, String> {
        let mut headers = self.headers.clone();
        for (name, template) in &self.templates {
            // A lane key is a plugin's text: percent-encoded, it cannot end a header and begin another.
            let key = cloudevent::header(&first.emission.lane_key);
            let value = super::filled(template, track).replace("{lane_key}", &key);
            let value = HeaderValue::from_str(&value).map_err(|_| format!("the header {name} cannot be sent"))?;
            headers.insert(name, value);
        }
        let kind = match self.mode {
            // What PHP and others take for UTF-8 only where it is said.
            Mode::Structured => format!("{}; charset=utf-8", message.content_type),
            _ => message.content_type.to_owned(),
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(&kind).map_err(|error| error.to_string())?);
        for (name, value) in &message.attributes {
            let name = HeaderName::from_bytes(format!("ce-{name}").as_bytes()).map_err(|error| error.to_string())?;
            let value = HeaderValue::from_str(&cloudevent::header(value)).map_err(|error| error.to_string())?;
            headers.insert(name, value);
        }
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| "the clock of this machine is before 1970; set it".to_owned())?
            .as_secs();
        let mut set = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).map_err(|_| format!("the header {name} cannot be sent"))?;
            headers.insert(name, value);
            Ok::<_, String>(())
        };
        set(HEADER_WEBHOOK_ID, id)?;
        set(HEADER_WEBHOOK_TIMESTAMP, &now.to_string())?;
        let signatures: Vec<_> = self.signers.iter().map(|signer| sign(signer, id, now, &message.body)).collect();
        if !signatures.is_empty() {
            set(HEADER_WEBHOOK_SIGNATURE, &signatures.join(" "))?;
        }
        Ok(headers)
    }
}

#[async_trait::async_trait]
impl Sink for Webhook {
    fn shape(&self) -> Shape {
        self.shape
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let (mut outcomes, mut size) = (Vec::with_capacity(batch.len()), self.shape.batch);
        while outcomes.len() < batch.len() {
            let rest = &batch[outcomes.len()..];
            let part = &rest[..size.min(rest.len())];
            match self.post(track, part).await {
                Outcome::Refused { .. } if part.len() > 1 => size = part.len() / 2,
                again @ Outcome::Retry { .. } => {
                    outcomes.push(again);
                    super::rest_waits(&mut outcomes, batch.len());
                }
                outcome => {
                    outcomes.extend(vec![outcome; part.len()]);
                    size = (2 * size).min(self.shape.batch);
                }
            }
        }
        outcomes
    }
}

/// As the JSON batch format of CloudEvents has it.
fn array(part: &[Delivery]) -> Message {
    const EVENT: usize = 512;
    let payloads: usize = part.iter().map(|delivery| delivery.emission.payload.len()).sum();
    let mut body = Vec::with_capacity(part.len() * EVENT + payloads);
    for (i, delivery) in part.iter().enumerate() {
        body.push(if i == 0 { b'[' } else { b',' });
        cloudevent::encode_to(&mut body, delivery);
    }
    body.push(b']');
    Message { content_type: "application/cloudevents-batch+json", attributes: vec![], body }
}

fn retry(why: String) -> Outcome {
    Outcome::Retry { why, after: None }
}

enum Judgement {
    Retry(&'static str),
    Refused(&'static str),
}

/// The table at the top, for everything but success.
fn judge(status: StatusCode) -> Judgement {
    use Judgement::{Refused, Retry};
    match status.as_u16() {
        400 | 413 | 415 | 422 => Refused("the receiver will not have this event"),
        410 => Refused("the receiver wants no more: take the output out of the routes, or change its url"),
        300..=399 => Retry("redirects are not followed: set url to the final address"),
        401 | 403 => Retry("the receiver does not accept our signature or headers"),
        404 | 405 => Retry("nothing takes POST at this url"),
        408 | 425 | 429 | 503 => Retry("the receiver asks to wait"),
        409 => Retry("the receiver is busy with this event"),
        400..=499 => Retry("the receiver refuses the request, not the event"),
        500..=599 => Retry("the receiver failed"),
        _ => Retry("not an answer to a POST"),
    }
}

/// At most [`LONGEST_BODY_READ`] bytes, until the deadline; what came until then.
async fn read(response: &mut reqwest::Response, deadline: tokio::time::Instant) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < LONGEST_BODY_READ {
        match tokio::time::timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk[..chunk.len().min(LONGEST_BODY_READ - body.len())]),
            // The status has decided already; the body is for the reader of the reason.
            Ok(Ok(None) | Err(_)) | Err(_) => break,
        }
    }
    body
}

/// RFC 9110, section 10.2.3: seconds or a date.
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a u64 holds are more than an hour.
        text.parse().map_or(LONGEST_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// An error with its causes: the outermost of reqwest's says only that sending failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{}://{host}:{port}", url.scheme()),
        None => format!("{}://{host}", url.scheme()),
    }
}

/// Whom the connection trusts, and what it shows of itself.
fn trust(options: &Options, mut client: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, SinkError> {
    let wrong = |key: &str, error: reqwest::Error| options.refused(&format!("{key} cannot be used: {}", chain(&error)));
    if let Some(pem) = options.file("ca_file")? {
        let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong("ca_file", error))?;
        if authorities.is_empty() {
            return Err(options.refused("ca_file holds no certificate"));
        }
        client = client.tls_certs_only(authorities);
    }
    match (options.file("client_cert_file")?, options.file("client_key_file")?) {
        (Some(mut pem), key) => {
            pem.push(b'\n');
            pem.extend(key.unwrap_or_default());
            let identity = reqwest::Identity::from_pem(&pem).map_err(|error| wrong("client_cert_file", error))?;
            client = client.identity(identity);
        }
        (None, Some(_)) => return Err(options.refused("client_key_file is set without client_cert_file")),
        (None, None) => {}
    }
    Ok(client)
}

/// Those that are always the same, and those with something to fill in.
fn static_headers(options: &Options) -> Result<(HeaderMap, Vec<(HeaderName, String)>), SinkError> {
    const OURS: [&str; 8] = [
        "content-type",
        "content-length",
        "transfer-encoding",
        "connection",
        "host",
        HEADER_WEBHOOK_ID,
        HEADER_WEBHOOK_TIMESTAMP,
        HEADER_WEBHOOK_SIGNATURE,
    ];
    let (mut headers, mut templates) = (HeaderMap::new(), vec![]);
    for (name, value) in options.texts("headers")? {
        let parsed = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| options.refused(&format!("headers: {name:?} is not the name of a header")))?;
        if OURS.contains(&parsed.as_str()) || parsed.as_str().starts_with("ce-") {
            return Err(options.refused(&format!("headers: {parsed} is set by this output itself; take it out")));
        }
        let checked = HeaderValue::from_str(&value)
            .map_err(|_| options.refused(&format!("headers.{name} has a line break or a control character")))?;
        if ["{plugin}", "{stream}", "{chain}", "{lane_key}"].iter().any(|part| value.contains(part)) {
            templates.push((parsed, value));
        } else {
            let mut value = checked;
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
    }
    Ok((headers, templates))
}

/// As Standard Webhooks has it: over the id, the time in seconds and the body, with points between them.
fn sign(key: &Hmac<Sha256>, id: &str, seconds: u64, body: &[u8]) -> String {
    let mac = key.clone().chain_update(format!("{id}.{seconds}.")).chain_update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn signers(options: &Options) -> Result<Vec<Hmac<Sha256>>, SinkError> {
    let Some(secrets) = options.secret("secret_env", "secret_file")? else { return Ok(vec![]) };
    let wrong = || {
        options.refused(&format!(
            "the signing secret must be whsec_ and the base64 of at least {SHORTEST_KEY} bytes; make one by: \
             echo whsec_$(openssl rand -base64 32)"
        ))
    };
    let mut signers = vec![];
    for secret in secrets.expose().split_whitespace() {
        let key = secret.strip_prefix("whsec_").ok_or_else(wrong)?;
        let key = STANDARD.decode(key).map_err(|_| wrong())?;
        if key.len() < SHORTEST_KEY {
            return Err(wrong());
        }
        signers.push(Hmac::new_from_slice(&key).map_err(|_| wrong())?);
    }
    Ok(signers)
}

type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The system's resolver.
fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            // The port is replaced by the URL's.
            Ok(tokio::net::lookup_host((name, 0)).await?.collect())
        })
    })
}

/// Resolves names to the addresses that may be called. The connection is made to what this returns and to nothing else.
struct Guard {
    allow_private: bool,
    lookup: Lookup,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (lookup, allow_private) = (self.lookup.clone(), self.allow_private);
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found = lookup(name.clone()).await?;
            let (allowed, denied): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|address| allow_private || is_public(address.ip()));
            if allowed.is_empty() {
                let why = match denied.first() {
                    Some(address) => {
                        format!("{name} leads to {}, which is not of the public internet; {ALLOW}", address.ip())
                    }
                    None => format!("{name} has no address"),
                };
                return Err(why.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OutputName;

    fn open_with(table: &str, lookup: Lookup) -> Result<Webhook, SinkError> {
        let name = OutputName::new("orders").unwrap();
        Webhook::open(
            super::super::Open { name, table: table.parse().unwrap(), base: ".".into(), journal: "j".into() },
            lookup,
        )
    }

    fn open(table: &str) -> Result<Webhook, SinkError> {
        open_with(table, system_lookup())
    }

    #[test]
    fn every_answer_has_its_class() {
        for code in 300..600 {
            let refused = matches!(judge(StatusCode::from_u16(code).unwrap()), Judgement::Refused(_));
            assert_eq!(refused, [400, 410, 413, 415, 422].contains(&code), "{code}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_an_hour() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        for (text, wait) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("86400", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("Thu, 22 Oct 2099 07:28:30 GMT", Some(3600)),
            ("", None),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(
                retry_after(&HeaderValue::from_str(text).unwrap(), now),
                wait.map(Duration::from_secs),
                "{text}"
            );
        }
    }

    #[test]
    fn private_addresses_are_refused_in_every_spelling() {
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "10.0.0.1",
            "169.254.169.254",
            "[fd00::1]",
            "0",
        ] {
            let why = open(&format!("url = 'http://{host}/x'")).err().unwrap_or_else(|| panic!("{host}")).to_string();
            assert!(why.contains("allow_private = true"), "{host}: {why}");
            assert!(open(&format!("url = 'http://{host}/x'\nallow_private = true")).is_ok(), "{host}");
        }
        assert!(open("url = 'https://1.1.1.1/'").is_ok());
        assert!(open("url = 'ftp://1.1.1.1/'").is_err());
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_is_not_called() {
        let lookup: Lookup = Arc::new(|_| Box::pin(async { Ok(vec!["10.0.0.1:0".parse().unwrap()]) }));
        let sink = open_with("url = 'http://shop.example/x'", lookup).unwrap();
        let (track, batch) = super::super::samples::batch(1..=1);
        match &sink.deliver(&track, &batch).await[..] {
            [Outcome::Retry { why, .. }] => {
                assert!(
                    why.contains("shop.example leads to 10.0.0.1") && why.contains("allow_private = true"),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_batch_is_one_signed_request_and_the_event_that_is_refused_is_found() {
        const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let posted = Arc::new(std::sync::Mutex::new(Vec::<(usize, bool)>::new()));
        let own = posted.clone();
        let take = move |headers: axum::http::HeaderMap, body: bytes::Bytes| async move {
            standardwebhooks::Webhook::new(SECRET).unwrap().verify(&body, &headers).unwrap();
            assert_eq!(headers["content-type"], "application/cloudevents-batch+json; charset=utf-8");
            let events: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap();
            let first = events[0]["id"].as_str().unwrap();
            assert_eq!(headers["webhook-id"], format!("{first}-{}", events.len()));
            let poison = events.iter().any(|event| event["data"]["n"] == 5);
            let full = events.iter().any(|event| event["data"]["n"] == 15);
            own.lock().unwrap().push((events.len(), poison));
            StatusCode::from_u16(if poison { 422 } else { 204 + 299 * u16::from(full) }).unwrap()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(take)).await });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, SECRET).unwrap();
        let sink = open(&format!(
            "url = 'http://127.0.0.1:{port}/'\nallow_private = true\nbatch = 8\nsecret_file = '{}'",
            file.display()
        ))
        .unwrap();
        assert_eq!(sink.shape(), Shape { batch: 8, concurrency: 1 });
        let (track, batch) = super::super::samples::batch(1..=8);
        let outcomes = sink.deliver(&track, &batch).await;
        for (i, outcome) in outcomes.iter().enumerate() {
            assert_eq!(matches!(outcome, Outcome::Refused { .. }), i == 4, "{i}: {outcome:?}");
            assert!(i == 4 || *outcome == Outcome::Delivered, "{i}: {outcome:?}");
        }
        let posts = std::mem::take(&mut *posted.lock().unwrap());
        assert_eq!(posts[0], (8, true));
        assert_eq!(
            posts.iter().filter(|post| !post.1).map(|post| post.0).sum::<usize>(),
            7,
            "nothing twice: {posts:?}"
        );
        let (_, batch) = super::super::samples::batch(9..=12);
        assert_eq!(sink.deliver(&track, &batch).await, vec![Outcome::Delivered; 4]);
        assert_eq!(posted.lock().unwrap().len(), 1, "one request");
        // What answers 503 is asked again later, as it was.
        let (_, batch) = super::super::samples::batch(13..=16);
        let outcomes = sink.deliver(&track, &batch).await;
        assert!(outcomes.len() == 4 && outcomes.iter().all(|o| matches!(o, Outcome::Retry { .. })), "{outcomes:?}");
        assert!(open("url = 'https://1.1.1.1/'\nbatch = 2\nconcurrency = 2").is_err());
    }

    #[test]
    fn headers_and_secrets_are_checked_before_the_first_delivery() {
        for bad in [
            "headers = { 'a b' = 'x' }",
            "headers = { a = \"x\\r\\ny: z\" }",
            "headers = { Webhook-Id = 'x' }",
            "headers = { a = 1 }",
        ] {
            assert!(open(&format!("url = 'https://1.1.1.1/'\n{bad}")).is_err(), "{bad}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        for (secret, good) in [
            ("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\n", true),
            ("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oE", true),
            ("C2FVsBQIhrscChlQIMV+b5sSYspob7oD", false),
            ("whsec_aGk=", false),
            ("whsec_!!hush!!", false),
        ] {
            std::fs::write(&file, secret).unwrap();
            let opened = open(&format!("url = 'https://1.1.1.1/'\nsecret_file = '{}'", file.display()));
            assert_eq!(opened.is_ok(), good, "{secret}");
            if let Err(error) = opened {
                assert!(!error.to_string().contains("hush"), "{error}");
            }
        }
    }
}
