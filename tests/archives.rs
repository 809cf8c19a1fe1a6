//! Archives as sources: a folder of recordings (plain, gzip, zstd), and Parquet files with cryo's columns. The same blocks
//! give the same events whatever they lie in, a range reads only the files that it touches, and an archive that contradicts
//! itself is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alloy_primitives::{U256, hex};
use chainweir::model::{Block, ChainId, Wanted};
use chainweir::source::record::{Line, Reader, Writer};
use chainweir::source::{KINDS, Open, ReadError, Source};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use crate::harness::guests;
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::until;
use crate::recorded::{lines, transfers_of};
use crate::verify::data;

const FILES: [&str; 2] = ["chain/mainnet-17686110-17686117.ndjson.gz", "chain/mainnet-17686118-17686124.ndjson.gz"];
const FIRST: u64 = 17_686_110;
const LAST: u64 = 17_686_124;

async fn open(kind: &str, files: Value, base: &Path) -> Result<Arc<dyn Source>, ReadError> {
    let kind = KINDS.iter().find(|k| k.name == kind).expect("a kind of source");
    let table = toml::Table::from_iter([("files".to_owned(), toml::Value::try_from(files).unwrap())]);
    (kind.open)(Open { name: "main".into(), expect: Some(ChainId(1)), table, base: base.into() }).await
}

/// Every block, by as many ranges as it takes.
async fn all(source: &dyn Source, wanted: &Wanted) -> Result<Vec<Block>, ReadError> {
    let (mut blocks, mut next) = (Vec::new(), FIRST);
    while next <= LAST {
        let range = source.range(next, LAST, wanted).await?;
        next = range.to.number + 1;
        blocks.extend(range.blocks);
    }
    Ok(blocks)
}

/// What the recordings give when they are played: the measure of the archives.
async fn played(paths: &[std::path::PathBuf], wanted: &Wanted) -> Vec<Block> {
    let names: Vec<&str> = paths.iter().map(|p| p.to_str().unwrap()).collect();
    let source = open("recorded", json!(names), Path::new(".")).await.unwrap();
    while !source.ended() {
        source.head().await.unwrap();
        source.changed().await;
    }
    all(&*source, wanted).await.unwrap()
}

