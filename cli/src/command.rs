//! What a user can type. Everything here is the shape of the command line; what a command does is in
//! the file with its name.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use holdfast_domain::{BackupId, IncarnationId};

/// Managed backup and restore for PostgreSQL, on your own machines.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    version,
    propagate_version = true,
    max_term_width = 110
)]
pub struct Cli {
    /// Where the site keeps everything [default: /var/lib/holdfast as root, ~/.holdfast otherwise]
    #[arg(long, global = true, env = "HOLDFAST_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine: API, scheduler, agents, their own metadata database
    Up(UpOptions),
    /// Stop the site; servers, backups and open operations are there again at the next `up`
    Down,
    /// Say what runs, under which URL, with a fresh token
    Status {
        #[arg(short, long, value_enum)]
        output: Option<Output>,
    },
    /// Print a token with which somebody named in the state directory's roles.toml calls the API
    Token {
        /// The `principal` of a role
        #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        principal: String,
    },
    /// Name each missing prerequisite with its cure
    Doctor {
        /// The address that `up` would listen on
        #[arg(long, default_value_t = default_listen())]
        listen: SocketAddr,
    },
    /// Stop the site and remove its servers and all their backups
    Destroy {
        /// Yes, remove everything
        #[arg(long)]
        yes: bool,
    },
    /// Look at servers from this machine
    #[command(subcommand)]
    Server(ServerCommand),
    /// Look into a vault, and bring servers back from it, with its key and nothing else of a site
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Run one part of an installation that is spread over machines
    #[command(subcommand)]
    Serve(ServeCommand),
    /// Say what a configuration file is for and everything that is wrong with it
    CheckConfig { file: PathBuf },
    /// What the agent has PostgreSQL call
    #[command(subcommand, hide = true)]
    Agent(AgentCommand),
}

#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// Return when everything answers and leave the site running
    #[arg(long)]
    pub detach: bool,
    /// Where the API listens; port 0 takes a free one
    #[arg(long, default_value_t = default_listen(), value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Serve without TLS; loopback addresses only
    #[arg(long)]
    pub insecure_http: bool,
    /// This process is the one that `--detach` leaves behind
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub left_behind: bool,
}

#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Print the URI with which an administrator on this machine reaches a server, for psql
    ConnectionString {
        name: String,
        /// [default: the site's own]
        #[arg(long)]
        resource_group: Option<String>,
        #[arg(long, default_value = "postgres")]
        database: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Say what is in it: servers, backups, write-ahead log, what can be restored
    Inspect {
        #[command(flatten)]
        vault: VaultPlace,
        /// A key-encryption key, or the directory with them; without it only what is not sealed is shown
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        #[arg(short, long, value_enum)]
        output: Option<Output>,
    },
    /// Read every object that a restore would read, and name what is missing or damaged; exits with 6 then
    Verify {
        #[command(flatten)]
        vault: VaultPlace,
        /// A key-encryption key, or the directory with them
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// Only this incarnation
        #[arg(long, value_name = "ID")]
        incarnation: Option<IncarnationId>,
        /// Only this backup, and the write-ahead log that belongs to it
        #[arg(long, value_name = "ID")]
        backup: Option<BackupId>,
        #[arg(short, long, value_enum)]
        output: Option<Output>,
    },
    /// Lay a server's data directory out, ready for PostgreSQL to recover and start
    Restore(VaultRestore),
}

/// Where a vault is.
#[derive(Debug, Clone, Args)]
pub struct VaultPlace {
    /// A directory, or file://, s3://, az:// or gs:// with the credentials in the environment
    #[arg(long, value_name = "URL|DIR")]
    pub vault: String,
}

#[derive(Debug, Args)]
pub struct VaultRestore {
    #[command(flatten)]
    pub vault: VaultPlace,
    /// A key-encryption key, or the directory with them
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
    /// Whose data, as `inspect` shows it [default: the only one that is there]
    #[arg(long, value_name = "ID")]
    pub incarnation: Option<IncarnationId>,
    /// From this backup; without --to its own state
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
    /// RFC 3339 with an offset, or latest [default: latest]
    #[arg(long, value_name = "INSTANT|latest")]
    pub to: Option<String>,
    /// An empty directory, or one that does not exist
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Who is to run PostgreSQL, when this runs as root [default: holdfast, or postgres]
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Where the restored server listens on loopback
    #[arg(long, default_value_t = 5432)]
    pub port: u16,
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

#[derive(Debug, Subcommand)]
pub enum ServeCommand {
    /// The REST API
    Api(ConfigFile),
    /// Duties and the port that agents call
    Scheduler(ConfigFile),
    /// A node that runs PostgreSQL
    Agent(ConfigFile),
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// TOML; `HOLDFAST__SECTION__KEY` in the environment wins over it
    #[arg(long, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// `restore_command`: 0 the file is there, 1 it is not planned, 255 it is planned and cannot be had
    WalGet {
        /// The agent's socket for this recovery
        #[arg(long, value_name = "SOCKET")]
        plan: PathBuf,
        file: String,
        destination: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Json,
    Table,
}

/// Loopback, and a port that is neither privileged nor usual.
pub fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8443))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_state_directory_may_stand_behind_any_command() {
        let line = [
            "holdfast",
            "server",
            "connection-string",
            "pg1",
            "--state-dir",
            "/d",
        ];
        let cli = Cli::try_parse_from(line).expect("as in the manual");
        assert_eq!(cli.state_dir, Some("/d".into()));
    }

    #[test]
    fn postgresqls_restore_command_is_understood() {
        let line = [
            "holdfast",
            "agent",
            "wal-get",
            "--plan",
            "/s",
            "00000002.history",
            "pg_wal/RECOVERYHISTORY",
        ];
        let cli = Cli::try_parse_from(line).expect("as the agent writes it");
        assert!(matches!(
            cli.command,
            Command::Agent(AgentCommand::WalGet { .. })
        ));
    }
}
