//! The one binary: `up` (everything on a laptop), `serve api|scheduler|agent` (one part of an
//! installation), and the user's commands. It wires the other crates together and decides nothing.
//!
//! A library as well, so that tests load configuration files with the code that production uses.

pub mod check_config;
pub mod command;
pub mod config;
pub mod destroy;
pub mod doctor;
pub mod down;
pub mod exit;
mod join_tokens;
pub mod memory;
pub mod open_files;
pub mod output;
pub mod run_record;
pub mod serve;
pub mod server;
pub mod site;
pub mod state_dir;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod up;
pub mod vault;

use anyhow::Result;

use crate::command::{Cli, Command, ServeCommand, ServerCommand, VaultCommand};
use crate::state_dir::StateDir;

/// Runs a command other than `agent wal-get`, which needs none of this.
pub async fn run(cli: Cli) -> Result<()> {
    let state = || StateDir::choose(cli.state_dir.clone());
    match cli.command {
        Command::Up(options) => up::run(&state()?, &options).await,
        Command::Down => down::run(&state()?).await,
        Command::Status { output } => status::run(&state()?, output).await,
        Command::Token { principal } => {
            let state = state()?;
            let identity = status::identity(&state)?;
            let token = site::token::mint_for(&state, &identity, &principal, &principal)?;
            output::say(token.text);
            Ok(())
        }
        Command::Doctor { listen } => doctor::run(&state()?, listen).await,
        Command::Destroy { yes } => destroy::run(&state()?, yes).await,
        Command::Server(ServerCommand::ConnectionString {
            name,
            resource_group,
            database,
        }) => {
            server::connection_string(&state()?, &name, resource_group.as_deref(), &database).await
        }
        Command::Vault(VaultCommand::Inspect {
            vault,
            key_file,
            output,
        }) => vault::inspect::run(&vault, key_file.as_deref(), output).await,
        Command::Vault(VaultCommand::Verify {
            vault,
            key_file,
            incarnation,
            backup,
            output,
        }) => vault::verify::run(&vault, &key_file, incarnation, backup, output).await,
        Command::Vault(VaultCommand::Restore(asked)) => vault::restore::run(&asked).await,
        Command::Serve(ServeCommand::Api(file)) => serve::api(&file.config).await,
        Command::Serve(ServeCommand::Scheduler(file)) => serve::scheduler(&file.config).await,
        Command::Serve(ServeCommand::Agent(file)) => serve::agent(&file.config).await,
        Command::CheckConfig { file } => check_config::run(&file),
        Command::Agent(_) => unreachable!("main answers PostgreSQL before anything else starts"),
    }
}
