//! What a provider's error asks us to do. `node -> [classify] -> ask for less | wait | look again`.
//!
//! By message before code: -32005 and -32602 mean "too large" at some providers and "rate limit" or "bad
//! parameters" at others. Knows nothing of connections; pure text in, one [`Asks`] out.

/// A range that a "too large" message suggests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// This first and last block should work.
    Range(u64, u64),
    /// At most so many blocks.
    Span(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The answer would be too large: ask for less. Never a rate limit.
    Less(Option<Hint>),
    /// Too many requests: wait. Asking for less would not help.
    Wait,
    /// It does not have this block.
    Unknown,
    /// It does not have this method.
    NoMethod,
    /// It does not understand this block tag.
    NoTag,
    /// None of these; ask again.
    Other,
}

const RATE: &[&str] = &[
    "compute unit",
    "rate limit",
    "rate-limit",
    "ratelimit",
    "rate exceeded",
    "request rate",
    "too many requests",
    "request limit",
    "requests limit",
    "requests per",
    "per second",
    "throttl",
    "daily request",
    "monthly",
    "capacity",
    "quota",
    "credits",
    "reduce calls",
    "calls per",
    "call rate",
    "exceeded the allowed rps",
    "rps limit",
];

const BEYOND: &[&str] = &[
    "unknown block",
    "header not found",
    "block not found",
    "header for hash not found",
    "beyond current head",
    "beyond head",
    "beyond the head",
    "could not find block",
    "cannot find block",
    "block does not exist",
    "block hash not found",
    "after last accepted block",
    "resource not found",
    "unknown header",
];

const LESS: &[&str] = &[
    "block range",
    "blocks range",
    "range is too",
    "range too",
    "too large",
    "too wide",
    "too big",
    "too many logs",
    "too many blocks",
    "too many results",
    "more than",
    "exceeds max",
    "exceeds limit",
    "exceeds the limit",
    "exceed max",
    "max results",
    "response size",
    "limited to",
    "ranges over",
    "range limit",
    "range exceeds",
    "range exceeded",
    "maximum range",
    "blocks distance",
    "must be smaller",
    "query timeout",
    "timed out",
    "execution aborted",
    "limit exceeded",
    "limit your",
    "larger than",
    "greater than",
    "max range",
    "context deadline",
];

const NO_METHOD: &[&str] = &[
    "method not found",
    "does not exist/is not available",
    "unsupported method",
    "method is not",
    "not supported",
    "method not",
    "no such method",
    "unknown method",
    "not whitelisted",
    "not available on",
];

const NO_TAG: &[&str] = &[
    "tag",
    "without 0x prefix",
    "invalid block number",
    "invalid argument 0",
    "cannot unmarshal",
    "cannot parse",
    "unknown variant",
];

/// Reads a JSON-RPC error (or the text of an HTTP error, with code 0).
pub fn classify(method: &str, code: i64, message: &str) -> Asks {
    // The method's own name says nothing: "trace_block does not exist" is of no block.
    let text = message.to_lowercase().replace(&method.to_lowercase(), "it");
    let says = |list: &[&str]| list.iter().any(|w| text.contains(w));
    let by_tag = method == "eth_getBlockByNumber";
    if code == 429 || says(RATE) {
        return Asks::Wait;
    }
    if says(BEYOND) {
        return Asks::Unknown;
    }
    if method == "eth_getLogs" && says(LESS) {
        return Asks::Less(hint(&text));
    }
    if code == -32601 || says(NO_METHOD) {
        return Asks::NoMethod;
    }
    if by_tag && says(NO_TAG) {
        return Asks::NoTag;
    }
    // Messages that say nothing: then the code may. -32005 is "limit exceeded" in EIP-1474.
    match code {
        -32005 if method == "eth_getLogs" => Asks::Less(None),
        -32005 => Asks::Wait,
        -32001 => Asks::Unknown,
        _ => Asks::Other,
    }
}

