//! A real Postgres server for tests: on a port of its own, with its data in a folder of its own.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

use crate::certificates::make_certificates;
use crate::starting::{answering, on_free_port};

/// How long a server may take to answer after its start, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The user as which a server runs where tests run as root, which no Postgres server does.
const USER: &str = "nobody";

/// The password of the one role.
const PASSWORD: &str = "millrace-test";

/// Killed when dropped, and its folder deleted.
pub struct PostgresServer {
    child: Child,
    place: Place,
    folder: TempDir,
}

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
struct Place {
    address: IpAddr,
    port: u16,
}

/// How a server is started.
struct Options {
    address: IpAddr,
    is_encrypted: bool,
}

impl PostgresServer {
    /// Starts a server with an empty database and waits until it answers.
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into())
    }

    /// Starts a server at an address of this machine, for whoever knows the password.
    pub fn start_at(address: IpAddr) -> Self {
        Self::start_with(Options {
            address,
            is_encrypted: false,
        })
    }

    /// Starts a server that also speaks TLS, with a certificate of [`PostgresServer::authority`].
    pub fn start_encrypted() -> Self {
        Self::start_with(Options {
            address: Ipv4Addr::LOCALHOST.into(),
            is_encrypted: true,
        })
    }

    fn start_with(options: Options) -> Self {
        let Options {
            address,
            is_encrypted,
        } = options;
        let folder = tempfile::tempdir().expect("a folder for the server's data");
        let owner = Owner::of_servers();
        owner.give(folder.path());
        std::fs::write(folder.path().join("password"), PASSWORD).expect("its password");
        owner.give(&folder.path().join("password"));
        let made = owner
            .command("initdb")
            .args(["--username", "millrace", "--auth", "scram-sha-256"])
            .args(["--encoding", "UTF8", "--locale", "C", "--no-sync"])
            .arg("--pwfile")
            .arg(folder.path().join("password"))
            .arg("--pgdata")
            .arg(folder.path().join("data"))
            .current_dir(folder.path())
            .output()
            .unwrap_or_else(|error| panic!("initdb cannot be run: {error}; {INSTALL}"));
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb failed: {said}");
        let rules = std::fs::File::options()
            .append(true)
            .open(folder.path().join("data/pg_hba.conf"));
        writeln!(
            rules.expect("who may connect"),
            "host all all all scram-sha-256"
        )
        .expect("who may connect");
        let mut settings = Vec::new();
        if is_encrypted {
            make_certificates(folder.path());
            for file in ["server.crt", "server.key"] {
                owner.give(&folder.path().join(file));
            }
            let place = |file| folder.path().join(file).display().to_string();
            settings.push("ssl=on".to_owned());
            settings.push(format!("ssl_cert_file={}", place("server.crt")));
            settings.push(format!("ssl_key_file={}", place("server.key")));
        }
        let started = on_free_port(|port| {
            let place = Place { address, port };
            Some((place, spawn(place, &folder, &owner, &settings)?))
        });
        if let Some((place, child)) = started {
            return Self {
                child,
                place,
                folder,
            };
        }
        let folder = folder.keep();
        panic!(
            "postgres did not start; its log stands in {}",
            folder.display()
        );
    }

    /// `postgres://…` of the one database.
    pub fn url(&self) -> String {
        url(self.place)
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> Client {
        connect(self.place).await.expect("the server answers")
    }

    /// The certificate of the authority behind the server's, as a PEM file.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // The others of the server end with the first one, as after a crash.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const INSTALL: &str = "install the package postgresql, 13 or later";

fn url(place: Place) -> String {
    let Place { address, port } = place;
    format!("postgres://millrace:{PASSWORD}@{address}:{port}/postgres")
}

async fn connect(place: Place) -> Result<Client, tokio_postgres::Error> {
    let mut config: Config = url(place).parse().expect("a URL");
    config.connect_timeout(START_TIMEOUT);
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

/// A server that answers there, or nothing where it ended at once, as for a port in use.
fn spawn(place: Place, folder: &TempDir, owner: &Owner, settings: &[String]) -> Option<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.path().join("log"))
        .expect("the server's log");
    let child = owner
        .command("postgres")
        .arg("-D")
        .arg(folder.path().join("data"))
        .args(["-p", &place.port.to_string()])
        .args(["-h", &place.address.to_string(), "-k", ""])
        // What a test writes need not outlive the machine.
        .args(["-c", "fsync=off"])
        .args(settings.iter().flat_map(|setting| ["-c", setting]))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("postgres cannot be run: {error}; {INSTALL}"));
    answering(child, START_TIMEOUT, || is_ready(place))
}

/// Whether the server answers, and not only to say that it is starting.
fn is_ready(place: Place) -> bool {
    // A thread of its own, since the caller may be within a runtime already.
    let asking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async { connect(place).await.is_ok() })
    });
    asking.join().expect("asking does not panic")
}

/// As whom a server runs.
struct Owner {
    /// User and group, where that is not the user of the tests.
    other: Option<(u32, u32)>,
}

impl Owner {
    fn of_servers() -> Self {
        // SAFETY: it takes nothing and always succeeds.
        let is_root = unsafe { libc::geteuid() } == 0;
        Self {
            other: is_root.then(|| ids_of(USER)),
        }
    }

    fn give(&self, path: &Path) {
        if let Some((user, group)) = self.other {
            std::os::unix::fs::chown(path, Some(user), Some(group)).expect("root may give");
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(found(program));
        if let Some((user, group)) = self.other {
            command.uid(user).gid(group);
        }
        command
    }
}

/// User and group of a name, by the machine's list of users.
fn ids_of(name: &str) -> (u32, u32) {
    let users = std::fs::read_to_string("/etc/passwd").expect("the list of users");
    let mut fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let user = fields.find(|fields| fields.first() == Some(&name));
    let user = user.unwrap_or_else(|| panic!("there is no user {name}"));
    let id = |field: usize| user[field].parse().expect("an id is a number");
    (id(2), id(3))
}

/// A program of the server. Debian keeps them by version, off the search path; the newest counts.
fn found(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let versions = versions.filter_map(|entry| {
        let folder = entry.ok()?.path();
        let version: u32 = folder.file_name()?.to_str()?.parse().ok()?;
        let program = folder.join("bin").join(program);
        program.is_file().then_some((version, program))
    });
    let newest = versions.max_by_key(|(version, _)| *version);
    newest.map_or_else(|| program.into(), |(_, program)| program)
}
