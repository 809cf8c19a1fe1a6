//! `chainweir dead`: deliveries that were given up, asked of the running process.

use serde_json::{Value, json};

use super::client::Where;
use super::status::columns;
use super::{Exit, Trouble};

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// The dead letters, oldest first
    List {
        /// Of this output alone
        #[arg(long)]
        output: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: Where,
    },
    /// One dead letter with its payload, as JSON
    Show {
        id: i64,
        #[command(flatten)]
        at: Where,
    },
    /// Put dead letters back into their lanes
    Retry(Which),
    /// Give dead letters up for good
    Drop(Which),
}

#[derive(clap::Args, Debug)]
pub struct Which {
    /// Ids as `dead list` shows them
    #[arg(required_unless_present_any = ["all", "output", "plugin", "reason", "since", "before"])]
    ids: Vec<i64>,
    /// All there are
    #[arg(long, conflicts_with_all = ["ids", "output", "plugin", "reason", "since", "before"])]
    all: bool,
    #[command(flatten)]
    only: Only,
    /// Show which these are, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    at: Where,
}

/// Those that are all of this.
#[derive(clap::Args, Debug)]
pub struct Only {
    /// Of this output
    #[arg(long)]
    output: Option<String>,
    /// Of this plugin
    #[arg(long)]
    plugin: Option<String>,
    /// With this in the reason for which they were given up
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Given up at or after this time (UTC), as 2026-01-31 or 2026-01-31T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Given up before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    before: Option<String>,
}

impl Only {
    fn takes(&self, letter: &Value) -> bool {
        let text = |field: &str| letter.get(field).and_then(Value::as_str).unwrap_or_default();
        let plugin = text("stream").split_once('.').map_or("", |(plugin, _)| plugin);
        // Times are written alike: they are in the order of their texts.
        self.output.as_ref().is_none_or(|output| text("output") == output)
            && self.plugin.as_ref().is_none_or(|wanted| plugin == wanted)
            && self.reason.as_ref().is_none_or(|reason| text("why").contains(reason.as_str()))
            && self.since.as_ref().is_none_or(|since| text("time") >= since.as_str())
            && self.before.as_ref().is_none_or(|before| text("time") < before.as_str())
    }
}

fn time(text: &str) -> Result<String, String> {
    let wrong = || "a time is written as 2026-01-31 or 2026-01-31T08:00:00Z".to_owned();
    let at: toml::value::Datetime = text.parse().map_err(|_| wrong())?;
    let utc = matches!(at.offset, None | Some(toml::value::Offset::Z)) && (at.time.is_none() || text.ends_with('Z'));
    if at.date.is_some() && utc { Ok(text.to_owned()) } else { Err(wrong()) }
}

pub async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List { output, json, at } => list(output, json, &at).await,
        Command::Show { id, at } => {
            let letter: Value = at.client()?.get(&format!("/dead/{id}")).await?;
            println!("{letter:#}");
            Ok(Exit::Done)
        }
        Command::Retry(which) => settle("/dead/retry", which).await,
        Command::Drop(which) => settle("/dead/drop", which).await,
    }
}

/// All letters, page by page.
async fn letters(output: Option<&str>, at: &Where) -> anyhow::Result<Vec<Value>> {
    let client = at.client()?;
    let mut all: Vec<Value> = vec![];
    let mut after = 0;
    loop {
        let mut path = format!("/dead?after={after}&limit=500");
        if let Some(output) = output {
            path.push_str("&output=");
            path.extend(url::form_urlencoded::byte_serialize(output.as_bytes()));
        }
        let page: Value = client.get(&path).await?;
        let items = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let Some(last) = items.last().and_then(|item| item.get("id")).and_then(Value::as_i64).filter(|id| *id > after)
        else {
            return Ok(all);
        };
        after = last;
        all.extend(items);
    }
}

async fn list(output: Option<String>, json: bool, at: &Where) -> anyhow::Result<Exit> {
    let letters = letters(output.as_deref(), at).await?;
    if json {
        println!("{:#}", Value::Array(letters));
        return Ok(Exit::Done);
    }
    if letters.is_empty() {
        println!("no dead letters");
        return Ok(Exit::Done);
    }
    print!("{}", table(&letters));
    eprintln!("\n'chainweir dead retry ID...' sends them again, 'chainweir dead drop ID...' gives them up");
    Ok(Exit::Done)
}

fn table(letters: &[Value]) -> String {
    let fields = ["id", "output", "stream", "op", "attempts", "time", "why"];
    let mut rows = vec![fields.iter().map(|field| field.to_uppercase()).collect::<Vec<_>>()];
    for letter in letters {
        let cell = |field: &&str| match letter.get(*field) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        rows.push(fields.iter().map(cell).collect());
    }
    columns(&rows)
}

async fn settle(path: &str, which: Which) -> anyhow::Result<Exit> {
    let Which { ids, only, dry_run, at, .. } = which;
    let id = |letter: &Value| letter.get("id").and_then(Value::as_i64);
    // Ids alone need not be looked for; what is shown first, or chosen by what it is, does.
    let ids = if ids.is_empty() || dry_run {
        let mut letters = letters(only.output.as_deref(), &at).await?;
        letters
            .retain(|letter| only.takes(letter) && (ids.is_empty() || id(letter).is_some_and(|id| ids.contains(&id))));
        if dry_run {
            print!("{}", table(&letters));
            eprintln!("\nnothing was done; the same without --dry-run does it to these {}", letters.len());
            return Ok(Exit::Done);
        }
        letters.iter().filter_map(id).collect()
    } else {
        ids
    };
    if ids.is_empty() {
        return Err(Trouble::new("there are no such dead letters", "nothing is to be done").into());
    }
    // In the order in which they were given up, each request all or nothing.
    for ids in ids.chunks(2_000) {
        println!("{}", at.client()?.post(path, Some(&json!({ "ids": ids }))).await?);
    }
    Ok(Exit::Done)
}