/// Text before a number of blocks.
const BEFORE_SPAN: &[&str] = &[
    "max range: ",
    "limited to 0 - ",
    "limited to a ",
    "limited to ",
    "max block range of ",
    "max block range ",
    "maximum block range: ",
    "maximum is set to ",
    "ranges over ",
    "the limit is ",
    "max is ",
    "up to a ",
    "distance: ",
    "range limit of ",
    "limit your block range to ",
    "smaller than size ",
    "greater than ",
    "range is too large, max ",
];

fn hint(text: &str) -> Option<Hint> {
    if let Some((_, rest)) = text.split_once("[0x")
        && let Some((inside, _)) = rest.split_once(']')
        && let Some((from, to)) = inside.split_once(',')
        && let (Ok(from), Ok(to)) =
            (u64::from_str_radix(from.trim(), 16), u64::from_str_radix(to.trim().trim_start_matches("0x"), 16))
        && from <= to
    {
        return Some(Hint::Range(from, to));
    }
    if let Some((_, rest)) = text.split_once("retry with the range ")
        && let Some((from, to)) = rest.split_once('-')
        && let (Some(from), Some(to)) = (number(from), number(to))
        && from <= to
    {
        return Some(Hint::Range(from, to));
    }
    BEFORE_SPAN.iter().find_map(|before| number(text.split_once(before)?.1)).filter(|n| *n > 0).map(Hint::Span)
}

/// The number that a text begins with: `10,000`, `2k`.
fn number(text: &str) -> Option<u64> {
    let digits: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == ',').collect();
    let value: u64 = digits.replace(',', "").parse().ok()?;
    if text[digits.len()..].starts_with('k') { value.checked_mul(1000) } else { Some(value) }
}

