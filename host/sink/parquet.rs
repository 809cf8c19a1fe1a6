//! Rows as a Parquet file, with the columns of [`Layout`]. Every column may be empty.
//!
//! A number of up to 78 digits is a text: Parquet's decimals are 38 digits wide where readers understand them.

use std::sync::Arc;

use ::parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel};
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::ByteArray;
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::types::{Type, TypePtr};

use super::table::{Column, Layout, Sort, Value};
use crate::model::Delivery;

fn field(name: &str, sort: Sort) -> Result<TypePtr, ParquetError> {
    let (physical, logical) = match sort {
        Sort::Text | Sort::Numeric => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Sort::Json => (Physical::BYTE_ARRAY, Some(LogicalType::Json)),
        Sort::Bytes => (Physical::BYTE_ARRAY, None),
        Sort::Integer => (Physical::INT64, None),
        Sort::Time => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MILLIS))),
        Sort::Double => (Physical::DOUBLE, None),
        Sort::Boolean => (Physical::BOOLEAN, None),
    };
    let field = Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
    Ok(Arc::new(field.with_logical_type(logical).build()?))
}

/// A file of these deliveries, each with its row.
pub fn file(layout: &Layout, rows: Vec<(&Delivery, Vec<Value>)>) -> Result<Vec<u8>, ParquetError> {
    let fields = layout.columns.iter().map(|column| field(&column.name, column.sort)).collect::<Result<_, _>>()?;
    let schema = Arc::new(Type::group_type_builder("event").with_fields(fields).build()?);
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let said = rows.iter().map(|(delivery, _)| *delivery).collect::<Vec<_>>();
    let mut cells: Vec<std::vec::IntoIter<Value>> = rows.into_iter().map(|(_, row)| row.into_iter()).collect();
    for Column { sort, .. } in &layout.columns {
        let cells = cells.iter_mut().map(|row| row.next().unwrap_or(Value::Null));
        let column: Vec<Value> = match sort {
            // A row has it as a text, for the databases.
            Sort::Time => cells.zip(&said).map(|(_, delivery)| milliseconds(delivery.emission.block.time)).collect(),
            _ => cells.collect(),
        };
        let mut to = group.next_column()?.ok_or_else(|| ParquetError::General("a column is missing".into()))?;
        let levels: Vec<i16> = column.iter().map(|value| i16::from(*value != Value::Null)).collect();
        let held = column.into_iter().filter(|value| *value != Value::Null);
        match to.untyped() {
            ColumnWriter::ByteArrayColumnWriter(to) => {
                let held: Vec<ByteArray> = held.map(bytes).collect();
                to.write_batch(&held, Some(&levels), None)?;
            }
            ColumnWriter::Int64ColumnWriter(to) => {
                let held: Vec<i64> =
                    held.filter_map(|v| if let Value::Integer(v) = v { Some(v) } else { None }).collect();
                to.write_batch(&held, Some(&levels), None)?;
            }
            ColumnWriter::DoubleColumnWriter(to) => {
                let held: Vec<f64> =
                    held.filter_map(|v| if let Value::Double(v) = v { Some(v) } else { None }).collect();
                to.write_batch(&held, Some(&levels), None)?;
            }
            ColumnWriter::BoolColumnWriter(to) => {
                let held: Vec<bool> =
                    held.filter_map(|v| if let Value::Boolean(v) = v { Some(v) } else { None }).collect();
                to.write_batch(&held, Some(&levels), None)?;
            }
            _ => return Err(ParquetError::General("a column of a type that is not written here".into())),
        }
        to.close()?;
    }
    group.close()?;
    writer.into_inner()
}

fn milliseconds(seconds: u64) -> Value {
    i64::try_from(seconds).ok().and_then(|s| s.checked_mul(1_000)).map_or(Value::Null, Value::Integer)
}

fn bytes(value: Value) -> ByteArray {
    match value {
        Value::Text(text) => text.into_bytes().into(),
        Value::Bytes(bytes) => bytes.into(),
        // A column of texts or bytes holds nothing else.
        _ => ByteArray::from(Vec::new()),
    }
}
