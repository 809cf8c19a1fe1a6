//! The journal's read connections: a few, lent to whoever reads. `question -> a connection -> answer`.
//!
//! A connection is dear to open: it reads the whole schema, and prepares its statements anew. When a hundred lanes wake at once, it is
//! far quicker that most of them wait for their turn.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

/// Each may hold 2 MiB of pages.
const MOST: usize = 8;

pub struct Readers {
    path: PathBuf,
    open: fn(&std::path::Path) -> rusqlite::Result<Connection>,
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    /// Those that are lent among them.
    open: usize,
}

impl Readers {
    pub fn new(path: PathBuf, open: fn(&std::path::Path) -> rusqlite::Result<Connection>) -> Self {
        Self { path, open, state: Mutex::default(), given_back: Condvar::new() }
    }

    /// Blocks while all are lent. What is called must not read in its turn.
    pub fn read<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let mut lent = self.lend();
        let db = match lent.db.take() {
            Some(db) => db,
            None => (self.open)(&self.path)?,
        };
        let result = f(&db);
        // A connection that failed may be the reason: it is not used again.
        lent.db = result.is_ok().then_some(db);
        result
    }

    fn lend(&self) -> Lent<'_> {
        let mut state = self.lock();
        while state.idle.is_empty() && state.open == MOST {
            state = self.given_back.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let db = state.idle.pop();
        state.open += usize::from(db.is_none());
        Lent { of: self, db }
    }

    /// Those that are lent close when they are not used any more: a later reader opens its own.
    pub fn close(&self) {
        let mut state = self.lock();
        state.open -= state.idle.len();
        state.idle.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place among the [`MOST`], given back whatever happens: with its connection, if that is good.
struct Lent<'a> {
    of: &'a Readers,
    db: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        match self.db.take() {
            Some(db) => state.idle.push(db),
            None => state.open -= 1,
        }
        self.of.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static OPENED: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn a_crowd_waits_for_a_few_connections_and_one_that_failed_is_not_used_again() {
        let readers = Readers::new(":memory:".into(), |path| {
            OPENED.fetch_add(1, Ordering::SeqCst);
            Connection::open(path)
        });
        let one = |db: &Connection| db.query_row("SELECT 1", [], |r| r.get::<_, i64>(0));
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| (0..20).for_each(|_| assert_eq!(readers.read(one), Ok(1))));
            }
        });
        let opened = OPENED.load(Ordering::SeqCst);
        assert!((1..=MOST).contains(&opened), "{opened}");
        let held = readers.lock().open;
        assert!(readers.read(|db| db.query_row("SELECT nothing", [], |r| r.get::<_, i64>(0))).is_err());
        assert_eq!(readers.lock().open, held - 1);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            readers.read(|_| -> rusqlite::Result<()> { panic!("a bug") })
        }));
        assert!(caught.is_err());
        assert_eq!(readers.read(one), Ok(1));
        readers.close();
        assert_eq!(readers.lock().open, 0);
        assert_eq!(readers.read(one), Ok(1));
    }
}
