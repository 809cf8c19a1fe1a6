//! How a stream becomes a table, for every store: columns from its JSON Schema, a row from a delivery.
//!
//! No SQL is spoken here but the names of types. A property has a column of its own where its schema says what it is; everything
//! else of the payload is kept as JSON in `_extra`, so that nothing is lost. A value that does not fit its
//! column is a fault of that one delivery.
//!
//! With `key`, the table holds the newest row of each key instead of one of each emission: see [`super::newest`].

use std::borrow::{Borrow, Cow};
use std::collections::{BTreeMap, BTreeSet, HashSet};

use alloy_primitives::hex;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::{Options, SinkError, cloudevent, newest};
use crate::model::{Delivery, Op, Outcome, StreamId, StreamSpec};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Text,
    Integer,
    Double,
    Boolean,
    /// Up to 78 digits: a uint256.
    Numeric,
    Json,
    Bytes,
    Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub sort: Sort,
}

/// A value of a row, checked against its column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Text(String),
    Integer(i64),
    Double(f64),
    Boolean(bool),
    Bytes(Vec<u8>),
}

pub const KEY: &str = "_emission";
/// The key of a table that nothing is taken out of: the delivery's id.
pub const ID: &str = "_id";
const APPENDED: [(&str, Sort); 2] = [(ID, Sort::Text), ("_op", Sort::Text)];
/// The key of a table of newest rows: `{"_chain":"eip155:1","owner":"0xab"}`, with what the option `key` names.
pub const ROW_KEY: &str = "_key";
/// Bytes of it. MySQL's longest index has 3,072, and four for a character.
pub const LONGEST_KEY: usize = 700;
pub const EXTRA: &str = "_extra";
pub const RETRACTED: &str = "_retracted_at_cursor";
const FIXED: [(&str, Sort); 7] = [
    (KEY, Sort::Text),
    ("_chain", Sort::Text),
    ("_block", Sort::Integer),
    ("_block_hash", Sort::Text),
    ("_time", Sort::Time),
    ("_lane_key", Sort::Text),
    ("_cursor", Sort::Integer),
];
/// PostgreSQL cuts names after 63 bytes, silently.
pub const LONGEST_NAME: usize = 63;
/// PostgreSQL takes 1,600 columns, fewer when they are wide.
const MOST_PROPERTIES: usize = 500;
/// Digits of 2^256.
const LONGEST_NUMERIC: usize = 78;

/// What becomes of a row whose emission is retracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retract {
    Delete,
    Mark,
    /// It stays, and the retraction is a row of its own.
    Append,
}

/// What an output's options say of its tables.
#[derive(Clone, Debug)]
pub struct Rules {
    pub template: String,
    pub retract: Retract,
    /// Columns by which a row takes the place of an earlier one; none: every emission has its own.
    pub key: Vec<String>,
    /// Blocks below the newest for which a row that another one took the place of is kept.
    pub keep_blocks: u64,
}

impl Rules {
    /// The layout of a stream's table; or why it cannot have the key that is asked for.
    pub fn layout(&self, spec: &StreamSpec) -> Result<Layout, String> {
        Layout::of(spec, self.retract).by_key(&self.key)
    }

    /// The name of a stream's table, if it and its history's are short enough.
    pub fn name(&self, stream: &StreamId) -> Result<String, SinkError> {
        let filled =
            self.template.replace("{plugin}", stream.plugin.as_str()).replace("{stream}", stream.stream.as_str());
        let name = filled.replace(['-', '.'], "_");
        let longest = if self.key.is_empty() { LONGEST_NAME } else { LONGEST_NAME - newest::history("").len() };
        if name.len() > longest {
            let why = format!(
                "the table name {name} of {stream} has more than {longest} bytes; set a shorter one by table = \"...\""
            );
            return Err(SinkError::Refused { why });
        }
        Ok(name)
    }

