//! `chainweir bench`: what this machine gives, each figure beside what it is compared with in the same run.
//!
//! One file per figure; [`lab`] is the ground that they stand on. `cargo bench` runs this command. Absolute figures
//! differ from machine to machine and from hour to hour: the ratios are what is to be watched.

mod backfill;
mod crossing;
mod crowd;
mod delivery;
mod heads;
mod index;
mod journal;
mod lab;
mod node;
mod pipeline;
mod process;
mod reload;
mod sets;
mod verification;

use std::path::PathBuf;
use std::time::Instant;

use futures::future::BoxFuture;
use serde_json::{Map, Value, json};

use self::lab::Lab;
use super::{Exit, Trouble};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only these; all by default
    #[arg(value_name = "FIGURE")]
    figures: Vec<String>,
    /// {"name": {"value", "unit", "against", "ratio"}}
    #[arg(long)]
    json: bool,
    /// Everything once and briefly: shows that it works, measures nothing
    #[arg(long)]
    smoke: bool,
    /// Where journals are written: durable figures are those of its disk
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// For `pipeline`: this plugin instead of the built-in filter
    #[arg(long, value_name = "WASM")]
    plugin: Option<PathBuf>,
    /// For `verification`: recorded blocks, beside the made-up ones
    #[arg(long, value_name = "FILE")]
    blocks: Option<PathBuf>,
}

/// One measured thing.
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// What it is compared with.
    against: &'static str,
    /// `value` divided by the other's.
    ratio: f64,
    aim: Aim,
}

/// What the ratio should be.
#[derive(Clone, Copy)]
enum Aim {
    AtMost(f64),
    AtLeast(f64),
    /// It is there to be known.
    None,
}

impl Figure {
    fn new(
        name: impl Into<String>,
        (value, unit): (f64, &'static str),
        (other, against): (f64, &'static str),
        aim: Aim,
    ) -> Self {
        Self { name: name.into(), value, unit, against, ratio: value / other, aim }
    }
}

type Measured = BoxFuture<'static, anyhow::Result<Vec<Figure>>>;

/// In the order of the flow.
const FIGURES: &[(&str, fn(Lab) -> Measured)] = &[
    ("verification", |lab| Box::pin(async move { verification::measure(&lab) })),
    ("crossing", |lab| Box::pin(async move { crossing::measure(&lab) })),
    ("index", |lab| Box::pin(async move { Ok(index::measure(&lab)) })),
    ("sets", |lab| Box::pin(sets::measure(lab))),
    ("journal", |lab| Box::pin(journal::measure(lab))),
    ("pipeline", |lab| Box::pin(pipeline::measure(lab))),
    ("backfill", |lab| Box::pin(backfill::measure(lab))),
    ("heads", |lab| Box::pin(heads::measure(lab))),
    ("latency", |lab| Box::pin(delivery::latency(lab))),
    ("deliveries", |lab| Box::pin(delivery::rate(lab))),
    ("crowd", |lab| Box::pin(crowd::measure(lab))),
    ("reload", |lab| Box::pin(reload::measure(lab))),
    ("start", |lab| Box::pin(process::start(lab))),
    ("memory", |lab| Box::pin(process::memory(lab))),
];

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some(unknown) = args.figures.iter().find(|name| FIGURES.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
        return Err(
            Trouble::usage(format!("there is no figure '{unknown}'"), format!("one of: {}", known.join(", "))).into()
        );
    }
    let folder = args.folder.unwrap_or_else(std::env::temp_dir);
    let mut all = Map::new();
    for (name, measure) in
        FIGURES.iter().filter(|(name, _)| args.figures.is_empty() || args.figures.iter().any(|f| f == name))
    {
        let began = Instant::now();
        let lab = Lab::new(&folder, args.smoke, args.plugin.clone(), args.blocks.clone())?;
        let figures = measure(lab).await?;
        if !args.json {
            println!("{name} ({:.1} s)", began.elapsed().as_secs_f64());
        }
        for figure in figures {
            if !args.json {
                println!("{}", line(&figure));
            }
            let Figure { name, value, unit, against, ratio, .. } = figure;
            all.insert(name, json!({ "value": value, "unit": unit, "against": against, "ratio": ratio }));
        }
    }
    if args.json {
        println!("{:#}", Value::Object(all));
    }
    Ok(Exit::Done)
}

fn line(figure: &Figure) -> String {
    let Figure { name, value, unit, against, ratio, aim } = figure;
    let digits = if *value < 100.0 { 1 } else { 0 };
    let aim = match aim {
        Aim::AtMost(most) if ratio > most => format!(", MISSES at most {most}"),
        Aim::AtMost(most) => format!(", within {most}"),
        Aim::AtLeast(least) if ratio < least => format!(", MISSES at least {least}"),
        Aim::AtLeast(least) => format!(", above {least}"),
        Aim::None => String::new(),
    };
    format!("  {name:<24} {value:>10.digits$} {unit:<12} {ratio:>7.2} of {against}{aim}")
}
