//! The chores that start cargo.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::{cargo, command, quiet, root, run, step};
use crate::{contracts, corpus, setup};

/// Folders of which every subfolder with a Cargo.toml is a crate for wasm32; and what lies below the subfolder.
const GUESTS: &[(&str, &str)] = &[("plugins", ""), ("examples", "plugin"), ("tests/guests", "")];

/// The names of the crates that are built for wasm32, found by looking into the folders.
fn guest_crates() -> Result<Vec<String>> {
    let mut manifests = BTreeSet::new();
    for (folder, below) in GUESTS {
        let Ok(entries) = fs::read_dir(root().join(folder)) else { continue };
        let folders = entries.flatten().map(|entry| entry.path());
        manifests.extend(folders.map(|path| path.join(below).join("Cargo.toml")).filter(|file| file.is_file()));
    }
    let metadata = quiet(&mut cargo(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("what cargo metadata says is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let name_of = |manifest: &PathBuf| {
        let package = packages.iter().find(|package| package["manifest_path"].as_str() == manifest.to_str());
        package.and_then(|package| package["name"].as_str()).map(str::to_owned).with_context(|| {
            format!("{} is not in the workspace: add its folder to `members` in Cargo.toml", manifest.display())
        })
    };
    manifests.iter().map(name_of).collect()
}

pub fn guests(_args: &[String]) -> Result<()> {
    let crates = guest_crates()?;
    if crates.is_empty() {
        eprintln!("guests: there are none");
        return Ok(());
    }
    let mut build = cargo(["build", "--release", "--target", "wasm32-unknown-unknown"]);
    for name in crates {
        build.args(["--package", &name]);
    }
    run(&mut build)
}

/// Sets up and builds guests; returns what could not be had.
fn prepare() -> Result<Vec<String>> {
    let missing = step("setup", || Ok(setup::install()))?;
    step("guests", || guests(&[]))?;
    Ok(missing)
}

/// The host apart from the rest: alone, it has the features that `cargo run` gave it, and is not built again.
fn run_tests(args: &[String]) -> Result<()> {
    run(cargo(["test", "--release", "--package", "chainweir"]).args(args))?;
    // Words for the host's test binary mean nothing to the others.
    if args.is_empty() {
        run(&mut cargo(["test", "--release", "--workspace", "--exclude", "chainweir"]))?;
    }
    Ok(())
}

pub fn test(args: &[String]) -> Result<()> {
    let missing = prepare()?;
    let done = run_tests(args);
    say_missing(&missing);
    done
}

/// Said last, where it is read.
fn say_missing(missing: &[String]) {
    for what in missing {
        eprintln!("NOT TESTED: {what}");
    }
}

pub fn bench(args: &[String]) -> Result<()> {
    run(cargo(["bench", "--bench", "figures", "--"]).args(args))
}

/// Beside what users would pick instead: outside of every other chore, since npm brings some 200 MB for it.
pub fn peers(args: &[String]) -> Result<()> {
    let missing = prepare()?;
    run(cargo(["bench", "--bench", "peers", "--"]).args(args))?;
    say_missing(&missing);
    Ok(())
}

/// Each destination beside its bare client: outside of every other chore, since it needs all servers and minutes.
pub fn sinks(args: &[String]) -> Result<()> {
    let missing = step("setup", || Ok(setup::install()))?;
    run(cargo(["bench", "--bench", "sinks", "--"]).args(args))?;
    say_missing(&missing);
    Ok(())
}

/// The benchmarks' plugin is part of the program, so that it measures where there is no Rust toolchain.
pub fn filter(_args: &[String]) -> Result<()> {
    run(&mut cargo(["build", "--release", "--target", "wasm32-unknown-unknown", "--package", "filter"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let built = target.join("wasm32-unknown-unknown/release/filter.wasm");
    fs::copy(&built, root().join("host/cli/bench/filter.wasm"))
        .with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(())
}

pub fn ci(_args: &[String]) -> Result<()> {
    step("format", || run(&mut cargo(["fmt", "--all", "--check"])))?;
    let missing = prepare()?;
    step("clippy", || {
        run(&mut cargo(["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    // Where npm is not to be had, setup has said so: neither the compiler nor anvil is there.
    if setup::has_npm_tools() {
        step("contracts and corpus, compared", || {
            contracts::run(&["--check".to_owned()])?;
            corpus::run(&["--check".to_owned()])
        })?;
    }
    step("deny", deny)?;
    step("docs", || run(cargo(["doc", "--release", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-D warnings")))?;
    step("test", || run_tests(&[]))?;
    step("bench, once", || bench(&["--smoke".to_owned()]))?;
    say_missing(&missing);
    Ok(())
}

fn deny() -> Result<()> {
    let program = setup::cargo_deny()?;
    let deny = |checks: &[&str]| {
        let mut deny = command(&program.to_string_lossy(), ["--log-level", "error", "--all-features", "--workspace"]);
        deny.arg("check").args(checks);
        deny
    };
    run(&mut deny(&["licenses", "bans", "sources"]))?;
    // The advisories' database is a git repository, which not every machine may fetch.
    let advisories = quiet(&mut deny(&["advisories"]));
    match advisories {
        Ok(_) => eprintln!("deny: no advisory applies"),
        Err(error) if format!("{error:#}").contains("error[") => bail!("{error:#}"),
        Err(error) => eprintln!("deny: advisories NOT CHECKED: {error:#}"),
    }
    Ok(())
}

/// A real Kafka broker, for nobody else: its build takes seven minutes of two cores.
fn tansu() -> Result<PathBuf> {
    let target = root().join("target/tansu");
    run(cargo(["build", "--locked", "--manifest-path", "tests/tansu/Cargo.toml", "--target-dir"]).arg(&target))?;
    Ok(target.join("debug/tansu"))
}

/// Random tests read how long they may go on from these.
pub fn nightly(args: &[String]) -> Result<()> {
    let mut missing = prepare()?;
    let mut test = cargo(["test", "--release", "--workspace"]);
    test.args(args)
        .env("CHAINWEIR_LONG", "1")
        .env("CHAINWEIR_SEEDS", std::env::var("CHAINWEIR_SEEDS").unwrap_or_else(|_| "200".into()));
    match step("tansu", tansu) {
        Ok(program) => drop(test.env("CHAINWEIR_TANSU", program)),
        Err(error) => missing.push(format!("a real Kafka broker: {error:#}")),
    }
    let done = run(&mut test);
    say_missing(&missing);
    done
}