    /// Whether two streams with tables of these names would write into one.
    pub fn clash(&self, one: &str, other: &str) -> bool {
        one == other || !self.key.is_empty() && (newest::history(one) == other || newest::history(other) == one)
    }
}

/// The columns of a stream's table, in order, and how to fill them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub columns: Vec<Column>,
    /// Columns that are there whatever the payload is.
    fixed: usize,
    /// A retraction is a row of its own.
    appends: bool,
    /// False where payloads are no JSON: then they are stored as they are.
    json: bool,
    /// The columns whose values are a row's key, by their places.
    by: Vec<usize>,
}

impl Layout {
    pub fn of(spec: &StreamSpec, retract: Retract) -> Self {
        let appended: &[(&str, Sort)] = if retract == Retract::Append { &APPENDED } else { &[] };
        let mut columns: Vec<Column> = appended
            .iter()
            .chain(&FIXED)
            .map(|(name, sort)| Column { name: (*name).to_owned(), sort: *sort })
            .collect();
        let fixed = columns.len();
        let mut add = |name: &str, sort| columns.push(Column { name: name.to_owned(), sort });
        match &spec.schema {
            None => {
                add("_content_type", Sort::Text);
                add("payload", Sort::Bytes);
            }
            Some(schema) => {
                let properties = schema.get("properties").and_then(Json::as_object);
                // SQLite does not tell upper case from lower.
                let mut taken = HashSet::new();
                for (name, schema) in properties.into_iter().flatten().take(MOST_PROPERTIES) {
                    let fits = !name.is_empty()
                        && name.len() <= LONGEST_NAME
                        && !name.starts_with('_')
                        && !name.contains('\0');
                    if fits && taken.insert(name.to_ascii_lowercase()) {
                        add(name, sort_of(schema));
                    }
                }
                add(EXTRA, Sort::Json);
            }
        }
        Self { columns, fixed, appends: retract == Retract::Append, json: spec.schema.is_some(), by: vec![] }
    }

    /// The same with the column [`ROW_KEY`] before the others, made of the values of these. No name: as it was.
    fn by_key(mut self, names: &[String]) -> Result<Self, String> {
        if names.is_empty() {
            return Ok(self);
        }
        self.columns.insert(0, Column { name: ROW_KEY.to_owned(), sort: Sort::Text });
        self.fixed += 1;
        for name in names {
            let at = self.columns.iter().position(|column| column.name == *name && name != ROW_KEY);
            match at.map(|at| (at, self.columns[at].sort)) {
                Some((at, Sort::Text | Sort::Integer | Sort::Boolean | Sort::Numeric)) => self.by.push(at),
                Some(_) => return Err(format!("key names '{name}', which is no text, whole number or flag")),
                None => {
                    let may = self.columns.iter().skip(1).map(|column| column.name.as_str()).collect::<Vec<_>>();
                    return Err(format!("key names '{name}', but the columns are {}", may.join(", ")));
                }
            }
        }
        Ok(self)
    }

    /// Whether a retraction is a row of its own.
    pub fn appends(&self) -> bool {
        self.appends
    }

    /// Whether this takes an earlier row back.
    pub fn takes_back(&self, op: Op) -> bool {
        op == Op::Retract && !self.appends
    }

    pub fn keyed(&self) -> bool {
        !self.by.is_empty()
    }

