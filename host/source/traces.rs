//! Native value that moved and contracts that came to be, inside of transactions too, from what a node's tracer says of a
//! block. `node -> [traces] -> model::Transfer`. Pure.
//!
//! No root holds a trace. What can be is held to the block, which is proven: the transactions, their order and hashes; of each
//! signed one the sender, receiver, value, outcome and created contract; and within it, that every call is made by the account
//! that was running. That a contract called another with some value is the provider's word.
//!
//! Two forms: geth's `callTracer` (a tree for each transaction) and OpenEthereum's `trace_block` (a list, with addresses in the
//! tree). Both become [`Frame`]s in the order of execution.

use alloy_primitives::{Address, B256, U256};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::wire::Trouble;
use crate::model::{Block, How, Transaction, Transfer};
use crate::proof;

/// The EVM's own bound on calls within calls.
const DEEPEST: usize = 1024;

/// A call, or what else has a place in a trace.
#[derive(Clone, Copy, Debug)]
struct Frame {
    depth: usize,
    what: What,
    from: Address,
    /// Not known of a contract that could not be created.
    to: Option<Address>,
    value: U256,
    /// Nothing of it took effect, nor of what it called.
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Call,
    /// Another's code, on the caller's account: what value it names moves nowhere (`CALLCODE`, from an account to itself).
    Borrowed,
    /// Moves nothing by its nature.
    Static,
    Create,
    Create2,
    SelfDestruct,
}

fn not_so(what: &str, tx: &Transaction) -> Trouble {
    Trouble::False(format!("the trace of transaction {} ({}): {what}", tx.index, tx.hash))
}

fn unreadable(e: &serde_json::Error) -> Trouble {
    Trouble::False(format!("the traces are not in their form: {e}"))
}

impl What {
    fn of(told: &str) -> Option<Self> {
        Some(match told.to_ascii_uppercase().as_str() {
            "CALL" => Self::Call,
            "CALLCODE" | "DELEGATECALL" => Self::Borrowed,
            "STATICCALL" => Self::Static,
            "CREATE" => Self::Create,
            "CREATE2" => Self::Create2,
            "SELFDESTRUCT" | "SUICIDE" => Self::SelfDestruct,
            _ => return None,
        })
    }

    fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Create2)
    }
}

/// Those of a block whose transactions are known with their receipts.
struct Derived<'a> {
    block: &'a Block,
    transfers: Vec<Transfer>,
}

impl<'a> Derived<'a> {
    fn of(block: &'a Block) -> Self {
        Self { block, transfers: Vec::new() }
    }

    /// How many of its transactions have a trace: all, or all but Bor's state-sync transaction, which is no execution of its own.
    fn expects(&self, traced: usize) -> Result<(), Trouble> {
        let (at, all) = (self.block.at(), &self.block.transactions);
        let synced = all.last().is_some_and(|tx| tx.hash == proof::state_sync_hash(at.number, at.hash));
        if traced == all.len() || (synced && traced + 1 == all.len()) {
            return Ok(());
        }
        Err(Trouble::False(format!("{} transactions, but traces of {traced}", all.len())))
    }

    /// Takes the frames of one transaction, in the order of execution.
    fn take(
        &mut self,
        tx: &Transaction,
        frames: impl IntoIterator<Item = Result<Frame, Trouble>>,
    ) -> Result<(), Trouble> {
        // The account that runs at each depth; `None` where nothing more takes effect.
        let mut running: Vec<Option<Address>> = Vec::new();
        for (place, frame) in frames.into_iter().enumerate() {
            let frame = frame?;
            if place == 0 {
                is_the_transaction(tx, &frame)?;
            } else if frame.depth == 0 || frame.depth > running.len() {
                return Err(not_so("a call without its caller", tx));
            }
            running.truncate(frame.depth);
            let caller = running.last().copied().unwrap_or(Some(frame.from));
            let Some(caller) = caller else {
                running.push(None);
                continue;
            };
            if caller != frame.from {
                return Err(not_so(&format!("{} calls where {caller} runs", frame.from), tx));
            }
            if frame.failed {
                running.push(None);
                continue;
            }
            let runs = if frame.what == What::Borrowed { Some(frame.from) } else { frame.to };
            let Some(runs) = runs else { return Err(not_so("a call of nobody", tx)) };
            running.push(Some(runs));
            self.keep(tx, &frame);
        }
        if running.is_empty() {
            return Err(not_so("it is empty", tx));
        }
        Ok(())
    }

