use super::Digest;
use std::{path::PathBuf, sync::Arc, time::Duration};
#[derive(Debug)]
pub enum Dropped {
    File { path: PathBuf, digest: Digest, bytes: Arc<[u8]> },
    Gone { path: PathBuf },
    Unreadable { path: PathBuf, why: String },
}
pub fn watch(dir: PathBuf) -> tokio::sync::mpsc::Receiver<Dropped> {
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        let mut seen: std::collections::HashMap<PathBuf, Digest> = Default::default();
        loop {
            for e in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let p = e.path();
                if p.extension().is_some_and(|x| x == "wasm") {
                    if let Ok(b) = std::fs::read(&p) {
                        let d = Digest::of(&b);
                        if seen.insert(p.clone(), d) != Some(d)
                            && tx.blocking_send(Dropped::File { path: p, digest: d, bytes: b.into() }).is_err()
                        {
                            return;
                        }
                    }
                }
            }
            let gone: Vec<_> = seen.keys().filter(|p| !p.exists()).cloned().collect();
            for p in gone {
                seen.remove(&p);
                if tx.blocking_send(Dropped::Gone { path: p }).is_err() {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    rx
}
