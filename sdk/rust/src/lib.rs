//! Write Chainweir plugins in Rust: handlers for the events of a chain, compiled to WebAssembly and dropped into a running host.
//!
//! ```
//! use chainweir_sdk::prelude::*;
//!
//! sol! { event Transfer(address indexed from, address indexed to, uint256 value); }
//!
//! #[config]
//! struct Whale { min: U256 }
//!
//! /// Lets ERC-20 transfers of `min` or more pass.
//! #[plugin(name = "whale")]
//! impl Whale {
//!     #[log(pass = "large")]
//!     fn transfer(&self, t: Transfer) -> bool { t.value >= self.min }
//! }
//! # fn main() {}
//! ```
//!
//! - [`config`](macro@config) on the struct: its fields are the plugin's own table of the configuration file.
//! - [`plugin`](macro@plugin) on its `impl`: functions marked `#[log]`, `#[transaction]` and `#[block]` are the handlers.
//! - [`stream`](macro@stream) on a struct: its name is a stream, its fields are the payload, its schema goes into the manifest.
//! - [`state`]: what is remembered, rolled back with the chain.
//! - [`tracking`]: transactions whose way the host follows for the plugin.
//! - [`testing`]: the plugin runs natively under `cargo test`.
//!
//! The flow of a call: `host bytes -> batch -> plugin -> your handlers -> verdict -> host bytes`.

#![warn(missing_docs)]

// The macros write `::chainweir_sdk`; they are used in here too.
extern crate self as chainweir_sdk;

pub mod batch;
mod error;
pub mod host;
pub mod json;
pub mod plugin;
pub mod state;
pub mod subscription;
pub mod tracking;
pub mod verdict;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use chainweir_sdk_macros::{config, json, plugin, stream};
pub use error::{Error, Fault, Result};
pub use {alloy_primitives, alloy_sol_types, schemars, serde, serde_json};

/// Solidity in Rust: `sol! { event Transfer(address indexed from, address indexed to, uint256 value); }` makes a struct `Transfer` that a
/// handler takes. This is [`alloy_sol_types::sol!`].
#[macro_export]
macro_rules! sol {
    ($($tokens:tt)*) => {
        $crate::alloy_sol_types::sol! {
            #![sol(alloy_sol_types = $crate::alloy_sol_types)]
            $($tokens)*
        }
    };
}

/// Everything that a plugin uses: `use chainweir_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::alloy_primitives::{self, Address, B256, Bytes, FixedBytes, I256, U256, address, b256};
    pub use crate::alloy_sol_types::{self, SolEvent};
    pub use crate::batch::{BlockView, Decoded, LogView, TransactionView, TransferView, Undecodable};
    pub use crate::plugin::Out;
    pub use crate::state::{self, Item, Table};
    pub use crate::subscription::{Child, Factory, Place, Subscription};
    pub use crate::{Error, Result, config, debug, error, info, json, plugin, reject, retry, sol, stream, warn};
}

/// What the macros write. Not for authors, and not stable.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_arch = "wasm32")]
    pub use crate::export_plugin;
    pub use crate::plugin::{
        Configured, Emits, Filters, Handled, Passes, Plugin, Stream, StreamSpec, are_streams, is_name, read_config,
        schema_of, spec_of,
    };
    pub use crate::subscription::EventKind;
    pub use crate::verdict::ContentType;
}