    /// The column by which a row is one; of a table of newest rows, that of its history.
    pub fn key(&self) -> &'static str {
        if self.appends { ID } else { KEY }
    }

    /// [`ROW_KEY`] of a row: with the chain, whose blocks are not to be compared with another's.
    fn key_of(&self, row: &[Value], chain: crate::model::ChainId) -> Result<String, String> {
        let mut key = serde_json::Map::from_iter([("_chain".to_owned(), chain.to_string().into())]);
        for at in &self.by {
            let Column { name, sort } = &self.columns[*at];
            let value = match &row[*at] {
                // The same number, however many zeros are before it.
                Value::Text(digits) if *sort == Sort::Numeric => {
                    let (sign, bare) = digits.strip_prefix('-').map_or(("", digits.as_str()), |bare| ("-", bare));
                    match bare.trim_start_matches('0') {
                        "" => "0".into(),
                        bare => format!("{sign}{bare}").into(),
                    }
                }
                Value::Text(text) => text.as_str().into(),
                Value::Integer(number) => (*number).into(),
                Value::Boolean(flag) => (*flag).into(),
                _ => return Err(format!("the payload has no '{name}', by which its row is known")),
            };
            key.insert(name.clone(), value);
        }
        let key = Json::Object(key).to_string();
        match key.len() {
            ..=LONGEST_KEY => Ok(key),
            bytes => Err(format!("its key has {bytes} bytes, and {LONGEST_KEY} at most are one")),
        }
    }

    /// Whether a key that a table has was made of the same columns.
    pub fn made_of(&self, key: &str) -> bool {
        let names = |name: &String| self.by.iter().any(|at| self.columns[*at].name == *name) || name == "_chain";
        let made: Result<BTreeMap<String, Json>, _> = serde_json::from_str(key);
        made.is_ok_and(|made| {
            made.keys().all(names) && self.by.iter().all(|at| made.contains_key(&self.columns[*at].name))
        })
    }

    /// The row of a delivery, a value for each column; or why there is none.
    pub fn row(&self, delivery: &Delivery) -> Result<Vec<Value>, String> {
        let emission = &*delivery.emission;
        let number = |number: u64| i64::try_from(number).map_or(Value::Null, Value::Integer);
        let mut row = Vec::with_capacity(self.columns.len());
        if self.keyed() {
            // Known when the others are.
            row.push(Value::Null);
        }
        if self.appends {
            row.extend([Value::Text(delivery.id.to_string()), Value::Text(delivery.op.as_str().to_owned())]);
        }
        row.extend([
            Value::Text(emission.id.to_string()),
            Value::Text(emission.block.chain.to_string()),
            number(emission.block.number),
            Value::Text(hex::encode_prefixed(emission.block.hash)),
            cloudevent::rfc3339(emission.block.time).map_or(Value::Null, Value::Text),
            Value::Text(emission.lane_key.clone()),
            number(delivery.offset),
        ]);
        if !self.json {
            row.push(Value::Text(emission.content_type.mime().to_owned()));
            row.push(Value::Bytes(emission.payload.clone()));
            return self.with_key(row, delivery);
        }
        let whole: &RawValue =
            serde_json::from_slice(&emission.payload).map_err(|error| format!("the payload is not JSON: {error}"))?;
        // Read raw, so that no digit of a large number is lost.
        let object =
            whole.get().starts_with('{').then(|| serde_json::from_str::<BTreeMap<Name<'_>, &RawValue>>(whole.get()));
        let Some(object) = object else {
            row.resize(self.columns.len() - 1, Value::Null);
            row.push(Value::Text(whole.get().to_owned()));
            return self.with_key(row, delivery);
        };
        let mut object = object.map_err(|error| format!("the payload is not a JSON object: {error}"))?;
        for column in &self.columns[self.fixed..self.columns.len() - 1] {
            row.push(match object.remove(column.name.as_str()) {
                None => Value::Null,
                Some(raw) => value(column.sort, raw.get()).map_err(|wanted| {
                    let got = super::options::excerpt(raw.get().as_bytes());
                    format!("the payload's '{}' must be {wanted}, but is {got}", column.name)
                })?,
            });
        }
        row.push(match object.is_empty() {
            true => Value::Null,
            false => Value::Text(serde_json::to_string(&object).map_err(|error| error.to_string())?),
        });
        self.with_key(row, delivery)
    }

    fn with_key(&self, mut row: Vec<Value>, delivery: &Delivery) -> Result<Vec<Value>, String> {
        if self.keyed() {
            row[0] = Value::Text(self.key_of(&row, delivery.emission.block.chain)?);
        }
        Ok(row)
    }
}

