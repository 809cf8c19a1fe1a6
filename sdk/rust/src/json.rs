//! How values of the chain look in JSON, both ways: in payloads and their schemas, and in the plugin's configuration.
//!
//! | Rust | JSON | schema |
//! |---|---|---|
//! | `U256` and every other `Uint`, `u128` | decimal string, never a number: JSON numbers lose digits beyond 2^53 | `format: uint256` |
//! | `I256` and every other `Signed`, `i128` | decimal string | `format: int256` |
//! | `Address` | `0x` and 40 lower-case hex digits | `format: address` |
//! | `B256` | `0x` and 64 lower-case hex digits | `format: hash` |
//! | `FixedBytes`, `Bytes` | `0x` and lower-case hex digits | `format: bytes` |
//!
//! [`stream`](macro@crate::stream) and [`config`](macro@crate::config) put these on every field whose type mentions one of those types. Plain
//! `serde` would write and read a `U256` as hexadecimal, with or without `0x`: do not derive it on money yourself.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use alloy_primitives::{Address, Bytes, FixedBytes, Signed, Uint};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap, ser::SerializeSeq};

/// A value that goes into a payload.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no JSON form in a field that also mentions a number or address of the chain",
    note = "put #[stream] or #[json] on `{Self}`, or move it into a field of its own"
)]
pub trait ToJson {
    /// Writes the value.
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    /// JSON Schema of what `to_json` writes.
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

/// A value that is read from the configuration.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a configuration field that also mentions a number or address of the chain",
    note = "put #[json] on `{Self}`, or move it into a field of its own"
)]
pub trait FromJson: Sized {
    /// Reads the value.
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// Serializes a [`ToJson`].
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a, T: ?Sized>(pub &'a T);

impl<T: ToJson + ?Sized> Serialize for Shown<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_json(serializer)
    }
}

/// Deserializes a [`FromJson`].
#[derive(Clone, Copy, Debug)]
pub struct Read<T>(pub T);

impl<'de, T: FromJson> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::from_json(deserializer).map(Self)
    }
}

/// Stands for the schema of a [`ToJson`].
#[derive(Clone, Copy, Debug)]
pub struct SchemaOf<T>(PhantomData<T>);

impl<T: ToJson> JsonSchema for SchemaOf<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        std::any::type_name::<T>().into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }
}

/// For `#[serde(serialize_with)]`.
pub fn serialize<T: ToJson, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.to_json(serializer)
}

/// For `#[serde(deserialize_with)]`.
pub fn deserialize<'de, T: FromJson, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::from_json(deserializer)
}

// --- numbers ----------------------------------------------------------------------------------------------

fn decimal_schema(signed: bool) -> Schema {
    if signed {
        json_schema!({"type": "string", "format": "int256", "pattern": "^-?[0-9]+$"})
    } else {
        json_schema!({"type": "string", "format": "uint256", "pattern": "^[0-9]+$"})
    }
}

/// Reads an integer that may be larger than JSON's numbers: a decimal or `0x` string, or a whole number.
struct Integer<T> {
    bits: usize,
    signed: bool,
    parse: fn(&str) -> Option<T>,
}

impl<'de, T> de::Visitor<'de> for Integer<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.signed { "a" } else { "an unsigned" };
        write!(f, "{sign} whole number of at most {} bits, as a decimal string such as \"1000000\"", self.bits)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        (self.parse)(&value.to_string()).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        (self.parse)(&value.to_string()).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
    }
}

/// Is it digits, or `0x` and hexadecimal digits? What a parser makes of other texts is not for money.
fn is_integer(text: &str, signed: bool) -> bool {
    let digits = if signed { text.strip_prefix('-').unwrap_or(text) } else { text };
    match digits.strip_prefix("0x") {
        Some(hex) => !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
    }
}

impl<const BITS: usize, const LIMBS: usize> ToJson for Uint<BITS, LIMBS> {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self <= Self::from(u64::MAX >> (64 - BITS.min(64))) {
            // Most amounts fit into 64 bits, and dividing those is far cheaper.
            return serializer.collect_str(&self.as_limbs().first().copied().unwrap_or(0));
        }
        serializer.collect_str(self)
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        decimal_schema(false)
    }
}

impl<const BITS: usize, const LIMBS: usize> FromJson for Uint<BITS, LIMBS> {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| if is_integer(text, false) { text.parse().ok() } else { None };
        deserializer.deserialize_any(Integer { bits: BITS, signed: false, parse })
    }
}

impl<const BITS: usize, const LIMBS: usize> ToJson for Signed<BITS, LIMBS> {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        decimal_schema(true)
    }
}

impl<const BITS: usize, const LIMBS: usize> FromJson for Signed<BITS, LIMBS> {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| if is_integer(text, true) { text.parse().ok() } else { None };
        deserializer.deserialize_any(Integer { bits: BITS, signed: true, parse })
    }
}

macro_rules! wide {
    ($($ty:ty, $signed:literal;)*) => {$(
        impl ToJson for $ty {
            fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
            fn schema(_: &mut SchemaGenerator) -> Schema {
                decimal_schema($signed)
            }
        }
        impl FromJson for $ty {
            fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let parse = |text: &str| if is_integer(text, $signed) { text.parse().ok() } else { None };
                deserializer.deserialize_any(Integer { bits: 128, signed: $signed, parse })
            }
        }
    )*};
}
wide! { u128, false; i128, true; }

// --- bytes ------------------------------------------------------------------------------------------------

struct Hex<T> {
    what: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<'de, T> de::Visitor<'de> for Hex<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let parsed = if text.starts_with("0x") { (self.parse)(text) } else { None };
        parsed.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl ToJson for Address {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_json(serializer)
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "address", "pattern": "^0x[0-9a-f]{40}$"})
    }
}

