//! Chainweir follows EVM chains, hands their events to sandboxed WebAssembly plugins, and delivers what
//! the plugins emit, exactly as the chain finally has it.
//!
//! ```text
//! source -> follower -> index -> plugin -> journal -> lane -> sink
//! (RPC)    (canonical)  (match)  (wasm)    (one tx)  (order,  (HTTP, queue,
//!                                                    retry)   store, feed)
//! ```
//!
//! Read in that order: a [`source`] tells of blocks; the [`chain`] follower decides which are canonical;
//! the [`index`] finds who subscribed to what in them; a [`plugin`] answers a batch of its events with
//! emissions; the [`journal`] commits its state, emissions and cursor in one transaction; a [`lane`] reads
//! the journal in order and hands each delivery to a [`sink`], again and again until it is settled. The
//! [`router`] is the one loop that moves the work from stage to stage; [`serve`] lets others look and ask.
//!
//! Arrows point one way. [`model`] and [`telemetry`] depend on nothing, [`proof`] (the rules that a block's parts obey)
//! on [`model`]. The stages depend on these alone and never on each other, except that a lane knows the journal it reads
//! and the sink it feeds.

pub mod model;
pub mod proof;
pub mod telemetry;

pub mod chain;
pub mod index;
pub mod journal;
pub mod lane;
pub mod plugin;
pub mod sink;
pub mod source;
pub mod track;

pub mod router;
pub mod serve;

pub mod cli;
pub mod config;