fn recordings() -> Option<Vec<std::path::PathBuf>> {
    FILES.iter().map(|name| data(name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_recordings_is_one_chain_whatever_it_is_compressed_with() {
    let Some(paths) = recordings() else { return };
    let dir = tempfile::tempdir().unwrap();
    // Named against the blocks' order, one file of each form.
    let names = ["c.ndjson.zst", "b.ndjson", "a.ndjson.gz"];
    let every: Vec<Line> = paths.iter().flat_map(|p| Reader::open(p).unwrap()).map(|l| l.unwrap().1).collect();
    for (name, lines) in names.iter().zip(every.chunks(5)) {
        let mut writer = Writer::create(&dir.path().join(name)).unwrap();
        lines.iter().for_each(|line| writer.write(line).unwrap());
        writer.finish().unwrap();
    }
    assert!(std::fs::read(dir.path().join("c.ndjson.zst")).unwrap().starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let archive = open("recorded", json!("."), dir.path()).await.unwrap();
    let head = archive.head().await.unwrap();
    assert_eq!((archive.first(), head.number), (Some(FIRST), LAST));
    let truth = played(&paths, &Wanted::all()).await;
    assert_eq!(all(&*archive, &Wanted::all()).await.unwrap(), truth);
    assert_eq!(archive.by_number(FIRST + 7).await.unwrap(), truth[7].at());
    assert_eq!(archive.block(&truth[3].at(), &Wanted::all()).await.unwrap(), truth[3]);

    // A range touches the files that it needs: the one in the middle is broken, and nobody minds.
    std::fs::write(dir.path().join("b.ndjson"), std::fs::read(dir.path().join("b.ndjson")).unwrap().split_off(1_000))
        .unwrap();
    assert!(
        matches!(open("recorded", json!("."), dir.path()).await, Err(ReadError::Halt { .. })),
        "its first line says where it stands"
    );
    std::fs::remove_file(dir.path().join("b.ndjson")).unwrap();
    let gap = open("recorded", json!("."), dir.path()).await.unwrap();
    assert_eq!(gap.range(FIRST, FIRST + 4, &Wanted::all()).await.unwrap().blocks, truth[..5]);
    let Err(ReadError::Halt { why }) = gap.range(FIRST, LAST, &Wanted::all()).await else {
        panic!("a gap is not seen")
    };
    assert!(why.contains(&format!("block {} is in no file", FIRST + 5)), "{why}");
}

enum Column {
    U32(Vec<Option<u64>>),
    U64(Vec<Option<u64>>),
    Bytes(Vec<Option<Vec<u8>>>),
    Text(Vec<Option<String>>),
    Flag(Vec<Option<u64>>),
}

/// As polars writes them for cryo: every column optional.
fn write(path: &Path, columns: Vec<(&str, Column)>, compression: Compression) {
    let fields = columns.iter().map(|(name, column)| match column {
        Column::U32(_) => format!("optional int32 {name} (INTEGER(32,false));"),
        Column::U64(_) => format!("optional int64 {name} (INTEGER(64,false));"),
        Column::Bytes(_) => format!("optional byte_array {name};"),
        Column::Text(_) => format!("optional byte_array {name} (STRING);"),
        Column::Flag(_) => format!("optional boolean {name};"),
    });
    let schema = format!("message root {{ {} }}", fields.collect::<String>());
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    fn levels<T>(values: &[Option<T>]) -> Vec<i16> {
        values.iter().map(|v| i16::from(v.is_some())).collect()
    }
    for (_, column) in columns {
        let mut to = group.next_column().unwrap().unwrap();
        match column {
            Column::U32(v) => {
                let (levels, v): (_, Vec<i32>) =
                    (levels(&v), v.into_iter().flatten().map(|n| n as u32 as i32).collect());
                to.typed::<Int32Type>().write_batch(&v, Some(&levels), None).unwrap();
            }
            Column::U64(v) => {
                let (levels, v): (_, Vec<i64>) = (levels(&v), v.into_iter().flatten().map(|n| n as i64).collect());
                to.typed::<Int64Type>().write_batch(&v, Some(&levels), None).unwrap();
            }
            Column::Bytes(v) => {
                let (levels, v): (_, Vec<ByteArray>) =
                    (levels(&v), v.into_iter().flatten().map(ByteArray::from).collect());
                to.typed::<ByteArrayType>().write_batch(&v, Some(&levels), None).unwrap();
            }
            Column::Text(v) => {
                let levels = levels(&v);
                let v: Vec<ByteArray> = v.into_iter().flatten().map(|s| ByteArray::from(s.into_bytes())).collect();
                to.typed::<ByteArrayType>().write_batch(&v, Some(&levels), None).unwrap();
            }
            Column::Flag(v) => {
                let (levels, v): (_, Vec<bool>) = (levels(&v), v.into_iter().flatten().map(|n| n != 0).collect());
                to.typed::<BoolType>().write_batch(&v, Some(&levels), None).unwrap();
            }
        };
        to.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// How cryo names and encodes its columns: as it does now, or as it did, with `--hex`.
#[derive(Clone, Copy, PartialEq)]
enum Age {
    Now,
    Old,
}

/// Writes what the records' own JSON says, read here and not by the host.
fn cryo(dir: &Path, paths: &[std::path::PathBuf], age: Age) {
    let compression = if age == Age::Now { Compression::ZSTD(ZstdLevel::default()) } else { Compression::LZ4_RAW };
    let number = |v: &Value| v.as_str().map(|s| u64::from_str_radix(&s[2..], 16).unwrap());
    for path in paths {
        let records: Vec<Value> = lines(path).collect();
        let binary = |values: Vec<&Value>| match age {
            Age::Now => {
                Column::Bytes(values.iter().map(|v| v.as_str().map(|s| hex::decode(&s[2..]).unwrap())).collect())
            }
            Age::Old => Column::Text(values.iter().map(|v| v.as_str().map(str::to_owned)).collect()),
        };
        let u32s = |values: Vec<&Value>| Column::U32(values.into_iter().map(number).collect());
        let u64s = |values: Vec<&Value>| Column::U64(values.into_iter().map(number).collect());
        let name = |dataset: &str| {
            let (first, last) = (&records[0]["number"], &records[records.len() - 1]["number"]);
            dir.join(format!(
                "ethereum__{dataset}__{:08}_to_{:08}.parquet",
                first.as_u64().unwrap(),
                last.as_u64().unwrap()
            ))
        };
        let now = |new: &'static str, old: &'static str| if age == Age::Now { new } else { old };

        let of = |key: &str| records.iter().map(|r| &r["block"][key]).collect::<Vec<_>>();
        let mut columns = vec![
            (now("block_number", "number"), u32s(of("number"))),
            (now("block_hash", "hash"), binary(of("hash"))),
            ("timestamp", u32s(of("timestamp"))),
            ("author", binary(of("miner"))),
            ("gas_used", u64s(of("gasUsed"))),
            ("base_fee_per_gas", u64s(of("baseFeePerGas"))),
            ("size", u32s(of("size"))),
        ];
        if age == Age::Now {
            columns.push(("parent_hash", binary(of("parentHash"))));
            columns.push(("logs_bloom", binary(of("logsBloom"))));
            columns.push(("chain_id", Column::U64(records.iter().map(|_| Some(1)).collect())));
        }
        write(&name("blocks"), columns, compression);

        let receipts: Vec<&Value> = records.iter().flat_map(|r| r["receipts"].as_array().unwrap()).collect();
        let logs: Vec<&Value> = receipts.iter().flat_map(|r| r["logs"].as_array().unwrap()).collect();
        let of = |key: &str| logs.iter().map(|l| &l[key]).collect::<Vec<_>>();
        let topic = |n: usize| logs.iter().map(|l| &l["topics"][n]).collect::<Vec<_>>();
        let columns = vec![
            ("block_number", u32s(of("blockNumber"))),
            ("transaction_index", u32s(of("transactionIndex"))),
            ("log_index", u32s(of("logIndex"))),
            ("transaction_hash", binary(of("transactionHash"))),
            (now("address", "contract_address"), binary(of("address"))),
            ("topic0", binary(topic(0))),
            ("topic1", binary(topic(1))),
            ("topic2", binary(topic(2))),
            ("topic3", binary(topic(3))),
            ("data", binary(of("data"))),
        ];
        write(&name("logs"), columns, compression);

        let txs: Vec<&Value> = records.iter().flat_map(|r| r["block"]["transactions"].as_array().unwrap()).collect();
        let of = |key: &str| txs.iter().map(|t| &t[key]).collect::<Vec<_>>();
        let values: Vec<U256> = of("value").iter().map(|v| v.as_str().unwrap().parse().unwrap()).collect();
        let mut columns = vec![
            ("block_number", u32s(of("blockNumber"))),
            ("transaction_index", u64s(of("transactionIndex"))),
            ("transaction_hash", binary(of("hash"))),
            ("nonce", u64s(of("nonce"))),
            ("from_address", binary(of("from"))),
            ("to_address", binary(of("to"))),
            ("input", binary(of("input"))),
            ("gas_limit", u64s(of("gas"))),
            ("gas_price", u64s(receipts.iter().map(|r| &r["effectiveGasPrice"]).collect())),
            ("transaction_type", u32s(of("type"))),
        ];
        if age == Age::Now {
            let bytes = values.iter().map(|v| Some(v.to_be_bytes_vec())).collect();
            columns.push(("value_binary", Column::Bytes(bytes)));
            columns.push(("value_f64", Column::U64(values.iter().map(|_| None).collect())));
            columns.push(("gas_used", u64s(receipts.iter().map(|r| &r["gasUsed"]).collect())));
            columns.push(("success", Column::Flag(receipts.iter().map(|r| number(&r["status"])).collect())));
        } else {
            columns.push(("value", Column::Text(values.iter().map(|v| Some(v.to_string())).collect())));
        }
        write(&name("transactions"), columns, compression);
    }
}

/// What cryo does not keep.
fn without_what_cryo_lacks(mut blocks: Vec<Block>, age: Age) -> Vec<Block> {
    for block in &mut blocks {
        block.header.gas_limit = 0;
        if age == Age::Old {
            block.transactions.iter_mut().for_each(|t| (t.success, t.gas_used, t.created) = (None, None, None));
        }
    }
    blocks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_files_with_cryos_columns_give_the_same_blocks() {
    let Some(paths) = recordings() else { return };
    for age in [Age::Now, Age::Old] {
        let dir = tempfile::tempdir().unwrap();
        cryo(dir.path(), &paths, age);
        let archive = open("parquet", json!("."), dir.path()).await.unwrap();
        assert_eq!((archive.first(), archive.head().await.unwrap().number), (Some(FIRST), LAST));
        let whole = Wanted { receipts: age == Age::Now, ..Wanted::all() };
        let mut truth = without_what_cryo_lacks(played(&paths, &Wanted::all()).await, age);
        if age == Age::Old {
            // Not told, and nobody is before it: the first block's parent.
            truth[0].header.at.parent = Default::default();
        }
        let found = all(&*archive, &whole).await.unwrap();
        assert_eq!(found.len(), truth.len());
        for (found, truth) in found.iter().zip(&truth) {
            assert_eq!(found, truth);
        }
        let few = Wanted { logs: true, topic0: vec![truth[0].logs[0].topics[0]], ..Default::default() };
        let count = |blocks: &[Block]| blocks.iter().map(|b| b.logs.len()).sum::<usize>();
        assert_eq!(count(&all(&*archive, &few).await.unwrap()), count(&played(&paths, &few).await));
        if age == Age::Old {
            let Err(ReadError::Halt { why }) = all(&*archive, &Wanted::all()).await else {
                panic!("no status is made up")
            };
            assert!(why.contains("--include-columns success gas_used"), "{why}");
        }
        // What is wanted and not there is named, never empty.
        let name = format!("ethereum__logs__{FIRST}_to_17686117.parquet");
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let archive = open("parquet", json!("."), dir.path()).await.unwrap();
        let Err(ReadError::Halt { why }) = all(&*archive, &few).await else { panic!("a missing file is no empty one") };
        assert!(why.contains("there is no file of them: get it with 'cryo logs"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_files_from_which_a_log_was_lost_are_refused() {
    let Some(paths) = recordings() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut records: Vec<Value> = lines(&paths[0]).collect();
    let lost = |records: &mut Vec<Value>| {
        let receipts = records[2]["receipts"].as_array_mut().unwrap();
        let logs = receipts.iter_mut().filter_map(|r| r["logs"].as_array_mut()).find(|logs| logs.len() > 1).unwrap();
        logs.remove(0);
    };
    lost(&mut records);
    let path = dir.path().join("damaged.ndjson.gz");
    let mut out = flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
    records.iter().for_each(|r| std::io::Write::write_all(&mut out, format!("{r}\n").as_bytes()).unwrap());
    out.finish().unwrap();
    cryo(dir.path(), &[path], Age::Now);
    let archive = open("parquet", json!("*.parquet"), dir.path()).await.unwrap();
    let wanted = Wanted { logs: true, ..Default::default() };
    let Err(ReadError::Halt { why }) = archive.range(FIRST, FIRST + 7, &wanted).await else { panic!("a log was lost") };
    assert!(why.contains("contradicts itself") && why.contains(&format!("block {}", FIRST + 2)), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_over_an_archive_emits_what_the_chain_has() {
    let Some(paths) = recordings() else { return };
    guests::wasm("erc20-transfers");
    let mut truth: Vec<_> = paths.iter().flat_map(|p| lines(p)).flat_map(|r| transfers_of(&r)).collect();
    truth.sort();
    let folder = folder(&["erc20-transfers"]);
    std::fs::create_dir(folder.path().join("archive")).unwrap();
    cryo(&folder.path().join("archive"), &paths, Age::Now);
    let config = format!("[chain.mainnet]\nsource = \"parquet\"\nfiles = \"archive\"\nstart = {FIRST}\n");
    let process = Process::start(folder.path(), &config).await;
    until("the archive to be read", || async {
        let status = process.status().await?;
        (status["plugins"][0]["chains"][0]["cursor"]["number"] == json!(LAST)).then_some(())
    })
    .await;
    let feed = process.feed("erc20-transfers.transfers").await;
    assert_eq!(Ledger::of(&feed).transfers(), truth);
    let by_block = truth.iter().fold(BTreeMap::<u64, usize>::new(), |mut all, t| {
        *all.entry(t.block).or_default() += 1;
        all
    });
    assert_eq!(by_block.len(), 15);
}