impl Layout {
    /// For a destination that leaves nothing out: of a payload that fits no row, the reason and the payload are in the last column.
    pub fn row_or_why(&self, delivery: &Delivery) -> Vec<Value> {
        self.row(delivery).unwrap_or_else(|why| {
            let emission = &*delivery.emission;
            // Without JSON every payload has a row.
            let bare = Self { json: false, ..self.clone() };
            let mut row = bare.row(delivery).unwrap_or_default();
            row.truncate(self.fixed);
            row.resize(self.columns.len() - 1, Value::Null);
            let payload = String::from_utf8_lossy(&emission.payload);
            row.push(Value::Text(serde_json::json!({ "_why": why, "_payload": payload }).to_string()));
            row
        })
    }
}

/// A property's name, borrowed from the payload where no escape is in it.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl Borrow<str> for Name<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The sort of a property by its JSON Schema.
fn sort_of(schema: &Json) -> Sort {
    let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
    let kind = match schema.get("type") {
        Some(Json::String(kind)) => kind.as_str(),
        // `["string", "null"]`: every column may be empty.
        Some(Json::Array(kinds)) => {
            let mut kinds = kinds.iter().filter_map(Json::as_str).filter(|kind| *kind != "null");
            match (kinds.next(), kinds.next()) {
                (Some(kind), None) => kind,
                _ => return Sort::Json,
            }
        }
        _ => return Sort::Json,
    };
    match (kind, format) {
        ("string" | "integer", "uint256" | "uint128" | "int128") => Sort::Numeric,
        ("string", _) => Sort::Text,
        ("integer", _) => Sort::Integer,
        ("number", _) => Sort::Double,
        ("boolean", _) => Sort::Boolean,
        _ => Sort::Json,
    }
}

/// `Err` says what was wanted.
fn value(sort: Sort, raw: &str) -> Result<Value, &'static str> {
    if raw == "null" {
        return Ok(Value::Null);
    }
    let text = || serde_json::from_str::<String>(raw);
    match sort {
        Sort::Text | Sort::Time => text().map(Value::Text).map_err(|_| "a text"),
        Sort::Integer => raw.parse().map(Value::Integer).map_err(|_| "a whole number of 64 bits with sign"),
        Sort::Double => match raw.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::Double(number)),
            _ => Err("a number"),
        },
        Sort::Boolean => raw.parse().map(Value::Boolean).map_err(|_| "true or false"),
        Sort::Numeric => {
            let digits = if raw.starts_with('"') { text().unwrap_or_default() } else { raw.to_owned() };
            let bare = digits.strip_prefix('-').unwrap_or(&digits);
            if bare.is_empty() || bare.len() > LONGEST_NUMERIC || !bare.bytes().all(|b| b.is_ascii_digit()) {
                return Err("a whole number of at most 78 decimal digits, as a text");
            }
            Ok(Value::Text(digits))
        }
        Sort::Json => Ok(Value::Text(raw.to_owned())),
        Sort::Bytes => Err("bytes"),
    }
}

