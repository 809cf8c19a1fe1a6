//! Watches a folder and tells of the plugin files in it: new, changed, gone, unreadable. Independent of what
//! becomes of them: whether a file is a plugin at all is found out by who receives it.
//!
//! Truth is what a scan of the folder finds; a notification of the system only makes the next scan come soon.
//! So a lost notification, a folder replaced by another of its name, or a file system without notifications
//! costs time and nothing else.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, SystemTime};

use notify_debouncer_full::notify::event::{AccessKind, AccessMode};
use notify_debouncer_full::notify::{EventKind, RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::Digest;

/// Between two looks at a file that must find the same size and times before it is read.
const SETTLE: Duration = Duration::from_millis(100);
/// What heals a missed notification. A scan reads names and sizes only.
const RESCAN: Duration = Duration::from_secs(2);
/// Where the system cannot notify.
const POLL: Duration = Duration::from_millis(500);
/// The largest plugins known, Python's, have 18 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Files told of and not yet taken.
const QUEUE: usize = 16;

/// News of one file in the folder.
#[derive(Clone, PartialEq, Eq)]
pub enum Dropped {
    /// It is new, or its content is another than when it was last told of. It may be half written: then it will not
    /// load, and the rest brings another of these.
    File { path: PathBuf, digest: Digest, bytes: Arc<[u8]> },
    /// It was there and is no more.
    Gone { path: PathBuf },
    /// It is there and cannot be read, or the folder itself cannot. Told once until that changes.
    Unreadable { path: PathBuf, why: String },
}

impl std::fmt::Debug for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, digest, bytes } => {
                write!(f, "File({}, {digest}, {} bytes)", path.display(), bytes.len())
            }
            Self::Gone { path } => write!(f, "Gone({})", path.display()),
            Self::Unreadable { path, why } => write!(f, "Unreadable({}, {why})", path.display()),
        }
    }
}

/// Begins with the files that are there. Ends when the receiver is dropped. The folder may come later.
pub fn watch(dir: PathBuf) -> std::io::Result<mpsc::Receiver<Dropped>> {
    let (send, receive) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("plugin-folder".into()).spawn(move || follow(Folder::new(dir), &send))?;
    Ok(receive)
}

fn follow(mut folder: Folder, send: &mpsc::Sender<Dropped>) {
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    let mut watched: Option<Watched> = None;
    loop {
        watched = Watched::renew(watched, &folder.dir, &wake);
        let (news, settled) = folder.scan();
        for dropped in news {
            if send.blocking_send(dropped).is_err() {
                return;
            }
        }
        let pause = match (settled, &watched) {
            (false, _) => SETTLE,
            (true, Some(_)) => RESCAN,
            (true, None) => POLL,
        };
        match woken.recv_timeout(pause) {
            Ok(()) => while woken.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("this function holds a sender"),
        }
        if send.is_closed() {
            return;
        }
    }
}

/// A watch on the folder that now has the name; another folder of the same name needs another watch.
struct Watched {
    inode: (u64, u64),
    _watcher: Debouncer<RecommendedWatcher, RecommendedCache>,
}

impl Watched {
    fn renew(before: Option<Self>, dir: &Path, wake: &std::sync::mpsc::Sender<()>) -> Option<Self> {
        let meta = std::fs::metadata(dir).ok()?;
        let inode = (meta.dev(), meta.ino());
        if before.as_ref().is_some_and(|b| b.inode == inode) {
            return before;
        }
        let wake = wake.clone();
        let on_events = move |events: DebounceEventResult| {
            let matters = match &events {
                // Our own reading is an event too, and must not wake us.
                Ok(events) => events.iter().any(|e| match e.kind {
                    EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
                    _ => true,
                }),
                Err(_) => true,
            };
            if matters {
                // The thread that is woken may have ended; then there is nobody to wake.
                let _ = wake.send(());
            }
        };
        let watcher = new_debouncer(SETTLE, None, on_events)
            .and_then(|mut watcher| watcher.watch(dir, RecursiveMode::NonRecursive).map(|()| watcher));
        match watcher {
            Ok(_watcher) => Some(Self { inode, _watcher }),
            Err(why) => {
                tracing::debug!(dir = %dir.display(), %why, "the system cannot notify of changes; looking every 500 ms");
                None
            }
        }
    }
}

