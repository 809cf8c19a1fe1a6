//! A chain's final blocks in Parquet files with cryo's columns (github.com/paradigmxyz/cryo). `files -> [parquet] -> follower`.
//!
//! A file is named `{network}__{dataset}__{first}_to_{last}.parquet`; the datasets `blocks`, `logs` and `transactions` are
//! read, the latter two where somebody wants them. Columns are binary or hex, and go by the names of cryo's versions.
//! Cryo keeps no whole headers, so that no hash can be recomputed here. What the columns allow is checked: parents, the
//! order of logs, their transactions, the bloom where there is one; the rest is said to be taken as told, once.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ::parquet::basic::Repetition;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row};
use ::parquet::schema::types::Type;
use alloy_primitives::{Address, B256, Bloom, Bytes, U256, hex};

use super::archive::{Archive, Format, Volume};
use super::recorded::{expand, quirks_of, refuse};
use super::{Kind, Open, ReadError, Source};
use crate::model::{Block, BlockRef, ChainId, Header, Log, Transaction, Wanted};
use crate::proof::{self, Quirks};

pub const KIND: Kind = Kind {
    name: "parquet",
    options: &[
        ("files", "Parquet files with cryo's names and columns: a folder, or a list of names that may hold `*`"),
        ("quirks", "departures of this chain from Ethereum's rules, by name; known ones are set by chain id"),
    ],
    open: |open| {
        Box::pin(async move {
            let opened = tokio::task::spawn_blocking(move || Cryo::open(&open)).await;
            let archive = opened.map_err(|e| ReadError::Halt { why: format!("reading the archive: {e}") })??;
            Ok(Arc::new(archive) as Arc<dyn Source>)
        })
    },
};

/// What a file is called after its network.
type Span = (String, u64, u64);

/// `ethereum__logs__17000000_to_17000999.parquet`; labels may follow.
fn span(path: &Path) -> Option<Span> {
    let name = path.file_name()?.to_str()?.strip_suffix(".parquet")?;
    let mut parts = name.split("__").skip(1);
    let (dataset, range) = (parts.next()?, parts.next()?);
    let (first, last) = range.split_once("_to_")?;
    Some((dataset.to_owned(), first.parse().ok()?, last.parse().ok()?))
}

struct Cryo {
    chain: ChainId,
    quirks: Quirks,
    firsts: Vec<u64>,
    spans: Vec<(u64, u64)>,
    files: HashMap<Span, PathBuf>,
}

impl Cryo {
    fn open(open: &Open) -> Result<Archive<Self>, ReadError> {
        let names: Vec<&str> = match open.table.get("files") {
            Some(toml::Value::String(one)) => vec![one],
            Some(toml::Value::Array(many)) => many.iter().filter_map(toml::Value::as_str).collect(),
            _ => return Err(refuse(&open.name, "`files` is missing: give the folder with the Parquet files")),
        };
        let mut files = HashMap::new();
        for name in names {
            let whole = if open.base.join(name).is_dir() { format!("{name}/*.parquet") } else { name.to_owned() };
            for path in expand(&open.base, &whole).map_err(|e| refuse(&open.name, e))? {
                if let Some(span) = span(&path) {
                    files.insert(span, path);
                }
            }
        }
        let mut spans: Vec<(u64, u64)> =
            files.keys().filter(|(dataset, ..)| dataset == "blocks").map(|(_, first, last)| (*first, *last)).collect();
        spans.sort();
        let Some(blocks) = spans.first().and_then(|(first, last)| files.get(&("blocks".to_owned(), *first, *last)))
        else {
            let why =
                "there is no file of blocks: get them with 'cryo blocks --include-columns parent_hash logs_bloom'";
            return Err(refuse(&open.name, why));
        };
        let mut told = None;
        rows(blocks, &["chain_id"], |cells| {
            told = told.or(cells.number(&["chain_id"])?);
            Ok(())
        })?;
        let chain = match (open.expect, told.map(ChainId)) {
            (Some(expected), Some(told)) if expected != told => {
                return Err(refuse(&open.name, format!("the files are of {told}, but {expected} is configured")));
            }
            (Some(chain), _) | (None, Some(chain)) => chain,
            (None, None) => {
                return Err(refuse(&open.name, "the files do not say of which chain they are: set `chain_id`"));
            }
        };
        tracing::warn!(chain = %open.name, "Parquet files hold no whole headers: hashes, and that nothing was left out, are taken as told");
        let firsts = spans.iter().map(|(first, _)| *first).collect();
        Archive::open(Self { chain, quirks: quirks_of(open, chain)?, firsts, spans, files }, chain)
    }

