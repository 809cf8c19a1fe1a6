//! Reads `chainweir.toml` and collects every mistake with its place, instead of stopping at the first.
//!
//! [`super::keys`] says which keys there are and what each takes; what is left to do by hand here is what a table
//! of keys cannot say: forms, names, and what refers to what.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::keys::{self, Section};
use super::read::{Kind, Reader, Value, in_words, whole};
use super::suggest::{hint, nearest};
use super::{
    ChainConfig, Config, Finality, HttpConfig, JournalConfig, LogConfig, LogFormat, Mistake, OutputConfig, Place,
    PluginConfig, PluginsConfig, RouteConfig, RouteFrom, Start,
};
use crate::model::{ChainId, OutputName, PluginName, StreamId, When};
use crate::plugin::capabilities::Capability;
use crate::plugin::{Limits, OnPoison};

/// The outcome of reading a file: where everything stands, what is wrong, and the configuration if nothing is.
#[derive(Debug)]
pub struct Examined {
    pub config: Result<Config, Vec<Mistake>>,
    /// Place of every key, by its path: `output.orders.secret_env`, `route.0.from`.
    pub places: BTreeMap<String, Place>,
}

pub fn examine(text: &str, base: &Path, file: &str) -> Examined {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, file, mistakes: vec![], places: BTreeMap::new() };
    for error in errors {
        reader.wrong(error.span().unwrap_or(0..0), error.message().trim().replace('\n', ", "));
    }
    reader.note_places("", root.get_ref());
    let config = reader.config(root.get_ref(), base);
    let Reader { mut mistakes, places, .. } = reader;
    // The parser hands tables over in the order of their names.
    mistakes.sort_by(|a, b| (a.place, &a.what).cmp(&(b.place, &b.what)));
    mistakes.dedup();
    Examined { config: if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }, places }
}