/// What tells whether a file was touched. `ctime` cannot be set back, as `cp -p` does with `mtime`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            bytes: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
    /// Untouched for a second or more: nobody is writing it.
    fn is_old(&self) -> bool {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64);
        now - self.changed.0 > 1
    }
}

#[derive(Default)]
struct Known {
    /// As it was when it was last read, or found unreadable.
    done: Option<Stamp>,
    /// As it was at the last look, if it was another then.
    seen: Option<Stamp>,
    digest: Option<Digest>,
    /// What was told of it last was that it cannot be read.
    complaint: Option<String>,
    missing: bool,
}

struct Folder {
    dir: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    complaint: Option<String>,
}

impl Folder {
    fn new(dir: PathBuf) -> Self {
        Self { dir, known: BTreeMap::new(), complaint: None }
    }

    /// What is new, and whether nothing is left to be looked at again soon.
    fn scan(&mut self) -> (Vec<Dropped>, bool) {
        let mut news = Vec::new();
        let paths = match list(&self.dir) {
            Ok(paths) => {
                self.complaint = None;
                paths
            }
            // A folder that cannot be read says nothing of its files: they are not gone.
            Err(why) => {
                if self.complaint.as_ref() != Some(&why) {
                    news.push(Dropped::Unreadable { path: self.dir.clone(), why: why.clone() });
                    self.complaint = Some(why);
                }
                return (news, true);
            }
        };
        let mut settled = true;
        for path in &paths {
            let known = self.known.entry(path.clone()).or_default();
            known.missing = false;
            settled &= look(path, known, &mut news);
        }
        // Twice missing is gone: many ways to replace a file take it away for a moment.
        self.known.retain(|path, known| {
            if paths.binary_search(path).is_ok() {
                return true;
            }
            if !known.missing {
                known.missing = true;
                settled = false;
                return true;
            }
            if known.digest.is_some() || known.complaint.is_some() {
                news.push(Dropped::Gone { path: path.clone() });
            }
            false
        });
        (news, settled)
    }
}

