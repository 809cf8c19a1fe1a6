//! What a request's query may hold: every key is known, given once, and says what it takes when it is wrong.

use std::str::FromStr;

use axum::extract::Query;
use axum::http::Uri;

use super::Problem;

/// The word of `known` that is most like `word`, if one is like it at all.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::normalized_damerau_levenshtein(word, k), k))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn of(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| Problem::bad(format!("the query cannot be read: {e}")))?;
        for (i, (key, _)) in pairs.iter().enumerate() {
            if !known.contains(&key.as_str()) {
                let meant =
                    nearest(key, known.iter().copied()).map_or(String::new(), |k| format!(" (did you mean {k}?)"));
                let takes = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Problem::bad(format!("unknown parameter '{key}'{meant}; parameters here: {takes}")));
            }
            if pairs[..i].iter().any(|(k, _)| k == key) {
                return Err(Problem::bad(format!("parameter '{key}' is given twice; give it once")));
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A decimal number of a range, or `default`.
    pub(super) fn number<T: FromStr + PartialOrd>(
        &self,
        key: &str,
        takes: &str,
        range: std::ops::RangeInclusive<T>,
        default: T,
    ) -> Result<T, Problem> {
        let Some(text) = self.text(key) else { return Ok(default) };
        number(text)
            .filter(|n| range.contains(n))
            .ok_or_else(|| Problem::bad(format!("{key}={text}: {key} takes {takes}")))
    }
}

/// Digits alone: no sign, no space.
pub(super) fn number<T: FromStr>(text: &str) -> Option<T> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}
