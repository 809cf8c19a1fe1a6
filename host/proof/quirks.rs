//! In what chains depart from Ethereum's rules, by name: a quirk changes a rule, it does not turn checking off.

use alloy_primitives::{B256, keccak256};

use crate::model::ChainId;

/// In what a chain departs from Ethereum's rules. Named, so that a configuration can switch one on. Forms that show by
/// themselves need no name: AuRa's seals, the unsigned transactions of rollups, Arbitrum's further header fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// Bor (Polygon PoS): the last block of a sprint may end in a state-sync transaction (from and to 0x0, gas
    /// 0) that is outside of the roots and of the bloom.
    pub state_sync: bool,
    /// OP stack: since Isthmus the header's withdrawals root is that of a contract's storage, and the list is empty.
    pub op_stack: bool,
    /// Blooms say nothing: set on empty blocks, or zero with logs (zksync-era 4580, l2beat 10113).
    pub bloom_unreliable: bool,
    /// Log indexes of a block need not be 0, 1, 2, ...
    pub log_gaps: bool,
    /// The hash is not the one of the Ethereum header, whatever its fields; nor are its roots.
    pub foreign_header: bool,
    /// Transactions may lack a signature of their sender (impersonation on development chains).
    pub unsigned: bool,
    /// Before this block the chain had headers of another form: Arbitrum One before Nitro.
    pub own_headers_below: u64,
}

type Switch = fn(&mut Quirks);

/// Every quirk that a configuration can name, with its switch.
const NAMED: &[(&str, Switch)] = &[
    ("state-sync", |q| q.state_sync = true),
    ("op-stack", |q| q.op_stack = true),
    ("bloom-unreliable", |q| q.bloom_unreliable = true),
    ("log-gaps", |q| q.log_gaps = true),
    ("foreign-header", |q| q.foreign_header = true),
    ("unsigned", |q| q.unsigned = true),
];

impl Quirks {
    pub fn names() -> String {
        NAMED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// What is known of a chain.
    pub fn of(chain: ChainId) -> Self {
        let none = Self::default();
        match chain.0 {
            137 => Self { state_sync: true, ..none },
            // OP Mainnet, Base, Unichain, Fraxtal, World Chain, Soneium, Mode, Celo, Ink, Zora; Base's and OP's Sepolia.
            10 | 8453 | 130 | 252 | 480 | 1868 | 34443 | 42220 | 57073 | 7777777 | 84532 | 11155420 => {
                Self { op_stack: true, ..none }
            }
            42161 => Self { own_headers_below: 22_207_817, ..none },
            // zkSync Era and its testnet: the bloom and the hash are its own.
            324 | 300 => Self { bloom_unreliable: true, foreign_header: true, ..none },
            // anvil, hardhat, geth --dev, ganache.
            31337 | 1337 => Self { unsigned: true, ..none },
            _ => none,
        }
    }

    /// Switches a quirk on by its name; false if there is none of that name.
    pub fn enable(&mut self, name: &str) -> bool {
        let Some((_, switch)) = NAMED.iter().find(|(n, _)| *n == name) else { return false };
        switch(self);
        true
    }

    /// Whether this block may end in a state-sync transaction: sprints were 64 blocks, and are 16 since Delhi.
    pub fn may_state_sync(&self, number: u64) -> bool {
        self.state_sync && number.is_multiple_of(16)
    }
}

/// The hash of Bor's state-sync transaction: it depends on the block alone
/// (bor `core/types/bor_receipt.go`, `GetDerivedBorTxHash`).
pub fn state_sync_hash(number: u64, block_hash: B256) -> B256 {
    keccak256([b"matic-bor-receipt-".as_slice(), &number.to_be_bytes(), block_hash.as_slice()].concat())
}