/// The plugin files of a folder, in order. A folder that is not there is empty.
fn list(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e.to_string()),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| e.to_string())?;
        if is_plugin_name(&entry.file_name().to_string_lossy()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Editors and copiers write beside the file first: `.foo.wasm.swp`, `foo.wasm~`, `.#foo.wasm`, `4913`, `foo.wasm.tmp`.
fn is_plugin_name(name: &str) -> bool {
    name.ends_with(".wasm") && name != ".wasm" && !name.starts_with(['.', '#', '~'])
}

/// Tells of one file if there is something to tell. False: to be looked at again soon.
fn look(path: &Path, known: &mut Known, news: &mut Vec<Dropped>) -> bool {
    let read = (|| {
        let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
        let stamp = Stamp::of(&meta);
        if known.done == Some(stamp) {
            return Ok(None);
        }
        if known.seen.replace(stamp) != Some(stamp) && !stamp.is_old() {
            return Err(String::new());
        }
        if !meta.is_file() {
            // Also because opening a pipe would wait for whoever writes to it.
            return Err("not a regular file".into());
        }
        if meta.size() > MAX_FILE_BYTES {
            return Err(format!("{} bytes; a plugin has at most {MAX_FILE_BYTES}", meta.size()));
        }
        let mut bytes = Vec::with_capacity(meta.size() as usize);
        let mut file = std::fs::File::open(path).map_err(|e| e.to_string())?;
        let n = file.by_ref().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        let after = Stamp::of(&file.metadata().map_err(|e| e.to_string())?);
        if after != stamp || n as u64 != stamp.bytes {
            return Err(String::new());
        }
        Ok(Some((stamp, bytes)))
    })();
    match read {
        Ok(None) => true,
        // Still being written: no reason to complain.
        Err(why) if why.is_empty() => false,
        Ok(Some((stamp, bytes))) => {
            known.done = Some(stamp);
            let digest = Digest(sha2::Sha256::digest(&bytes).into());
            let recovered = known.complaint.take().is_some();
            if known.digest != Some(digest) || recovered {
                known.digest = Some(digest);
                news.push(Dropped::File { path: path.to_path_buf(), digest, bytes: bytes.into() });
            }
            true
        }
        Err(why) => {
            if known.complaint.as_ref() != Some(&why) {
                news.push(Dropped::Unreadable { path: path.to_path_buf(), why: why.clone() });
                known.complaint = Some(why);
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn next(news: &mut mpsc::Receiver<Dropped>) -> String {
        let dropped =
            tokio::time::timeout(Duration::from_secs(20), news.recv()).await.expect("news in time").expect("open");
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        match dropped {
            Dropped::File { path, digest, bytes } => {
                assert_eq!(digest, Digest(sha2::Sha256::digest(&bytes).into()));
                format!("{}={}", name(&path), String::from_utf8_lossy(&bytes))
            }
            Dropped::Gone { path } => format!("{} gone", name(&path)),
            Dropped::Unreadable { path, why } => format!("{} {why}", name(&path)),
        }
    }

    #[tokio::test]
    async fn every_way_of_dropping_a_file_is_told_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("plugins");
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        fs::write(at("a.wasm"), "1").unwrap();
        fs::write(at("notes.txt"), "x").unwrap();
        let mut news = watch(dir.clone()).unwrap();
        assert_eq!(next(&mut news).await, "a.wasm=1");
        // In place.
        fs::write(at("a.wasm"), "22").unwrap();
        assert_eq!(next(&mut news).await, "a.wasm=22");
        // By rename, after names that editors use.
        for (temporary, content) in [(".a.wasm.swp", "3"), ("a.wasm~", "4"), (".#a.wasm", "5"), ("4913", "6")] {
            fs::write(at(temporary), content).unwrap();
            fs::rename(at(temporary), at("a.wasm")).unwrap();
            assert_eq!(next(&mut news).await, format!("a.wasm={content}"));
        }
        // The same content again is no news; the next news is of something else.
        fs::write(at("a.wasm"), "6").unwrap();
        fs::write(at(".b.wasm"), "hidden").unwrap();
        fs::write(at("b.wasm"), "1").unwrap();
        assert_eq!(next(&mut news).await, "b.wasm=1");
        fs::remove_file(at("b.wasm")).unwrap();
        assert_eq!(next(&mut news).await, "b.wasm gone");
        // Not a file: said, and not waited for.
        fs::create_dir(at("c.wasm")).unwrap();
        assert_eq!(next(&mut news).await, "c.wasm not a regular file");
        fs::remove_dir(at("c.wasm")).unwrap();
        assert_eq!(next(&mut news).await, "c.wasm gone");
        // Another folder takes the name.
        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("a.wasm"), "7").unwrap();
        fs::rename(&dir, root.path().join("old")).unwrap();
        fs::rename(&other, &dir).unwrap();
        assert_eq!(next(&mut news).await, "a.wasm=7");
        fs::write(at("a.wasm"), "8").unwrap();
        assert_eq!(next(&mut news).await, "a.wasm=8");
    }

    #[tokio::test]
    async fn the_folder_may_come_later() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("later");
        let mut news = watch(dir.clone()).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.wasm"), "1").unwrap();
        assert_eq!(next(&mut news).await, "a.wasm=1");
    }

    #[test]
    fn a_file_that_still_grows_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.wasm");
        let mut folder = Folder::new(root.path().to_path_buf());
        for n in 1..5 {
            fs::write(&path, vec![b'x'; n]).unwrap();
            assert_eq!(folder.scan(), (vec![], false));
        }
        let (news, settled) = folder.scan();
        assert!(settled && matches!(&news[..], [Dropped::File { bytes, .. }] if bytes.len() == 4), "{news:?}");
        assert_eq!(folder.scan(), (vec![], true));
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MAX_FILE_BYTES + 1).unwrap();
        folder.scan();
        let (news, _) = folder.scan();
        assert!(matches!(&news[..], [Dropped::Unreadable { why, .. }] if why.contains("at most")), "{news:?}");
    }

    #[test]
    fn names_that_are_no_plugins() {
        for name in
            [".wasm", ".foo.wasm.swp", "foo.wasm~", ".#foo.wasm", "4913", "foo.wasm.tmp", "#foo.wasm#", "foo.wat"]
        {
            assert!(!is_plugin_name(name), "{name}");
        }
        assert!(is_plugin_name("foo.wasm") && is_plugin_name("foo-1.2.wasm"));
    }
}
