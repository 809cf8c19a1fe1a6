//! What a handler says when it cannot do its work: is the event to blame, or is the world not ready?

use std::fmt;

/// What a handler answers.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Why an event was not processed, named by what the host is to do about it.
///
/// Any [`std::error::Error`] becomes a *reject* by `?`. Write [`retry!`](crate::retry) where trying again can help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    retry: bool,
    message: String,
}

impl Error {
    /// This event is poison: by the plugin's policy the host waits here, or sets the event aside and goes on. What the handlers
    /// emitted and wrote to `state` for this event is taken back; what they did for the others stands.
    pub fn reject(message: impl fmt::Display) -> Self {
        Self { retry: false, message: message.to_string() }
    }

    /// The world is not ready: the host offers the whole batch again later, and keeps nothing of this one.
    pub fn retry(message: impl fmt::Display) -> Self {
        Self { retry: true, message: message.to_string() }
    }

    /// Is it worth trying again?
    pub fn is_retry(&self) -> bool {
        self.retry
    }

    /// What went wrong, for people.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// `Error` itself is no `std::error::Error`: else this would overlap with `From<T> for T`.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { retry: false, message }
    }
}

/// What the whole call answers when it does not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Offer the batch again later, unchanged.
    Retry(String),
    /// The batch cannot be processed.
    Reject(String),
}

/// Leaves the handler: this event is poison. Takes what `format!` takes.
#[macro_export]
macro_rules! reject {
    ($($arg:tt)+) => { return ::core::result::Result::Err($crate::Error::reject(::std::format!($($arg)+)).into()) };
}

/// Leaves the handler: the world is not ready, offer the batch again later. Takes what `format!` takes.
#[macro_export]
macro_rules! retry {
    ($($arg:tt)+) => { return ::core::result::Result::Err($crate::Error::retry(::std::format!($($arg)+)).into()) };
}
