//! `holdfast`: reads the command line and chooses the exit code.

use std::process::ExitCode;

use clap::Parser;
use holdfast::command::{AgentCommand, Cli, Command};
use holdfast::{exit, memory, open_files};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // PostgreSQL calls this once per WAL file: no runtime, no logging, nothing that could fail.
    if let Command::Agent(AgentCommand::WalGet {
        plan,
        file,
        destination,
    }) = &cli.command
    {
        let code = holdfast_agent::restore::wal_get::wal_get_main(plan, file, destination);
        std::process::exit(code);
    }
    memory::set_up_allocator();
    open_files::allow_all();
    // Two libraries bring a cryptography provider; this is the one that the process uses. It fails
    // only when one is installed already, and nothing ran before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(Err(error.into())),
    };
    let outcome = runtime.block_on(holdfast::run(cli));
    // What is still blocked in a system call has nothing left to say.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    exit::report(outcome)
}
