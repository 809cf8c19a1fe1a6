//! Names and ids: one type per meaning.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{B256, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{EventPosition, Op};

/// An EIP-155 chain id. Written as CAIP-2: `eip155:1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub u64);

impl ChainId {
    /// CAIP-2's, of EVM chains, with what parts it from the number.
    pub const NAMESPACE: &str = "eip155:";
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::NAMESPACE, self.0)
    }
}

impl FromStr for ChainId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let id = text.strip_prefix(Self::NAMESPACE).and_then(|id| id.parse().ok());
        id.map(Self).ok_or_else(|| format!("'{text}' is no chain: write it as eip155:1 (CAIP-2)"))
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a name: use 1 to 64 lower-case letters, digits, '-' or '_', beginning with a letter")]
pub struct NameError(pub String);

fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks `text` against the rule in [`NameError`].
            pub fn new(text: &str) -> Result<Self, NameError> {
                if is_name(text) { Ok(Self(text.into())) } else { Err(NameError(text.into())) }
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(/// A plugin, by the name in its manifest.
    PluginName);
name!(/// A stream of one plugin.
    StreamName);
name!(/// An output, by its table in the configuration.
    OutputName);
name!(/// A watch set, as users call it.
    SetName);

/// `plugin.stream`: the address of what a plugin emits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub plugin: PluginName,
    pub stream: StreamName,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.plugin, self.stream)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StreamId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (plugin, stream) = text.split_once('.').ok_or_else(|| NameError(text.into()))?;
        Ok(Self { plugin: PluginName::new(plugin)?, stream: StreamName::new(stream)? })
    }
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(hex::Buffer::<16>::new().format(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut id = [0; 16];
                // The decoder would take a 0x, too.
                if text.len() != 2 * id.len() {
                    return Err(hex::FromHexError::InvalidStringLength);
                }
                hex::decode_to_slice(text, &mut id)?;
                Ok(Self(id))
            }
        }
    };
}

hash_id!(/// The one id of an emission's whole life: the same after restart, replay and reload.
    EmissionId);
hash_id!(/// The id of one thing said about an emission on one route: the same at every attempt.
    DeliveryId);

fn digest<const N: usize>(parts: [&[u8]; N]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        // Length before content: no two lists of parts give the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    id
}

impl EmissionId {
    /// `ordinal` counts the emissions of one event to one stream; `incarnation` counts how often the
    /// plugin had this very block taken away before.
    pub fn of(
        chain: ChainId,
        block_hash: &B256,
        position: EventPosition,
        stream: &StreamId,
        ordinal: u32,
        incarnation: u32,
    ) -> Self {
        Self(digest([
            b"emission",
            &chain.0.to_le_bytes(),
            block_hash.as_slice(),
            &position.to_bytes(),
            stream.plugin.as_str().as_bytes(),
            stream.stream.as_str().as_bytes(),
            &ordinal.to_le_bytes(),
            &incarnation.to_le_bytes(),
        ]))
    }
}

impl DeliveryId {
    /// A feed is not a route: it uses the output name `None`.
    pub fn of(emission: EmissionId, output: Option<&OutputName>, op: Op) -> Self {
        let output = output.map_or("", |o| o.as_str());
        Self(digest([b"delivery", &emission.0, output.as_bytes(), op.as_str().as_bytes()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "erc20-transfers", "x_1"] {
            assert_eq!(PluginName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "A", "1a", "a.b", "ü", "a b", &"a".repeat(65)] {
            assert_eq!(PluginName::new(bad), Err(NameError(bad.into())));
        }
        assert_eq!("whale.large".parse::<StreamId>().unwrap().to_string(), "whale.large");
        assert!("whale".parse::<StreamId>().is_err());
        assert_eq!("01".repeat(16).parse(), Ok(DeliveryId([1; 16])));
        for bad in ["0x".to_owned() + &"01".repeat(16), "0x".to_owned() + &"01".repeat(15), "01".repeat(15)] {
            assert!(bad.parse::<DeliveryId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_part_of_an_emission_changes_its_id() {
        let stream: StreamId = "p.s".parse().unwrap();
        let other: StreamId = "p.t".parse().unwrap();
        let (a, b) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let id = EmissionId::of(ChainId(1), &a, EventPosition::Log(3), &stream, 0, 0);
        assert_eq!(id, EmissionId::of(ChainId(1), &a, EventPosition::Log(3), &stream, 0, 0));
        for changed in [
            EmissionId::of(ChainId(2), &a, EventPosition::Log(3), &stream, 0, 0),
            EmissionId::of(ChainId(1), &b, EventPosition::Log(3), &stream, 0, 0),
            EmissionId::of(ChainId(1), &a, EventPosition::Transaction(3), &stream, 0, 0),
            EmissionId::of(ChainId(1), &a, EventPosition::Log(3), &other, 0, 0),
            EmissionId::of(ChainId(1), &a, EventPosition::Log(3), &stream, 1, 0),
            EmissionId::of(ChainId(1), &a, EventPosition::Log(3), &stream, 0, 1),
        ] {
            assert_ne!(id, changed);
        }
        assert_eq!(id.to_string().parse::<EmissionId>().unwrap(), id);
    }
}
