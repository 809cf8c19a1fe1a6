//! `chainweir plugin new`: a folder with a plugin, its tests, and the SDK of this very version.
//!
//! The SDK's source comes along, so that the plugin builds without a network (beyond the crates it uses) and
//! speaks the batch layout of the host that made it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use include_dir::{Dir, DirEntry, include_dir};

use crate::cli::{Exit, Trouble};
use crate::model::PluginName;

static TEMPLATE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/host/cli/template");
static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/sdk/rust");
static WIT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/sdk/wit");

/// A template that is called `Cargo.toml` would be a package of this repository: the ending is taken off.
const ENDING: &str = ".in";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The plugin's name: lower-case letters, digits, '-' and '_'
    name: PluginName,
    /// Where to make its folder
    #[arg(long, value_name = "DIR", default_value = ".")]
    r#in: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let target = match args.r#in {
        here if here == Path::new(".") => PathBuf::from(args.name.as_str()),
        other => other.join(args.name.as_str()),
    };
    if target.exists() {
        let what = format!("{} is there already; nothing was changed", target.display());
        return Err(Trouble::usage(what, "choose another name, or move it away").into());
    }
    write_all(&TEMPLATE, &target, args.name.as_str())?;
    write_all(&SDK, &target.join("sdk"), args.name.as_str())?;
    // In the repository the SDK's own `wit` is a link.
    write_all(&WIT, &target.join("sdk/wit"), args.name.as_str())?;
    let dir = target.display();
    println!(
        "{dir}: a plugin that builds and passes its tests\n\n  \
         cd {dir}\n  \
         cargo test                                        its tests, natively\n  \
         chainweir plugin build                            into plugins/\n  \
         chainweir dev . --rpc ws://localhost:8545         run it, rebuild on save\n\n\
         Begin in {dir}/src/lib.rs"
    );
    Ok(Exit::Done)
}

fn write_all(from: &Dir<'_>, to: &Path, name: &str) -> anyhow::Result<()> {
    for entry in from.entries() {
        let Some(file_name) = entry.path().file_name().and_then(|name| name.to_str()) else { continue };
        match entry {
            DirEntry::Dir(dir) => write_all(dir, &to.join(file_name), name)?,
            DirEntry::File(file) => {
                let target = to.join(file_name.strip_suffix(ENDING).unwrap_or(file_name));
                let write = || {
                    std::fs::create_dir_all(to)?;
                    match file.contents_utf8() {
                        Some(text) => std::fs::write(&target, fill(text, name)),
                        None => std::fs::write(&target, file.contents()),
                    }
                };
                write().with_context(|| format!("cannot write {}", target.display()))?;
            }
        }
    }
    Ok(())
}

/// `{{name}}` as it is, `{{name_snake}}` as an identifier of Rust.
fn fill(text: &str, name: &str) -> String {
    text.replace("{{name}}", name).replace("{{name_snake}}", &name.replace('-', "_"))
}
