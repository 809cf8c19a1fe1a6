//! Any events of any contracts, decoded by the host: which ones is said in the configuration, and no code is written.

use chainweir_sdk::prelude::*;

/// The plugin's configuration.
#[config]
pub struct DecodedEvents {
    /// In human-readable ABI, or as a JSON ABI has them, each as a text.
    events: Vec<String>,
    /// Only of these contracts.
    #[default]
    addresses: Vec<Address>,
    /// Only of contracts in this watch set, which is edited while the host runs. Beside `addresses`.
    #[default]
    addresses_set: Option<String>,
}

/// Passes the logs of some events on, with their arguments by name.
#[plugin]
impl DecodedEvents {
    #[init]
    fn check(&mut self) -> Result {
        if self.events.is_empty() {
            reject!(
                "`events` is empty: name at least one, as in \"event Transfer(address indexed from, address indexed to, uint256 value)\""
            );
        }
        Ok(())
    }

    fn wanted(&self) -> Vec<Subscription> {
        let logs = Subscription::logs().addresses(&self.addresses);
        let logs = self.addresses_set.iter().fold(logs, |logs, set| logs.set(Place::Address, set));
        vec![self.events.iter().fold(logs, |logs, event| logs.decode(event))]
    }

    #[log(subscribe = self.wanted(), pass = "events")]
    fn event(&self) -> bool {
        true
    }
}