    fn keep(&mut self, tx: &Transaction, frame: &Frame) {
        let how = match (frame.what, frame.depth) {
            (What::Call, 0) => How::Transaction,
            (What::Create | What::Create2, 0) => How::Creation,
            (What::Call, _) => How::Call,
            (What::Create, _) => How::Create,
            (What::Create2, _) => How::Create2,
            (What::SelfDestruct, _) => How::SelfDestruct,
            (What::Borrowed | What::Static, _) => return,
        };
        let Some(to) = frame.to else { return };
        if frame.value.is_zero() && !how.creates() {
            return;
        }
        self.transfers.push(Transfer {
            // As many as there are calls in a block: its gas bounds them far below.
            index: self.transfers.len() as u32,
            transaction_index: tx.index,
            transaction_hash: tx.hash,
            depth: frame.depth as u16,
            how,
            from: frame.from,
            to,
            value: frame.value,
        });
    }
}

/// The outermost frame says of the transaction what the block says. Types that only rollups have are traced as each of them
/// thinks fit.
fn is_the_transaction(tx: &Transaction, top: &Frame) -> Result<(), Trouble> {
    let signed = tx.kind <= 4;
    let outcome = tx.success.is_none_or(|success| success != top.failed);
    if top.depth != 0 || (signed && !outcome) {
        return Err(not_so("its outcome is another", tx));
    }
    let target = match tx.to {
        Some(to) => top.what == What::Call && top.to == Some(to),
        None => top.what.creates() && (top.failed || tx.created.is_none() || top.to == tx.created),
    };
    if signed && (top.from != tx.from || top.value != tx.value || !target) {
        return Err(not_so("it is of another one", tx));
    }
    Ok(())
}

/// One transaction's, as `debug_traceBlockBy...` tells it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Traced<'a> {
    /// Older nodes tell none: the order is that of the block.
    tx_hash: Option<B256>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<String>,
}

/// What it calls is left as text: read one by one, no depth costs us our own stack.
#[derive(Deserialize)]
struct Called<'a> {
    r#type: String,
    from: Address,
    to: Option<Address>,
    #[serde(default)]
    value: Option<U256>,
    error: Option<String>,
    #[serde(borrow, default)]
    calls: Option<Vec<&'a RawValue>>,
}

/// In the order of execution.
struct Tree<'a> {
    tx: &'a Transaction,
    next: Vec<(usize, &'a RawValue)>,
}

impl Iterator for Tree<'_> {
    type Item = Result<Frame, Trouble>;

    fn next(&mut self) -> Option<Self::Item> {
        let (depth, raw) = self.next.pop()?;
        Some(self.read(depth, raw))
    }
}

impl<'a> Tree<'a> {
    fn read(&mut self, depth: usize, raw: &'a RawValue) -> Result<Frame, Trouble> {
        let called: Called<'a> = serde_json::from_str(raw.get()).map_err(|e| unreadable(&e))?;
        let what = What::of(&called.r#type).ok_or_else(|| not_so(&format!("a {:.20}", called.r#type), self.tx))?;
        let within = called.calls.unwrap_or_default();
        if depth == DEEPEST && !within.is_empty() {
            return Err(not_so("calls within calls, deeper than the chain allows", self.tx));
        }
        self.next.extend(within.into_iter().rev().map(|raw| (depth + 1, raw)));
        let failed = called.error.is_some_and(|error| !error.is_empty());
        Ok(Frame { depth, what, from: called.from, to: called.to, value: called.value.unwrap_or_default(), failed })
    }
}

/// `debug_traceBlockByHash` with `callTracer`. `Lacks`: the node could not trace all of it, and may later.
pub fn from_call_tracer(json: &str, block: &Block) -> Result<Vec<Transfer>, Trouble> {
    let traced: Vec<Traced<'_>> = serde_json::from_str(json).map_err(|e| unreadable(&e))?;
    let mut derived = Derived::of(block);
    derived.expects(traced.len())?;
    for (tx, traced) in block.transactions.iter().zip(traced) {
        if traced.tx_hash.is_some_and(|hash| hash != tx.hash) {
            return Err(not_so("it is of another one", tx));
        }
        let Some(result) = traced.result.filter(|_| traced.error.is_none()) else {
            return Err(Trouble::Lacks("traces of some transactions"));
        };
        derived.take(tx, Tree { tx, next: vec![(0, result)] })?;
    }
    Ok(derived.transfers)
}

/// One of `trace_block`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    r#type: String,
    action: Action,
    result: Option<Outcome>,
    error: Option<String>,
    trace_address: Vec<usize>,
    block_hash: B256,
    transaction_hash: Option<B256>,
    transaction_position: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    /// Of a contract that destroys itself: who, to whom, and how much.
    address: Option<Address>,
    refund_address: Option<Address>,
    balance: Option<U256>,
    call_type: Option<String>,
    /// `create2`; newer nodes alone tell it.
    creation_method: Option<String>,
    from: Option<Address>,
    to: Option<Address>,
    value: Option<U256>,
}

