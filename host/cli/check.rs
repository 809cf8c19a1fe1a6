//! `chainweir check`: what is wrong before it runs. Mistakes stop a start; warnings are what is rarely meant.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::artifact::{self, Artifact};
use super::trouble::Mistakes;
use super::{Exit, Trouble};
use crate::config::{Config, Examined, Mistake, OutputConfig, Place, RouteFrom, hint, keys};
use crate::model::PluginName;
use crate::sink::{Sink, SinkError};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The configuration
    #[arg(value_name = "FILE", default_value = "chainweir.toml")]
    file: PathBuf,
    /// Ask the providers and destinations, too
    #[arg(long)]
    online: bool,
    /// Print every key there is, as Markdown, and check nothing
    #[arg(long, conflicts_with = "online")]
    explain: bool,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    if args.explain {
        print!("{}", keys::markdown());
        return Ok(Exit::Done);
    }
    let Examined { config, places } = Config::examine_file(&args.file);
    let config = config.map_err(Mistakes)?;
    let mut report = Report { file: args.file.display().to_string(), places, warnings: 0, mistakes: 0, failures: 0 };
    let plugins = report.plugins(&config);
    report.routes(&config, &plugins);
    report.surroundings(&config);
    report.outputs(&config).await;
    if args.online {
        report.online(&config).await;
    }
    let warnings = match report.warnings {
        0 => "no warnings".to_owned(),
        1 => "1 warning".to_owned(),
        count => format!("{count} warnings"),
    };
    if report.mistakes > 0 {
        let what = format!("{}: {} mistaken outputs, {warnings}", report.file, report.mistakes);
        return Err(Trouble::usage(what, "each is named above").into());
    }
    if report.failures > 0 {
        let what = format!("{}: {} of the parts cannot be used, {warnings}", report.file, report.failures);
        return Err(Trouble::new(what, "each is named above").into());
    }
    println!("{}: no mistakes, {warnings}", report.file);
    Ok(Exit::Done)
}

struct Report {
    file: String,
    places: BTreeMap<String, Place>,
    warnings: usize,
    /// Of what a kind reads itself.
    mistakes: usize,
    /// What is well configured and cannot be used now.
    failures: usize,
}

impl Report {
    fn at(&self, path: &str, what: String) -> Mistake {
        Mistake { file: self.file.clone(), place: self.places.get(path).copied(), what }
    }

    fn warn(&mut self, path: &str, what: impl Into<String>) {
        self.warnings += 1;
        let what = format!("warning: {}", what.into());
        eprintln!("{}", self.at(path, what));
    }

    fn fail(&mut self, path: &str, what: impl Into<String>) {
        self.failures += 1;
        eprintln!("{}", self.at(path, what.into()));
    }

