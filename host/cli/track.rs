//! `chainweir track`: transactions of which the running process says what becomes of them.

use serde_json::{Value, json};

use super::Exit;
use super::client::Where;
use super::status::columns;
use crate::track::Key;

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Watch transactions: by hash, or by SENDER/NONCE
    Add {
        #[command(flatten)]
        keys: Keys,
        /// Speak again when its block and those on top of it are so many; several by commas
        #[arg(long, value_delimiter = ',', value_name = "N")]
        confirmations: Vec<u64>,
        /// Comes back in everything that is said of them
        #[arg(long)]
        label: Option<String>,
    },
    /// What is known of one
    Show {
        #[command(flatten)]
        keys: Keys,
    },
    /// Those that are watched on a chain
    List {
        /// The chain's name in the configuration, or its id: eip155:1
        #[arg(long)]
        chain: String,
        #[command(flatten)]
        at: Where,
    },
    /// Watch transactions no longer
    Drop {
        #[command(flatten)]
        keys: Keys,
    },
}

#[derive(clap::Args, Debug)]
pub struct Keys {
    /// The chain's name in the configuration, or its id: eip155:1
    #[arg(long)]
    chain: String,
    /// A transaction's hash, or SENDER/NONCE
    #[arg(required = true, value_name = "HASH")]
    keys: Vec<Key>,
    #[command(flatten)]
    at: Where,
}

pub async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Add { keys, confirmations, label } => {
            let add: Vec<Value> = keys
                .keys
                .iter()
                .map(|key| {
                    let mut one = match key {
                        Key::Hash(hash) => json!({ "hash": hash }),
                        Key::Nonce(sender, nonce) => json!({ "sender": sender, "nonce": nonce }),
                    };
                    (one["confirmations"], one["label"]) = (json!(confirmations), json!(label));
                    one
                })
                .collect();
            let all = add.len() as u64;
            let done = send(&keys, &json!({ "add": add })).await?;
            let added = done.get("added").and_then(Value::as_u64).unwrap_or(0);
            let known = if added == all { String::new() } else { format!(", {} were watched already", all - added) };
            println!(
                "{added} are watched from now on{known}; what is said of them: GET /streams/chainweir.transactions"
            );
        }
        Command::Drop { keys } => {
            let remove: Vec<String> = keys.keys.iter().map(ToString::to_string).collect();
            let done = send(&keys, &json!({ "remove": remove })).await?;
            println!("{} are not watched any more", done.get("removed").and_then(Value::as_u64).unwrap_or(0));
        }
        Command::Show { keys } => {
            let client = keys.at.client()?;
            for key in &keys.keys {
                let told: Value = client.get(&format!("/transactions/{}/{key}", keys.chain)).await?;
                println!("{told:#}");
            }
        }
        Command::List { chain, at } => list(&chain, &at).await?,
    }
    Ok(Exit::Done)
}

async fn send(keys: &Keys, body: &Value) -> anyhow::Result<Value> {
    keys.at.client()?.post_for(&format!("/transactions/{}", keys.chain), body).await
}

async fn list(chain: &str, at: &Where) -> anyhow::Result<()> {
    let client = at.client()?;
    let text = |item: &Value, field: &str| match item.get(field) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let mut rows = vec![["TRANSACTION", "STATUS", "BLOCK", "LABEL"].map(str::to_owned).to_vec()];
    let mut after = String::new();
    loop {
        let page: Value = client.get(&format!("/transactions/{chain}?limit=10000{after}")).await?;
        let items = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        rows.extend(
            items.iter().map(|item| ["key", "status", "block", "label"].map(|field| text(item, field)).to_vec()),
        );
        match page.get("next").and_then(Value::as_str) {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    match rows.len() {
        1 => println!("no transaction is watched: 'chainweir track add --chain {chain} HASH' watches one"),
        _ => print!("{}", columns(&rows)),
    }
    Ok(())
}
