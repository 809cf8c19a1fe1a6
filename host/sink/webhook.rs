use super::{Kind, SinkError};
pub const KIND: Kind = Kind {
    name: "webhook",
    options: &[],
    open: |open| Box::pin(async move { Err(SinkError::Refused { why: format!("{}: not built yet", open.name) }) }),
};
