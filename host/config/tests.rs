use super::*;

fn mistakes(text: &str) -> Vec<String> {
    match Config::parse(text, Path::new("."), "c.toml") {
        Ok(_) => vec![],
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

const CHAIN: &str = "[chain.a]\nrpc = \"ws://localhost\"\n";

#[test]
fn a_full_file_is_read() {
    let text = r#"
[chain.mainnet]
rpc = ["wss://a/KEY", "https://b"]
chain_id = 1
start = 2024-03-01T00:00:00Z
finality = { depth = 64 }
[chain.other]
rpc = "ws://c"
start = 17
[journal]
path = "data/j.db"
backlog_limit = 5
[http]
listen = "off"
[log]
format = "json"
level = "warn,chainweir=debug"
[plugins]
dir = "/srv/plugins"
[plugin.whale]
config = { min = "1000000000", nested = { list = [1, 2.5, true] } }
start = "2024-03-01"
chains = ["mainnet"]
on_poison = "skip"
limits = { memory_mib = 8 }
grants = ["config"]
upgrade = 2
[output.orders]
type = "stdout"
attempts = 3
on_refused = "stop"
[[route]]
from = "whale.large"
to = ["orders"]
when = { confirmations = 12 }
[[route]]
from = "other.*"
to = ["orders"]
when = "finalized"
"#;
    let config = Config::parse(text, Path::new("/etc/cw"), "c.toml").unwrap_or_else(|m| panic!("{m:?}"));
    let mainnet = &config.chains["mainnet"];
    assert_eq!(mainnet.source, "rpc");
    assert_eq!(mainnet.chain_id, Some(ChainId(1)));
    assert_eq!(mainnet.start, Start::Time(1_709_251_200));
    assert_eq!(mainnet.finality, Finality::Depth(64));
    assert_eq!(mainnet.table.keys().collect::<Vec<_>>(), ["rpc"]);
    assert_eq!(config.chains["other"].start, Start::Block(17));
    assert_eq!(config.journal.path, Path::new("/etc/cw/data/j.db"));
    assert_eq!(config.journal.backlog_limit, 5);
    assert_eq!(config.http.listen, None);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.plugins.dir, Path::new("/srv/plugins"));
    let whale = &config.plugin[&PluginName::new("whale").unwrap()];
    assert_eq!(serde_json::to_string(&whale.config).unwrap(), r#"{"min":"1000000000","nested":{"list":[1,2.5,true]}}"#);
    assert_eq!(whale.start, Some(Start::Time(1_709_251_200)));
    assert_eq!(whale.limits, Limits { memory_mib: 8, ..Limits::default() });
    assert_eq!((whale.on_poison, whale.upgrade), (OnPoison::Skip, Some(2)));
    assert_eq!(whale.grants.as_deref(), Some(&["config".to_owned()][..]));
    let orders = &config.outputs[&OutputName::new("orders").unwrap()];
    assert_eq!((orders.kind.as_str(), orders.attempts, orders.stop_on_refused), ("stdout", 3, true));
    assert_eq!(config.routes[0].when, When::Confirmations(12));
    assert_eq!(config.routes[1].from, RouteFrom::AllOf(PluginName::new("other").unwrap()));
    assert_eq!(config.routes[1].when, When::Finalized);
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let config = Config::parse(CHAIN, Path::new("/b"), "c.toml").unwrap();
    assert_eq!(config.journal.path, Path::new("/b/chainweir.db"));
    assert_eq!(config.journal.backlog_limit, 1_000_000);
    assert_eq!(config.http.listen.unwrap().to_string(), "127.0.0.1:7300");
    assert_eq!(config.plugins.dir, Path::new("/b/plugins"));
    assert_eq!((config.chains["a"].start, config.chains["a"].finality), (Start::Latest, Finality::Tags));
}

/// Each: what follows a good chain table on lines 1 and 2, and the mistakes.
#[test]
fn every_mistake_has_its_place_and_the_right_word() {
    let cases: &[(&str, &[&str])] = &[
        ("[jurnal]\n", &["c.toml:3:2: unknown section 'jurnal'; did you mean 'journal'?"]),
        (
            "[journal]\npath = 3\nbacklog_limt = 1\n",
            &[
                "c.toml:4:8: 'path' in [journal]: expected a string, found a number",
                "c.toml:5:1: unknown key 'backlog_limt' in [journal]; did you mean 'backlog_limit'?",
            ],
        ),
        (
            "[journal]\nbacklog_limit = 0\n",
            &["c.toml:4:17: 'backlog_limit' in [journal]: expected a number from 1 to 9223372036854775807"],
        ),
        (
            "[journal]\nbacklog_limit = \"many\"\n",
            &["c.toml:4:17: 'backlog_limit' in [journal]: expected a number, found a string"],
        ),
        (
            "[http]\nlisten = \"localhost\"\n",
            &["c.toml:4:10: 'localhost' is not an address and port such as 127.0.0.1:7300, nor \"off\""],
        ),
        (
            "[http]\nlisten = 7300\n",
            &["c.toml:4:10: 'listen' in [http]: expected an address and port, or \"off\"; found a number"],
        ),
        ("[log]\nformat = \"jsn\"\n", &["c.toml:4:10: 'format' in [log]: unknown word 'jsn'; did you mean 'json'?"]),
        (
            "[chain.b]\nsource = \"recordet\"\n",
            &["c.toml:4:10: unknown source 'recordet' in [chain.b]; did you mean 'recorded'?"],
        ),
        (
            "[chain.b]\nrpc = \"ws://b\"\nstart = \"lastest\"\nfinality = \"tag\"\n",
            &[
                "c.toml:5:9: 'start' in [chain.NAME]: unknown word 'lastest'; did you mean 'latest'?",
                "c.toml:6:12: 'finality' in [chain.NAME]: expected \"tags\" or { depth = N }; found 'tag'",
            ],
        ),
        (
            "[chain.b]\nrpc = \"ws://b\"\nstart = \"2024-13-01\"\n",
            &[
                "c.toml:5:9: 'start' in [chain.NAME]: expected \"latest\", a block number, or a date such as 2026-01-31T00:00:00Z; found '2024-13-01'",
            ],
        ),
        (
            "[chain.b]\nrpc = \"ws://b\"\nfinality = { dept = 3 }\n",
            &["c.toml:5:14: unknown key 'dept' in [chain.NAME].finality; did you mean 'depth'?"],
        ),
        (
            "[chain.B]\nrpc = \"ws://b\"\n",
            &[
                "c.toml:3:8: 'B' is not a name: use 1 to 64 lower-case letters, digits, '-' or '_', beginning with a letter",
            ],
        ),
        (
            "[chain.b]\nrpc = \"ws://b\"\nchain_id = 5\n[chain.c]\nrpc = \"ws://c\"\nchain_id = 5\n",
            &["c.toml:8:12: chain_id 5 is that of [chain.b] too: give each chain once"],
        ),
        (
            "[chain]\nrpc = \"ws://b\"\n",
            &["c.toml:4:1: 'rpc' in [chain]: expected a table [chain.NAME], found a string"],
        ),
        (
            "[plugin.p]\nchains = [\"b\", \"aa\"]\ngrants = [\"net\", \"stat\"]\n",
            &[
                "c.toml:4:11: there is no [chain.b]; did you mean 'a'?",
                "c.toml:4:16: there is no [chain.aa]; did you mean 'a'?",
                "c.toml:5:11: 'grants' in [plugin.p]: unknown word 'net'; known: config, state, log, tracking",
                "c.toml:5:18: 'grants' in [plugin.p]: unknown word 'stat'; did you mean 'state'?",
            ],
        ),
        (
            "[plugin.p]\nlimits = { memory = 3, deadline_ms = 0 }\non_poison = \"ignore\"\n",
            &[
                "c.toml:4:12: unknown key 'memory' in [plugin.p.limits]; did you mean 'memory_mib'?",
                "c.toml:4:38: 'deadline_ms' in [plugin.p.limits]: expected a number from 1 to 600000",
                "c.toml:5:13: 'on_poison' in [plugin.p]: unknown word 'ignore'; known: wait, skip",
            ],
        ),
        (
            "[plugin.p]\nconfig = 3\n[plugin.p.q]\n",
            &[
                "c.toml:4:10: 'config' in [plugin.p]: expected a table, found a number",
                "c.toml:5:11: unknown key 'q' in [plugin.p]; known: config, start, chains, on_poison, limits, grants, upgrade",
            ],
        ),
        (
            "[plugin.p]\nconfig = { big = 99999999999999999999, odd = inf }\n",
            &[
                "c.toml:4:18: 99999999999999999999 does not fit 64 bits: write it as a string",
                "c.toml:4:46: 'odd': infinite and undefined numbers have no form in JSON",
            ],
        ),
        (
            "[output.o]\ntype = \"webhok\"\n",
            &["c.toml:4:8: unknown type 'webhok' in [output.o]; did you mean 'webhook'?"],
        ),
        (
            "[output.o]\nattempts = 1.5\n",
            &[
                "c.toml:3:9: [output.o] needs a 'type': webhook, nats, kafka, mqtt, rabbitmq, redis, postgres, mysql, sqlite, file, object_store, stdout",
                "c.toml:4:12: 'attempts' in [output.o]: expected a number, found a number with a fraction",
            ],
        ),
        (
            "[output.o]\ntype = \"stdout\"\n[[route]]\nfrom = \"p.s\"\nto = [\"oo\", \"o\", \"o\"]\nwhen = { confimations = 12 }\n",
            &[
                "c.toml:7:7: there is no [output.oo]; did you mean 'o'?",
                "c.toml:7:18: output 'o' twice in one [[route]]: name it once",
                "c.toml:8:10: unknown key 'confimations' in [[route]].when; did you mean 'confirmations'?",
            ],
        ),
        (
            "[output.o]\ntype = \"stdout\"\n[[route]]\nfrom = \"p.*\"\nto = [\"o\"]\n[[route]]\nfrom = \"p.s\"\nto = [\"o\"]\n",
            &["c.toml:10:7: 'p.s' goes to output 'o' already by the [[route]] from 'p.*'"],
        ),
        (
            "[[route]]\nfrom = \"p\"\nto = []\nwhen = \"final\"\n",
            &[
                "c.toml:4:8: 'from' in [[route]]: expected plugin.stream or plugin.*, found 'p'",
                "c.toml:5:6: 'to' in [[route]]: name at least one output",
                "c.toml:6:8: 'when' in [[route]]: unknown word 'final'; did you mean 'finalized'?",
            ],
        ),
        (
            "[[route]]\nfrom = \"P.s\"\nto = \"o\"\n",
            &[
                "c.toml:4:8: 'P' is not a name: use 1 to 64 lower-case letters, digits, '-' or '_', beginning with a letter",
                "c.toml:5:6: 'to' in [[route]]: expected a list of strings, found a string",
            ],
        ),
        (
            "[[route]]\nwhen = { confirmations = 0 }\n",
            &[
                "c.toml:3:1: [[route]] needs a 'from'",
                "c.toml:3:1: [[route]] needs a 'to'",
                "c.toml:4:26: 'confirmations' in [[route]].when: expected a number from 1 to 4294967295",
            ],
        ),
        ("[route]\nfrom = \"p.s\"\n", &["c.toml:3:1: 'route': expected a list of tables [[route]], found a table"]),
    ];
    for (text, expected) in cases {
        let text = if text.starts_with("[chain]") { format!("\n\n{text}") } else { format!("{CHAIN}{text}") };
        assert_eq!(mistakes(&text), *expected, "in:\n{text}");
    }
}

#[test]
fn a_broken_file_still_names_what_else_is_wrong() {
    let found = mistakes("[chain.a]\nrpc = \"ws://a\n[journal]\npth = 1\n[journl]\n");
    assert!(found.iter().any(|m| m.starts_with("c.toml:2:14: invalid basic string")), "{found:?}");
    assert!(found.iter().any(|m| m.contains("'pth' in [journal]; did you mean 'path'?")), "{found:?}");
    assert!(found.iter().any(|m| m.contains("did you mean 'journal'?")), "{found:?}");
    assert_eq!(mistakes(""), ["c.toml:1:1: no chain to follow: add [chain.NAME] with rpc = \"wss://...\""]);
    assert!(mistakes("[chain.a]\nrpc = \"x\"\nrpc = \"y\"\n")[0].starts_with("c.toml:3:1: duplicate key"));
}

#[test]
fn columns_count_characters() {
    assert_eq!(
        mistakes("[chain.a]\nrpc = \"ws://a\"\n[plugin.p]\nconfig = { x = \"ü€\", y = 99999999999999999999 }\n"),
        ["c.toml:4:26: 99999999999999999999 does not fit 64 bits: write it as a string"]
    );
}

#[test]
fn a_dump_shows_no_key() {
    let text = "[chain.a]\nrpc = [\"wss://user:pass@node.example:8443/v3/KEY?k=KEY\"]\n[plugin.p]\nconfig = { token = \"KEY\" }\n";
    let dump = format!("{:?}", Config::parse(text, Path::new("."), "c.toml").unwrap());
    assert!(dump.contains("wss://node.example:8443/..."), "{dump}");
    assert!(!dump.contains("KEY") && !dump.contains("pass"), "{dump}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let mistakes = Config::load(Path::new("no/such.toml")).unwrap_err();
    assert_eq!(
        mistakes[0].to_string(),
        "no/such.toml: there is no such file; name one, or run without: --rpc URL --plugins DIR"
    );
}
