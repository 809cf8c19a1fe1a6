use super::Limits;
use crate::model::Manifest;
use std::{path::PathBuf, sync::Arc};
pub struct Engine;
#[derive(Clone)]
pub struct Compiled;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct LoadError;
impl Engine {
    pub fn new(_: Option<PathBuf>) -> Result<Arc<Self>, LoadError> {
        Err(LoadError)
    }
    pub fn load(&self, _: &[u8]) -> Result<Compiled, LoadError> {
        Err(LoadError)
    }
}
impl Compiled {
    pub fn describe(&self, _: &str, _: &Limits) -> Result<Manifest, LoadError> {
        Err(LoadError)
    }
}
