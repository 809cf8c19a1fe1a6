mod chain_driver;
mod examples;
mod harness;
