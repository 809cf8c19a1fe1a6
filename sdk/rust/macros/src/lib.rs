//! The attributes of `chainweir-sdk`: `#[plugin]`, `#[stream]`, `#[config]` and `#[json]`. They write what an author would have to
//! write by hand against `chainweir_sdk::plugin`, and nothing else.

#![warn(missing_docs)]

mod data;
mod plugin;

use proc_macro::TokenStream;

/// Makes an `impl` block a plugin: its functions marked `#[log]`, `#[transaction]` or `#[block]` become handlers.
///
/// ```ignore
/// #[plugin(name = "whale", description = "...", state_version = 2, streams(Large, Small))]
/// impl Whale { ... }
/// ```
///
/// Everything in the parentheses is optional: the name is else the crate's, the description the doc comment on the block or else the crate's,
/// the state version 1. The version is the crate's. `streams` lists the structs marked `#[stream]` that handlers emit.
///
/// A handler takes `&self` (the configuration) and, in any order, what it needs of:
///
/// | parameter | in |
/// |---|---|
/// | an event of `sol!`, by value: only logs of this event reach the handler | `#[log]` |
/// | `Decoded<Event>`: the same, but logs that only look like the event reach it too, as errors | `#[log]` |
/// | `&LogView` | `#[log]` |
/// | `&TransactionView` | `#[transaction]`, `#[pending]` |
/// | `&TransferView` | `#[transfer]`, `#[creation]` |
/// | `&BlockView` | all |
/// | `&mut Out<Self>`, to emit | all |
///
/// and answers nothing or a `Result`. `?` and `reject!` make the event a poison one, `retry!` holds the batch back.
///
/// What a handler asks for, evaluated with the configuration at hand (empty lists ask for nothing):
///
/// | option | in | meaning |
/// |---|---|---|
/// | `pass = "stream"` | all | the handler returns `bool` or `Result<bool>`; at `true` the event goes to that stream as it is |
/// | `addresses = self.tokens` | log | only logs of these contracts |
/// | `topic0 = ...`, to `topic3` | log | only logs with one of these values there; 1 is the first indexed argument |
/// | `undecodable = "reject"` | log | a log that only looks like the event is poison; without it, it is none and is left out |
/// | `senders = ...`, `receivers = ...` | transaction, pending, transfer, creation | only those from, or to, one of these |
/// | `min_value = ...` | transaction, pending, transfer | only those of this many wei, or more |
/// | `success = true` | transaction | only transactions that succeeded (or were reverted: `false`) |
/// | `subscribe = ...` | all | instead of the above: any number of `Subscription`, one of which must want the event |
///
/// A function marked `#[init]` (`fn(&mut self) -> Result`) runs once after the configuration was read: check it, prepare look-ups.
#[proc_macro_attribute]
pub fn plugin(args: TokenStream, item: TokenStream) -> TokenStream {
    plugin::expand(args.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a struct the payload of a stream: its name, in lower case with `-`, is the stream's name, its doc comment the description, its
/// fields the JSON, with addresses and hashes as hex and 256-bit numbers as decimal strings (see `chainweir_sdk::json`).
///
/// | option | meaning |
/// |---|---|
/// | `name = "large"` | another name |
/// | `key = field` | the field (or a field of it: `key = order.id`) is the lane key: emissions of the same key keep their order at a destination |
/// | `text` | `struct Note(String)`: the payload is text |
/// | `bytes` | `struct Raw(Vec<u8>)`: the payload is bytes |
/// | `pass` | `struct Matched;`: emitting it lets the event pass as it is, the host writes the payload |
#[proc_macro_attribute]
pub fn stream(args: TokenStream, item: TokenStream) -> TokenStream {
    data::stream(args.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a struct the plugin's configuration: its fields are the keys of the plugin's own table. Unknown keys are refused. Addresses are
/// hex, 256-bit numbers decimal strings. A field is optional where it is an `Option`, or has `#[default]` or `#[default(value)]`.
/// A field with `#[internal]` is no key: it begins as its type's default, and `#[init]` may fill it.
#[proc_macro_attribute]
pub fn config(args: TokenStream, item: TokenStream) -> TokenStream {
    data::config(args.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// For structs and enums inside of payloads, of the configuration, and of the state: reads and writes values of the chain as `#[stream]` and
/// `#[config]` do.
#[proc_macro_attribute]
pub fn json(args: TokenStream, item: TokenStream) -> TokenStream {
    data::json(args.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