    fn file(&self, dataset: &str, volume: usize) -> Option<&PathBuf> {
        let (first, last) = self.spans[volume];
        self.files.get(&(dataset.to_owned(), first, last))
    }
}

impl Format for Cryo {
    fn firsts(&self) -> &[u64] {
        &self.firsts
    }

    fn name(&self, volume: usize) -> String {
        self.file("blocks", volume).map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn read(&self, volume: usize) -> Result<Arc<dyn Volume>, ReadError> {
        let (first, last) = self.spans[volume];
        let path = self.file("blocks", volume).expect("the spans are those of the files of blocks");
        let mut headers: BTreeMap<u64, (Header, Option<Bloom>)> = BTreeMap::new();
        let mut parents = true;
        rows(path, BLOCK_COLUMNS, |cells| {
            let number = cells.need(cells.number(NUMBER)?, "block_number")?;
            let parent = cells.word(&["parent_hash"])?;
            parents &= parent.is_some();
            let at = BlockRef {
                chain: self.chain,
                number,
                hash: cells.need(cells.word(HASH)?, "block_hash")?,
                parent: parent.unwrap_or_default(),
                time: cells.need(cells.number(&["timestamp"])?, "timestamp")?,
            };
            let header = Header {
                at,
                gas_used: cells.number(&["gas_used"])?.unwrap_or_default(),
                gas_limit: cells.number(&["gas_limit"])?.unwrap_or_default(),
                base_fee: cells.number(&["base_fee_per_gas"])?,
                beneficiary: cells.address(&["author"])?.unwrap_or_default(),
                transaction_count: None,
            };
            let bloom = cells.bytes(&["logs_bloom"])?.map(|b| fixed(&b, cells).map(|b| Bloom::new(*b))).transpose()?;
            headers.insert(number, (header, bloom));
            Ok(())
        })?;
        let mut headers: Vec<(Header, Option<Bloom>)> = headers.into_values().collect();
        let whole = headers.len() as u64 == last - first + 1
            && headers.first().is_some_and(|(h, _)| h.at.number == first)
            && headers.last().is_some_and(|(h, _)| h.at.number == last);
        if !whole {
            let why = format!("{}: it does not hold each of the blocks {first} to {last}", path.display());
            return Err(ReadError::Halt { why });
        }
        if !parents {
            // Not among cryo's columns by default: taken from the block before.
            let mut before = match volume.checked_sub(1) {
                Some(before) if self.spans[before].1 + 1 == first => last_hash(self.file("blocks", before))?,
                _ => B256::ZERO,
            };
            for (header, _) in &mut headers {
                header.at.parent = std::mem::replace(&mut before, header.at.hash);
            }
        }
        let places: Vec<BlockRef> = headers.iter().map(|(header, _)| header.at).collect();
        if let Some(pair) = places.windows(2).find(|pair| pair[0].hash != pair[1].parent) {
            let why = format!("{}: {} is not the parent of the block after it", path.display(), pair[0]);
            return Err(ReadError::Halt { why });
        }
        Ok(Arc::new(Columns {
            quirks: self.quirks,
            places,
            headers,
            range: (first, last),
            logs: (self.file("logs", volume).cloned(), OnceLock::new()),
            transactions: (self.file("transactions", volume).cloned(), OnceLock::new()),
        }))
    }
}

fn last_hash(path: Option<&PathBuf>) -> Result<B256, ReadError> {
    let mut last = (0, B256::ZERO);
    if let Some(path) = path {
        rows(path, &["block_number", "number", "block_hash", "hash"], |cells| {
            let number = cells.need(cells.number(NUMBER)?, "block_number")?;
            last = last.max((number, cells.need(cells.word(HASH)?, "block_hash")?));
            Ok(())
        })?;
    }
    Ok(last.1)
}

const NUMBER: &[&str] = &["block_number", "number"];
const HASH: &[&str] = &["block_hash", "hash"];
const BLOCK_COLUMNS: &[&str] = &[
    "block_number",
    "number",
    "block_hash",
    "hash",
    "parent_hash",
    "timestamp",
    "author",
    "gas_used",
    "gas_limit",
    "base_fee_per_gas",
    "logs_bloom",
];
const LOG_COLUMNS: &[&str] = &[
    "block_number",
    "transaction_index",
    "log_index",
    "transaction_hash",
    "address",
    "contract_address",
    "topic0",
    "topic1",
    "topic2",
    "topic3",
    "data",
];
const TRANSACTION_COLUMNS: &[&str] = &[
    "block_number",
    "transaction_index",
    "transaction_hash",
    "nonce",
    "from_address",
    "to_address",
    "value_binary",
    "value",
    "value_string",
    "value_str",
    "input",
    "gas_limit",
    "gas_used",
    "gas_price",
    "transaction_type",
    "max_fee_per_gas",
    "max_priority_fee_per_gas",
    "success",
];

type ByBlock<T> = BTreeMap<u64, Vec<T>>;
type Lazy<T> = (Option<PathBuf>, OnceLock<Result<ByBlock<T>, ReadError>>);

/// The rows of one span of blocks; logs and transactions are read when they are wanted.
struct Columns {
    quirks: Quirks,
    places: Vec<BlockRef>,
    headers: Vec<(Header, Option<Bloom>)>,
    range: (u64, u64),
    logs: Lazy<Log>,
    transactions: Lazy<Transaction>,
}

impl Columns {
    fn rows_of<'a, T>(
        &self,
        (path, read): &'a Lazy<T>,
        dataset: &str,
        columns: &[&str],
        row: impl Fn(&Cells<'_>) -> Result<T, ReadError>,
        index: impl Fn(&T) -> u32,
    ) -> Result<&'a ByBlock<T>, ReadError> {
        let (first, last) = self.range;
        let path = path.as_ref().ok_or_else(|| ReadError::Halt {
            why: format!("{dataset} of the blocks {first} to {last} are wanted, but there is no file of them: get it with 'cryo {dataset} --blocks {first}:{}'", last + 1),
        })?;
        let all = read.get_or_init(|| {
            let mut all: ByBlock<T> = BTreeMap::new();
            rows(path, columns, |cells| {
                let number = cells.need(cells.number(NUMBER)?, "block_number")?;
                all.entry(number).or_default().push(row(cells)?);
                Ok(())
            })?;
            all.values_mut().for_each(|rows| rows.sort_by_key(&index));
            Ok(all)
        });
        all.as_ref().map_err(Clone::clone)
    }

