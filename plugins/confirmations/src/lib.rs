//! Follows transactions and deposit addresses: `seen` when included, `confirmed` under so many blocks, `finalized` under still more.
//!
//! Nothing here handles a reorg. What was said in an orphaned block is retracted by the host, and the state goes back with it.

use chainweir_sdk::prelude::*;

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// The plugin's configuration: at least one transaction or address.
#[config]
pub struct Confirmations {
    /// Hashes of transactions to follow.
    #[default]
    transactions: Vec<B256>,
    /// Deposit addresses: ether and ERC-20 tokens sent to them are followed.
    #[default]
    addresses: Vec<Address>,
    /// Only tokens of these contracts; of any where it is empty. Name them: anybody can make a token.
    #[default]
    tokens: Vec<Address>,
    /// Blocks until `confirmed`, the block of inclusion among them.
    #[default(12)]
    confirmations: u64,
    /// Blocks until `finalized`, the block of inclusion among them. 64 is two epochs of Ethereum, 13 minutes.
    #[default(64)]
    finality_depth: u64,
}

/// What is followed.
#[json]
#[derive(Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A transaction by its hash.
    Transaction,
    /// Ether sent to a deposit address.
    Ether,
    /// Tokens sent to a deposit address.
    Token,
}

/// A transaction or deposit, as it was included.
#[json]
#[derive(Clone)]
pub struct Followed {
    what: What,
    tx: B256,
    from: Address,
    to: Option<Address>,
    /// The contract; of tokens alone.
    token: Option<Address>,
    value: U256,
    /// Where it was included.
    block: u64,
    log_index: Option<u32>,
    /// Executed, or reverted (a followed transaction may be), or not known.
    success: Option<bool>,
}

/// Included in a block.
#[stream(key = followed.tx)]
pub struct Seen {
    #[serde(flatten)]
    followed: Followed,
}

/// As many blocks as `confirmations` asks for hold it.
#[stream(key = followed.tx)]
pub struct Confirmed {
    #[serde(flatten)]
    followed: Followed,
    confirmations: u64,
}

/// As many blocks as `finality_depth` asks for hold it.
#[stream(key = followed.tx)]
pub struct Finalized {
    #[serde(flatten)]
    followed: Followed,
    confirmations: u64,
}

/// The block at which something is due, the transaction, and which part of it: 0 itself, 1 its value, 2 and more its logs.
type Due = (u64, (B256, u32));
/// In state: what is to be confirmed, and what is to be finalized, soonest first.
const CONFIRMING: Table<Due, Followed> = Table::new("confirming");
const FINALIZING: Table<Due, Followed> = Table::new("finalizing");

/// Follows transactions and deposits to finality.
#[plugin(streams(Seen, Confirmed, Finalized))]
impl Confirmations {
    #[init]
    fn check(&mut self) -> Result {
        if self.transactions.is_empty() && self.addresses.is_empty() {
            reject!("name at least one of `transactions` and `addresses`");
        }
        if self.confirmations == 0 || self.finality_depth < self.confirmations {
            reject!("`confirmations` is at least 1, and `finality_depth` not below it");
        }
        Ok(())
    }

    /// A new block is one more confirmation for everything below it.
    #[block]
    fn block(&self, block: &BlockView, out: &mut Out<Self>) -> Result {
        for followed in due(CONFIRMING, block.number())? {
            out.emit(&Confirmed { followed, confirmations: self.confirmations })?;
        }
        for followed in due(FINALIZING, block.number())? {
            out.emit(&Finalized { followed, confirmations: self.finality_depth })?;
        }
        Ok(())
    }

    /// Hashes cannot be subscribed to: to follow some, all transactions are asked for.
    fn wanted_transactions(&self) -> Option<Subscription> {
        let all = Subscription::transactions();
        match (self.transactions.is_empty(), self.addresses.is_empty()) {
            (false, _) => Some(all),
            (true, false) => Some(all.receivers(&self.addresses)),
            (true, true) => None,
        }
    }

    #[transaction(subscribe = self.wanted_transactions())]
    fn transaction(&self, tx: &TransactionView, out: &mut Out<Self>) -> Result {
        let followed = |what| Followed {
            what,
            tx: *tx.hash(),
            from: tx.from(),
            to: tx.to(),
            token: None,
            value: tx.value(),
            block: tx.block().number(),
            log_index: None,
            success: tx.success(),
        };
        if self.transactions.contains(tx.hash()) {
            self.follow(0, followed(What::Transaction), out)?;
        }
        let deposit = tx.to().is_some_and(|to| self.addresses.contains(&to));
        if deposit && tx.success() != Some(false) && !tx.value().is_zero() {
            self.follow(1, followed(What::Ether), out)?;
        }
        Ok(())
    }

    fn wanted_logs(&self) -> Option<Subscription> {
        let transfers = Subscription::event::<Transfer>().addresses(&self.tokens).topic(2, &self.addresses);
        (!self.addresses.is_empty()).then_some(transfers)
    }

    #[log(subscribe = self.wanted_logs())]
    fn deposit(&self, t: Transfer, log: &LogView, out: &mut Out<Self>) -> Result {
        if t.value.is_zero() {
            return Ok(());
        }
        let followed = Followed {
            what: What::Token,
            tx: *log.tx_hash(),
            from: t.from,
            to: Some(t.to),
            token: Some(log.address()),
            value: t.value,
            block: log.block().number(),
            log_index: Some(log.index()),
            success: Some(true),
        };
        self.follow(log.index().saturating_add(2), followed, out)
    }

    fn follow(&self, part: u32, followed: Followed, out: &mut Out<Self>) -> Result {
        let (tx, block) = (followed.tx, followed.block);
        out.emit(&Seen { followed: followed.clone() })?;
        // The block of inclusion is the first confirmation, and its #[block] handler ran already.
        match self.confirmations {
            1 => out.emit(&Confirmed { followed: followed.clone(), confirmations: 1 })?,
            more => CONFIRMING.set(&(block.saturating_add(more - 1), (tx, part)), &followed)?,
        }
        match self.finality_depth {
            1 => out.emit(&Finalized { followed, confirmations: 1 }),
            more => FINALIZING.set(&(block.saturating_add(more - 1), (tx, part)), &followed),
        }
    }
}

/// Takes out what is due at this block.
fn due(table: Table<Due, Followed>, block: u64) -> Result<Vec<Followed>> {
    let mut all = Vec::new();
    loop {
        let page = table.scan(None, 100)?;
        let full = page.len() == 100;
        for (key, followed) in page {
            if key.0 > block {
                return Ok(all);
            }
            table.delete(&key);
            all.push(followed);
        }
        if !full {
            return Ok(all);
        }
    }
}
