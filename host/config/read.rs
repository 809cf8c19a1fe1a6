//! The tools of [`super::parse`]: tables and values with their places, and a list of mistakes that grows.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Expect, Section};
use super::suggest::hint;
use super::{Mistake, Place};
use crate::model::NameError;

pub type Value<'i> = Spanned<DeValue<'i>>;

pub struct Reader<'a> {
    pub text: &'a str,
    pub file: &'a str,
    pub mistakes: Vec<Mistake>,
    pub places: BTreeMap<String, Place>,
}

/// The keys of one table that are known and hold what they should; the others have been named as mistakes.
pub struct Found<'t>(pub BTreeMap<&'t str, &'t Value<'t>>);

impl<'t> Found<'t> {
    pub fn value(&self, key: &str) -> Option<&'t Value<'t>> {
        self.0.get(key).copied()
    }
    pub fn text(&self, key: &str) -> Option<&'t str> {
        self.value(key)?.get_ref().as_str()
    }
    pub fn whole(&self, key: &str) -> Option<u64> {
        whole(self.value(key)?.get_ref())
    }
    pub fn table(&self, key: &str) -> Option<&'t DeTable<'t>> {
        self.value(key)?.get_ref().as_table()
    }
    pub fn texts(&self, key: &str) -> Option<Vec<(&'t str, Range<usize>)>> {
        let array = self.value(key)?.get_ref().as_array()?;
        Some(array.iter().filter_map(|item| Some((item.get_ref().as_str()?, item.span()))).collect())
    }
}

