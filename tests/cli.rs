//! The command line keeps its word: the real binary, its messages and its exit codes.

use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::harness::free_port;

/// The binary under test, in a folder of its own, with nothing of the caller's configuration.
fn chainweir(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chainweir"));
    command.args(args).current_dir(dir).stdin(Stdio::null()).env_remove("RUST_LOG").env_remove("HOOK_SECRET");
    command
}

fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    texts(chainweir(dir, args).output().expect("the binary runs"))
}

fn texts(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the binary writes UTF-8");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn bench_gives_each_figure_with_what_it_is_compared_with() {
    let dir = folder();
    let (code, out, err) = run(dir.path(), &["bench", "crossing", "index", "--smoke", "--json", "--folder", "."]);
    assert_eq!(code, 0, "{err}");
    let figures: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&out).expect("JSON");
    for name in ["crossing_512", "index_one_10000"] {
        let figure = &figures[name];
        let keys: Vec<&String> = figure.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["value", "unit", "against", "ratio"]);
        assert!(figure["value"].as_f64() > Some(0.0) && figure["ratio"].as_f64() > Some(0.0), "{figure}");
    }
    let (code, _, err) = run(dir.path(), &["bench", "crosing"]);
    assert_eq!(code, 2);
    assert!(err.contains("no figure 'crosing'") && err.contains("crossing, index"), "{err}");
}

#[test]
fn help_names_every_command_and_exit_code() {
    let dir = folder();
    let (code, out, _) = run(dir.path(), &["--help"]);
    assert_eq!(code, 0);
    for word in [
        "run",
        "dev",
        "check",
        "plugin",
        "record",
        "replay",
        "dead",
        "status",
        "resume",
        "accept-reorg",
        "bench",
        "Exit codes:",
        "130",
    ] {
        assert!(out.contains(word), "{word} is missing in:\n{out}");
    }
    for (args, words) in [
        (&["plugin", "--help"][..], &["new", "build", "test", "inspect", "list", "rollback"][..]),
        (&["dead", "--help"], &["list", "show", "retry", "drop"]),
        (&["run", "--help"], &["--rpc", "--plugins", "chainweir.toml"]),
        (&["check", "--help"], &["--online", "--explain"]),
        (&["record", "--help"], &["--from", "--to", "--follow"]),
        (&["replay", "--help"], &["--plugin", "--config"]),
        (&["dev", "--help"], &["--until-end", "--keep"]),
    ] {
        let (code, out, _) = run(dir.path(), args);
        assert_eq!(code, 0, "{args:?}");
        for word in words {
            assert!(out.contains(word), "{word} is missing in {args:?}:\n{out}");
        }
    }
}

#[test]
fn a_slip_in_the_arguments_is_2_and_names_the_right_word() {
    let dir = folder();
    let (code, _, err) = run(dir.path(), &["chek"]);
    assert_eq!(code, 2);
    assert!(err.contains("check"), "{err}");
    let (code, _, err) = run(dir.path(), &["plugin", "rollback", "Not A Name"]);
    assert_eq!(code, 2);
    assert!(err.contains("lower-case letters"), "{err}");
    let (code, _, err) = run(dir.path(), &["replay", "x.ndjson", "--plugin", "p.wasm", "--config", "[1]"]);
    assert_eq!(code, 2);
    assert!(err.contains("must be a JSON object"), "{err}");
}

