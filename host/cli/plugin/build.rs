//! `chainweir plugin build`: cargo builds, the result is loaded and described, and only then put in its place.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use serde_json::Value;

use crate::cli::artifact::{self, Artifact};
use crate::cli::{Exit, Trouble};

const TARGET: &str = "wasm32-unknown-unknown";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The plugin's folder, with its Cargo.toml
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// The plugin folder to put NAME.wasm into
    #[arg(long, value_name = "DIR", default_value = "plugins")]
    out: PathBuf,
    /// The plugin's configuration, where describing it needs one
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = artifact::parse_config)]
    config: serde_json::Map<String, Value>,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let built = build(&args.dir, &args.out, &args.config).await?;
    println!("{}: {}", built.path.display(), built.artifact.in_a_line());
    Ok(Exit::Done)
}

#[derive(Debug)]
pub struct Built {
    pub path: PathBuf,
    pub artifact: Artifact,
}

/// Builds the crate in `dir` and puts `NAME.wasm` into `out` in one move. What was there stays if anything fails.
pub async fn build(dir: &Path, out: &Path, config: &serde_json::Map<String, Value>) -> anyhow::Result<Built> {
    let wasm = compile(dir).await?;
    // Compiling and describing takes a while: not on a thread that others wait for.
    let (path, settings) = (wasm.clone(), config.clone());
    let artifact = tokio::task::spawn_blocking(move || artifact::load(&path, &settings)).await??;
    let target = out.join(format!("{}.wasm", artifact.manifest.name));
    place(&wasm, out, &target).with_context(|| format!("cannot write {}", target.display()))?;
    Ok(Built { path: target, artifact })
}

/// Under a temporary name that nobody loads, then renamed: a reader sees the old file or the new one.
fn place(wasm: &Path, folder: &Path, target: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let temporary = target.with_extension(format!("wasm.tmp{}", std::process::id()));
    std::fs::copy(wasm, &temporary)?;
    std::fs::rename(&temporary, target)
}

/// The .wasm that cargo made of the crate in `dir`.
async fn compile(dir: &Path) -> anyhow::Result<PathBuf> {
    let manifest = dir.join("Cargo.toml");
    let manifest = manifest.canonicalize().map_err(|_| {
        let what = format!("{} holds no Cargo.toml", dir.display());
        Trouble::usage(what, "name the plugin's folder; 'chainweir plugin new NAME' makes one")
    })?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = tokio::process::Command::new(&cargo);
    command
        .args([
            "build",
            "--release",
            "--target",
            TARGET,
            "--message-format",
            "json-render-diagnostics",
            "--manifest-path",
        ])
        .arg(&manifest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = command.spawn().map(|child| child.wait_with_output());
    let output = output.map_err(|error| {
        let what = format!("cannot start {}: {error}", cargo.display());
        Trouble::new(what, "install Rust: https://rustup.rs")
    })?;
    let output = output.await.context("cargo was lost")?;
    if !output.status.success() {
        return Err(why_not(dir).await.into());
    }
    artifact_of(&String::from_utf8_lossy(&output.stdout), &manifest).ok_or_else(|| {
        let what = format!("{} builds, but not into a .wasm", dir.display());
        Trouble::new(what, "a plugin is a library with crate-type = [\"cdylib\"] under [lib] in its Cargo.toml").into()
    })
}

/// Cargo's own words are on the terminal; a missing target deserves plainer ones.
async fn why_not(dir: &Path) -> Trouble {
    let rustc = tokio::process::Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    let installed = match rustc.await {
        Ok(output) => Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir(),
        // Without rustc cargo has said so itself.
        Err(_) => true,
    };
    if installed {
        Trouble::new(format!("{} does not build", dir.display()), "cargo says why, above")
    } else {
        Trouble::new(format!("Rust's {TARGET} target is not installed"), format!("rustup target add {TARGET}"))
    }
}

/// Finds the cdylib of the crate itself, not of a dependency, in cargo's messages.
fn artifact_of(messages: &str, manifest: &Path) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = None;
    for message in messages.filter(|m| m["reason"] == "compiler-artifact") {
        let ours = message["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest);
        let kinds = message["target"]["crate_types"].as_array();
        if ours && kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "cdylib")) {
            let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
            found = files.filter(|file| file.ends_with(".wasm")).map(PathBuf::from).next().or(found);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_itself_is_found_among_its_dependencies() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/d/Cargo.toml","target":{"crate_types":["cdylib"]},"filenames":["/t/d.wasm"]}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","target":{"crate_types":["rlib","cdylib"]},"filenames":["/t/p.rlib","/t/p.wasm"]}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml","target":{"crate_types":["bin"]},"filenames":["/t/q.wasm"]}"#,
        );
        assert_eq!(artifact_of(messages, Path::new("/p/Cargo.toml")), Some("/t/p.wasm".into()));
        assert_eq!(artifact_of(messages, Path::new("/other/Cargo.toml")), None);
    }
}