/// Answers of exactly so many logs are taken for cut off: limits that providers are known to apply silently.
pub fn looks_cut(count: usize) -> bool {
    matches!(count, 1_000 | 2_000 | 5_000 | 10_000 | 20_000 | 50_000 | 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_of_large_providers_ask_for_what_they_mean() {
        use Asks::{Less, NoMethod, NoTag, Other, Unknown, Wait};
        use Hint::{Range, Span};
        const L: &str = "eth_getLogs";
        const N: &str = "eth_getBlockByNumber";
        const R: &str = "eth_getBlockReceipts";
        #[rustfmt::skip]
        let table: &[(&str, &str, i64, &str, Asks)] = &[
            ("alchemy", L, -32602, "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no limit on the response size, or you can request any block range with a cap of 10K logs in the response. Based on your parameters and the response size limit, this block range should work: [0x112a880, 0x112a8ff]", Less(Some(Range(0x112a880, 0x112a8ff)))),
            ("alchemy free", L, -32600, "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based on your parameters, this block range should work: [0x1, 0xa]. Upgrade to PAYG for expanded block range.", Less(Some(Range(1, 10)))),
            ("alchemy", L, 429, "Your app has exceeded its compute units per second capacity. If you have retries enabled, you can safely ignore this message. If not, check out https://docs.alchemy.com/reference/throughput", Wait),
            ("infura", L, -32005, "query returned more than 10000 results. Try with this block range [0x106F5A0, 0x106F6B9].", Less(Some(Range(0x106f5a0, 0x106f6b9)))),
            ("infura", L, -32005, "query returned more than 10000 results", Less(None)),
            ("infura", L, -32005, "project ID request rate exceeded", Wait),
            ("infura", N, -32005, "daily request count exceeded, request rate limited", Wait),
            ("quicknode", L, -32614, "eth_getLogs is limited to a 10,000 range", Less(Some(Span(10_000)))),
            ("quicknode", L, -32615, "eth_getLogs is limited to a 5 range", Less(Some(Span(5)))),
            ("quicknode", L, -32007, "50/second request limit reached - reduce calls per second or upgrade your account at quicknode.com", Wait),
            ("quicknode", N, -32003, "daily request limit reached - upgrade your account at quicknode.com", Wait),
            ("ankr", L, -32062, "Block range is too large", Less(None)),
            ("ankr", L, -32600, "block range is too wide", Less(None)),
            ("ankr", N, -32055, "Too many requests, please retry in 5s", Wait),
            ("geth", L, -32000, "unknown block", Unknown),
            ("geth", L, -32000, "header not found", Unknown),
            ("geth", L, -32002, "request timed out", Less(None)),
            ("geth", L, -32003, "response too large", Less(None)),
            ("bsc", L, -32000, "exceed maximum block range: 5000", Less(Some(Span(5000)))),
            ("bsc public", L, -32005, "limit exceeded", Less(None)),
            ("geth", R, -32601, "the method eth_getBlockReceipts does not exist/is not available", NoMethod),
            ("geth", "trace_block", -32000, "the method trace_block does not exist/is not available", NoMethod),
            ("geth", N, -32602, "invalid argument 0: hex string without 0x prefix", NoTag),
            ("geth", N, -39001, "finalized block not found", Unknown),
            ("erigon", L, -32000, "query block range exceeds server limit", Less(None)),
            ("erigon", L, -32000, "block not found: 22431084", Unknown),
            ("nethermind", L, -32005, "Too many logs requested. Max logs per response is 20000.", Less(None)),
            ("nethermind", L, -32001, "Block 99999999 could not be found", Unknown),
            ("reth", L, -32602, "query exceeds max block range 100000", Less(Some(Span(100_000)))),
            ("reth", L, -32602, "query exceeds max results 20000, retry with the range 17000000-17000500", Less(Some(Range(17_000_000, 17_000_500)))),
            ("reth", L, -32602, "block range extends beyond current head block", Unknown),
            ("besu", L, -32005, "Requested range exceeds maximum range limit", Less(None)),
            ("drpc", L, 35, "ranges over 10000 blocks are not supported on freetier", Less(Some(Span(10_000)))),
            ("drpc", N, 15, "You've reached the usage limit for your current plan: Too many requests", Wait),
            ("chainstack", L, -32002, "Block range limit exceeded. See more details at https://docs.chainstack.com/docs/limits#evm-range-limits", Less(None)),
            ("chainstack", L, -32005, "You've exceeded the RPS limit available on the current plan.", Wait),
            ("blast", L, -32600, "Please, limit your block range to 10000 blocks", Less(Some(Span(10_000)))),
            ("cloudflare", L, -32047, "Invalid eth_getLogs request. 'fromBlock'-'toBlock' range too large. Max range: 800", Less(Some(Span(800)))),
            ("1rpc", L, -32602, "eth_getLogs is limited to 0 - 10000 blocks range", Less(Some(Span(10_000)))),
            ("avalanche", L, -32000, "requested too many blocks from 1 to 10000, maximum is set to 2048", Less(Some(Span(2048)))),
            ("arbitrum", L, -32000, "logs matched by query exceeds limit of 10000", Less(None)),
            ("fantom", L, -32000, "too wide blocks range, the limit is 10000", Less(Some(Span(10_000)))),
            ("evmos", L, -32000, "maximum [from, to] blocks distance: 10000", Less(Some(Span(10_000)))),
            ("harmony", L, -32000, "query must be smaller than size 1024", Less(Some(Span(1024)))),
            ("optimism", L, -32000, "block range greater than 10000 max", Less(Some(Span(10_000)))),
            ("proxyd", L, -32020, "backend response too large", Less(None)),
            ("proxyd", L, -32016, "over rate limit", Wait),
            ("silent", L, -32005, "", Less(None)),
            ("silent", N, -32005, "", Wait),
            ("any", N, -32603, "Internal error", Other),
            ("any", L, -32000, "missing trie node", Other),
        ];
        for (who, method, code, message, asks) in table {
            assert_eq!(classify(method, *code, message), *asks, "{who}: {code} {message}");
        }
    }
}
