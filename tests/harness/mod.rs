//! What end-to-end tests share: real servers, traffic on them, and the truth about it.

pub mod chain;
