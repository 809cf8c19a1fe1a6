//! Reads an output's own table of the configuration, for every kind of sink. No kind is known here.
//!
//! Every message names the output and the key, and says what to write instead. Secrets are named, never shown.

use std::path::PathBuf;

use super::{Open, SinkError};
use crate::model::OutputName;

/// The keys that a kind reads, each with a line of help.
pub type Known = &'static [(&'static str, &'static str)];

/// A password, token or key. `Debug` does not show it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// An output's table, checked for unknown keys.
pub struct Options {
    open: Open,
    known: Known,
}

impl Options {
    /// Refuses a key that the kind does not read, with the nearest that it does.
    pub fn new(open: Open, known: Known) -> Result<Self, SinkError> {
        let options = Self { open, known };
        for key in options.open.table.keys() {
            if known.iter().any(|(name, _)| name == key) {
                continue;
            }
            let nearest = known
                .iter()
                .map(|(name, _)| (strsim::jaro_winkler(key, name), *name))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(likeness, _)| *likeness > 0.75);
            let all = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(options.refused(&match nearest {
                Some((_, name)) => format!("unknown key '{key}'; did you mean '{name}'?"),
                None if known.is_empty() => format!("unknown key '{key}'; this type has no options"),
                None => format!("unknown key '{key}'; known are {}", all()),
            }));
        }
        Ok(options)
    }

    pub fn name(&self) -> &OutputName {
        &self.open.name
    }

    pub fn journal(&self) -> &str {
        &self.open.journal
    }

    /// An error that names the output.
    pub fn refused(&self, why: &str) -> SinkError {
        SinkError::Refused { why: format!("output.{}: {why}", self.open.name) }
    }

    fn get(&self, key: &str) -> Option<&toml::Value> {
        debug_assert!(self.known.iter().any(|(name, _)| *name == key), "'{key}' is read but not listed");
        self.open.table.get(key)
    }

    fn wrong(&self, key: &str, wanted: &str, got: &toml::Value) -> SinkError {
        self.refused(&format!("{key} must be {wanted}, not of type {}", got.type_str()))
    }

    pub fn text(&self, key: &str) -> Result<Option<String>, SinkError> {
        match self.get(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) if text.is_empty() => Err(self.refused(&format!("{key} is empty"))),
            Some(toml::Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong(key, "a text in quotes", other)),
        }
    }

    pub fn need(&self, key: &str, example: &str) -> Result<String, SinkError> {
        self.text(key)?.ok_or_else(|| self.refused(&format!("{key} is missing; for example: {key} = \"{example}\"")))
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, SinkError> {
        match self.get(key) {
            None => Ok(default),
            Some(toml::Value::Boolean(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A whole number of `range`.
    pub fn number(&self, key: &str, default: u64, range: std::ops::RangeInclusive<u64>) -> Result<u64, SinkError> {
        match self.get(key) {
            None => Ok(default),
            Some(toml::Value::Integer(number)) => match u64::try_from(*number) {
                Ok(number) if range.contains(&number) => Ok(number),
                _ => {
                    let (from, to) = (range.start(), range.end());
                    Err(self.refused(&format!("{key} must be a whole number from {from} to {to}, not {number}")))
                }
            },
            Some(other) => Err(self.wrong(key, "a whole number", other)),
        }
    }

    /// One of a few words; the first is the default.
    pub fn word(&self, key: &str, words: &[&'static str]) -> Result<&'static str, SinkError> {
        let Some(text) = self.text(key)? else { return Ok(words[0]) };
        words
            .iter()
            .find(|word| **word == text)
            .copied()
            .ok_or_else(|| self.refused(&format!("{key} must be one of {}, not '{text}'", words.join(", "))))
    }

    /// A path, relative to the configuration's folder.
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>, SinkError> {
        Ok(self.text(key)?.map(|path| self.open.base.join(path)))
    }

    /// The bytes of the file that `key` names.
    pub fn file(&self, key: &str) -> Result<Option<Vec<u8>>, SinkError> {
        let Some(path) = self.path(key)? else { return Ok(None) };
        let read = std::fs::read(&path);
        read.map(Some).map_err(|error| self.refused(&format!("cannot read {key} {}: {error}", path.display())))
    }

    /// The destination's URL, by `url`, or by `url_env` where it holds a password.
    pub fn url(&self, example: &str) -> Result<Secret, SinkError> {
        match (self.text("url")?, self.env("url_env")?) {
            (Some(url), None) => Ok(Secret(url)),
            (None, Some(url)) => Ok(url),
            (Some(_), Some(_)) => Err(self.refused("url and url_env are both set; keep one")),
            (None, None) => {
                Err(self
                    .refused(&format!("url_env is missing; for example: url_env = \"{example}\" (or url = \"...\")")))
            }
        }
    }

    /// A name with `{plugin}`, `{stream}` and `{chain}` in it, for [`super::filled`].
    pub fn template(&self, key: &str, default: &str) -> Result<String, SinkError> {
        let template = self.text(key)?.unwrap_or_else(|| default.into());
        if super::filled_alike(&template, "").contains(['{', '}']) {
            return Err(self.refused(&format!(
                "{key} '{template}': what is filled in are {{plugin}}, {{stream}} and {{chain}}; no other braces may be in it"
            )));
        }
        Ok(template)
    }

    /// A list of texts; one text is a list of one. No list: an empty one.
    pub fn words(&self, key: &str) -> Result<Vec<String>, SinkError> {
        let word = |value: &toml::Value| match value {
            toml::Value::String(word) if !word.is_empty() => Ok(word.clone()),
            other => Err(self.wrong(key, "a list of texts in quotes", other)),
        };
        match self.get(key) {
            None => Ok(vec![]),
            Some(toml::Value::Array(words)) if words.is_empty() => Err(self.refused(&format!("{key} is empty"))),
            Some(toml::Value::Array(words)) => words.iter().map(word).collect(),
            Some(one) => Ok(vec![word(one)?]),
        }
    }

    /// A table of texts.
    pub fn texts(&self, key: &str) -> Result<Vec<(String, String)>, SinkError> {
        match self.get(key) {
            None => Ok(vec![]),
            Some(toml::Value::Table(table)) => table
                .iter()
                .map(|(name, value)| match value {
                    toml::Value::String(text) => Ok((name.clone(), text.clone())),
                    other => Err(self.wrong(&format!("{key}.{name}"), "a text in quotes", other)),
                })
                .collect(),
            Some(other) => Err(self.wrong(key, "a table", other)),
        }
    }

    /// The content of the environment variable that `key` names.
    pub fn env(&self, key: &str) -> Result<Option<Secret>, SinkError> {
        let Some(variable) = self.text(key)? else { return Ok(None) };
        match std::env::var(&variable) {
            Ok(text) if !text.trim().is_empty() => Ok(Some(Secret(text.trim().to_owned()))),
            Ok(_) => Err(self.refused(&format!("the environment variable {variable} ({key}) is empty"))),
            Err(std::env::VarError::NotPresent) => Err(self
                .refused(&format!("the environment variable {variable} ({key}) is not set; set it and start again"))),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(self.refused(&format!("the environment variable {variable} ({key}) is not UTF-8")))
            }
        }
    }

    /// The content of the file that `key` names, without the white space around it.
    pub fn content_of(&self, key: &str) -> Result<Option<Secret>, SinkError> {
        let Some(path) = self.path(key)? else { return Ok(None) };
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => Ok(Some(Secret(text.trim().to_owned()))),
            Ok(_) => Err(self.refused(&format!("the file {} ({key}) is empty", path.display()))),
            Err(error) => Err(self.refused(&format!("cannot read the file {} ({key}): {error}", path.display()))),
        }
    }

    /// A secret by environment variable or by file, not by both.
    pub fn secret(&self, env_key: &str, file_key: &str) -> Result<Option<Secret>, SinkError> {
        match (self.env(env_key)?, self.content_of(file_key)?) {
            (Some(_), Some(_)) => Err(self.refused(&format!("{env_key} and {file_key} are both set; keep one"))),
            (one, other) => Ok(one.or(other)),
        }
    }
}

/// At most 200 bytes of what a destination said, safe to print: control characters are escaped.
pub fn excerpt(bytes: &[u8]) -> String {
    const LONGEST: usize = 200;
    let cut = &bytes[..bytes.len().min(LONGEST)];
    let mut text = String::new();
    for c in String::from_utf8_lossy(cut).chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    if bytes.len() > LONGEST {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = &[("url", ""), ("timeout_ms", ""), ("secret_env", ""), ("secret_file", "")];

    fn options(text: &str) -> Result<Options, SinkError> {
        let open = Open {
            name: OutputName::new("orders").unwrap(),
            table: text.parse().unwrap(),
            base: "/nowhere".into(),
            journal: "j".into(),
        };
        Options::new(open, KNOWN)
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        let why = options("timeout = 1").err().unwrap().to_string();
        assert_eq!(why, "output.orders: unknown key 'timeout'; did you mean 'timeout_ms'?");
        let why = options("zzz = 1").err().unwrap().to_string();
        assert!(why.contains("known are url, timeout_ms"), "{why}");
    }

    #[test]
    fn values_of_the_wrong_type_or_size_are_refused() {
        assert!(options("url = 3").unwrap().text("url").unwrap_err().to_string().contains("text in quotes"));
        assert!(options("url = ''").unwrap().text("url").is_err());
        assert!(options("").unwrap().need("url", "x").unwrap_err().to_string().contains("url is missing"));
        let number = |text: &str| options(text).unwrap().number("timeout_ms", 5, 1..=10);
        assert_eq!(number("").unwrap(), 5);
        assert_eq!(number("timeout_ms = 10").unwrap(), 10);
        for bad in ["timeout_ms = 11", "timeout_ms = -1", "timeout_ms = '1'"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_that_is_not_there_is_named() {
        let why = options("secret_env = 'CHAINWEIR_NOT_SET'").unwrap().secret("secret_env", "secret_file").unwrap_err();
        assert!(why.to_string().contains("CHAINWEIR_NOT_SET (secret_env) is not set"), "{why}");
        let why = options("secret_file = 'x'").unwrap().secret("secret_env", "secret_file").unwrap_err();
        assert!(why.to_string().contains("/nowhere/x (secret_file)"), "{why}");
        assert_eq!(format!("{:?}", Secret("hush".into())), "(secret)");
    }

    #[test]
    fn an_excerpt_is_short_and_prints_on_one_line() {
        assert_eq!(excerpt(b"a\n\x1b[31mb"), "a\\n\\u{1b}[31mb");
        assert_eq!(excerpt(&[b'x'; 300]), "x".repeat(200) + "…");
        assert_eq!(excerpt(&[0xff, b'a']), "\u{fffd}a");
    }
}
