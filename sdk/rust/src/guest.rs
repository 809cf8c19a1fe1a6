//! The typed side of the boundary, generated from `wit/plugin.wit`, and the shell around [`Loaded`]. Only in wasm.

#![allow(missing_docs, reason = "generated")]

use std::cell::RefCell;

use crate::batch::LAYOUT_VERSION;
use crate::error::Fault;
use crate::host::{self, Level};
use crate::plugin::{Loaded, Plugin, event_at_hand};
use crate::subscription::{Child, EventKind, Place};

wit_bindgen::generate!({
    path: "wit",
    world: "plugin",
    pub_export_macro: true,
    default_bindings_module: "chainweir_sdk::guest",
    runtime_path: "chainweir_sdk::guest::rt",
});

pub use wit_bindgen::rt;

use exports::chainweir::plugin::processor as wit;

fn at(place: Place) -> wit::Place {
    match place {
        Place::Address => wit::Place::Address,
        Place::Topic(0) => wit::Place::Topic0,
        Place::Topic(1) => wit::Place::Topic1,
        Place::Topic(2) => wit::Place::Topic2,
        Place::Topic(3) => wit::Place::Topic3,
        Place::Topic(n) => panic!("a log has topics 0 to 3, there is no topic {n}"),
        Place::Sender => wit::Place::Sender,
        Place::Receiver => wit::Place::Receiver,
        Place::Hash => wit::Place::Hash,
    }
}

/// Holds the plugin of this instance.
#[derive(Debug)]
pub struct Slot<P>(RefCell<Option<Loaded<P>>>);

impl<P: Plugin> Slot<P> {
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// Reads the configuration anew. A plugin that cannot be configured has nothing to say but why.
    fn load(&self) {
        std::panic::set_hook(Box::new(|panic| {
            let at = event_at_hand().map(|index| format!(", at record {index} of the batch")).unwrap_or_default();
            host::log(Level::Error, format_args!("{panic}{at}"));
        }));
        match Loaded::new(&host::config()) {
            Ok(loaded) => *self.0.borrow_mut() = Some(loaded),
            Err(why) => panic!("{why}"),
        }
    }

    pub fn describe(&self) -> wit::Manifest {
        self.load();
        let slot = self.0.borrow();
        let manifest = slot.as_ref().expect("loaded above").manifest();
        let list = |addresses: Vec<alloy_primitives::Address>| addresses.iter().map(|a| a.to_vec()).collect();
        let subscriptions = manifest.subscriptions.into_iter().map(|s| {
            let given = s.topics.iter().rposition(|list| !list.is_empty()).map_or(0, |last| last + 1);
            wit::Subscription {
                kind: match s.kind {
                    EventKind::Block => wit::EventKind::Block,
                    EventKind::Transaction => wit::EventKind::Transaction,
                    EventKind::Log => wit::EventKind::Log,
                    EventKind::Transfer => wit::EventKind::Transfer,
                    EventKind::Creation => wit::EventKind::Creation,
                    EventKind::Pending => wit::EventKind::Pending,
                },
                chains: s.chains.iter().map(|id| format!("eip155:{id}")).collect(),
                addresses: list(s.addresses),
                topics: s.topics[..given].iter().map(|list| list.iter().map(|t| t.to_vec()).collect()).collect(),
                senders: list(s.senders),
                receivers: list(s.receivers),
                success: s.success,
                min_value: s.min_value.map(|v| v.to_be_bytes::<32>().to_vec()),
                sets: s.sets.into_iter().map(|(place, name)| wit::InSet { place: at(place), name }).collect(),
                factory: s.factory.map(|f| wit::Factory {
                    makers: list(f.makers),
                    event: f.event.to_vec(),
                    child: match f.child {
                        Child::Topic(n) => wit::Child::Topic(n),
                        Child::Word(n) => wit::Child::Word(n),
                    },
                    since: f.since,
                }),
                decode: s.decode,
            }
        });
        wit::Manifest {
            name: manifest.name,
            version: manifest.version,
            description: manifest.description,
            state_version: manifest.state_version,
            batch_layout: LAYOUT_VERSION,
            subscriptions: subscriptions.collect(),
            streams: manifest
                .streams
                .into_iter()
                .map(|s| wit::Stream { name: s.name, description: s.description, schema: s.schema })
                .collect(),
        }
    }

    pub fn process(&self, batch: &[u8]) -> Result<Vec<u8>, wit::Fault> {
        if self.0.borrow().is_none() {
            self.load();
        }
        let slot = self.0.borrow();
        slot.as_ref().expect("loaded above").process(batch).map_err(|fault| match fault {
            Fault::Retry(message) => wit::Fault::Retry(message),
            Fault::Reject(message) => wit::Fault::Reject(message),
        })
    }
}

impl<P: Plugin> Default for Slot<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// Exports a plugin from its module.
#[doc(hidden)]
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        ::std::thread_local! {
            static SLOT: $crate::guest::Slot<$plugin> = const { $crate::guest::Slot::new() };
        }
        struct Component;
        impl $crate::guest::exports::chainweir::plugin::processor::Guest for Component {
            fn describe() -> $crate::guest::exports::chainweir::plugin::processor::Manifest {
                SLOT.with(|slot| slot.describe())
            }
            fn process(
                batch: ::std::vec::Vec<u8>,
            ) -> ::core::result::Result<::std::vec::Vec<u8>, $crate::guest::exports::chainweir::plugin::processor::Fault>
            {
                SLOT.with(|slot| slot.process(&batch))
            }
        }
        $crate::guest::export!(Component with_types_in $crate::guest);
    };
}
