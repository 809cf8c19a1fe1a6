use super::{Limits, Digest}; use crate::model::*; use std::{path::PathBuf, sync::Arc};
use wasmtime::component::{Component, Linker, ResourceTable, InstancePre};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
wasmtime::component::bindgen!({ path: "sdk/wit", world: "plugin" });
pub struct Engine { pub engine: wasmtime::Engine }
#[derive(Clone)] pub struct Compiled { pub engine: wasmtime::Engine, pub pre: InstancePre<Ctx> }
#[derive(Debug, thiserror::Error)] #[error("{0}")] pub struct LoadError(pub String);
pub struct Ctx { pub config: String, pub state: Option<Box<dyn super::StateRead>>, pub writes: std::collections::BTreeMap<Vec<u8>, Option<Vec<u8>>>, pub logs: Vec<String>, wasi: WasiCtx, table: ResourceTable, pub fail: Option<String> }
impl Ctx { pub fn new(config: String) -> Self { Self { config, state: None, writes: Default::default(), logs: vec![], wasi: WasiCtx::builder().build(), table: ResourceTable::new(), fail: None } } }
impl WasiView for Ctx { fn ctx(&mut self) -> WasiCtxView<'_> { WasiCtxView { ctx: &mut self.wasi, table: &mut self.table } } }
impl chainweir::plugin::config::Host for Ctx { fn get(&mut self) -> String { self.config.clone() } }
impl chainweir::plugin::log::Host for Ctx { fn write(&mut self, _: chainweir::plugin::log::Level, m: String) { tracing::info!(plugin_log = m); self.logs.push(m); } }
impl chainweir::plugin::state::Host for Ctx {
 fn get(&mut self, k: Vec<u8>) -> Option<Vec<u8>> { match self.writes.get(&k) { Some(v) => v.clone(), None => self.state.as_ref().and_then(|s| s.get(&k).unwrap()) } }
 fn get_many(&mut self, k: Vec<Vec<u8>>) -> Vec<Option<Vec<u8>>> { k.into_iter().map(|k| self.get(k)).collect() }
 fn set(&mut self, k: Vec<u8>, v: Vec<u8>) { self.writes.insert(k, Some(v)); }
 fn set_many(&mut self, e: Vec<(Vec<u8>, Vec<u8>)>) { for (k, v) in e { self.set(k, v); } }
 fn delete(&mut self, k: Vec<u8>) { self.writes.insert(k, None); }
 fn scan(&mut self, p: Vec<u8>, a: Option<Vec<u8>>, l: u32) -> Vec<(Vec<u8>, Vec<u8>)> { self.state.as_ref().map(|s| s.scan(&p, a.as_deref(), l).unwrap()).unwrap_or_default() }
}
impl Engine { pub fn new(_: Option<PathBuf>) -> Result<Arc<Self>, LoadError> { let mut c = wasmtime::Config::new(); c.wasm_component_model(true); Ok(Arc::new(Self { engine: wasmtime::Engine::new(&c).map_err(|e| LoadError(e.to_string()))? })) }
 pub fn load(&self, b: &[u8]) -> Result<Compiled, LoadError> { let e = |e: wasmtime::Error| LoadError(format!("{e:#}")); let b = if wasmparser_is_component(b) { b.to_vec() } else { wit_component::ComponentEncoder::default().module(b).and_then(|mut m| m.encode()).map_err(|e| LoadError(format!("{e:#}")))? };
  let c = Component::new(&self.engine, &b).map_err(e)?; let mut l: Linker<Ctx> = Linker::new(&self.engine); Plugin::add_to_linker::<_, wasmtime::component::HasSelf<_>>(&mut l, |c| c).map_err(e)?; wasmtime_wasi::p2::add_to_linker_sync(&mut l).map_err(e)?; Ok(Compiled { engine: self.engine.clone(), pre: l.instantiate_pre(&c).map_err(e)? }) } }
fn wasmparser_is_component(b: &[u8]) -> bool { b.len() >= 8 && b[4..8] == [0x0d, 0, 1, 0] }
impl Compiled {
 pub fn open(&self, config: &str) -> Result<(wasmtime::Store<Ctx>, Plugin), LoadError> { let mut s = wasmtime::Store::new(&self.engine, Ctx::new(config.into())); let i = PluginPre::new(self.pre.clone()).and_then(|p| p.instantiate(&mut s)).map_err(|e| LoadError(format!("{e:#}")))?; Ok((s, i)) }
 pub fn describe(&self, config: &str, _: &Limits) -> Result<Manifest, LoadError> { let (mut s, i) = self.open(config)?; let m = i.chainweir_plugin_processor().call_describe(&mut s).map_err(|e| LoadError(format!("{e:#}")))?;
  let addrs = |v: Vec<Vec<u8>>| v.into_iter().map(|a| alloy_primitives::Address::from_slice(&a)).collect::<Vec<_>>();
  Ok(Manifest { name: m.name.parse().map_err(|e: NameError| LoadError(e.to_string()))?, version: m.version, description: m.description, state_version: m.state_version,
   subscriptions: m.subscriptions.into_iter().map(|x| { let mut t: [Vec<alloy_primitives::B256>; 4] = Default::default(); for (i, v) in x.topics.into_iter().enumerate() { t[i] = v.into_iter().map(|b| alloy_primitives::B256::from_slice(&b)).collect(); } Subscription { kind: match x.kind { exports::chainweir::plugin::processor::EventKind::Block => EventKind::Block, exports::chainweir::plugin::processor::EventKind::Transaction => EventKind::Transaction, exports::chainweir::plugin::processor::EventKind::Log => EventKind::Log }, addresses: addrs(x.addresses), topics: t, senders: addrs(x.senders), receivers: addrs(x.receivers), success: x.success } }).collect(),
   streams: m.streams.into_iter().map(|s| StreamSpec { name: s.name.parse().unwrap(), description: s.description, schema: serde_json::from_str(&s.schema).ok() }).collect() }) } }
#[allow(dead_code)] fn unused(_: Digest) {}