/// What a store makes of the columns that a table has already. `has` are names and types as the store tells them.
pub fn missing<'a>(
    layout: &'a [Column],
    has: &[(String, String)],
    type_of: impl Fn(Sort) -> &'static str,
    table: &str,
) -> Result<Vec<&'a Column>, String> {
    let there = |wanted: &str| has.iter().any(|(name, _)| name == wanted);
    if !there(KEY) {
        return Err(format!(
            "the table {table} is there but was not made by this output (it has no column {KEY}); set another table"
        ));
    }
    if there(ID) != layout.iter().any(|column| column.name == ID) {
        let (is, was) = if there(ID) { ("no longer", "was") } else { ("now", "was not") };
        return Err(format!(
            "retract is {is} \"append\", and the table {table} {was} made so: set another table, or rename that one"
        ));
    }
    if there(ROW_KEY) != layout.iter().any(|column| column.name == ROW_KEY) {
        let (is, was) = if there(ROW_KEY) { ("no longer", "was") } else { ("now", "was not") };
        return Err(format!(
            "key is {is} set, and the table {table} {was} made by a key: set another table, or rename that one"
        ));
    }
    let mut missing = vec![];
    for column in layout {
        let wanted = type_of(column.sort);
        match has.iter().find(|(name, _)| name.eq_ignore_ascii_case(&column.name)) {
            None => missing.push(column),
            Some((_, is)) if is.eq_ignore_ascii_case(wanted) => {}
            Some((_, is)) => {
                return Err(format!(
                    "the column {} of the table {table} is of type {is}, the stream's schema now asks for {wanted}; \
                     change the column, or rename the table and a new one is made",
                    column.name
                ));
            }
        }
    }
    Ok(missing)
}

/// What is said of two streams with one table.
pub fn shared(stream: &StreamId, other: &StreamId, table: &str) -> String {
    format!(
        "{stream} and {other} have the same table {table}; set table = \"...\" with {{plugin}} and {{stream}} apart, or use two outputs"
    )
}

/// The options `table`, `retract`, `key` and `keep_blocks`, which every store has.
pub fn options(options: &Options) -> Result<Rules, SinkError> {
    let template = options.text("table")?.unwrap_or_else(|| "{plugin}_{stream}".into());
    let rest = template.replace("{plugin}", "").replace("{stream}", "");
    if rest.contains(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c))) {
        return Err(options.refused(&format!(
            "table '{template}' must be letters, digits and '_'; {{plugin}} and {{stream}} are filled in"
        )));
    }
    let retract = match options.word("retract", &["delete", "mark", "append"])? {
        "mark" => Retract::Mark,
        "append" => Retract::Append,
        _ => Retract::Delete,
    };
    let key = options.words("key")?;
    if !key.is_empty() && retract != Retract::Delete {
        return Err(options
            .refused("with key, the row of a retracted emission gives way to the one before it: leave retract out"));
    }
    Ok(Rules { template, retract, key, keep_blocks: options.number("keep_blocks", 10_000, 0..=1_000_000_000)? })
}

/// An identifier in quotes, as SQL has it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Why a store did not take something.
pub enum Fault {
    /// One row is refused, whenever it is tried.
    Row(String),
    /// The store cannot do it now.
    Now(String),
}

/// A batch on its way into a table, for a store that takes many rows at once.
pub struct Work<'a> {
    pub batch: &'a [Delivery],
    /// `None`: not known to be anything but delivered.
    pub outcomes: Vec<Option<Outcome>>,
}

/// Deliveries of one batch, by their places in it: all applied, or all retracted.
pub type Run = (Op, Vec<usize>);

/// Of a run that was written: the keys of its rows, as [`keys`] gives them, and what has no row.
pub type Written = (BTreeSet<String>, Vec<Refused>);

impl<'a> Work<'a> {
    pub fn new(batch: &'a [Delivery]) -> Self {
        Self { batch, outcomes: vec![None; batch.len()] }
    }

    /// Stretches of the same op, in order and of at most so many, without what is refused. A table holds what the chain has:
    /// nothing is pending in it.
    pub fn runs(&self, most: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = vec![];
        for (index, delivery) in self.batch.iter().enumerate() {
            if self.outcomes[index].is_some() || delivery.op == Op::Pending {
                continue;
            }
            match runs.last_mut().filter(|run| run.0 == delivery.op && run.1.len() < most) {
                Some(run) => run.1.push(index),
                None => runs.push((delivery.op, vec![index])),
            }
        }
        runs
    }

    pub fn refuse(&mut self, refused: impl IntoIterator<Item = Refused>) {
        for (index, why) in refused {
            self.outcomes[index] = Some(Outcome::Refused { why });
        }
    }

