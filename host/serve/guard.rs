//! Keeps web pages out of a listener that has no password. `request -> (refused | handler)`.
//!
//! A browser on this machine runs strangers' pages. Two ways lead from such a page to a loopback port: a name of its
//! own that it lets resolve to 127.0.0.1 (DNS rebinding; seen by the `Host` header), and a plain cross-site request
//! (seen by `Origin` and `Sec-Fetch-Site`, and kept from doing anything by a content type that a form cannot send).

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{BODY_BYTES, Problem, SET_BODY_BYTES};

pub(super) async fn check(request: Request, next: Next) -> Response {
    let mut response = match refuse(&request) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}

fn refuse(request: &Request) -> Option<Problem> {
    let headers = request.headers();
    let Some(host) = only(headers, header::HOST).filter(|h| is_ours(h)) else {
        let why = "the Host header must be localhost or an IP address: other names are refused, because a web page could \
                   have made them up (a proxy in front must set the Host header to the address that it connects to)";
        return Some(Problem(StatusCode::MISDIRECTED_REQUEST, why.into()));
    };
    if request.uri().authority().is_some_and(|a| !is_ours(a.as_str())) {
        return Some(Problem(StatusCode::MISDIRECTED_REQUEST, "this is not a proxy".into()));
    }
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    let header = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    // A person may follow a link to here from anywhere; a page may not load from here.
    let navigates = looks && header("sec-fetch-mode") == Some(b"navigate");
    if matches!(header("sec-fetch-site"), Some(b"cross-site" | b"same-site")) && !navigates {
        return Some(Problem(StatusCode::FORBIDDEN, "another site's page may not ask here".into()));
    }
    // A WebSocket is opened by a GET that no browser holds back.
    if looks && !headers.contains_key(header::UPGRADE) {
        return None;
    }
    if headers.contains_key(header::ORIGIN) {
        let same = only(headers, header::ORIGIN)
            .and_then(|o| o.strip_prefix("http://").or_else(|| o.strip_prefix("https://")))
            .is_some_and(|origin| origin.eq_ignore_ascii_case(host));
        if !same {
            return Some(Problem(StatusCode::FORBIDDEN, "another site's page may not ask here".into()));
        }
    }
    if looks {
        return None;
    }
    let is_json = only(headers, header::CONTENT_TYPE)
        .and_then(|t| t.split(';').next())
        .is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"));
    if !is_json {
        let why = "a POST or PUT needs the header content-type: application/json, also where it has no body";
        return Some(Problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, why.into()));
    }
    let length = only(headers, header::CONTENT_LENGTH).and_then(|l| l.parse::<usize>().ok());
    let path = request.uri().path();
    let most =
        if path.starts_with("/sets/") || path.starts_with("/transactions/") { SET_BODY_BYTES } else { BODY_BYTES };
    if length.is_some_and(|l| l > most) {
        return Some(Problem(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {most} bytes")));
    }
    None
}

/// The value of a header that is there exactly once.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() { None } else { first.to_str().ok() }
}

/// `localhost`, or any address written as an IP. An IP cannot be rebound: a page whose `Host` is one was loaded from
/// that very address, so from here (or through a forwarded port, whose address this process cannot know).
fn is_ours(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn only_localhost_and_addresses_are_hosts() {
        for ours in ["localhost", "LOCALHOST:7300", "127.0.0.1:7300", "127.0.0.1", "[::1]:7300", "192.168.1.5:7300"] {
            assert!(is_ours(ours), "{ours}");
        }
        for strange in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:7300",
            "localhost@evil.example",
            "a b",
        ] {
            assert!(!is_ours(strange), "{strange}");
        }
    }
}