    fn log(cells: &Cells<'_>) -> Result<Log, ReadError> {
        let mut topics = Vec::new();
        for name in ["topic0", "topic1", "topic2", "topic3"] {
            topics.extend(cells.word(&[name])?);
        }
        Ok(Log {
            index: cells.index("log_index")?,
            transaction_index: cells.index("transaction_index")?,
            transaction_hash: cells.need(cells.word(&["transaction_hash"])?, "transaction_hash")?,
            address: cells.need(cells.address(&["address", "contract_address"])?, "address")?,
            topics,
            data: cells.bytes(&["data"])?.unwrap_or_default(),
        })
    }

    fn transaction(cells: &Cells<'_>) -> Result<Transaction, ReadError> {
        let price = cells.number(&["gas_price"])?;
        let (from, to) = (cells.address(&["from_address"])?, cells.address(&["to_address"])?);
        let (from, nonce) = (cells.need(from, "from_address")?, cells.need(cells.number(&["nonce"])?, "nonce")?);
        let success = cells.flag("success")?;
        Ok(Transaction {
            index: cells.index("transaction_index")?,
            hash: cells.need(cells.word(&["transaction_hash"])?, "transaction_hash")?,
            from,
            to,
            created: (to.is_none() && success == Some(true)).then(|| proof::created(from, nonce)),
            value: cells.need(cells.wide(&["value_binary", "value_string", "value", "value_str"])?, "value_binary")?,
            input: cells.need(cells.bytes(&["input"])?, "input")?,
            nonce,
            kind: u8::try_from(cells.number(&["transaction_type"])?.unwrap_or_default())
                .map_err(|_| cells.broken("transaction_type", "above 255"))?,
            gas_limit: cells.number(&["gas_limit"])?.unwrap_or_default(),
            gas_used: cells.number(&["gas_used"])?,
            gas_price: u128::from(price.or(cells.number(&["max_fee_per_gas"])?).unwrap_or_default()),
            success,
        })
    }
}

