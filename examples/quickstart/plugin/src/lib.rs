//! Large token transfers. Change something, save, and watch the running plugin be replaced.

use chainweir_sdk::prelude::*;

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

#[config]
pub struct Whale {
    /// The smallest transfer worth telling. Here 50 tokens of 18 decimals.
    #[default(U256::from(50_000_000_000_000_000_000_u128))]
    min: U256,
}

/// A transfer of `min` or more.
#[stream(key = token)]
pub struct Large {
    token: Address,
    from: Address,
    to: Address,
    value: U256,
    /// How many large transfers this token had so far, this one among them. A reorg takes it back.
    count: u64,
}

const COUNTS: Table<Address, u64> = Table::new("counts");

/// Tells of large ERC-20 transfers.
#[plugin(streams(Large))]
impl Whale {
    #[log]
    fn transfer(&self, t: Transfer, log: &LogView, out: &mut Out<Self>) -> Result {
        if t.value < self.min {
            return Ok(());
        }
        let token = log.address();
        let count = COUNTS.update(&token, |count| Ok(count.unwrap_or(0) + 1))?;
        out.emit(&Large { token, from: t.from, to: t.to, value: t.value, count })
    }
}