impl FromJson for Address {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn parse(text: &str) -> Option<Address> {
            let address: Address = text.parse().ok()?;
            // Mixed case is a checksum (EIP-55): one wrong digit in it must not become another address.
            let digits = &text[2..];
            let mixed =
                digits.bytes().any(|b| b.is_ascii_uppercase()) && digits.bytes().any(|b| b.is_ascii_lowercase());
            (!mixed || address.to_checksum(None) == text).then_some(address)
        }
        deserializer.deserialize_str(Hex {
            what: "an address: \"0x\" and 40 hexadecimal digits, with a correct checksum if the case is mixed",
            parse,
        })
    }
}

impl<const N: usize> ToJson for FixedBytes<N> {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buffer = alloy_primitives::hex::Buffer::<N, true>::new();
        serializer.serialize_str(buffer.format(&self.0))
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        let format = if N == 32 { "hash" } else { "bytes" };
        json_schema!({"type": "string", "format": format, "pattern": format!("^0x[0-9a-f]{{{}}}$", 2 * N)})
    }
}

impl<const N: usize> FromJson for FixedBytes<N> {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = if N == 32 {
            "a hash: \"0x\" and 64 hexadecimal digits"
        } else {
            "\"0x\" and the right number of hexadecimal digits"
        };
        deserializer.deserialize_str(Hex { what, parse: |text| text.parse().ok() })
    }
}

impl ToJson for Bytes {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&alloy_primitives::hex::encode_prefixed(self))
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "bytes", "pattern": "^0x([0-9a-f]{2})*$"})
    }
}

impl FromJson for Bytes {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Hex {
            what: "\"0x\" and an even number of hexadecimal digits",
            parse: |text| text.parse().ok(),
        })
    }
}

// --- what may stand beside them ---------------------------------------------------------------------------

macro_rules! plain {
    ($($ty:ty)*) => {$(
        impl ToJson for $ty {
            fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.serialize(serializer)
            }
            fn schema(generator: &mut SchemaGenerator) -> Schema {
                <$ty as JsonSchema>::json_schema(generator)
            }
        }
        impl FromJson for $ty {
            fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$ty as Deserialize>::deserialize(deserializer)
            }
        }
    )*};
}
plain! { bool u8 u16 u32 u64 i8 i16 i32 i64 String }

impl<T: ToJson> ToJson for &T {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (*self).to_json(serializer)
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }
}

impl<T: ToJson> ToJson for Option<T> {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Some(value) => serializer.serialize_some(&Shown(value)),
            None => serializer.serialize_none(),
        }
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        <Option<SchemaOf<T>> as JsonSchema>::json_schema(generator)
    }
}

impl<T: FromJson> FromJson for Option<T> {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Read<T>>::deserialize(deserializer)?.map(|read| read.0))
    }
}

fn sequence<'a, T: ToJson + 'a, S: Serializer>(
    items: impl ExactSizeIterator<Item = &'a T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut out = serializer.serialize_seq(Some(items.len()))?;
    for item in items {
        out.serialize_element(&Shown(item))?;
    }
    out.end()
}

impl<T: ToJson> ToJson for Vec<T> {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        sequence(self.iter(), serializer)
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        <Vec<SchemaOf<T>> as JsonSchema>::json_schema(generator)
    }
}

impl<T: ToJson, const N: usize> ToJson for [T; N] {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        sequence(self.iter(), serializer)
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let item = T::schema(generator);
        json_schema!({"type": "array", "items": item, "minItems": N, "maxItems": N})
    }
}

impl<T: FromJson> FromJson for Vec<T> {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, and not through `Vec<Read<T>>`, only because that would copy; the error path is the same.
        struct Items<T>(PhantomData<T>);
        impl<'de, T: FromJson> de::Visitor<'de> for Items<T> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element::<Read<T>>()? {
                    items.push(item.0);
                }
                Ok(items)
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}

impl<A: ToJson, B: ToJson> ToJson for (A, B) {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Shown(&self.0), Shown(&self.1)).serialize(serializer)
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        <(SchemaOf<A>, SchemaOf<B>) as JsonSchema>::json_schema(generator)
    }
}

impl<A: FromJson, B: FromJson> FromJson for (A, B) {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (a, b) = <(Read<A>, Read<B>)>::deserialize(deserializer)?;
        Ok((a.0, b.0))
    }
}

impl<K: ToJson + Ord, V: ToJson> ToJson for BTreeMap<K, V> {
    fn to_json<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (key, value) in self {
            map.serialize_entry(&Shown(key), &Shown(value))?;
        }
        map.end()
    }
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let value = V::schema(generator);
        json_schema!({"type": "object", "additionalProperties": value})
    }
}

impl<K: FromJson + Ord, V: FromJson> FromJson for BTreeMap<K, V> {
    fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<K, V>(PhantomData<(K, V)>);
        impl<'de, K: FromJson + Ord, V: FromJson> de::Visitor<'de> for Entries<K, V> {
            type Value = BTreeMap<K, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<Read<K>, Read<V>>()? {
                    if map.insert(key.0, value.0).is_some() {
                        return Err(de::Error::custom("a key stands there twice"));
                    }
                }
                Ok(map)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// A value as a lane key: its JSON form, without quotes.
pub fn key_text<T: ToJson>(value: &T) -> String {
    match serde_json::to_value(Shown(value)) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        // Only maps with strange keys fail, and those are no `ToJson` here; the payload would fail the same way and reject.
        Err(_) => String::new(),
    }
}
