//! What the tests need beyond the Rust toolchain: looked for, installed where missing, named where it cannot be.
//!
//! Everything that can be put into `target/tools` is put there; only servers and interpreters come from apt.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, command, quiet, run as show, tools, which};

const TARGET: &str = "wasm32-unknown-unknown";
/// The real anvil, and the compiler of tests/contracts. Another version of either is another corpus.
const NPM: &[(&str, &str)] = &[("@foundry-rs/anvil", "1.7.1"), ("solc", "0.8.37"), ("standardwebhooks", "1.1.1")];
/// An S3 server for the object store's tests, and the library that a receiver of webhooks would use.
const PYTHON: &[(&str, &str)] =
    &[("moto[s3]", "5.2.5"), ("flask", "3.1.2"), ("flask-cors", "6.0.1"), ("standardwebhooks", "1.1.0")];
/// What must be there, and the package of Debian and Ubuntu that brings it.
const APT: &[(&str, &str, &str)] = &[
    ("make", "make", "librdkafka, and with it everything"),
    ("c++", "g++", "librdkafka, and with it everything"),
    ("nats-server", "nats-server", "the NATS sink's tests"),
    ("postgres", "postgresql", "the PostgreSQL sink's tests"),
    ("mariadbd", "mariadb-server", "the MySQL sink's tests"),
    ("mosquitto", "mosquitto", "the MQTT sink's tests"),
    ("rabbitmq-server", "rabbitmq-server", "the RabbitMQ sink's tests"),
    ("redis-server", "redis-server", "the Redis sink's tests"),
    ("php", "php-cli", "the PHP receiver's test"),
    ("node", "nodejs", "the Node.js receiver's test"),
    ("npm", "npm", "everything on a real chain"),
    ("python3", "python3", "the Python receiver's test"),
    ("pip3", "python3-pip", "the S3 tests, and one of the webhooks'"),
];
const CARGO_DENY: &str = "0.20.2";

pub fn run(_args: &[String]) -> Result<()> {
    let missing = install();
    if missing.is_empty() {
        eprintln!("setup: everything is there");
    }
    Ok(())
}

/// Installs what is missing. What could not be had is said at once and returned, one sentence each.
pub fn install() -> Vec<String> {
    let mut missing = Vec::new();
    for done in [wasm_target(), apt(), npm(), python()] {
        if let Err(error) = done {
            eprintln!("setup: {error:#}");
            missing.push(format!("{error:#}"));
        }
    }
    missing
}

