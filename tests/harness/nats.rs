//! A NATS server of the test's own, with JetStream, that can be killed and started again on the same port and data.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use futures::StreamExt;

pub struct Nats {
    port: u16,
    folder: tempfile::TempDir,
    user: Option<(String, String)>,
    child: Option<Child>,
}

impl Nats {
    /// `None`, with a line that says what to install, where there is no `nats-server`.
    pub async fn start(user: Option<(&str, &str)>) -> Option<Self> {
        let Some(_) = find() else {
            eprintln!("SKIPPED: no nats-server; install it by: apt-get install -y nats-server");
            return None;
        };
        let mut server = Self {
            port: super::free_port(),
            folder: tempfile::tempdir().expect("a temporary folder"),
            user: user.map(|(user, password)| (user.into(), password.into())),
            child: None,
        };
        server.restart().await;
        Some(server)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Every message in a JetStream stream, in order. `None` while there is no such stream.
    pub async fn messages(&self, stream: &str) -> Option<Vec<serde_json::Value>> {
        let context = async_nats::jetstream::new(async_nats::connect(self.url()).await.ok()?);
        let stream = context.get_stream(stream).await.ok()?;
        let count = stream.cached_info().state.messages;
        let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
        let mut messages = stream.create_consumer(config).await.ok()?.messages().await.ok()?;
        let mut all = Vec::new();
        while (all.len() as u64) < count {
            let message = messages.next().await?.ok()?;
            all.push(serde_json::from_slice(&message.payload).expect("JSON"));
        }
        Some(all)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
        }
    }

    pub async fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(find().expect("it was there before"));
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-js", "-sd"]).arg(self.folder.path());
        if let Some((user, password)) = &self.user {
            command.args(["--user", user, "--pass", password]);
        }
        let server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nats-server starts");
        super::listening(self.child.insert(server), self.port, String::new).await;
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/bin".into()])
        .map(|folder| folder.join("nats-server"))
        .find(|file| file.is_file())
}
