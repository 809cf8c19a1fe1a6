//! Watch sets: what is a member, and how a set is edited.

use alloy_primitives::{Address, B256, hex};

use super::{ChainId, SetName};

/// Rises with every edit. Number 0 holds from the beginning of every chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EditId(pub u32);

/// A member: an address, or a word that is none. A word with twelve leading zeros is the address in it: a topic and
/// the address that it holds are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    Address(Address),
    Word(B256),
}

impl From<Address> for Member {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl From<B256> for Member {
    fn from(word: B256) -> Self {
        if word[..12] == [0; 12] { Self::Address(Address::from_word(word)) } else { Self::Word(word) }
    }
}

impl Member {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Address(address) => address.as_slice(),
            Self::Word(word) => word.as_slice(),
        }
    }

    /// 20 or 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            20 => Some(Self::Address(Address::from_slice(bytes))),
            32 => Some(B256::from_slice(bytes).into()),
            _ => None,
        }
    }
}

impl std::str::FromStr for Member {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = hex::decode(text).ok();
        bytes.and_then(|b| Self::from_slice(&b)).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            format!("'{shown}' is neither an address (20 bytes) nor a word (32 bytes) in hex")
        })
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode_prefixed(self.as_slice()))
    }
}

/// One edit of one set: what really changed, and from which block on it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub id: EditId,
    pub set: SetName,
    /// On chains that are not named it holds from the beginning.
    pub begins: Vec<(ChainId, u64)>,
    pub add: Vec<Member>,
    pub remove: Vec<Member>,
}