fn false_is(at: &BlockRef, why: impl std::fmt::Display) -> ReadError {
    ReadError::Halt { why: format!("the archive contradicts itself in {at}: {why}") }
}

impl Volume for Columns {
    fn places(&self) -> &[BlockRef] {
        &self.places
    }

    fn block(&self, index: usize, wanted: &Wanted) -> Result<Block, ReadError> {
        let (header, bloom) = &self.headers[index];
        let (mut header, at) = (header.clone(), self.places[index]);
        let mut transactions = Vec::new();
        if wanted.transactions || wanted.receipts {
            let all =
                self.rows_of(&self.transactions, "transactions", TRANSACTION_COLUMNS, Self::transaction, |t| t.index)?;
            transactions = all.get(&at.number).cloned().unwrap_or_default();
            if wanted.receipts && transactions.iter().any(|t| t.success.is_none() || t.gas_used.is_none()) {
                let why = "status and gas of transactions are wanted, but the files do not hold them: get them with \
                           'cryo transactions --include-columns success gas_used'";
                return Err(ReadError::Halt { why: why.into() });
            }
            if let Some(wrong) = transactions.iter().enumerate().find(|(i, t)| t.index as usize != *i) {
                return Err(false_is(&at, format_args!("transaction {} is missing", wrong.0)));
            }
            header.transaction_count = u32::try_from(transactions.len()).ok();
        }
        let mut logs = Vec::new();
        if wanted.logs {
            let all = self.rows_of(&self.logs, "logs", LOG_COLUMNS, Self::log, |log| log.index)?;
            logs = all.get(&at.number).cloned().unwrap_or_default();
            match bloom {
                Some(bloom) => proof::all_logs((at.number, at.hash), bloom, &logs, None, &self.quirks),
                None => proof::in_order(&logs),
            }
            .map_err(|why| false_is(&at, why))?;
            let stray = logs.iter().find(|log| {
                let told = transactions.get(log.transaction_index as usize);
                !transactions.is_empty() && told.is_none_or(|t| t.hash != log.transaction_hash)
            });
            if let Some(log) = stray {
                return Err(false_is(&at, format_args!("log {} is of no transaction of it", log.index)));
            }
            logs.retain(|log| super::wire::is_wanted(log, wanted));
        }
        Ok(Block { header, transactions, transfers: Vec::new(), logs })
    }
}

/// Hands over each row with those of the columns that the file has.
fn rows(
    path: &Path,
    columns: &[&str],
    mut each: impl FnMut(&Cells<'_>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let fail = |e: &dyn std::fmt::Display| ReadError::Halt { why: format!("cannot read {}: {e}", path.display()) };
    let file = File::open(path).map_err(|e| fail(&e))?;
    let reader = SerializedFileReader::new(file).map_err(|e| fail(&e))?;
    let schema = reader.metadata().file_metadata().schema();
    let fields: Vec<_> = schema.get_fields().iter().filter(|f| columns.contains(&f.name())).cloned().collect();
    if fields.is_empty() {
        return Ok(());
    }
    debug_assert!(fields.iter().all(|f| f.get_basic_info().repetition() != Repetition::REPEATED));
    let wanted = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(|e| fail(&e))?;
    for row in reader.get_row_iter(Some(wanted)).map_err(|e| fail(&e))? {
        let row = row.map_err(|e| fail(&e))?;
        each(&Cells { row: &row, path })?;
    }
    Ok(())
}

/// One row, by the columns' names; a null is a column that is not there.
struct Cells<'a> {
    row: &'a Row,
    path: &'a Path,
}

