//! How a command ends: its exit code, and what it says when it failed.

use std::fmt;

use crate::config::Mistake;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    /// Wrong arguments, or mistakes in the configuration. clap uses the same.
    Usage = 2,
    /// No process listens where one was asked.
    Absent = 3,
    /// A second signal. 128 + SIGINT, as shells have it.
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure with what to do next.
#[derive(Debug)]
pub struct Trouble {
    pub what: String,
    pub next: String,
    pub exit: Exit,
}

impl Trouble {
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into(), exit: Exit::Failed }
    }
    pub fn usage(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into(), exit: Exit::Usage }
    }
    pub fn absent(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into(), exit: Exit::Absent }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
impl std::error::Error for Trouble {}

/// All mistakes of a configuration, one a line.
#[derive(Debug)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "{mistake}")?;
        }
        f.write_str(&match self.0.len() {
            1 => "1 mistake".to_owned(),
            count => format!("{count} mistakes"),
        })
    }
}
impl std::error::Error for Mistakes {}

/// Says on stderr what happened, why, and what to do next.
pub fn report(error: &anyhow::Error) -> Exit {
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        eprintln!("{mistakes}");
        return Exit::Usage;
    }
    let mut chain = error.chain();
    if let Some(what) = chain.next() {
        eprintln!("error: {what}");
    }
    let mut said = error.to_string();
    for cause in chain {
        let cause = cause.to_string();
        // Many errors repeat their cause in their own text.
        if !said.contains(&cause) {
            eprintln!("  because: {cause}");
            said = cause;
        }
    }
    match error.downcast_ref::<Trouble>() {
        Some(trouble) => {
            eprintln!("  next: {}", trouble.next);
            trouble.exit
        }
        None => Exit::Failed,
    }
}