#[derive(Deserialize)]
struct Outcome {
    address: Option<Address>,
}

impl Listed {
    fn frame(&self, tx: &Transaction) -> Result<Frame, Trouble> {
        let (action, depth) = (&self.action, self.trace_address.len());
        if depth > DEEPEST {
            return Err(not_so("calls within calls, deeper than the chain allows", tx));
        }
        let failed = self.error.as_ref().is_some_and(|error| !error.is_empty());
        let needed = |field: Option<Address>| field.ok_or_else(|| not_so("a call that names nobody", tx));
        let call = action.call_type.as_deref().unwrap_or("call");
        Ok(match self.r#type.as_str() {
            "call" => Frame {
                depth,
                what: What::of(call).ok_or_else(|| not_so(&format!("a {call:.20}"), tx))?,
                from: needed(action.from)?,
                to: action.to,
                value: action.value.unwrap_or_default(),
                failed,
            },
            "create" => Frame {
                depth,
                what: match action.creation_method.as_deref() {
                    Some("create2") => What::Create2,
                    _ => What::Create,
                },
                from: needed(action.from)?,
                to: self.result.as_ref().and_then(|result| result.address),
                value: action.value.unwrap_or_default(),
                failed,
            },
            "suicide" | "selfdestruct" => Frame {
                depth,
                what: What::SelfDestruct,
                from: needed(action.address)?,
                to: action.refund_address,
                value: action.balance.unwrap_or_default(),
                failed,
            },
            other => return Err(not_so(&format!("a {other:.20}"), tx)),
        })
    }
}

/// `trace_block`. The rewards of miners are no transfers of anybody.
pub fn from_trace_block(json: &str, block: &Block) -> Result<Vec<Transfer>, Trouble> {
    let mut listed: Vec<Listed> = serde_json::from_str(json).map_err(|e| unreadable(&e))?;
    listed.retain(|trace| trace.r#type != "reward");
    if let Some(other) = listed.iter().find(|trace| trace.block_hash != block.at().hash) {
        return Err(Trouble::False(format!("a trace of block {}", other.block_hash)));
    }
    let mut derived = Derived::of(block);
    let place = |trace: &Listed| trace.transaction_position.unwrap_or(usize::MAX);
    let (mut rest, mut traced) = (listed.as_slice(), 0);
    for tx in &block.transactions {
        let own = rest.partition_point(|trace| place(trace) <= tx.index as usize);
        let (mine, after) = rest.split_at(own);
        if mine.is_empty() {
            // Found to be one too few below, unless nothing was to come.
            break;
        }
        let of_it = |trace: &Listed| place(trace) == tx.index as usize && trace.transaction_hash == Some(tx.hash);
        if !mine.iter().all(of_it) {
            return Err(not_so("it is of another one", tx));
        }
        derived.take(tx, mine.iter().map(|trace| trace.frame(tx)))?;
        (rest, traced) = (after, traced + 1);
    }
    if !rest.is_empty() {
        return Err(Trouble::False("traces of transactions that the block does not have".into()));
    }
    derived.expects(traced)?;
    Ok(derived.transfers)
}
