//! Servers from Debian's packages, each of the test's own: on a free port and in a temporary folder, to be killed and started
//! again on the same port and data.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::cable::Cable;

pub const USER: &str = "weir";
pub const PASSWORD: &str = "correct-horse";

/// The variable that says where the program of tests/tansu was built.
const TANSU: &str = "CHAINWEIR_TANSU";

pub struct Server {
    pub port: u16,
    folder: tempfile::TempDir,
    /// How the program is called, given its folder and port.
    command: fn(&Path, u16) -> Command,
    /// The signal that ends it at once; to one that keeps everything in memory until it is asked to stop, a milder one.
    signal: &'static str,
    /// More arguments, for one test.
    more: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// With the database `shop`, for [`USER`] with [`PASSWORD`].
    pub async fn mariadb(more: &[&str]) -> Option<Self> {
        find("mariadbd", "mariadb-server")?;
        let command = |folder: &Path, port: u16| {
            let data = folder.join("data");
            if !data.is_dir() {
                let mut install = Command::new("mariadb-install-db");
                // In one that they share, a server that starts takes away the temporary tables of all others.
                install.env("TMPDIR", folder);
                install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
                let said =
                    install.arg(format!("--datadir={}", data.display())).output().expect("mariadb-install-db runs");
                assert!(said.status.success(), "mariadb-install-db: {said:?}");
                // A statement a line.
                let user = format!(
                    "CREATE DATABASE IF NOT EXISTS shop;\nCREATE USER IF NOT EXISTS {USER}@'%' IDENTIFIED BY '{PASSWORD}';\n\
                     GRANT ALL ON shop.* TO {USER}@'%';\n"
                );
                std::fs::write(folder.join("init.sql"), user).expect("a file in the temporary folder");
            }
            let mut command = Command::new(find("mariadbd", "mariadb-server").expect("it was there before"));
            command.env("TMPDIR", folder);
            command.args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1", "--skip-name-resolve"]);
            command.arg(format!("--port={port}")).arg(format!("--datadir={}", data.display()));
            command.arg(format!("--socket={}", folder.join("socket").display()));
            command.arg(format!("--init-file={}", folder.join("init.sql").display()));
            command
        };
        Self::start("mariadbd", "mariadb-server", command, "-KILL", more).await
    }

    /// Keeps what it has when it is stopped, not when it is killed.
    pub async fn mosquitto(settings: &[&str]) -> Option<Self> {
        let command = |folder: &Path, port: u16| {
            let settings = std::fs::read_to_string(folder.join("settings")).unwrap_or_default();
            let config = format!(
                "listener {port} 127.0.0.1\npersistence true\npersistence_location {}/\nmax_queued_messages 0\n\
                 user root\n{settings}",
                folder.display()
            );
            std::fs::write(folder.join("mosquitto.conf"), config).expect("a file in the temporary folder");
            let mut command = Command::new(find("mosquitto", "mosquitto").expect("it was there before"));
            command.arg("-c").arg(folder.join("mosquitto.conf"));
            command
        };
        let mut server = Self::new("mosquitto", "mosquitto", command, "-TERM", &[])?;
        std::fs::write(server.folder.path().join("settings"), settings.join("\n")).expect("a file in the folder");
        server.restart().await;
        Some(server)
    }

    /// An S3 server that keeps everything in memory.
    pub async fn moto() -> Option<Self> {
        let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/python");
        if !packages.join("moto").is_dir() {
            eprintln!("SKIPPED: no moto; install it by: cargo x setup");
            return None;
        }
        let command = |_: &Path, port: u16| {
            let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/python");
            let mut command = Command::new("python3");
            command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
            command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
            command
        };
        Self::start("python3", "python3", command, "-KILL", &[]).await
    }

    /// Does not wait until it answers: it listens before.
    pub async fn rabbitmq(settings: &[&str]) -> Option<Self> {
        let command = |folder: &Path, port: u16| {
            let settings = std::fs::read_to_string(folder.join("settings")).unwrap_or_default();
            let (key, certificate) = tls(folder);
            let listeners = if key.exists() {
                format!(
                    "listeners.tcp = none\nlisteners.ssl.default = 127.0.0.1:{port}\nssl_options.keyfile = {}\n\
                     ssl_options.certfile = {}",
                    key.display(),
                    certificate.display()
                )
            } else {
                format!("listeners.tcp.default = 127.0.0.1:{port}")
            };
            let config = format!("{listeners}\ndefault_user = {USER}\ndefault_pass = {PASSWORD}\n{settings}");
            std::fs::write(folder.join("rabbitmq.conf"), config).expect("a file in the temporary folder");
            std::fs::write(folder.join("plugins"), "[].").expect("a file in the temporary folder");
            let mut command = rabbitmq("rabbitmq-server", folder, port);
            command.env("RABBITMQ_NODE_PORT", port.to_string());
            command.env("RABBITMQ_DIST_PORT", super::free_port().to_string());
            command
        };
        let mut server = Self::new("rabbitmq-server", "rabbitmq-server", command, "-KILL", &[])?;
        std::fs::write(server.folder.path().join("settings"), settings.join("\n")).expect("a file in the folder");
        server.restart().await;
        Some(server)
    }

