//! Every ERC-20 transfer as JSON, filtered by token, party or amount, with a running total per token.

use chainweir_sdk::prelude::*;

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// The plugin's configuration. Without it, every transfer of every token is emitted.
#[config]
pub struct Erc20Transfers {
    /// Only these token contracts.
    #[default]
    tokens: Vec<Address>,
    /// Only transfers from or to one of these.
    #[default]
    parties: Vec<Address>,
    /// Only transfers from or to a member of this watch set, which is edited while the host runs. Beside `parties`.
    #[default]
    parties_set: Option<String>,
    /// Only transfers of this many of the token's smallest unit, or more.
    #[default]
    min: U256,
}

/// An ERC-20 transfer. `value` counts the token's smallest unit.
#[stream(name = "transfers", key = token)]
pub struct Moved {
    token: Address,
    from: Address,
    to: Address,
    value: U256,
    log_index: u32,
    tx: B256,
}

/// Per token: how many transfers were emitted, and their sum, which wraps at 2^256 as the chain's own numbers do.
#[json]
#[derive(Debug, Default, PartialEq)]
pub struct Total {
    pub count: u64,
    pub sum: U256,
}

/// In state: the totals of each token.
pub const TOTALS: Table<Address, Total> = Table::new("totals");

/// Emits ERC-20 transfers, by default all, and keeps totals per token.
#[plugin(streams(Moved))]
impl Erc20Transfers {
    /// A transfer has two topics to filter by, and either will do: two subscriptions.
    fn wanted(&self) -> Vec<Subscription> {
        let of_tokens = Subscription::event::<Transfer>().addresses(&self.tokens);
        if self.parties.is_empty() && self.parties_set.is_none() {
            return vec![of_tokens];
        }
        let at = |place: u8| {
            let side = of_tokens.clone().topic(place.into(), &self.parties);
            self.parties_set.iter().fold(side, |side, set| side.set(Place::Topic(place), set))
        };
        vec![at(1), at(2)]
    }

    #[log(subscribe = self.wanted())]
    fn transfer(&self, t: Transfer, log: &LogView, out: &mut Out<Self>) -> Result {
        if t.value < self.min {
            return Ok(());
        }
        TOTALS.update(&log.address(), |total| {
            let total = total.unwrap_or_default();
            Ok(Total { count: total.count + 1, sum: total.sum.wrapping_add(t.value) })
        })?;
        out.emit(&Moved {
            token: log.address(),
            from: t.from,
            to: t.to,
            value: t.value,
            log_index: log.index(),
            tx: *log.tx_hash(),
        })
    }
}
