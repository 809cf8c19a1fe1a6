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
    #[arg(required_unless_present = "all")]
    ids: Vec<i64>,
    /// All there are, or all of --output
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: of this output alone
    #[arg(long, requires = "all")]
    output: Option<String>,
    #[command(flatten)]
    at: Where,
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
    let fields = ["id", "output", "stream", "op", "attempts", "why"];
    let mut rows = vec![fields.iter().map(|field| field.to_uppercase()).collect::<Vec<_>>()];
    for letter in &letters {
        let cell = |field: &&str| match letter.get(*field) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        rows.push(fields.iter().map(cell).collect());
    }
    print!("{}", columns(&rows));
    eprintln!("\n'chainweir dead retry ID...' sends them again, 'chainweir dead drop ID...' gives them up");
    Ok(Exit::Done)
}

async fn settle(path: &str, which: Which) -> anyhow::Result<Exit> {
    let ids = if which.all {
        let letters = letters(which.output.as_deref(), &which.at).await?;
        letters.iter().filter_map(|letter| letter.get("id").and_then(Value::as_i64)).collect()
    } else {
        which.ids
    };
    if ids.is_empty() {
        return Err(Trouble::new("there are no dead letters", "nothing is to be done").into());
    }
    println!("{}", which.at.client()?.post(path, Some(&json!({ "ids": ids }))).await?);
    Ok(Exit::Done)
}
