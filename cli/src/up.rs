//! `holdfast up`: in the foreground until a signal ends it, or with `--detach` as a process that is left
//! behind once everything answers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::command::UpOptions;
use crate::exit::Failure;
use crate::output::say;
use crate::run_record::{self, Phase, RunRecord};
use crate::site::{self, SiteOptions};
use crate::state_dir::{StateDir, private_dir};
use crate::{doctor, status, telemetry};

/// What the process left behind writes when everything answers.
const READY: &str = "ready";
/// A start that takes longer fails by itself, and so does a stop.
const SETTLED_WITHIN: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A log that is longer is put aside at the next start; one older log is kept.
const LOG_BYTES: u64 = 64 << 20;
/// Lines of the log that explain a start that failed.
const LAST_LINES: usize = 12;

pub async fn run(state: &StateDir, options: &UpOptions) -> Result<()> {
    let site = SiteOptions {
        listen: options.listen,
        insecure_http: options.insecure_http,
    };
    site.check()?;
    // The modes of what a site makes are chosen one by one; whoever starts it must not narrow them.
    umask(Mode::from_bits_truncate(0o022));
    if options.left_behind {
        return left_behind(state, &site).await;
    }
    if let Some(record) = settled(state).await? {
        return already_runs(state, &record);
    }
    doctor::require(state, options.listen).await?;
    if options.detach {
        detach(state, options).await
    } else {
        foreground(state, &site).await
    }
}

/// The site that runs already, once everything of it answers; `None` when none does. One that is just
/// starting or stopping is waited for: after `up` there is a site.
async fn settled(state: &StateDir) -> Result<Option<RunRecord>> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    while run_record::is_running(state)? {
        match run_record::running(state)? {
            Some(record) if record.phase == Phase::Ready => return Ok(Some(record)),
            _ if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
            _ => {
                return Err(Failure::TooLong(format!(
                    "a site in {} is starting or stopping for {} s; see {}",
                    state.path().display(),
                    SETTLED_WITHIN.as_secs(),
                    state.log_file().display()
                ))
                .into());
            }
        }
    }
    Ok(None)
}

fn already_runs(state: &StateDir, record: &RunRecord) -> Result<()> {
    say(format!("The site already runs (process {}).\n", record.pid));
    status::print_welcome(state, record)
}

async fn foreground(state: &StateDir, site: &SiteOptions) -> Result<()> {
    let telemetry = telemetry::init(&telemetry::Settings::for_a_person())?;
    let outcome = site::run(state, site, until_signalled()?, |record| {
        if let Err(error) = status::print_welcome(state, record) {
            tracing::warn!(%error, "the site runs, but what to do with it could not be printed");
        }
        say("\nPress Ctrl-C to stop.");
    })
    .await;
    telemetry.flush();
    outcome
}

/// Starts this executable again as a process of its own and waits for its word.
async fn detach(state: &StateDir, options: &UpOptions) -> Result<()> {
    let state = &state.create()?;
    private_dir(&state.log_dir())?;
    let old = std::fs::metadata(state.log_file()).map_or(0, |found| found.len());
    if old > LOG_BYTES {
        std::fs::rename(state.log_file(), state.log_file().with_extension("log.1"))
            .context("the log cannot be put aside")?;
    }
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(state.log_file())
        .with_context(|| format!("{} cannot be opened", state.log_file().display()))?;
    let begin = log.metadata()?.len();
    let mut command = Command::new("/proc/self/exe");
    command
        .args([
            "up",
            "--left-behind",
            "--listen",
            &options.listen.to_string(),
            "--state-dir",
        ])
        .arg(state.path())
        // The caller's directory may be removed, or on a disk that is to be unmounted.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    if options.insecure_http {
        command.arg("--insecure-http");
    }
    let mut child = command
        .spawn()
        .context("the site's process cannot be started")?;
    let output = child.stdout.take().context("its output was asked for")?;
    let word = tokio::task::spawn_blocking(move || {
        let mut word = String::new();
        BufReader::new(output).read_line(&mut word).map(|_| word)
    })
    .await??;
    if word.trim() == READY {
        let record =
            run_record::running(state)?.context("the site ended as soon as it was ready")?;
        return status::print_welcome(state, &record);
    }
    let status = child
        .wait()
        .context("the site's process cannot be waited for")?;
    // Somebody else said `up` in the same moment.
    if let Some(record) = settled(state).await? {
        return already_runs(state, &record);
    }
    eprintln!("{}", last_lines(state, begin));
    bail!(
        "the site did not start ({status}); its log is {}",
        state.log_file().display()
    )
}

/// The process that `--detach` leaves behind: a session of its own, so that no terminal ends it.
async fn left_behind(state: &StateDir, site: &SiteOptions) -> Result<()> {
    setsid().context("no session of its own")?;
    let telemetry = telemetry::init(&telemetry::Settings::for_a_machine())?;
    let outcome = site::run(state, site, until_signalled()?, |_| {
        let mut out = std::io::stdout();
        // Whoever waited for it may be gone; the site is what matters.
        let _ = writeln!(out, "{READY}").and_then(|()| out.flush());
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            // Closes the pipe: the waiting command, and whoever reads its output, can end.
            let _ = nix::unistd::dup2_stdout(null);
        }
    })
    .await;
    if let Err(error) = &outcome {
        tracing::error!("{error:#}");
    }
    telemetry.flush();
    outcome
}

/// Cancelled by the first SIGINT, SIGTERM or SIGHUP. A second one changes nothing: stopping makes the
/// last WAL durable, and what must not wait for that has `kill -9`.
pub fn until_signalled() -> Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut arrived = signal(kind).context("signals cannot be received")?;
        let token = token.clone();
        tokio::spawn(async move {
            while arrived.recv().await.is_some() {
                token.cancel();
            }
        });
    }
    Ok(token)
}

/// The end of what the log got since `begin`.
fn last_lines(state: &StateDir, begin: u64) -> String {
    let text = std::fs::read(state.log_file()).unwrap_or_default();
    let begin = usize::try_from(begin).unwrap_or(0).min(text.len());
    let text = String::from_utf8_lossy(&text[begin..]);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// The record of a site that runs, or the sentence that says that none does.
pub fn require_running(state: &StateDir) -> Result<RunRecord> {
    match run_record::running(state)? {
        Some(record) => match record.phase {
            Phase::Ready => Ok(record),
            Phase::Starting => Err(Failure::NotFound("the site is still starting".into()).into()),
            Phase::Stopping => Err(Failure::NotFound("the site is stopping".into()).into()),
        },
        None => Err(Failure::NotFound(format!(
            "no site runs in {}: start it with `holdfast up --detach`",
            state.path().display()
        ))
        .into()),
    }
}
