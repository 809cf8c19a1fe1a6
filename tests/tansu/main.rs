//! Tansu, a Kafka broker, as its own command line starts it.

#[tokio::main]
async fn main() {
    tansu_cli::Cli::main().await.expect("the broker runs");
}
