use super::*; use super::engine::*; use crate::model::*; use crate::model::batch::*;
pub struct Worker { c: Compiled, m: Manifest, config: String, live: Option<(wasmtime::Store<Ctx>, Plugin)> }
impl Worker { pub fn new(c: Compiled, m: Manifest, config: String, _: Limits, _: OnPoison, _: Option<Vec<String>>) -> Self { Self { c, m, config, live: None } }
 pub fn step(&mut self, chain: ChainId, blocks: &[BlockEvents<'_>], state: Box<dyn StateRead>) -> Result<StepOutput, StepError> {
  let f = |why: String| StepError::Fault { why, event: None };
  let (mut s, i) = match self.live.take() { Some(l) => l, None => self.c.open(&self.config).map_err(|e| f(e.to_string()))? };
  s.data_mut().state = Some(state); s.data_mut().writes.clear();
  let mut b = BatchBuilder::default(); b.begin(chain); let mut at = vec![];
  for (n, bl) in blocks.iter().enumerate() { b.push(bl.block_record, 1); at.push((n, EventPosition::Block)); for (p, r) in &bl.events { b.push(r, 1); at.push((n, *p)); } }
  let t = std::time::Instant::now();
  let ans = i.chainweir_plugin_processor().call_process(&mut s, b.finish()).map_err(|e| f(format!("{e:#}")))?.map_err(|e| f(format!("{e:?}")))?;
  let mut out = StepOutput { calls: 1, call_time: t.elapsed(), ..Default::default() };
  let mut counts = std::collections::HashMap::new();
  for v in read_verdicts(&ans, b.records(), self.m.streams.len() as u16).map_err(|e| f(e.to_string()))? { match v {
   Verdict::Pass { event, stream } => { let (block, position) = at[event as usize]; let o = counts.entry((event, stream)).or_insert(0u32); out.emissions.push(RawEmission { block, position, stream, ordinal: *o, lane_key: None, content_type: ContentType::Json, payload: None }); *o += 1; }
   Verdict::Emit { event, stream, content_type, lane_key, payload } => { let (block, position) = at[event as usize]; let o = counts.entry((event, stream)).or_insert(0u32); out.emissions.push(RawEmission { block, position, stream, ordinal: *o, lane_key: (!lane_key.is_empty()).then(|| lane_key.to_owned()), content_type, payload: Some(payload.to_vec()) }); *o += 1; }
   Verdict::Retry { message, .. } => return Err(StepError::Again { why: message.into() }), Verdict::Reject { message, .. } => return Err(f(message.into())) } }
  out.state = std::mem::take(&mut s.data_mut().writes).into_iter().collect(); s.data_mut().state = None;
  self.live = Some((s, i)); Ok(out) } }
