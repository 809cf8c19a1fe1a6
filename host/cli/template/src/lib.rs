//! {{name}}: tells of large ERC-20 transfers. Make it yours.

use chainweir_sdk::prelude::*;

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// What stands under `[plugin.{{name}}]` in chainweir.toml, as `config = { min = "1000000" }`.
#[config]
pub struct Settings {
    /// Only these token contracts; all where the list is empty.
    #[default]
    tokens: Vec<Address>,
    /// The smallest amount worth telling, in the token's smallest unit.
    #[default(U256::from(1_000_000))]
    min: U256,
}

/// A transfer of `min` or more. The stream is `{{name}}.large`.
#[stream]
pub struct Large {
    token: Address,
    from: Address,
    to: Address,
    value: U256,
    /// How many large transfers of this token there were, this one among them.
    count: u64,
}

/// Remembered by the host, and taken back with the block when a reorg orphans it.
const COUNTS: Table<Address, u64> = Table::new("counts");

/// Tells of large ERC-20 transfers.
#[plugin(streams(Large))]
impl Settings {
    #[log(addresses = self.tokens)]
    fn transfer(&self, t: Transfer, log: &LogView, out: &mut Out<Self>) -> Result {
        if t.value < self.min {
            return Ok(());
        }
        let token = log.address();
        let count = COUNTS.update(&token, |count| Ok(count.unwrap_or(0) + 1))?;
        out.emit(&Large { token, from: t.from, to: t.to, value: t.value, count })
    }
}