/// Each file, and exactly what `check` says of it on stderr.
const WRONG: &[(&str, &str)] = &[
    ("", "chainweir.toml:1:1: no chain to follow: add [chain.NAME] with rpc = \"wss://...\"\n1 mistake\n"),
    (
        r#"[chain.mainnet]
rpc = ["wss://a", "https://b"]
strat = "latest"

[plugin.whale]
config = { min = "1000000000" }
chains = ["mainet"]

[output.orders]
type = "webhook"
url = "https://shop.example/hooks/chain"
secret = "whsec_c2VjcmV0"

[[route]]
from = "whale.large"
to = ["order"]
when = { confimations = 12 }

[htttp]
listen = "0.0.0.0:7300"
"#,
        "\
chainweir.toml:3:1: unknown key 'strat' in [chain.mainnet]; did you mean 'start'?
chainweir.toml:7:11: there is no [chain.mainet]; did you mean 'mainnet'?
chainweir.toml:12:1: unknown key 'secret' in [output.orders]; did you mean 'secret_env'?
chainweir.toml:16:7: there is no [output.order]; did you mean 'orders'?
chainweir.toml:17:10: unknown key 'confimations' in [[route]].when; did you mean 'confirmations'?
chainweir.toml:19:2: unknown section 'htttp'; did you mean 'http'?
6 mistakes
",
    ),
    (
        "[chain.a]\nrpc = \"ws://a\"\nstart = true\n[journal]\nbacklog_limit = \"1e6\"\n",
        "\
chainweir.toml:3:9: 'start' in [chain.NAME]: expected \"latest\", a block number, or a date such as 2026-01-31T00:00:00Z; found a boolean
chainweir.toml:5:17: 'backlog_limit' in [journal]: expected a number, found a string
2 mistakes
",
    ),
    (
        "[chain.a]\nrpc = \"ws://a\n",
        "chainweir.toml:2:14: invalid basic string, expected `\"`\n1 mistake\n",
    ),
];

#[test]
fn check_names_every_mistake_at_once() {
    for (text, expected) in WRONG {
        let dir = folder();
        write(dir.path(), "chainweir.toml", text);
        let (code, out, err) = run(dir.path(), &["check"]);
        assert_eq!((code, out.as_str(), err.as_str()), (2, "", *expected), "of:\n{text}");
        // What check refuses does not start either.
        let (code, _, err) = run(dir.path(), &["run"]);
        assert_eq!((code, err.as_str()), (2, *expected), "of:\n{text}");
    }
}

#[test]
fn check_warns_of_what_is_rarely_meant() {
    let dir = folder();
    let text = r#"[chain.a]
rpc = "ws://a"
[http]
listen = "0.0.0.0:7300"
[plugin.whale]
[output.orders]
type = "webhook"
url = "https://shop.example/hooks/chain"
secret_env = "HOOK_SECRET"
[output.unused]
type = "stdout"
[[route]]
from = "whale.large"
to = ["orders"]
"#;
    write(dir.path(), "chainweir.toml", text);
    std::fs::create_dir(dir.path().join("plugins")).unwrap();
    let (code, out, err) = run(dir.path(), &["check"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "chainweir.toml: no mistakes, 6 warnings\n");
    for line in [
        "chainweir.toml: warning: no plugin is in ./plugins",
        "chainweir.toml:5:9: warning: no plugin in ./plugins is called 'whale'",
        "chainweir.toml:13:1: warning: no plugin is called 'whale'",
        "chainweir.toml:10:9: warning: no [[route]] leads to output 'unused'",
        "chainweir.toml:9:1: warning: the environment variable HOOK_SECRET is not set here",
        "chainweir.toml:4:1: warning: whoever reaches 0.0.0.0:7300 reads every stream and commands the process",
    ] {
        assert!(err.lines().any(|found| found == line), "{line} is missing in:\n{err}");
    }
    let set = chainweir(dir.path(), &["check"]).env("HOOK_SECRET", "whsec_x").output().unwrap();
    assert!(!texts(set).2.contains("HOOK_SECRET"));
}

#[test]
fn a_file_that_is_no_plugin_is_named_with_the_reason() {
    let dir = folder();
    write(dir.path(), "chainweir.toml", "[chain.a]\nrpc = \"ws://a\"\n");
    write(dir.path(), "plugins/broken.wasm", "this is not wasm");
    let (code, _, err) = run(dir.path(), &["check"]);
    assert_eq!(code, 1);
    assert!(err.contains("broken.wasm is not a plugin that runs here"), "{err}");
    let (code, _, err) = run(dir.path(), &["plugin", "inspect", "plugins/broken.wasm"]);
    assert_eq!(code, 1);
    assert!(err.contains("  because: ") && err.contains("  next: "), "{err}");
    let (code, _, err) = run(dir.path(), &["plugin", "inspect", "none.wasm"]);
    assert_eq!(code, 2, "{err}");
}

#[test]
fn explain_prints_every_key() {
    let dir = folder();
    let (code, out, _) = run(dir.path(), &["check", "--explain"]);
    assert_eq!(code, 0);
    for word in ["[chain.NAME]", "`confirmations`", "`backlog_limit`", "type = \"webhook\"", "source = \"recorded\""] {
        assert!(out.contains(word), "{word} is missing");
    }
}

#[test]
fn where_nothing_runs_commands_say_so_and_how_to_start() {
    let dir = folder();
    let url = format!("http://127.0.0.1:{}", free_port());
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["plugin", "list"],
        &["plugin", "rollback", "whale"],
        &["dead", "list"],
        &["dead", "retry", "1"],
        &["dead", "drop", "--all"],
        &["resume", "orders"],
        &["accept-reorg", "mainnet"],
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--url", &url]).collect();
        let (code, out, err) = run(dir.path(), &args);
        assert_eq!((code, out.as_str()), (3, ""), "{args:?}: {err}");
        assert!(err.contains(&format!("nothing listens at {url}")) && err.contains("chainweir run"), "{err}");
    }
}