    pub fn settled(&self) -> Vec<Outcome> {
        self.outcomes.iter().map(|outcome| outcome.clone().unwrap_or(Outcome::Delivered)).collect()
    }
}

/// A delivery that has no row, by its place in the batch, and why.
pub type Refused = (usize, String);

/// The rows of a run, and what has none.
pub fn rows(batch: &[Delivery], run: &[usize], layout: &Layout) -> (Vec<Vec<Value>>, Vec<Refused>) {
    let (mut rows, mut refused) = (Vec::with_capacity(run.len()), vec![]);
    for index in run {
        match layout.row(&batch[*index]) {
            Ok(row) => rows.push(row),
            Err(why) => refused.push((*index, why)),
        }
    }
    (rows, refused)
}

/// The keys of these rows: what a layout with a key has first in a row. None for one without.
pub fn keys(rows: &[Vec<Value>], layout: &Layout) -> BTreeSet<String> {
    let rows = if layout.keyed() { rows } else { &[] };
    let key = |row: &Vec<Value>| if let Some(Value::Text(key)) = row.first() { Some(key.clone()) } else { None };
    rows.iter().filter_map(key).collect()
}

/// The keys of what is taken back: only for them is a row made.
pub fn keys_of(batch: &[Delivery], run: &[usize], layout: &Layout) -> BTreeSet<String> {
    if layout.keyed() { keys(&rows(batch, run, layout).0, layout) } else { BTreeSet::new() }
}

/// The block from which on a history keeps every row.
pub fn kept_from(delivery: &Delivery, keep_blocks: u64) -> i64 {
    i64::try_from(delivery.emission.block.number.saturating_sub(keep_blocks)).unwrap_or(i64::MAX)
}

