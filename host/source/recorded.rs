use super::{Kind, ReadError};
pub const KIND: Kind = Kind {
    name: "recorded",
    options: &[],
    open: |open| Box::pin(async move { Err(ReadError::Halt { why: format!("{}: not built yet", open.name) }) }),
};
