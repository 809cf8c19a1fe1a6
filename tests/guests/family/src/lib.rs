//! Follows what contracts say that a maker made, and counts it in its state.

use chainweir_sdk::prelude::*;

sol! {
    event Made(address indexed child, uint256 pings);
    event Pinged(uint256 value);
}

#[config]
pub struct Family {
    maker: Address,
    /// Children made from this block on count, though the plugin begins later.
    #[default]
    since: Option<u64>,
}

#[stream(name = "pings", key = child)]
pub struct Ping {
    child: Address,
    value: U256,
    log_index: u32,
}

const COUNTS: Table<Address, u64> = Table::new("counts");

#[plugin(name = "family", streams(Ping))]
impl Family {
    fn children(&self) -> Vec<Subscription> {
        let factory = Factory::new::<Made>(&self.maker, Child::Topic(1));
        let factory = if let Some(block) = self.since { factory.since(block) } else { factory };
        vec![Subscription::event::<Pinged>().made_by(factory)]
    }

    #[log(subscribe = self.children())]
    fn ping(&self, ping: Pinged, log: &LogView, out: &mut Out<Self>) -> Result {
        if !log.is_made() {
            reject!("{} was made by nobody", log.address());
        }
        COUNTS.update(&log.address(), |count| Ok(count.unwrap_or_default() + 1))?;
        out.emit(&Ping { child: log.address(), value: ping.value, log_index: log.index() })
    }
}