/// How far a batch moves a track's position: to the last delivery before the first that was refused. What was refused is not settled
/// before the lane has written it down; after a crash in between, the lane must hear of it again.
pub fn reached(batch: &[Delivery], outcomes: &[Outcome]) -> Option<u64> {
    let done = outcomes.iter().take_while(|outcome| matches!(outcome, Outcome::Delivered)).count();
    done.checked_sub(1).map(|last| batch[last].offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(schema: Json) -> StreamSpec {
        StreamSpec { name: "large".parse().unwrap(), description: String::new(), schema: Some(schema) }
    }

    fn delivery(payload: &str) -> Delivery {
        let mut delivery = super::super::samples::batch(1..=1).1.remove(0);
        let mut emission = (*delivery.emission).clone();
        emission.payload = payload.into();
        delivery.emission = emission.into();
        delivery
    }

    #[test]
    fn every_property_gets_the_column_of_its_schema() {
        let layout = Layout::of(
            &spec(json!({ "properties": {
            "token": { "type": "string", "format": "address" }, "value": { "type": "string", "format": "uint256" },
            "index": { "type": "integer" }, "price": { "type": "number" }, "ok": { "type": ["boolean", "null"] },
            "tags": { "type": "array" }, "any": {}, "_block": { "type": "string" }, "Token": { "type": "string" }
        } })),
            Retract::Delete,
        );
        let sorts: Vec<_> = layout.columns[FIXED.len()..].iter().map(|c| (c.name.as_str(), c.sort)).collect();
        use Sort::*;
        assert_eq!(
            sorts,
            [
                ("token", Text),
                ("value", Numeric),
                ("index", Integer),
                ("price", Double),
                ("ok", Boolean),
                ("tags", Json),
                ("any", Json),
                (EXTRA, Json)
            ]
        );
        let max = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        let payload = format!(
            r#"{{"token":"0xé","value":"{max}","index":-3,"price":1.5,"ok":true,"tags":[1],"Token":"x","_block":12345678901234567890123}}"#
        );
        let row = layout.row(&delivery(&payload)).unwrap();
        assert_eq!(row.len(), layout.columns.len());
        assert_eq!(
            row[FIXED.len()..],
            [
                Value::Text("0xé".into()),
                Value::Text(max.into()),
                Value::Integer(-3),
                Value::Double(1.5),
                Value::Boolean(true),
                Value::Text("[1]".into()),
                Value::Null,
                Value::Text(r#"{"Token":"x","_block":12345678901234567890123}"#.into()),
            ]
        );
        let row = layout.row(&delivery("[1]")).unwrap();
        assert_eq!(row.last(), Some(&Value::Text("[1]".into())), "a payload that is no object is kept whole");
    }

    #[test]
    fn a_value_that_does_not_fit_is_a_fault_of_the_delivery() {
        for (sort, bad) in [
            (Sort::Text, "1"),
            (Sort::Integer, "9223372036854775808"),
            (Sort::Integer, "\"1\""),
            (Sort::Double, "1e999"),
            (Sort::Double, "\"1\""),
            (Sort::Boolean, "1"),
            (Sort::Numeric, "\"NaN\""),
            (Sort::Numeric, "\"1.5\""),
            (Sort::Numeric, "\"\""),
            (Sort::Numeric, "\"0x10\""),
        ] {
            assert!(value(sort, bad).is_err(), "{sort:?} {bad}");
        }
        assert!(value(Sort::Numeric, &"9".repeat(79)).is_err());
        assert_eq!(value(Sort::Text, "null"), Ok(Value::Null));
    }

    #[test]
    fn a_table_grows_but_does_not_change_a_type() {
        let layout = Layout::of(
            &spec(json!({ "properties": { "a": { "type": "string" }, "b": { "type": "integer" } } })),
            Retract::Delete,
        );
        let type_of = |sort| if sort == Sort::Text { "text" } else { "other" };
        let mut has: Vec<_> = layout.columns.iter().map(|c| (c.name.clone(), type_of(c.sort).to_owned())).collect();
        assert!(missing(&layout.columns, &has, type_of, "t").unwrap().is_empty());
        let b = has.remove(FIXED.len() + 1);
        assert_eq!(missing(&layout.columns, &has, type_of, "t").unwrap()[0].name, b.0);
        has[FIXED.len()].1 = "bigint".into();
        assert!(
            missing(&layout.columns, &has, type_of, "t")
                .unwrap_err()
                .contains("column a of the table t is of type bigint")
        );
        assert!(
            missing(&layout.columns, &[("x".into(), "text".into())], type_of, "t")
                .unwrap_err()
                .contains("not made by this output")
        );
    }

    #[test]
    fn a_history_has_a_name_of_its_own() {
        let mut rules =
            Rules { template: "{plugin}_{stream}".into(), retract: Retract::Delete, key: vec![], keep_blocks: 0 };
        let stream = |name: &str| format!("p.{name}").parse::<StreamId>().unwrap();
        assert_eq!(rules.name(&stream("a-b")).unwrap(), "p_a_b");
        assert!(rules.name(&stream(&"x".repeat(61))).is_ok() && rules.name(&stream(&"x".repeat(62))).is_err());
        assert!(rules.clash("p_a", "p_a") && !rules.clash("p_a", "p_a_history"));
        rules.key = vec!["n".into()];
        assert!(rules.name(&stream(&"x".repeat(53))).is_ok() && rules.name(&stream(&"x".repeat(54))).is_err());
        assert!(rules.clash("p_a", "p_a_history") && rules.clash("p_a_history", "p_a") && !rules.clash("p_a", "p_b"));
    }

    #[test]
    fn a_position_stops_before_what_was_refused() {
        let (_, batch) = super::super::samples::batch(5..=7);
        let (ok, no) = (Outcome::Delivered, Outcome::Refused { why: String::new() });
        assert_eq!(reached(&batch, &[ok.clone(), ok.clone(), ok.clone()]), Some(7));
        assert_eq!(reached(&batch, &[ok.clone(), no.clone(), ok.clone()]), Some(5));
        assert_eq!(reached(&batch, &[no, ok.clone(), ok]), None);
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
