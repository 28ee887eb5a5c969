//! The stream on a real PostgreSQL, into vaults on temporary directories.

mod life;
mod outage;
mod site;
mod waldump;
