//! Decides *when*: one duty per file, and the port on which agents fetch what there is to do.
//!
//! *What* is decided elsewhere: duties call the control plane, which asks the domain. Any number of
//! schedulers run side by side on one database; each serves agents and each runs every duty.
//!
//! Read [`duty`] for what a duty is, then any of [`advance`], [`snapshot`], [`retention`],
//! [`rescue`], [`deadline`], [`forget`], then [`gateway`].

pub mod advance;
pub mod authority;
pub mod deadline;
pub mod duty;
mod error;
pub mod forget;
pub mod gateway;
pub mod rescue;
pub mod retention;
pub mod runner;
pub mod snapshot;

use holdfast_control_plane::ControlPlane;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::authority::Authority;
pub use self::error::{Error, Result};
pub use self::runner::run_once;

/// What differs from one scheduler to the next.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Names and addresses under which agents reach the gateway; they stand in its certificate.
    pub gateway_names: Vec<String>,
}

/// Runs the duties and serves agents on `listener` until `shutdown`.
///
/// # Errors
/// When the gateway cannot be started or its listener breaks; the duties are ended then, too.
pub async fn serve(
    control_plane: ControlPlane,
    authority: Authority,
    config: SchedulerConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<()> {
    // Whichever side ends takes the other with it: half a scheduler looks healthy and is not.
    let both = shutdown.child_token();
    let duties = runner::run(control_plane.clone(), both.clone());
    let agents = async {
        let _ends_the_duties = both.clone().drop_guard();
        let names = &config.gateway_names;
        gateway::serve(control_plane, authority, names, listener, both.clone()).await
    };
    let ((), served) = tokio::join!(duties, agents);
    served
}