impl Reader<'_> {
    fn config(&mut self, root: &DeTable<'_>, base: &Path) -> Config {
        for key in root.keys().filter(|key| !keys::TOP.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            self.wrong(key.span(), format!("unknown section '{name}'{}", hint(name, keys::TOP.iter().copied())));
        }
        let mut config = Config::empty(base);
        let journal = self.single(root, "journal", &keys::JOURNAL);
        let default = config.journal;
        config.journal = JournalConfig {
            path: journal.text("path").map_or(default.path, |path| base.join(path)),
            backlog_limit: journal.whole("backlog_limit").unwrap_or(default.backlog_limit),
            backlog_bytes: journal.whole("backlog_bytes").unwrap_or(default.backlog_bytes),
            backlog_age: journal.whole("backlog_age"),
            retain: journal.whole("retain").unwrap_or(default.retain),
        };
        config.http = self.http(root, config.http);
        config.log = self.log(root, config.log);
        let plugins = self.single(root, "plugins", &keys::PLUGINS);
        if let Some(dir) = plugins.text("dir") {
            config.plugins = PluginsConfig { dir: base.join(dir) };
        }
        config.chains = self.chains(root);
        config.plugin = self.plugins(root);
        config.outputs = self.outputs(root);
        config.routes = self.routes(root);
        config
    }

    fn http(&mut self, root: &DeTable<'_>, default: HttpConfig) -> HttpConfig {
        let http = self.single(root, "http", &keys::HTTP);
        let Some(value) = http.value("listen") else { return default };
        let listen = match value.get_ref().as_str() {
            Some("off") => None,
            Some(text) => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => {
                    let what = format!("'{text}' is not an address and port such as 127.0.0.1:7300, nor \"off\"");
                    self.wrong(value.span(), what);
                    None
                }
            },
            None => {
                self.wrong_form(value, "listen", &keys::HTTP);
                None
            }
        };
        HttpConfig { listen }
    }

    fn log(&mut self, root: &DeTable<'_>, default: LogConfig) -> LogConfig {
        let log = self.single(root, "log", &keys::LOG);
        if let (Some(level), Some(value)) = (log.text("level"), log.value("level"))
            && let Err(error) = tracing_subscriber::EnvFilter::try_new(level)
        {
            self.wrong(
                value.span(),
                format!("'level' in [log]: '{level}' is not a filter such as info or warn,chainweir=debug: {error}"),
            );
        }
        LogConfig {
            format: if log.text("format") == Some("json") { LogFormat::Json } else { LogFormat::Text },
            level: log.text("level").map_or(default.level, str::to_owned),
        }
    }

    fn start(&mut self, value: &Value<'_>, section: &Section) -> Start {
        let instant = |date: &toml::value::Datetime| unix_seconds(date);
        let start = match value.get_ref() {
            DeValue::String(text) if text == "latest" => Some(Start::Latest),
            DeValue::String(text) => match text.parse::<toml::value::Datetime>() {
                Ok(date) => instant(&date).map(Start::Time),
                Err(_) => {
                    if nearest(text, ["latest"]).is_some() {
                        let what =
                            format!("'start' in {}: unknown word '{text}'; did you mean 'latest'?", section.title);
                        self.wrong(value.span(), what);
                        return Start::Latest;
                    }
                    None
                }
            },
            DeValue::Datetime(date) => instant(date).map(Start::Time),
            number => whole(number).map(Start::Block),
        };
        start.unwrap_or_else(|| {
            self.wrong_form(value, "start", section);
            Start::Latest
        })
    }

    fn chains(&mut self, root: &DeTable<'_>) -> BTreeMap<String, ChainConfig> {
        let kinds: Vec<&str> = crate::source::KINDS.iter().map(|kind| kind.name).collect();
        let mut chains = BTreeMap::new();
        let mut ids: BTreeMap<u64, String> = BTreeMap::new();
        for (name, at, table) in self.named(root, "chain") {
            self.name(name, at, OutputName::new);
            let title = format!("[chain.{name}]");
            let source = self.kind(&title, "source", table, &kinds);
            let kind = match &source {
                Kind::Given(given) => crate::source::KINDS.iter().find(|kind| kind.name == *given),
                Kind::Absent => crate::source::KINDS.first(),
                Kind::Wrong => None,
            };
            let options = kind.map(|kind| kind.options.iter().map(|o| o.0).collect::<Vec<_>>());
            let found = self.section(&title, table, &keys::CHAIN, options.as_deref());
            let chain_id = found.whole("chain_id");
            if let (Some(id), Some(value)) = (chain_id, found.value("chain_id"))
                && let Some(other) = ids.insert(id, name.to_owned())
            {
                self.wrong(value.span(), format!("chain_id {id} is that of [chain.{other}] too: give each chain once"));
            }
            let config = ChainConfig {
                name: name.to_owned(),
                source: kind.map_or_else(String::new, |kind| kind.name.to_owned()),
                chain_id: chain_id.map(ChainId),
                dropped_after: found.whole("dropped_after").unwrap_or(super::DROPPED_AFTER),
                start: found.value("start").map_or(Start::Latest, |value| self.start(value, &keys::CHAIN)),
                finality: found.value("finality").map_or(Finality::Tags, |value| self.finality(value)),
                table: self.raw(table, &keys::CHAIN),
            };
            chains.insert(name.to_owned(), config);
        }
        if chains.is_empty() && root.get("chain").is_none() {
            self.wrong(0..0, "no chain to follow: add [chain.NAME] with rpc = \"wss://...\"");
        }
        chains
    }

    fn finality(&mut self, value: &Value<'_>) -> Finality {
        match value.get_ref() {
            DeValue::String(word) if word == "tags" => return Finality::Tags,
            DeValue::Table(table) => {
                let found = self.section(keys::FINALITY.title, table, &keys::FINALITY, Some(&[]));
                if let Some(depth) = found.whole("depth") {
                    return Finality::Depth(depth);
                }
                if !table.is_empty() {
                    return Finality::Tags;
                }
            }
            _ => {}
        }
        self.wrong_form(value, "finality", &keys::CHAIN);
        Finality::Tags
    }

    fn plugins(&mut self, root: &DeTable<'_>) -> BTreeMap<PluginName, PluginConfig> {
        let chains: Vec<&str> = root
            .get("chain")
            .and_then(|chains| chains.get_ref().as_table())
            .map_or_else(Vec::new, |chains| chains.keys().map(|key| key.get_ref().as_ref()).collect());
        let mut plugins = BTreeMap::new();
        for (name, at, table) in self.named(root, "plugin") {
            let title = format!("[plugin.{name}]");
            let plugin_name = self.name(name, at, PluginName::new);
            let found = self.section(&title, table, &keys::PLUGIN, Some(&[]));
            for (chain, at) in found.texts("chains").unwrap_or_default() {
                if !chains.contains(&chain) {
                    self.wrong(at, format!("there is no [chain.{chain}]{}", hint(chain, chains.iter().copied())));
                }
            }
            for (grant, at) in found.texts("grants").unwrap_or_default() {
                let known = Capability::ALL.map(Capability::as_str);
                if !known.contains(&grant) {
                    let hint = hint(grant, known);
                    self.wrong(at, format!("'grants' in {title}: unknown word '{grant}'{hint}"));
                }
            }
            let owned = |list: Option<Vec<(&str, Range<usize>)>>| {
                list.map(|list| list.into_iter().map(|(text, _)| text.to_owned()).collect())
            };
            let config = PluginConfig {
                config: found.table("config").map_or_else(Default::default, |table| self.json(table)),
                start: found.value("start").map(|value| self.start(value, &keys::PLUGIN)),
                chains: owned(found.texts("chains")),
                on_poison: if found.text("on_poison") == Some("skip") { OnPoison::Skip } else { OnPoison::Wait },
                limits: found.table("limits").map_or_else(Limits::default, |table| self.limits(name, table)),
                grants: owned(found.texts("grants")),
                // The bound of the key is that of u32.
                upgrade: found.whole("upgrade").and_then(|version| u32::try_from(version).ok()),
            };
            plugin_name.map(|name| plugins.insert(name, config));
        }
        plugins
    }

    fn limits(&mut self, plugin: &str, table: &DeTable<'_>) -> Limits {
        let found = self.section(&format!("[plugin.{plugin}.limits]"), table, &keys::LIMITS, Some(&[]));
        let numbers = found.0.keys().filter_map(|key| Some(((*key).to_owned(), found.whole(key)?.into())));
        serde_json::from_value(serde_json::Value::Object(numbers.collect()))
            .expect("keys and bounds of LIMITS are those of Limits")
    }

    fn outputs(&mut self, root: &DeTable<'_>) -> BTreeMap<OutputName, OutputConfig> {
        let kinds: Vec<&str> = crate::sink::KINDS.iter().map(|kind| kind.name).collect();
        let mut outputs = BTreeMap::new();
        for (name, at, table) in self.named(root, "output") {
            let title = format!("[output.{name}]");
            let output_name = self.name(name, at.clone(), OutputName::new);
            let given = self.kind(&title, "type", table, &kinds);
            if matches!(given, Kind::Absent) {
                self.wrong(at, format!("{title} needs a 'type': {}", kinds.join(", ")));
            }
            let kind = match given {
                Kind::Given(given) => crate::sink::KINDS.iter().find(|kind| kind.name == given),
                _ => None,
            };
            let options = kind.map(|kind| kind.options.iter().map(|o| o.0).collect::<Vec<_>>());
            let found = self.section(&title, table, &keys::OUTPUT, options.as_deref());
            let Some(name) = output_name else { continue };
            let config = OutputConfig {
                name: name.clone(),
                kind: kind.map_or_else(String::new, |kind| kind.name.to_owned()),
                // The bound of the key is that of u32.
                attempts: found.whole("attempts").and_then(|n| u32::try_from(n).ok()).unwrap_or(10),
                stop_on_refused: found.text("on_refused") == Some("stop"),
                disable_after: found.whole("disable_after").unwrap_or(432_000),
                table: self.raw(table, &keys::OUTPUT),
            };
            outputs.insert(name, config);
        }
        outputs
    }

    fn routes(&mut self, root: &DeTable<'_>) -> Vec<RouteConfig> {
        let outputs: Vec<&str> = root
            .get("output")
            .and_then(|outputs| outputs.get_ref().as_table())
            .map_or_else(Vec::new, |outputs| outputs.keys().map(|key| key.get_ref().as_ref()).collect());
        let Some(value) = root.get("route") else { return vec![] };
        let Some(items) = value.get_ref().as_array() else {
            let found = in_words(value.get_ref());
            self.wrong(value.span(), format!("'route': expected a list of tables [[route]], found {found}"));
            return vec![];
        };
        let mut routes: Vec<RouteConfig> = vec![];
        for item in items.iter() {
            let Some(table) = item.get_ref().as_table() else {
                let found = in_words(item.get_ref());
                self.wrong(item.span(), format!("'route': expected a table [[route]], found {found}"));
                continue;
            };
            let found = self.section(keys::ROUTE.title, table, &keys::ROUTE, Some(&[]));
            for needed in ["from", "to"] {
                if table.get(needed).is_none() {
                    self.wrong(item.span(), format!("[[route]] needs a '{needed}'"));
                }
            }
            let when = found.value("when").map_or(When::Latest, |value| self.when(value));
            let from = found.value("from").and_then(|value| self.from(value));
            let mut seen = BTreeSet::new();
            let mut to = vec![];
            for (name, at) in found.texts("to").unwrap_or_default() {
                if !outputs.contains(&name) {
                    self.wrong(
                        at.clone(),
                        format!("there is no [output.{name}]{}", hint(name, outputs.iter().copied())),
                    );
                }
                if !seen.insert(name) {
                    self.wrong(at.clone(), format!("output '{name}' twice in one [[route]]: name it once"));
                }
                // A name that is none has been refused where the output is defined, or it is not defined.
                let Ok(name) = OutputName::new(name) else { continue };
                if let Some(from) = &from
                    && let Some(other) = routes.iter().find(|r| overlap(&r.from, from) && r.to.contains(&name))
                {
                    let (other, mine) = (from_in_words(&other.from), from_in_words(from));
                    let what = format!("'{mine}' goes to output '{name}' already by the [[route]] from '{other}'");
                    self.wrong(at, what);
                }
                to.push(name);
            }
            if let Some(value) = found.value("to")
                && value.get_ref().as_array().is_some_and(|list| list.is_empty())
            {
                self.wrong(value.span(), "'to' in [[route]]: name at least one output");
            }
            if let (Some(from), Some(value)) = (&from, found.value("when"))
                && from.plugin().as_str() == "chainweir"
                && when != When::Latest
            {
                let what =
                    "the host's own stream says by itself how deep a block is: leave 'when' out, or write \"latest\"";
                self.wrong(value.span(), what);
            }
            if let Some(from) = from {
                routes.push(RouteConfig { from, to, when });
            }
        }
        routes
    }

    fn from(&mut self, value: &Value<'_>) -> Option<RouteFrom> {
        let text = value.get_ref().as_str()?;
        let from = match text.split_once('.') {
            None => None,
            Some((plugin, "*")) => return self.name(plugin, value.span(), PluginName::new).map(RouteFrom::AllOf),
            Some(_) => match text.parse::<StreamId>() {
                Ok(stream) => Some(RouteFrom::Stream(stream)),
                Err(error) => {
                    self.wrong(value.span(), error.to_string());
                    return None;
                }
            },
        };
        if from.is_none() {
            let what = format!("'from' in [[route]]: expected plugin.stream or plugin.*, found '{text}'");
            self.wrong(value.span(), what);
        }
        from
    }

    fn when(&mut self, value: &Value<'_>) -> When {
        match value.get_ref() {
            DeValue::String(word) => match word.as_ref() {
                "latest" => return When::Latest,
                "safe" => return When::Safe,
                "finalized" => return When::Finalized,
                _ => {
                    if let Some(near) = nearest(word, ["latest", "safe", "finalized"]) {
                        let what = format!("'when' in [[route]]: unknown word '{word}'; did you mean '{near}'?");
                        self.wrong(value.span(), what);
                        return When::Latest;
                    }
                }
            },
            DeValue::Table(table) => {
                let found = self.section(keys::WHEN.title, table, &keys::WHEN, Some(&[]));
                if let Some(confirmations) = found.whole("confirmations") {
                    return When::Confirmations(confirmations);
                }
                if !table.is_empty() {
                    return When::Latest;
                }
            }
            _ => {}
        }
        self.wrong_form(value, "when", &keys::ROUTE);
        When::Latest
    }
}

