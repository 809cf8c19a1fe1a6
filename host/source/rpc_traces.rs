//! A block's traces from a live node, by the method that it has. Part of [`rpc`](super::rpc).

use std::sync::atomic::Ordering;

use alloy_primitives::U64;
use serde_json::json;

use super::rpc::{Inner, trouble};
use super::traces::{from_call_tracer, from_trace_block};
use super::transport::{Endpoint, Fail};
use super::wire::Trouble;
use crate::model::{Block, Transfer};

/// A node that has no state that old, or no time, says so for each transaction.
fn untraced(ep: &Endpoint, trouble_found: Trouble) -> Fail {
    match trouble_found {
        Trouble::Lacks(what) => Fail::Other(format!("{}: {what} are not told", ep.shown)),
        other => trouble(other),
    }
}

impl Inner {
    pub(super) async fn transfers(&self, ep: &Endpoint, block: &Block) -> Result<Vec<Transfer>, Fail> {
        // Nothing was executed, and some nodes have no traces of it.
        if block.transactions.is_empty() {
            return Ok(Vec::new());
        }
        let at = block.at();
        if !ep.no_call_tracer.load(Ordering::Relaxed) {
            let question = json!([at.hash, { "tracer": "callTracer" }]);
            match ep.call("debug_traceBlockByHash", question).await {
                Ok(raw) if raw.get() == "null" => return Err(Fail::Unknown(format!("the traces of {at}"))),
                Ok(raw) => return from_call_tracer(raw.get(), block).map_err(|t| untraced(ep, t)),
                Err(Fail::NoMethod(_)) => ep.no_call_tracer.store(true, Ordering::Relaxed),
                Err(fail) => return Err(fail),
            }
        }
        match ep.call("trace_block", json!([U64::from(at.number)])).await {
            Ok(raw) if raw.get() == "null" => Err(Fail::Unknown(format!("the traces of {at}"))),
            // By number: another branch's, where the block is not canonical to it.
            Ok(raw) => from_trace_block(raw.get(), block).map_err(|t| untraced(ep, t)),
            Err(Fail::NoMethod(_)) => Err(Fail::NoMethod(format!(
                "{} has neither debug_traceBlockByHash nor trace_block, of which a plugin needs one",
                ep.shown
            ))),
            Err(fail) => Err(fail),
        }
    }
}
