//! The values that cross borders between the stages, in the order of the flow:
//! `Block -> BlockUpdate -> Event -> Emission -> Delivery -> Outcome`.
//!
//! Pure data: no IO, no async, nothing of wasm, SQL or HTTP.

mod abi;
pub mod batch;
mod block;
mod emission;
mod ids;
mod manifest;
mod status;
mod watch;

pub use abi::EventAbi;
pub use block::{Block, BlockRef, BlockUpdate, EventPosition, Header, How, Log, Transaction, Transfer, Wanted};
pub use emission::{ContentType, Delivery, Emission, Op, Outcome, When};
pub use ids::{ChainId, DeliveryId, EmissionId, NameError, OutputName, PluginName, SetName, StreamId, StreamName};
pub use manifest::{Child, EventKind, Factory, Manifest, Place, StreamSpec, Subscription};
pub use status::{
    BlockStatus, CatchingUp, ChainStatus, ConsumerStatus, JournalStatus, OutputStatus, PluginStatus, ProviderStatus,
    RefusedFile, Status,
};
pub use watch::{Edit, EditId, Member};
