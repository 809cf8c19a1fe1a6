//! Asks a running process, over its HTTP interface.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Trouble;
use super::trouble::Mistakes;
use crate::config::Config;

/// Where the running process is.
#[derive(clap::Args, Debug, Clone)]
pub struct Where {
    /// Address of the running process; by default [http].listen of the configuration
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Configuration of the running process
    #[arg(long, value_name = "FILE", default_value = "chainweir.toml")]
    config: PathBuf,
}

pub struct Client {
    base: String,
    http: reqwest::Client,
}

const NEXT: &str = "start it with 'chainweir run', or say where it listens with --url http://HOST:PORT";

impl Where {
    /// For a command whose own `--config` is something else.
    pub fn at(url: Option<String>) -> Self {
        Self { url, config: "chainweir.toml".into() }
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        let base = match &self.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => self.url_of_config()?,
        };
        // Commands wait for a swap between two blocks at most: 30 s is patient.
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build()?;
        Ok(Client { base, http })
    }

    fn url_of_config(&self) -> anyhow::Result<String> {
        // Without a file the process was started by `run --rpc`, which listens at the default.
        let config = if self.config.exists() {
            Config::load(&self.config).map_err(Mistakes)?
        } else {
            Config::empty(".".as_ref())
        };
        let Some(mut address) = config.http.listen else {
            let what = format!("{} has [http] listen = \"off\": the process cannot be asked", self.config.display());
            return Err(Trouble::new(what, "give it an address, or ask another one with --url").into());
        };
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        Ok(format!("http://{address}"))
    }
}

impl Client {
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let value = self.send(self.http.get(format!("{}{path}", self.base))).await?;
        serde_json::from_value(value).with_context(|| self.strange(path))
    }

    /// A command; its answer is for a person.
    pub async fn post(&self, path: &str, body: Option<&Value>) -> anyhow::Result<String> {
        let request = self.http.post(format!("{}{path}", self.base));
        // Always JSON: a listener without a password takes nothing that a web page's form could send.
        let nothing = Value::Object(Default::default());
        let answer = self.send(request.json(body.unwrap_or(&nothing))).await?;
        Ok(answer.get("ok").and_then(Value::as_str).unwrap_or("done").to_owned())
    }

    /// A command whose answer is more than a text.
    pub async fn post_for(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.http.post(format!("{}{path}", self.base)).json(body)).await
    }

    fn strange(&self, path: &str) -> Trouble {
        let what = format!("{}{path} answered something else than expected", self.base);
        Trouble::new(what, "see that it is Chainweir that listens there, of the version of this command")
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                return Err(Trouble::absent(format!("nothing listens at {}", self.base), NEXT).into());
            }
            Err(error) => return Err(error).context(Trouble::new(format!("{} does not answer", self.base), NEXT)),
        };
        let status = response.status();
        let path = response.url().path().to_owned();
        let body: Value = response.json().await.with_context(|| self.strange(&path))?;
        if status.is_success() {
            return Ok(body);
        }
        let why = body.get("error").and_then(Value::as_str).map_or_else(|| format!("{path}: {status}"), str::to_owned);
        Err(Trouble::new(why, "'chainweir status' shows how things stand").into())
    }
}