    /// Loads every .wasm in the plugin folder and says what it is.
    fn plugins(&mut self, config: &Config) -> BTreeMap<PluginName, Artifact> {
        let dir = &config.plugins.dir;
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => {
                self.warn("plugins.dir", format!("the plugin folder {} cannot be read: {error}", dir.display()));
                return BTreeMap::new();
            }
        };
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "wasm"));
        files.sort();
        if files.is_empty() {
            self.warn("plugins.dir", format!("no plugin is in {}", dir.display()));
        }
        let mut plugins: BTreeMap<PluginName, Artifact> = BTreeMap::new();
        for file in files {
            // The name is known only after it is described, and describing may need its configuration: the file is
            // called as the plugin, as a rule.
            let stem = file.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| PluginName::new(stem).ok());
            let settings = |name: Option<&PluginName>| {
                name.and_then(|name| config.plugin.get(name)).map(|plugin| plugin.config.clone()).unwrap_or_default()
            };
            let guess = settings(stem.as_ref());
            let loaded = artifact::load(&file, &guess).and_then(|artifact| {
                let real = settings(Some(&artifact.manifest.name));
                if real == guess { Ok(artifact) } else { artifact::load(&file, &real) }
            });
            match loaded {
                Ok(artifact) => {
                    println!("{}: {}", file.display(), artifact.in_a_line());
                    let name = artifact.manifest.name.clone();
                    if plugins.insert(name.clone(), artifact).is_some() {
                        self.warn(
                            "plugins.dir",
                            format!("{}: another file is the plugin '{name}' too", file.display()),
                        );
                    }
                }
                Err(error) => {
                    self.failures += 1;
                    eprintln!("{:#}", error);
                }
            }
        }
        for name in config.plugin.keys().filter(|name| !plugins.contains_key(name)).cloned().collect::<Vec<_>>() {
            let hint = hint(name.as_str(), plugins.keys().map(PluginName::as_str));
            self.warn(&format!("plugin.{name}"), format!("no plugin in {} is called '{name}'{hint}", dir.display()));
        }
        plugins
    }

    fn routes(&mut self, config: &Config, plugins: &BTreeMap<PluginName, Artifact>) {
        for (index, route) in config.routes.iter().enumerate() {
            let path = format!("route.{index}.from");
            let name = route.from.plugin();
            if name.as_str() == crate::router::tracking::NAME {
                continue;
            }
            let Some(plugin) = plugins.get(name) else {
                let hint = hint(name.as_str(), plugins.keys().map(PluginName::as_str));
                self.warn(&path, format!("no plugin is called '{name}'{hint}"));
                continue;
            };
            if let RouteFrom::Stream(stream) = &route.from {
                let mut streams = plugin.manifest.streams.iter().map(|spec| spec.name.as_str());
                if !streams.any(|name| name == stream.stream.as_str()) {
                    let known: Vec<&str> = plugin.manifest.streams.iter().map(|spec| spec.name.as_str()).collect();
                    let hint = hint(stream.stream.as_str(), known.iter().copied());
                    self.warn(&path, format!("plugin '{name}' has no stream '{}'{hint}", stream.stream));
                }
            }
        }
        for name in config.outputs.keys().filter(|name| !config.routes.iter().any(|r| r.to.contains(name))) {
            self.warn(&format!("output.{name}"), format!("no [[route]] leads to output '{name}'"));
        }
    }

    fn surroundings(&mut self, config: &Config) {
        for (path, variable) in config.variables() {
            if std::env::var_os(&variable).is_none_or(|value| value.is_empty()) {
                self.warn(&path, format!("the environment variable {variable} is not set here"));
            }
        }
        if let Some(address) = config.http.listen.filter(|address| !address.ip().is_loopback()) {
            let what = format!("whoever reaches {address} reads every stream and commands the process");
            self.warn("http.listen", what);
        }
    }

    /// Lets every kind read its own table. It connects to nothing before it is asked something.
    async fn outputs(&mut self, config: &Config) {
        let variables = config.variables();
        for output in config.outputs.values() {
            let Err(error) = open_sink(config, output).await else { continue };
            let path = format!("output.{}", output.name);
            // A secret that is not set here is warned of; that the output cannot do without it follows.
            let unset =
                |(key, variable): &(String, String)| key.starts_with(&path) && std::env::var_os(variable).is_none();
            if !variables.iter().any(unset) {
                self.mistakes += 1;
                eprintln!("{}", self.at(&path, error.to_string()));
            }
        }
    }

    /// Opens every source and sink as the process would, and asks each one question.
    async fn online(&mut self, config: &Config) {
        for (name, chain) in &config.chains {
            let Some(kind) = crate::source::KINDS.iter().find(|kind| kind.name == chain.source) else { continue };
            let open = crate::source::Open {
                name: name.clone(),
                expect: chain.chain_id,
                table: chain.table.clone(),
                base: config.base.clone(),
            };
            let answer = async {
                let source = (kind.open)(open).await?;
                Ok::<_, crate::source::ReadError>((source.chain(), source.head().await?))
            };
            match patient(answer).await {
                Ok((id, head)) => println!("chain {name}: {id}, head {} ({})", head.number, head.hash),
                Err(why) => self.fail(&format!("chain.{name}"), format!("chain '{name}': {why}")),
            }
        }
        for (name, output) in &config.outputs {
            let track = crate::sink::Track {
                output: name.clone(),
                stream: "check.check".parse().expect("it is a stream's name"),
                chain: crate::model::ChainId(1),
            };
            let answer = async { open_sink(config, output).await?.position(&track).await };
            match patient(answer).await {
                Ok(_) => println!("output {name}: {} can be used", output.kind),
                Err(why) => self.fail(&format!("output.{name}"), format!("output '{name}': {why}")),
            }
        }
    }
}

async fn open_sink(config: &Config, output: &OutputConfig) -> Result<Arc<dyn Sink>, SinkError> {
    let Some(kind) = crate::sink::KINDS.iter().find(|kind| kind.name == output.kind) else {
        return Err(SinkError::Refused { why: format!("output.{}: there is no type '{}'", output.name, output.kind) });
    };
    let open = crate::sink::Open {
        name: output.name.clone(),
        table: output.table.clone(),
        base: config.base.clone(),
        // No destination remembers a journal of this name: nothing that it keeps is taken for ours.
        journal: "check".into(),
    };
    (kind.open)(open).await
}

/// A destination that does not answer is one that cannot be reached: 15 s are more than a slow one needs.
async fn patient<T, E: std::fmt::Display>(answer: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(std::time::Duration::from_secs(15), answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in 15 s".into()),
    }
}
