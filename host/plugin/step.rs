use super::engine::Compiled;
use super::*;
use crate::model::*;
pub struct Worker;
impl Worker {
    pub fn new(_: Compiled, _: Manifest, _: String, _: Limits, _: OnPoison, _: Option<Vec<String>>) -> Self {
        Self
    }
    pub fn step(&mut self, _: ChainId, _: &[BlockEvents<'_>], _: Box<dyn StateRead>) -> Result<StepOutput, StepError> {
        Err(StepError::Again { why: String::new() })
    }
}
