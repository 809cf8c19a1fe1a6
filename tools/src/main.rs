//! `cargo x`: every chore of the house, so that a fresh clone needs nothing but a Rust toolchain.
//!
//! Chores start other programs and say what they did. They know the layout of the repository and nothing of
//! how Chainweir works inside.

mod anvil;
mod chores;
mod contracts;
mod corpus;
mod setup;
mod shell;

use std::process::ExitCode;

use anyhow::Result;

/// One chore: its name, its arguments, what it is for, and what runs it.
struct Chore {
    name: &'static str,
    args: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const CHORES: &[Chore] = &[
    Chore { name: "setup", args: "", help: "install what is missing; quick when nothing is", run: setup::run },
    Chore {
        name: "guests",
        args: "",
        help: "build every plugin and guest for wasm32-unknown-unknown",
        run: chores::guests,
    },
    Chore {
        name: "test",
        args: "[ARGS]",
        help: "setup, guests, then every test; ARGS go to cargo test",
        run: chores::test,
    },
    Chore {
        name: "bench",
        args: "[FIGURE] [--smoke]",
        help: "every benchmark; --smoke: once and short, to see that each works",
        run: chores::bench,
    },
    Chore {
        name: "filter",
        args: "",
        help: "build tests/guests/filter into host/cli/bench/filter.wasm, the benchmarks' plugin",
        run: chores::filter,
    },
    Chore {
        name: "ci",
        args: "",
        help: "what a change must pass: format, clippy, deny, docs, test, bench smoke",
        run: chores::ci,
    },
    Chore {
        name: "peers",
        args: "[NAME...]",
        help: "beside what users would pick instead, on a real chain",
        run: chores::peers,
    },
    Chore {
        name: "sinks",
        args: "[NAME...] [--smoke]",
        help: "each destination beside its client library in a bare loop, on servers of this machine",
        run: chores::sinks,
    },
    Chore {
        name: "nightly",
        args: "",
        help: "the long variants of the random tests, and a real Kafka broker",
        run: chores::nightly,
    },
    Chore {
        name: "corpus",
        args: "[--check]",
        help: "record the example chain anew from anvil; --check: only compare",
        run: corpus::run,
    },
    Chore {
        name: "contracts",
        args: "[--check]",
        help: "compile tests/contracts/*.sol; --check: only compare",
        run: contracts::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(chore) = args.first().and_then(|name| CHORES.iter().find(|chore| chore.name == name)) else {
        if let Some(name) = args.first().filter(|name| !matches!(name.as_str(), "help" | "-h" | "--help")) {
            eprintln!("cargo x: there is no chore `{name}`.");
        }
        eprintln!("usage: cargo x CHORE [ARGS]\n");
        for chore in CHORES {
            eprintln!("  {:<24}{}", format!("{} {}", chore.name, chore.args), chore.help);
        }
        return if args.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    match (chore.run)(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo x {}: {error:#}", chore.name);
            ExitCode::FAILURE
        }
    }
}
