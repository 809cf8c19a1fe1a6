//! A PostgreSQL server of the test's own, that can be killed and started again on the same port and data.
//!
//! PostgreSQL refuses to run as root; there it runs as the user `postgres` of the Debian package.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const USER: &str = "weir";
pub const PASSWORD: &str = "correct-horse";

pub struct Postgres {
    port: u16,
    folder: tempfile::TempDir,
    owner: Option<(u32, u32)>,
    /// `name=value`
    settings: Vec<String>,
    child: Option<Child>,
}

impl Postgres {
    /// `None`, with a line that says what to install, where there is no server to be had.
    pub async fn start() -> Option<Self> {
        let Some(_) = find() else {
            eprintln!("SKIPPED: no PostgreSQL server; install it by: apt-get install -y postgresql");
            return None;
        };
        let root = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let owner = if root.unwrap_or(false) {
            let Some(owner) = ids_of("postgres") else {
                eprintln!(
                    "SKIPPED: PostgreSQL does not run as root and there is no user postgres; apt-get install -y postgresql"
                );
                return None;
            };
            Some(owner)
        } else {
            None
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).expect("root may give a folder away");
        }
        let mut server = Self { port: super::free_port(), folder, owner, settings: vec![], child: None };
        let password = server.folder.path().join("password");
        std::fs::write(&password, PASSWORD).expect("a file in the temporary folder");
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&password, Some(uid), Some(gid)).expect("root may give a file away");
        }
        let made = server
            .command("initdb")
            .args(["-U", USER, "-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale", "C", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(server.data())
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server.restart().await;
        Some(server)
    }

    pub fn url(&self) -> String {
        self.url_with(PASSWORD)
    }

    pub fn url_with(&self, password: &str) -> String {
        format!("postgres://{USER}:{password}@127.0.0.1:{}/postgres", self.port)
    }

    /// Restarts with TLS, with a certificate for `localhost` that is its own authority; returns its file. `None`, with a line that says
    /// what to install, where there is no `openssl`.
    pub async fn encrypt(&mut self) -> Option<PathBuf> {
        let (key, certificate) = super::servers::certificate(self.folder.path())?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::chown(&key, Some(uid), Some(gid)).expect("root may give a file away");
        }
        self.settings = [
            "ssl=on".into(),
            format!("ssl_key_file={}", key.display()),
            format!("ssl_cert_file={}", certificate.display()),
        ]
        .into();
        self.restart().await;
        Some(certificate)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of the test's own.
    pub async fn client(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), tokio_postgres::NoTls)
            .await
            .expect("the server takes the test's client");
        tokio::spawn(connection);
        client
    }

    /// Stops every process of the server at once, without a checkpoint ("immediate"): what a crash leaves is recovered.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL on the parent alone would leave its children writing; SIGQUIT is PostgreSQL's way to die at once.
            let killed = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
            assert!(killed.expect("kill runs").success());
            child.wait().expect("our own child can be waited for");
        }
    }

    pub async fn restart(&mut self) {
        self.kill();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-c"]);
        command.arg(format!("unix_socket_directories={}", self.folder.path().display()));
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres starts"));
        let url = self.url();
        super::until("PostgreSQL to answer", || async {
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok().map(drop)
        })
        .await;
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(find().expect("it was there before").join(program));
        command.current_dir(self.folder.path());
        if let Some((uid, gid)) = self.owner {
            command.gid(gid).uid(uid);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folder with the server's programs; the highest version.
fn find() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("postgres").is_file())
        .collect();
    found.sort();
    let on_path = std::env::var_os("PATH")?;
    found.pop().or_else(|| {
        std::env::split_paths(&on_path)
            .find(|bin: &PathBuf| bin.join("postgres").is_file() && bin.join("initdb").is_file())
    })
}

fn ids_of(user: &str) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string(Path::new("/etc/passwd")).ok()?;
    let fields: Vec<&str> = users.lines().map(|line| line.split(':').collect()).find(|f: &Vec<&str>| f[0] == user)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}
