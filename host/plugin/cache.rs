//! Compiled code, kept by the digest of the file and the compiler's own compatibility hash. A help, never a
//! source: whatever is wrong with an entry, it is a miss and the file is compiled again.

use std::hash::{Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::Digest as _;
use wasmtime::component::Component;

use super::Digest;

const MAGIC: &[u8; 8] = b"CWCODE1\n";
const SUM: usize = 32;

/// A folder of files `{digest}-{compatibility}.code`: magic, SHA-256 of the rest, serialized code.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    compatibility: u64,
}

impl Cache {
    /// Refuses a folder that anybody else can write to or owns: what lies in it is run as machine code.
    pub(super) fn open(dir: PathBuf, engine: &wasmtime::Engine) -> Result<Self, String> {
        let at =
            |what: &str, e: std::io::Error| format!("the folder for compiled plugins, {}: {what}: {e}", dir.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| at("cannot be made", e))?;
        let dir = dir.canonicalize().map_err(|e| at("cannot be resolved", e))?;
        let meta = std::fs::metadata(&dir).map_err(|e| at("cannot be looked at", e))?;
        // Who we are, without asking the C library: the owner of a file that we make.
        let probe = temporary(&dir, "probe");
        create(&probe).map_err(|e| at("cannot be written to", e))?;
        let me = std::fs::metadata(&probe).map(|m| m.uid());
        std::fs::remove_file(&probe).map_err(|e| at("cannot be cleaned", e))?;
        let me = me.map_err(|e| at("cannot be looked at", e))?;
        if meta.uid() != me || meta.mode() & 0o077 != 0 {
            return Err(format!(
                "the folder for compiled plugins, {}, must belong to the user who runs Chainweir and be closed to \
                 others, since machine code is run from it: `chmod 700` it, or name another one",
                dir.display()
            ));
        }
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { dir, compatibility: hasher.finish() })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}-{:016x}.code", self.compatibility))
    }

    pub(super) fn get(&self, engine: &wasmtime::Engine, digest: Digest) -> Option<Component> {
        let path = self.path(digest);
        let stored = match std::fs::read(&path) {
            Ok(stored) => stored,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(e) => {
                tracing::debug!(path = %path.display(), why = %e, "a compiled plugin cannot be read; compiling it again");
                return None;
            }
        };
        let loaded = unpack(&stored).ok_or_else(|| "its checksum does not fit".to_string()).and_then(|code| {
            // SAFETY: `deserialize` demands bytes that `Component::serialize` of a compatible engine wrote. The
            // checksum shows that they are whole, as `put` wrote them: a short, torn or rotten file is out. That
            // nobody else wrote them rests on the folder, which `open` found to be ours and closed to others. The
            // name holds the engine's compatibility hash, and `deserialize` checks version and settings once more.
            // The bytes are in memory of our own, so that no change of the file can reach them after the check.
            unsafe { Component::deserialize(engine, code) }.map_err(|e| format!("{e:#}"))
        });
        match loaded {
            Ok(component) => Some(component),
            Err(why) => {
                tracing::warn!(path = %path.display(), why, "a compiled plugin is not usable; compiling it again");
                // Taken out of the way, so that `put`, which never overwrites, can place a good one.
                if let Err(e) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), why = %e, "it cannot be removed either");
                }
                None
            }
        }
    }

    /// Failing is no harm: the next start compiles again.
    pub(super) fn put(&self, digest: Digest, component: &Component) {
        let path = self.path(digest);
        if path.exists() {
            return;
        }
        if let Err(why) = self.try_put(&path, component) {
            tracing::warn!(path = %path.display(), why, "a compiled plugin cannot be kept; the next start compiles it again");
        }
    }

    fn try_put(&self, path: &Path, component: &Component) -> Result<(), String> {
        let code = component.serialize().map_err(|e| format!("{e:#}"))?;
        let temporary = temporary(&self.dir, "new");
        let written = create(&temporary).and_then(|mut file| {
            file.write_all(MAGIC)?;
            file.write_all(&sha2::Sha256::digest(&code))?;
            file.write_all(&code)?;
            // A rename may overtake the bytes when the power goes; the checksum would see it, so no fsync.
            std::fs::rename(&temporary, path)
        });
        written.map_err(|e| {
            // It may not be there at all; what is left of it is removed or does no harm.
            let _ = std::fs::remove_file(&temporary);
            e.to_string()
        })
    }
}

fn create(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A name that no other thread or process uses.
fn temporary(dir: &Path, what: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos());
    dir.join(format!(".{what}-{}-{count}-{now}", std::process::id()))
}

fn unpack(stored: &[u8]) -> Option<&[u8]> {
    let rest = stored.strip_prefix(MAGIC)?;
    let (sum, code) = rest.split_at_checked(SUM)?;
    (sha2::Sha256::digest(code)[..] == *sum).then_some(code)
}
