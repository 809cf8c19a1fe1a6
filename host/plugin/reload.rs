use super::Digest;
use std::{path::PathBuf, sync::Arc};
pub enum Dropped {
    File { path: PathBuf, digest: Digest, bytes: Arc<[u8]> },
    Gone { path: PathBuf },
    Unreadable { path: PathBuf, why: String },
}
pub fn watch(_: PathBuf) -> tokio::sync::mpsc::Receiver<Dropped> {
    tokio::sync::mpsc::channel(1).1
}
