//! `chainweir set`: the watch sets of the running process.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};

use super::client::{Client, Where};
use super::status::columns;
use super::{Exit, Trouble};
use crate::model::Member;

/// Members of one request: some 1 MB.
const AT_ONCE: usize = 20_000;

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Every set with the number of its members
    List {
        #[command(flatten)]
        at: Where,
    },
    /// The members of a set, one a line
    Show {
        name: String,
        #[command(flatten)]
        at: Where,
    },
    /// Add addresses or words to a set
    Add(Members),
    /// Remove addresses or words from a set
    Remove {
        name: String,
        #[arg(required = true)]
        members: Vec<Member>,
        #[command(flatten)]
        at: Where,
    },
    /// Add what a file lists, one address or word a line
    Import(FileOf),
    /// Make a set what a file lists: add what is missing, remove what is not in it
    Replace(FileOf),
}

#[derive(clap::Args, Debug)]
pub struct Members {
    name: String,
    #[arg(required = true)]
    members: Vec<Member>,
    #[command(flatten)]
    since: Since,
}

#[derive(clap::Args, Debug)]
pub struct FileOf {
    name: String,
    /// Lines that are empty or begin with '#' are left out; '-' reads stdin
    file: PathBuf,
    #[command(flatten)]
    since: Since,
}

#[derive(clap::Args, Debug)]
pub struct Since {
    /// What is added holds from this block on: plugins that are beyond it are shown the blocks between, for what is added
    /// alone. Without it, from the next block on
    #[arg(long, value_name = "BLOCK")]
    from: Option<u64>,
    #[command(flatten)]
    at: Where,
}

pub async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List { at } => list(&at).await,
        Command::Show { name, at } => {
            each_page(&at.client()?, &name, |member| {
                println!("{member}");
                Ok(())
            })
            .await?;
            Ok(Exit::Done)
        }
        Command::Add(Members { name, members, since }) => send(&name, members, vec![], &since).await,
        Command::Remove { name, members, at } => send(&name, vec![], members, &Since { from: None, at }).await,
        Command::Import(FileOf { name, file, since }) => send(&name, read(&file)?, vec![], &since).await,
        Command::Replace(FileOf { name, file, since }) => {
            let new = read(&file)?;
            let keep: std::collections::HashSet<Member> = new.iter().copied().collect();
            let client = since.at.client()?;
            let listed: Value = client.get("/sets").await?;
            let mut names = listed.get("items").and_then(Value::as_array).into_iter().flatten();
            let mut gone: Vec<Member> = Vec::new();
            // A set that nobody named yet has no members.
            if names.any(|set| set.get("name").and_then(Value::as_str) == Some(&name)) {
                let read = |text: &str| {
                    let member = text.parse().map_err(|why| anyhow::anyhow!("the set holds '{text}': {why}"))?;
                    gone.push(member);
                    Ok(())
                };
                each_page(&client, &name, read).await?;
            }
            gone.retain(|member| !keep.contains(member));
            send(&name, new, gone, &since).await
        }
    }
}

async fn list(at: &Where) -> anyhow::Result<Exit> {
    let sets: Value = at.client()?.get("/sets").await?;
    let items = sets.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    if items.is_empty() {
        println!("no watch sets: 'chainweir set add NAME ADDRESS...' makes one");
        return Ok(Exit::Done);
    }
    let mut rows = vec![vec!["SET".to_owned(), "MEMBERS".to_owned()]];
    for set in &items {
        let name = set.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        rows.push(vec![name, set.get("members").map_or(String::new(), Value::to_string)]);
    }
    print!("{}", columns(&rows));
    Ok(Exit::Done)
}

async fn each_page(client: &Client, set: &str, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let page: Value = client.get(&format!("/sets/{set}?limit=100000{after}")).await?;
        for member in page.get("items").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            each(member)?;
        }
        match page.get("next").and_then(Value::as_str) {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(()),
        }
    }
}

/// All lines, or the first that is wrong with its number.
fn read(file: &PathBuf) -> anyhow::Result<Vec<Member>> {
    let from: Box<dyn Read> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
    };
    let mut members = Vec::new();
    for (number, line) in (1..).zip(BufReader::with_capacity(1 << 18, from).lines()) {
        let line = line.with_context(|| format!("cannot read {}", file.display()))?;
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let member = text.parse().map_err(|why| {
            Trouble::new(format!("{}, line {number}: {why}", file.display()), "correct the file; nothing was changed")
        })?;
        members.push(member);
    }
    Ok(members)
}

async fn send(name: &str, add: Vec<Member>, remove: Vec<Member>, since: &Since) -> anyhow::Result<Exit> {
    let client = since.at.client()?;
    let path = format!("/sets/{name}");
    let total = add.len() + remove.len();
    let bar = indicatif::ProgressBar::new(total as u64);
    if total <= AT_ONCE {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let texts = |members: &[Member]| members.iter().map(ToString::to_string).collect::<Vec<_>>();
    let adds = add.chunks(AT_ONCE).map(|part| (part.len(), json!({ "add": texts(part), "from": since.from })));
    let removes = remove.chunks(AT_ONCE).map(|part| (part.len(), json!({ "remove": texts(part) })));
    let (mut added, mut removed, mut from) = (0, 0, String::new());
    for (count, body) in adds.chain(removes) {
        let done: Value = client.post_for(&path, &body).await?;
        added += done.get("added").and_then(Value::as_u64).unwrap_or(0);
        removed += done.get("removed").and_then(Value::as_u64).unwrap_or(0);
        let begins = done.get("from").and_then(Value::as_object).into_iter().flatten();
        from = begins.map(|(chain, block)| format!("{chain} block {block}")).collect::<Vec<_>>().join(", ");
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    let same = total as u64 - added - removed;
    let unchanged = if same == 0 { String::new() } else { format!(", {same} were as asked already") };
    let from = if from.is_empty() { String::new() } else { format!("; from {from} on") };
    println!("{name}: {added} added, {removed} removed{unchanged}{from}");
    Ok(Exit::Done)
}
