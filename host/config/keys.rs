//! Every key of `chainweir.toml`: its name, what it takes, its default and a line of help, in one place.
//!
//! The parser refuses what is not listed here, and `chainweir check --explain` prints the same list; the guide
//! carries that print. Keys of one kind of source or sink are not here: each kind lists its own `options`.

use std::fmt::Write;

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number, bounds included.
    Whole(u64, u64),
    /// A list of strings.
    Texts,
    Table,
    /// Several forms, read by hand; in words.
    Forms(&'static str),
}

impl Expect {
    pub fn in_words(&self) -> String {
        match self {
            Self::Text => "a string".into(),
            Self::Word(words) => words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(" or "),
            Self::Whole(..) => "a number".into(),
            Self::Texts => "a list of strings".into(),
            Self::Table => "a table".into(),
            Self::Forms(words) => (*words).into(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub expect: Expect,
    /// As it would be written in the file; empty where there is none.
    pub default: &'static str,
    pub help: &'static str,
}

const fn key(name: &'static str, expect: Expect, default: &'static str, help: &'static str) -> Key {
    Key { name, expect, default, help }
}

#[derive(Debug)]
pub struct Section {
    pub title: &'static str,
    pub help: &'static str,
    pub keys: &'static [Key],
}

/// TOML knows signed 64-bit numbers only.
const MOST: u64 = i64::MAX as u64;
const MOST_U32: u64 = u32::MAX as u64;
const START: Expect = Expect::Forms("\"latest\", a block number, or a date such as 2026-01-31T00:00:00Z");

pub const JOURNAL: Section = Section {
    title: "[journal]",
    help: "Where everything that must last is kept.",
    keys: &[
        key("path", Expect::Text, "\"chainweir.db\"", "the SQLite file, relative to this file; one process owns it"),
        key(
            "backlog_limit",
            Expect::Whole(1, MOST),
            "1000000",
            "undelivered emissions of one output at which the plugins that feed it pause; a warning comes at 80 %",
        ),
        key("backlog_bytes", Expect::Whole(1, MOST), "10737418240", "the same, by the bytes of their payloads"),
        key("backlog_age", Expect::Whole(1, MOST), "", "the same, by the seconds that the oldest of them has waited"),
        key(
            "retain",
            Expect::Whole(1, MOST / 1000),
            "604800",
            "seconds that a feed can look back; what is older and delivered leaves the journal",
        ),
    ],
};

pub const HTTP: Section = Section {
    title: "[http]",
    help: "Feeds, status, metrics and the commands of the other `chainweir` calls.",
    keys: &[key(
        "listen",
        Expect::Forms("an address and port, or \"off\""),
        "\"127.0.0.1:7300\"",
        "whoever reaches this address reads the feeds and commands the process: keep it on loopback or behind a proxy",
    )],
};

pub const LOG: Section = Section {
    title: "[log]",
    help: "What is written to stderr.",
    keys: &[
        key("format", Expect::Word(&["text", "json"]), "\"text\"", "for people, or for a log collector"),
        key("level", Expect::Text, "\"info\"", "as in `RUST_LOG`, which wins where it is set"),
    ],
};

pub const CHAIN: Section = Section {
    title: "[chain.NAME]",
    help: "A chain to follow; any number of them.",
    keys: &[
        key(
            "source",
            Expect::Forms("a kind of source"),
            "\"rpc\"",
            "where its blocks come from; the kinds' own keys are below",
        ),
        key("chain_id", Expect::Whole(1, MOST), "", "refuse a provider of another chain"),
        key("start", START, "\"latest\"", "where a plugin without a cursor begins"),
        key(
            "finality",
            Expect::Forms("\"tags\" or { depth = N }"),
            "\"tags\"",
            "the node's `finalized` and `safe` tags, or a number of blocks on top",
        ),
        key(
            "dropped_after",
            Expect::Whole(1, MOST_U32),
            "300",
            "seconds after which a watched transaction that no node knows any more is told as dropped",
        ),
    ],
};

pub const FINALITY: Section = Section {
    title: "[chain.NAME].finality",
    help: "Finality by depth, for chains whose nodes have no tags.",
    keys: &[key("depth", Expect::Whole(1, MOST_U32), "", "a block with this many on top of it is final")],
};

pub const PLUGINS: Section = Section {
    title: "[plugins]",
    help: "Where plugins are dropped.",
    keys: &[key(
        "dir",
        Expect::Text,
        "\"plugins\"",
        "every `*.wasm` that appears here is loaded, and reloaded when it changes",
    )],
};

pub const PLUGIN: Section = Section {
    title: "[plugin.NAME]",
    help: "Settings for the plugin that calls itself NAME; none is needed.",
    keys: &[
        key("config", Expect::Table, "{}", "handed to the plugin as JSON"),
        key("start", START, "the chain's", "where it begins when it has no cursor"),
        key("chains", Expect::Texts, "all", "names of `[chain.NAME]` that it gets events of"),
        key(
            "on_poison",
            Expect::Word(&["wait", "skip"]),
            "\"wait\"",
            "an event that the plugin rejects: wait at the cursor for a better plugin, or dead-letter it and go on",
        ),
        key("limits", Expect::Table, "see below", "its ceilings"),
        key("grants", Expect::Texts, "[\"config\", \"state\", \"log\", \"tracking\"]", "what it may import"),
        key(
            "upgrade",
            Expect::Whole(0, MOST_U32),
            "",
            "the state version that may take over the state of an older one",
        ),
    ],
};

/// Names and defaults are those of [`crate::plugin::Limits`]; a test compares them.
pub const LIMITS: Section = Section {
    title: "[plugin.NAME.limits]",
    help: "What reaches one of these stops that plugin alone.",
    keys: &[
        key("memory_mib", Expect::Whole(1, 4096), "64", "linear memory"),
        key("deadline_ms", Expect::Whole(1, 600_000), "500", "one call of the plugin"),
        key("batch_bytes", Expect::Whole(1024, MOST_U32), "1048576", "events in one call"),
        key("emissions", Expect::Whole(1, MOST_U32), "100000", "emissions of one step"),
        key("answer_bytes", Expect::Whole(1024, MOST_U32), "16777216", "one answer"),
        key("state_write_bytes", Expect::Whole(0, MOST_U32), "16777216", "keys and values that one step may write"),
        key("state_value_bytes", Expect::Whole(0, MOST_U32), "1048576", "one state value"),
        key("log_lines_per_second", Expect::Whole(0, MOST_U32), "100", "more are counted and dropped"),
        key(
            "recycle_memory_mib",
            Expect::Whole(1, 4096),
            "48",
            "an instance that grew beyond this is replaced between two steps",
        ),
    ],
};

pub const OUTPUT: Section = Section {
    title: "[output.NAME]",
    help: "A destination. Secrets are never in this file: `*_env` names a variable, `*_file` a file that holds one.",
    keys: &[
        key("type", Expect::Forms("a kind of output"), "", "what it is; the kinds' own keys are below"),
        key("attempts", Expect::Whole(1, MOST_U32), "10", "before a delivery goes to the dead letters"),
        key(
            "disable_after",
            Expect::Whole(1, MOST_U32),
            "432000",
            "seconds that a destination may be down before it is left alone, until `chainweir resume`",
        ),
        key(
            "on_refused",
            Expect::Word(&["advance", "stop"]),
            "\"advance\"",
            "what the destination refuses for good: dead-letter it and go on, or wait for a person",
        ),
    ],
};

pub const ROUTE: Section = Section {
    title: "[[route]]",
    help: "From a stream to outputs. A stream without a route is still readable at `/streams/PLUGIN.STREAM`.",
    keys: &[
        key("from", Expect::Text, "", "`plugin.stream`, or `plugin.*` for all of a plugin's"),
        key("to", Expect::Texts, "", "names of `[output.NAME]`"),
        key(
            "when",
            Expect::Forms("\"latest\", \"safe\", \"finalized\" or { confirmations = N }"),
            "\"latest\"",
            "at once and retracted if orphaned, or only when the block is this deep",
        ),
    ],
};

pub const WHEN: Section = Section {
    title: "[[route]].when",
    help: "Delivered when the block and those on top of it are this many.",
    keys: &[key("confirmations", Expect::Whole(1, MOST_U32), "", "a block at the tip has one")],
};

/// What may stand at the top of the file.
pub const TOP: &[&str] = &["journal", "http", "log", "chain", "plugins", "plugin", "output", "route"];

const ALL: &[&Section] =
    &[&CHAIN, &FINALITY, &PLUGINS, &PLUGIN, &LIMITS, &OUTPUT, &ROUTE, &WHEN, &JOURNAL, &HTTP, &LOG];

/// Every key as Markdown: what `chainweir check --explain` prints and the guide holds.
pub fn markdown() -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string cannot fail");
    for section in ALL {
        line(format!("### `{}`\n\n{}\n", section.title, section.help));
        line("| key | takes | default | |\n|---|---|---|---|".into());
        for key in section.keys {
            let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
            line(format!("| `{}` | {} | {default} | {} |", key.name, key.expect.in_words(), key.help));
        }
        line(String::new());
        if std::ptr::eq(*section, &CHAIN) {
            for kind in crate::source::KINDS {
                options(&mut line, &format!("source = \"{}\"", kind.name), kind.options);
            }
        }
        if std::ptr::eq(*section, &OUTPUT) {
            for kind in crate::sink::KINDS {
                options(&mut line, &format!("type = \"{}\"", kind.name), kind.options);
            }
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn options(line: &mut impl FnMut(String), title: &str, options: &[(&str, &str)]) {
    if options.is_empty() {
        return line(format!("`{title}` has no keys of its own.\n"));
    }
    line(format!("With `{title}`:\n\n| key | |\n|---|---|"));
    for (name, help) in options {
        line(format!("| `{name}` | {help} |"));
    }
    line(String::new());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Limits;

    #[test]
    fn limits_are_those_of_the_runtime() {
        let of_runtime = serde_json::to_value(Limits::default()).unwrap();
        let listed: serde_json::Map<_, _> =
            LIMITS.keys.iter().map(|k| (k.name.to_owned(), k.default.parse::<u64>().unwrap().into())).collect();
        assert_eq!(serde_json::Value::Object(listed), of_runtime);
    }

    #[test]
    fn the_guide_holds_the_list_of_keys() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/configuration.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- keys -->\n", "<!-- /keys -->");
        let (head, rest) = guide.split_once(begin).expect("the guide has a begin mark");
        let (held, tail) = rest.split_once(end).expect("the guide has an end mark");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, format!("{head}{begin}\n{}\n{end}{tail}", markdown())).unwrap();
        } else {
            assert!(
                held.trim() == markdown().trim(),
                "docs/guides/configuration.md is behind: run this test with BLESS=1"
            );
        }
    }
}