pub fn whole(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

pub fn in_words(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

impl Reader<'_> {
    pub fn wrong(&mut self, at: Range<usize>, what: impl Into<String>) {
        let place = Some(self.place(at.start));
        self.mistakes.push(Mistake { file: self.file.to_owned(), place, what: what.into() });
    }

    pub fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }

    pub fn note_places(&mut self, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
            self.places.insert(path.clone(), self.place(key.span().start));
            match value.get_ref() {
                DeValue::Table(inner) => self.note_places(&path, inner),
                DeValue::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        let path = format!("{path}.{index}");
                        self.places.insert(path.clone(), self.place(item.span().start));
                        if let DeValue::Table(inner) = item.get_ref() {
                            self.note_places(&path, inner);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Names what is unknown or of the wrong type in a table. `more` are keys that somebody else reads.
    pub fn section<'t>(
        &mut self,
        title: &str,
        table: &'t DeTable<'t>,
        section: &Section,
        more: Option<&[&str]>,
    ) -> Found<'t> {
        let mut found = BTreeMap::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if let Some(known) = section.keys.iter().find(|known| known.name == name) {
                if self.fits(title, known.name, &known.expect, value) {
                    found.insert(name, value);
                }
            } else if more.is_some_and(|more| !more.contains(&name)) {
                let known: Vec<&str> =
                    section.keys.iter().map(|k| k.name).chain(more.unwrap_or_default().iter().copied()).collect();
                self.wrong(key.span(), format!("unknown key '{name}' in {title}{}", hint(name, known.iter().copied())));
            }
        }
        Found(found)
    }

    pub fn fits(&mut self, title: &str, name: &str, expect: &Expect, value: &Value<'_>) -> bool {
        let inner = value.get_ref();
        let wrong_type = |wanted: &str| format!("'{name}' in {title}: expected {wanted}, found {}", in_words(inner));
        let what = match expect {
            Expect::Forms(_) => None,
            Expect::Text => (!inner.is_str()).then(|| wrong_type("a string")),
            Expect::Table => (!inner.is_table()).then(|| wrong_type("a table")),
            Expect::Word(words) => match inner.as_str() {
                None => Some(wrong_type(&expect.in_words())),
                Some(word) if words.contains(&word) => None,
                Some(word) => {
                    let hint = hint(word, words.iter().copied());
                    Some(format!("'{name}' in {title}: unknown word '{word}'{hint}"))
                }
            },
            Expect::Whole(least, most) => match whole(inner) {
                Some(number) if (*least..=*most).contains(&number) => None,
                _ if !inner.is_integer() => Some(wrong_type("a number")),
                _ => Some(format!("'{name}' in {title}: expected a number from {least} to {most}")),
            },
            Expect::Texts => match inner.as_array() {
                None => Some(wrong_type("a list of strings")),
                Some(items) => {
                    let mut fits = true;
                    for item in items.iter().filter(|item| !item.get_ref().is_str()) {
                        fits = false;
                        let found = in_words(item.get_ref());
                        self.wrong(item.span(), format!("'{name}' in {title}: expected a string, found {found}"));
                    }
                    return fits;
                }
            },
        };
        let fits = what.is_none();
        if let Some(what) = what {
            self.wrong(value.span(), what);
        }
        fits
    }

    /// The one table `[name]`.
    pub fn single<'t>(&mut self, root: &'t DeTable<'t>, name: &str, section: &Section) -> Found<'t> {
        match root.get(name) {
            None => Found(BTreeMap::new()),
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => self.section(section.title, table, section, Some(&[])),
                other => {
                    let found = in_words(other);
                    self.wrong(value.span(), format!("'{name}': expected a table {}, found {found}", section.title));
                    Found(BTreeMap::new())
                }
            },
        }
    }

    /// The tables `[name.X]`: name, place of the name, and content.
    pub fn named<'t>(&mut self, root: &'t DeTable<'t>, name: &str) -> Vec<(&'t str, Range<usize>, &'t DeTable<'t>)> {
        let Some(value) = root.get(name) else { return vec![] };
        let Some(table) = value.get_ref().as_table() else {
            let found = in_words(value.get_ref());
            self.wrong(value.span(), format!("'{name}': expected tables [{name}.NAME], found {found}"));
            return vec![];
        };
        let mut named = vec![];
        for (key, inner) in table {
            match inner.get_ref() {
                DeValue::Table(inner) => named.push((key.get_ref().as_ref(), key.span(), inner)),
                other => {
                    let (key_name, found) = (key.get_ref(), in_words(other));
                    let what = format!("'{key_name}' in [{name}]: expected a table [{name}.NAME], found {found}");
                    self.wrong(key.span(), what);
                }
            }
        }
        named
    }

    pub fn name<T>(&mut self, text: &str, at: Range<usize>, new: fn(&str) -> Result<T, NameError>) -> Option<T> {
        new(text).map_err(|error| self.wrong(at, error.to_string())).ok()
    }

    pub fn wrong_form(&mut self, value: &Value<'_>, name: &str, section: &Section) {
        let wanted = section.keys.iter().find(|key| key.name == name).map_or_else(String::new, |k| k.expect.in_words());
        let found = match value.get_ref() {
            DeValue::String(text) => format!("'{text}'"),
            other => in_words(other).to_owned(),
        };
        self.wrong(value.span(), format!("'{name}' in {}: expected {wanted}; found {found}", section.title));
    }

    pub fn kind<'t>(&mut self, title: &str, key: &str, table: &'t DeTable<'t>, kinds: &[&str]) -> Kind<'t> {
        let Some(value) = table.get(key) else { return Kind::Absent };
        match value.get_ref() {
            DeValue::String(name) if kinds.contains(&name.as_ref()) => Kind::Given(name),
            DeValue::String(name) => {
                self.wrong(
                    value.span(),
                    format!("unknown {key} '{name}' in {title}{}", hint(name, kinds.iter().copied())),
                );
                Kind::Wrong
            }
            other => {
                let found = in_words(other);
                self.wrong(value.span(), format!("'{key}' in {title}: expected a string, found {found}"));
                Kind::Wrong
            }
        }
    }

    /// What is left of a table for the kind that reads it.
    pub fn raw(&mut self, table: &DeTable<'_>, section: &Section) -> toml::Table {
        let rest = table.iter().filter(|(key, _)| !section.keys.iter().any(|k| k.name == key.get_ref().as_ref()));
        rest.filter_map(|(key, value)| Some((key.get_ref().to_string(), self.raw_value(value)?))).collect()
    }

    pub fn raw_value(&mut self, value: &Value<'_>) -> Option<toml::Value> {
        Some(match value.get_ref() {
            DeValue::String(text) => toml::Value::String(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => toml::Value::Integer(number),
                Err(_) => {
                    self.wrong(value.span(), format!("{number} does not fit 64 bits: write it as a string"));
                    return None;
                }
            },
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => toml::Value::Float(number),
                Err(_) => {
                    self.wrong(
                        value.span(),
                        format!("{number} is not a number that can be kept: write it as a string"),
                    );
                    return None;
                }
            },
            DeValue::Boolean(yes) => toml::Value::Boolean(*yes),
            DeValue::Datetime(date) => toml::Value::Datetime(*date),
            DeValue::Array(items) => toml::Value::Array(items.iter().filter_map(|item| self.raw_value(item)).collect()),
            DeValue::Table(table) => toml::Value::Table(
                table
                    .iter()
                    .filter_map(|(key, value)| Some((key.get_ref().to_string(), self.raw_value(value)?)))
                    .collect(),
            ),
        })
    }

    pub fn json(&mut self, table: &DeTable<'_>) -> serde_json::Map<String, serde_json::Value> {
        table
            .iter()
            .filter_map(|(key, value)| {
                let place = value.span();
                let json = to_json(self.raw_value(value)?);
                if json.is_none() {
                    self.wrong(
                        place,
                        format!("'{}': infinite and undefined numbers have no form in JSON", key.get_ref()),
                    );
                }
                Some((key.get_ref().to_string(), json?))
            })
            .collect()
    }
}

pub enum Kind<'t> {
    Absent,
    Wrong,
    Given(&'t str),
}

/// A plugin reads its configuration as JSON: dates become strings.
fn to_json(value: toml::Value) -> Option<serde_json::Value> {
    Some(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)?.into(),
        toml::Value::Boolean(yes) => yes.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(items) => serde_json::Value::Array(items.into_iter().map(to_json).collect::<Option<_>>()?),
        toml::Value::Table(table) => serde_json::Value::Object(
            table.into_iter().map(|(key, value)| Some((key, to_json(value)?))).collect::<Option<_>>()?,
        ),
    })
}