impl Cells<'_> {
    fn broken(&self, column: &str, why: impl std::fmt::Display) -> ReadError {
        ReadError::Halt { why: format!("{}: column '{column}': {why}", self.path.display()) }
    }

    fn get(&self, names: &[&str]) -> Option<(&str, &Field)> {
        let cells = self.row.get_column_iter();
        let mut cells = cells.filter(|(name, field)| names.contains(&name.as_str()) && !matches!(field, Field::Null));
        cells.next().map(|(name, field)| (name.as_str(), field))
    }

    fn need<T>(&self, value: Option<T>, column: &str) -> Result<T, ReadError> {
        value.ok_or_else(|| self.broken(column, "is missing, or empty in a row"))
    }

    fn number(&self, names: &[&str]) -> Result<Option<u64>, ReadError> {
        let Some((name, field)) = self.get(names) else { return Ok(None) };
        let number = match field {
            Field::UByte(n) => Some(u64::from(*n)),
            Field::UShort(n) => Some(u64::from(*n)),
            Field::UInt(n) => Some(u64::from(*n)),
            Field::ULong(n) => Some(*n),
            Field::Int(n) => u64::try_from(*n).ok(),
            Field::Long(n) => u64::try_from(*n).ok(),
            Field::Str(text) => text.parse().ok(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.broken(name, format_args!("{field} is not a number")))
    }

    fn index(&self, name: &str) -> Result<u32, ReadError> {
        let index = self.need(self.number(&[name])?, name)?;
        u32::try_from(index).map_err(|_| self.broken(name, format_args!("{index} is not an index")))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ReadError> {
        match self.get(&[name]) {
            None => Ok(None),
            Some((_, Field::Bool(flag))) => Ok(Some(*flag)),
            Some(_) => Ok(self.number(&[name])?.map(|n| n != 0)),
        }
    }

    /// Binary, or hex with `--hex`.
    fn bytes(&self, names: &[&str]) -> Result<Option<Bytes>, ReadError> {
        let Some((name, field)) = self.get(names) else { return Ok(None) };
        match field {
            Field::Bytes(bytes) => Ok(Some(Bytes::copy_from_slice(bytes.data()))),
            Field::Str(text) => match hex::decode(text) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(e) => Err(self.broken(name, e)),
            },
            _ => Err(self.broken(name, format_args!("{field} is neither binary nor hex"))),
        }
    }

    fn word(&self, names: &[&str]) -> Result<Option<B256>, ReadError> {
        self.bytes(names)?.map(|b| fixed(&b, self).map(|b| B256::new(*b))).transpose()
    }

    fn address(&self, names: &[&str]) -> Result<Option<Address>, ReadError> {
        self.bytes(names)?.map(|b| fixed(&b, self).map(|b| Address::new(*b))).transpose()
    }

    /// A number of 256 bits: its bytes, or its digits.
    fn wide(&self, names: &[&str]) -> Result<Option<U256>, ReadError> {
        let Some((name, field)) = self.get(names) else { return Ok(None) };
        let value = match field {
            Field::Bytes(bytes) => U256::try_from_be_slice(bytes.data()),
            Field::Str(text) => text.parse().ok(),
            _ => self.number(names)?.map(U256::from),
        };
        value.map(Some).ok_or_else(|| self.broken(name, format_args!("{field} is not a number")))
    }
}

fn fixed<'a, const N: usize>(bytes: &'a Bytes, cells: &Cells<'_>) -> Result<&'a [u8; N], ReadError> {
    bytes.as_ref().try_into().map_err(|_| ReadError::Halt {
        why: format!("{}: {} bytes where {N} are expected", cells.path.display(), bytes.len()),
    })
}
