mod chain_driver;
mod harness;