/// One stream must not reach one output by two ways: both deliveries would have the same id.
fn overlap(a: &RouteFrom, b: &RouteFrom) -> bool {
    match (a, b) {
        (RouteFrom::Stream(a), RouteFrom::Stream(b)) => a == b,
        (RouteFrom::AllOf(a), RouteFrom::AllOf(b)) => a == b,
        (RouteFrom::AllOf(plugin), RouteFrom::Stream(stream))
        | (RouteFrom::Stream(stream), RouteFrom::AllOf(plugin)) => *plugin == stream.plugin,
    }
}

fn from_in_words(from: &RouteFrom) -> String {
    match from {
        RouteFrom::Stream(stream) => stream.to_string(),
        RouteFrom::AllOf(plugin) => format!("{plugin}.*"),
    }
}

/// Seconds since 1970 of a date (its midnight in UTC) or a date-time with offset; `None` for anything else. Days
/// are counted as in Howard Hinnant's `days_from_civil`: years begin in March.
fn unix_seconds(date: &toml::value::Datetime) -> Option<u64> {
    let day = date.date?;
    let (year, month) = (i64::from(day.year) - i64::from(day.month <= 2), i64::from(day.month));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(day.day) - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    let mut seconds = days * 86_400;
    if let Some(time) = date.time {
        let offset_minutes = match date.offset? {
            toml::value::Offset::Z => 0,
            toml::value::Offset::Custom { minutes } => i64::from(minutes),
        };
        let second = i64::from(time.second.unwrap_or(0));
        seconds += i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + second - offset_minutes * 60;
    }
    u64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds_since_1970() {
        for (text, seconds) in [
            ("1970-01-01", Some(0)),
            ("2000-02-29", Some(951_782_400)),
            ("2024-03-01T00:00:00Z", Some(1_709_251_200)),
            ("2024-03-01T02:30:00+02:30", Some(1_709_251_200)),
            ("2024-03-01 00:00:00", None),
            ("1969-12-31", None),
            ("12:00:00", None),
        ] {
            let date: toml::value::Datetime = text.parse().unwrap();
            assert_eq!(unix_seconds(&date), seconds, "{text}");
        }
    }
}