    /// Until the node is found: Erlang's port mapper is shared with other tests' nodes, which come and go.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) {
        super::until(&format!("rabbitmqctl {arguments:?}"), || async {
            let mut command = rabbitmq("rabbitmqctl", self.folder(), self.port);
            let done = command.args(arguments).stdout(Stdio::null()).status().expect("rabbitmqctl runs");
            done.success().then_some(())
        })
        .await;
    }

    /// Appends every change to a file before it answers.
    pub async fn redis(more: &[&str]) -> Option<Self> {
        let command = |folder: &Path, port: u16| {
            let mut command = Command::new("redis-server");
            let (key, certificate) = tls(folder);
            let port = port.to_string();
            if key.exists() {
                command.args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no", "--tls-key-file"]);
                command.arg(key).arg("--tls-cert-file").arg(certificate);
            } else {
                command.args(["--port", &port]);
            }
            command.args(["--bind", "127.0.0.1", "--save", ""]);
            command.args(["--appendonly", "yes", "--appendfsync", "always"]).arg("--dir").arg(folder);
            command
        };
        Self::start("redis-server", "redis-server", command, "-KILL", more).await
    }

    /// A Kafka broker that keeps everything in memory, and says that it is to be reached by this cable.
    pub async fn tansu() -> Option<(Self, Cable)> {
        let Some(program) = std::env::var(TANSU).ok().filter(|program| Path::new(program).is_file()) else {
            eprintln!("SKIPPED: no Tansu, a Kafka broker; it is built and tried by: cargo x nightly");
            return None;
        };
        let command = |_: &Path, port: u16| {
            let mut command = Command::new(std::env::var(TANSU).expect("it was there before"));
            command.args(["broker", "--silent", "--storage-engine", "memory://tansu/"]);
            command.arg("--listener-url").arg(format!("tcp://127.0.0.1:{port}"));
            command
        };
        let mut server = Self::new(&program, "", command, "-KILL", &[])?;
        let cable = Cable::to(server.port).await;
        server.more = vec!["--advertised-listener-url".into(), format!("tcp://127.0.0.1:{}", cable.port)];
        server.restart().await;
        Some((server, cable))
    }

    fn new(
        program: &str,
        package: &str,
        command: fn(&Path, u16) -> Command,
        signal: &'static str,
        more: &[&str],
    ) -> Option<Self> {
        find(program, package)?;
        Some(Self {
            port: super::free_port(),
            folder: tempfile::tempdir().expect("a temporary folder"),
            command,
            signal,
            more: more.iter().map(|text| (*text).to_owned()).collect(),
            child: None,
        })
    }

    /// `None`, with a line that says what to install, where the program is not there.
    async fn start(
        program: &str,
        package: &str,
        command: fn(&Path, u16) -> Command,
        signal: &'static str,
        more: &[&str],
    ) -> Option<Self> {
        let mut server = Self::new(program, package, command, signal, more)?;
        server.restart().await;
        Some(server)
    }

    /// Starts anew, with TLS alone: the certificate. For those whose command looks for it.
    pub async fn encrypt(&mut self) -> Option<PathBuf> {
        let (_, certificate) = certificate(self.folder())?;
        self.restart().await;
        Some(certificate)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends every process of it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It leads a group of its own: a script and what it started end together.
            let group = format!("-{}", child.id());
            let killed = Command::new("kill").args([self.signal, "--", &group]).status();
            assert!(killed.expect("kill runs").success());
            child.wait().expect("our own child can be waited for");
        }
    }

    pub async fn restart(&mut self) {
        self.kill();
        let mut command = (self.command)(self.folder.path(), self.port);
        command.args(&self.more).process_group(0).stdin(Stdio::null());
        let log = std::fs::File::create(self.folder.path().join("out.log")).expect("a file in the folder");
        command.stderr(log.try_clone().expect("a file can be had twice")).stdout(log);
        let server = self.child.insert(command.spawn().expect("the server starts"));
        let log = self.folder.path().join("out.log");
        super::listening(server, self.port, || std::fs::read_to_string(&log).unwrap_or_default()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where [`certificate`] puts the key and the certificate.
fn tls(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("tls.key"), folder.join("tls.pem"))
}

/// A key and a certificate for `localhost` that nobody vouches for.
pub fn certificate(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let (key, certificate) = tls(folder);
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    match openssl.stderr(Stdio::null()).status() {
        Ok(made) if made.success() => Some((key, certificate)),
        _ => {
            eprintln!("SKIPPED: no openssl; install it by: apt-get install -y openssl");
            None
        }
    }
}

/// One of RabbitMQ's scripts for the node of this folder. Those in the PATH are for the system's own node alone.
fn rabbitmq(script: &str, folder: &Path, port: u16) -> Command {
    let mut command = Command::new(Path::new("/usr/lib/rabbitmq/bin").join(script));
    let files = [
        ("HOME", ""),
        ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
        ("RABBITMQ_CONF_ENV_FILE", "none"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "plugins"),
        ("RABBITMQ_FEATURE_FLAGS_FILE", "feature_flags"),
        ("RABBITMQ_GENERATED_CONFIG_DIR", "generated"),
        ("RABBITMQ_LOG_BASE", "log"),
        ("RABBITMQ_MNESIA_BASE", "mnesia"),
        ("RABBITMQ_PID_FILE", "pid"),
    ];
    command.envs(files.map(|(name, file)| (name, folder.join(file))));
    command.env("RABBITMQ_NODENAME", format!("weir{port}@localhost"));
    command
}

fn find(program: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no {program}; install it by: apt-get install -y {package}");
    }
    found
}