fn wasm_target() -> Result<()> {
    // The sysroot tells without rustup, which a distribution's own Rust does not have.
    let sysroot = quiet(&mut command("rustc", ["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    eprintln!("setup: adding the target {TARGET}");
    show(&mut command("rustup", ["target", "add", TARGET]))
        .with_context(|| format!("no plugin can be built: install Rust's target {TARGET} (rustup target add {TARGET})"))
}

/// The folder of a package below `target/tools`.
fn package(name: &str) -> PathBuf {
    tools().join("node_modules").join(name)
}

/// Whether what comes from npm is there, in its pinned versions.
pub fn has_npm_tools() -> bool {
    NPM.iter().all(|(name, version)| {
        fs::read_to_string(package(name).join("package.json"))
            .is_ok_and(|text| text.contains(&format!("\"version\": \"{version}\"")))
    })
}

fn npm() -> Result<()> {
    let wanted: Vec<String> = NPM.iter().map(|(name, version)| format!("{name}@{version}")).collect();
    if !has_npm_tools() {
        eprintln!("setup: installing {} into target/tools", wanted.join(" "));
        fs::create_dir_all(tools()).context("cannot make target/tools")?;
        let mut install = command("npm", ["install", "--silent", "--no-audit", "--no-fund", "--prefix"]);
        quiet(install.arg(tools()).args(&wanted)).with_context(|| {
            format!(
                "tests on a real chain are skipped: install Node.js with npm, then npm install {}",
                wanted.join(" ")
            )
        })?;
    }
    link_anvil()
}

fn python() -> Result<()> {
    let folder = tools().join("python");
    let there = |(name, version): &(&str, &str)| {
        let name = name.split('[').next().unwrap_or(name).replace('-', "_");
        fs::read_dir(&folder).is_ok_and(|mut all| {
            all.any(|e| {
                e.is_ok_and(|e| {
                    e.file_name().to_string_lossy().eq_ignore_ascii_case(&format!("{name}-{version}.dist-info"))
                })
            })
        })
    };
    if PYTHON.iter().all(there) {
        return Ok(());
    }
    let wanted: Vec<String> = PYTHON.iter().map(|(name, version)| format!("{name}=={version}")).collect();
    eprintln!("setup: installing {} into target/tools/python", wanted.join(" "));
    let mut install = command("python3", ["-m", "pip", "install", "--quiet", "--no-compile", "--upgrade", "--target"]);
    quiet(install.arg(&folder).args(&wanted)).map(drop).with_context(|| {
        format!("the S3 tests are skipped: install pip (python3-pip), then pip install {}", wanted.join(" "))
    })
}

/// `node_modules/.bin/anvil` is a Node.js script that starts the real program and outlives its own death badly:
/// killing the script leaves the chain running. So `target/tools/bin/anvil` is the real program.
fn link_anvil() -> Result<()> {
    let link = tools().join("bin/anvil");
    let folder = tools().join("node_modules/@foundry-rs");
    let program = fs::read_dir(&folder)
        .with_context(|| format!("cannot look into {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path().join("bin/anvil"))
        .find(|file| file.is_file())
        .context("tests on a real chain are skipped: npm has no @foundry-rs/anvil for this platform; put an anvil 1.7.1 at target/tools/bin/anvil")?;
    if fs::canonicalize(&link).ok() == fs::canonicalize(&program).ok() {
        return Ok(());
    }
    fs::create_dir_all(tools().join("bin")).context("cannot make target/tools/bin")?;
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).context("cannot replace target/tools/bin/anvil")?;
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(&program, &link).context("cannot link target/tools/bin/anvil")?;
    #[cfg(not(unix))]
    fs::copy(&program, &link).map(drop).context("cannot copy target/tools/bin/anvil")?;
    Ok(())
}

fn apt() -> Result<()> {
    let missing: Vec<_> = APT.iter().filter(|(program, ..)| which(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    let skipped: Vec<&str> = missing.iter().map(|(_, _, what)| *what).collect();
    let advice = format!(
        "skipped will be {}: install them (as root: apt-get install {})",
        skipped.join(", "),
        packages.join(" ")
    );
    if which("apt-get").is_none() {
        bail!("{advice}");
    }
    let root = quiet(&mut command("id", ["-u"])).is_ok_and(|id| id.trim() == "0");
    if !root {
        bail!("{advice}");
    }
    eprintln!("setup: apt-get install {}", packages.join(" "));
    let install = || {
        let mut install = command("apt-get", ["install", "-y", "-qq", "--no-install-recommends"]);
        quiet(install.args(&packages).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // The lists may be there and good: they are only fetched when that alone does not do.
    if install().is_err() {
        quiet(&mut command("apt-get", ["update", "-qq"])).with_context(|| advice.clone())?;
        install().with_context(|| advice.clone())?;
    }
    Ok(())
}

/// `cargo deny`, built once into `target/tools`. Only `cargo x ci` wants it.
pub fn cargo_deny() -> Result<PathBuf> {
    if let Some(program) = which("cargo-deny") {
        return Ok(program);
    }
    eprintln!("setup: building cargo-deny {CARGO_DENY} into target/tools: some minutes, once");
    let mut install = cargo(["install", "--quiet", "--locked", "--version", CARGO_DENY, "cargo-deny", "--root"]);
    show(install.arg(tools()).env("CARGO_TARGET_DIR", tools().join("build")).env("CARGO_PROFILE_RELEASE_LTO", "off"))?;
    // Its build folder is larger than everything else here, and not wanted again.
    let _ = fs::remove_dir_all(tools().join("build"));
    Ok(tools().join("bin/cargo-deny"))
}
