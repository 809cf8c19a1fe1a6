//! Second stage: decides which blocks are canonical. `source -> follower -> index`.
//!
//! Pure: headers in, [`BlockUpdate`](crate::model::BlockUpdate)s out. It asks nobody, waits for nothing, and
//! knows neither providers nor plugins; who drives it brings the headers that it says it needs.

mod follower;

pub use follower::{Follower, Halt, Offer};