#[test]
fn the_address_comes_from_the_configuration() {
    let dir = folder();
    let port = free_port();
    let listen = format!("[chain.a]\nrpc = \"ws://a\"\n[http]\nlisten = \"0.0.0.0:{port}\"\n");
    write(dir.path(), "other.toml", &listen);
    let (code, _, err) = run(dir.path(), &["status", "--config", "other.toml"]);
    assert_eq!(code, 3);
    assert!(err.contains(&format!("nothing listens at http://127.0.0.1:{port}")), "{err}");
    write(dir.path(), "off.toml", "[chain.a]\nrpc = \"ws://a\"\n[http]\nlisten = \"off\"\n");
    let (code, _, err) = run(dir.path(), &["status", "--config", "off.toml"]);
    assert_eq!(code, 1);
    assert!(err.contains("the process cannot be asked"), "{err}");
}

/// Answers one request with a status and a body, and hands back what was asked.
fn answer_once(status: &'static str, body: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = std::io::BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut sent = vec![0; length];
        reader.read_exact(&mut sent).unwrap();
        let response = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        reader.get_mut().write_all(response.as_bytes()).unwrap();
        format!("{} {}", head.lines().next().unwrap(), String::from_utf8(sent).unwrap())
    });
    (url, asked)
}

#[test]
fn commands_ask_and_say_what_was_answered() {
    let dir = folder();
    let (url, asked) = answer_once("200 OK", r#"{"ok":"whale runs 0.1.0 again"}"#);
    let (code, out, err) = run(dir.path(), &["plugin", "rollback", "whale", "--url", &url]);
    assert_eq!((code, out.as_str()), (0, "whale runs 0.1.0 again\n"), "{err}");
    assert_eq!(asked.join().unwrap(), "POST /plugins/whale/rollback HTTP/1.1 {}");

    let (url, asked) = answer_once("409 Conflict", r#"{"error":"whale has no version before this one"}"#);
    let (code, _, err) = run(dir.path(), &["plugin", "rollback", "whale", "--url", &url]);
    assert_eq!(code, 1);
    assert!(err.starts_with("error: whale has no version before this one\n"), "{err}");
    asked.join().unwrap();

    let (url, asked) = answer_once("200 OK", r#"{"ok":"2 dead letters are back in their lanes"}"#);
    let (code, out, err) = run(dir.path(), &["dead", "retry", "3", "4", "--url", &url]);
    assert_eq!((code, out.as_str()), (0, "2 dead letters are back in their lanes\n"), "{err}");
    assert_eq!(asked.join().unwrap(), r#"POST /dead/retry HTTP/1.1 {"ids":[3,4]}"#);

    let (url, asked) = answer_once("200 OK", "<html>");
    let (code, _, err) = run(dir.path(), &["status", "--url", &url]);
    assert_eq!(code, 1);
    assert!(err.contains("answered something else than expected"), "{err}");
    asked.join().unwrap();
}

#[test]
fn a_new_plugin_is_not_made_over_something() {
    let dir = folder();
    write(dir.path(), "mine/keep.txt", "mine");
    let (code, _, err) = run(dir.path(), &["plugin", "new", "mine"]);
    assert_eq!(code, 2);
    assert!(err.contains("mine is there already; nothing was changed"), "{err}");
    assert_eq!(std::fs::read_dir(dir.path().join("mine")).unwrap().count(), 1);
}
