//! Last stage: hands deliveries to a destination. `lane -> sink`.
//!
//! A sink says what happened to each delivery; what to do about it is the lane's. It keeps no order, no
//! schedule and no memory of its own beyond what the destination holds.
//!
//! A new kind of sink is one new file and one line in [`KINDS`].

mod address;
pub mod cloudevent;
pub mod file;
pub mod kafka;
pub mod mqtt;
pub mod mysql;
pub mod nats;
mod newest;
pub mod object_store;
mod options;
mod parquet;
pub mod postgres;
pub mod rabbitmq;
pub mod redis;
pub mod sqlite;
pub mod stdout;
mod table;
pub mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::model::{ChainId, Delivery, Outcome, OutputName, StreamId, StreamSpec};
use options::Options;
/// For whoever shows a stream as a table.
pub(crate) use parquet::file as parquet_file;
pub(crate) use table::{Layout, Retract};

/// Why a sink cannot be used, named by what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The destination is not there now; try again.
    #[error("{why}")]
    Again { why: String },
    /// The configuration, a credential or the destination's own schema must change first.
    #[error("{why}")]
    Refused { why: String },
}

/// How a lane may call a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Most deliveries in one call. All of one track, in order. With 1, each lane key goes its own way.
    pub batch: usize,
    /// Calls that may be under way at once; more than one only where `batch` is 1.
    pub concurrency: usize,
}

/// When a batch is handed over that is not full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Bytes of payloads that fill it, where fewer deliveries than `Shape::batch` have as many.
    pub bytes: usize,
    /// How long the first of it waits in the journal for the others.
    pub patience: Duration,
}

/// One stream of one chain on its way to one output: deliveries of a track rise in offset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Track {
    pub output: OutputName,
    pub stream: StreamId,
    pub chain: ChainId,
}

#[async_trait::async_trait]
pub trait Sink: Send + Sync + 'static {
    fn shape(&self) -> Shape;

    /// For a destination that wants large batches: `None` hands over what there is, at once.
    fn fill(&self) -> Option<Fill> {
        None
    }

    /// Called before the first delivery of a stream and again when its manifest entry changed: makes or
    /// evolves what the destination needs.
    async fn prepare(&self, _stream: &StreamId, _spec: &StreamSpec) -> Result<(), SinkError> {
        Ok(())
    }

    /// The offset of the last delivery of a track that the destination itself knows to have; `None` where
    /// it keeps no such note. Asked at start, before the first delivery.
    async fn position(&self, _track: &Track) -> Result<Option<u64>, SinkError> {
        Ok(None)
    }

    /// One outcome for each delivery, in order. In a batch everything after the first `Retry` is `Retry` too.
    /// A delivery at or below the destination's position is not an error: it is a dead letter that a person put
    /// back, comes alone, and leaves the position where it is.
    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome>;
}

/// What a sink is opened with: the output's own table of the configuration, raw.
#[derive(Clone, Debug)]
pub struct Open {
    pub name: OutputName,
    pub table: toml::Table,
    /// Relative paths are relative to this folder.
    pub base: PathBuf,
    /// The journal's own id: positions that a destination keeps for another journal do not count.
    pub journal: String,
}

/// A sink, soon.
pub type Opening = BoxFuture<'static, Result<Arc<dyn Sink>, SinkError>>;

pub struct Kind {
    /// As in `type = "..."`.
    pub name: &'static str,
    /// The keys of `[output.NAME]` that this kind reads, each with a line of help.
    pub options: &'static [(&'static str, &'static str)],
    /// Reads the table and refuses what it does not understand. Connects later, in `position`, `prepare` or `deliver`:
    /// a destination that is down at start must not keep the process from starting.
    pub open: fn(Open) -> Opening,
}

pub const KINDS: &[Kind] = &[
    webhook::KIND,
    nats::KIND,
    kafka::KIND,
    mqtt::KIND,
    rabbitmq::KIND,
    redis::KIND,
    postgres::KIND,
    mysql::KIND,
    sqlite::KIND,
    file::KIND,
    object_store::KIND,
    stdout::KIND,
];

/// The one TLS provider of the process.
fn ring() {
    // Already installed by another part of the process: the same provider, so nothing to do.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// For a connection that trusts the authorities of a PEM file (the option `ca_file`), or those of the web.
fn tls(options: &Options, ca_file: Option<Vec<u8>>) -> Result<rustls::ClientConfig, SinkError> {
    ring();
    let roots = roots(ca_file.as_deref()).map_err(|why| options.refused(&format!("ca_file {why}")))?;
    Ok(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

fn roots(pem: Option<&[u8]>) -> Result<rustls::RootCertStore, String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let Some(pem) = pem else {
        return Ok(rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("cannot be read: {error}"))?;
        roots.add(certificate).map_err(|error| format!("cannot be used: {error}"))?;
    }
    if roots.is_empty() { Err("holds no certificate".into()) } else { Ok(roots) }
}

/// What a template has instead of each of its parts.
fn filled_alike(template: &str, with: &str) -> String {
    ["{plugin}", "{stream}", "{chain}"].iter().fold(template.to_owned(), |text, part| text.replace(part, with))
}

/// A name from a template with `{plugin}`, `{stream}` and `{chain}`: the chain's id in decimal digits.
fn filled(template: &str, track: &Track) -> String {
    template
        .replace("{plugin}", track.stream.plugin.as_str())
        .replace("{stream}", track.stream.stream.as_str())
        .replace("{chain}", &track.chain.0.to_string())
}

/// The batch as NDJSON: one CloudEvents event a line.
fn lines(batch: &[Delivery]) -> Vec<u8> {
    let mut lines = Vec::new();
    for delivery in batch {
        cloudevent::encode_to(&mut lines, delivery);
        lines.push(b'\n');
    }
    lines
}

/// Nothing of the batch was done, and all of it may be done later.
fn retry_all(count: usize, why: &str) -> Vec<Outcome> {
    vec![Outcome::Retry { why: why.to_owned(), after: None }; count]
}

/// The rest of a batch of `count` waits for the one before it.
fn rest_waits(outcomes: &mut Vec<Outcome>, count: usize) {
    outcomes.extend(retry_all(count - outcomes.len(), "waits for the one before it"));
}

/// Deliveries for the kinds' own tests.
#[cfg(test)]
mod samples {
    use super::*;
    use crate::model::*;
    use alloy_primitives::B256;

    /// Applies with these offsets, of one track; the payload is `{"n": offset}`.
    pub fn batch(offsets: std::ops::RangeInclusive<u64>) -> (Track, Vec<Delivery>) {
        let stream: StreamId = "whale.large".parse().unwrap();
        let output = OutputName::new("orders").unwrap();
        let track = Track { output: output.clone(), stream: stream.clone(), chain: ChainId(1) };
        let deliveries = offsets.map(|offset| {
            let (chain, hash) = (ChainId(1), B256::with_last_byte(offset as u8));
            let block = BlockRef { chain, number: offset, hash, parent: B256::ZERO, time: 1_700_000_000 + offset };
            let position = EventPosition::Log(0);
            let id = EmissionId::of(chain, &hash, position, &stream, 0, 0);
            let emission = Emission {
                id,
                stream: stream.clone(),
                block,
                position,
                ordinal: 0,
                lane_key: "key".into(),
                content_type: ContentType::Json,
                payload: format!("{{\"n\": {offset}}}").into_bytes(),
            };
            Delivery {
                id: DeliveryId::of(id, Some(&output), Op::Apply),
                op: Op::Apply,
                offset,
                emission: emission.into(),
            }
        });
        (track, deliveries.collect())
    }
}
