//! The tenant's administrator: as much as a managed server's owner needs, never the operating system
//! (DESIGN §3.18).
//!
//! From PostgreSQL 16 on CREATEROLE is safe: it reaches only roles that its holder made. On 15 and
//! older it reaches `pg_execute_server_program`, so the administrator has none and calls the
//! SECURITY DEFINER functions of `administrator.sql` instead; they are in `template1` too, so every
//! database made later has them.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::Client;

use super::{AGENT_ROLE, OPERATOR_ROLE, connection, sql};
use crate::error::{Error, Result};

const FUNCTIONS: &str = include_str!("administrator.sql");
/// The last major on which CREATEROLE is more than it says.
const LAST_UNSAFE_CREATEROLE: u16 = 15;

/// Makes the administrator, or makes an existing one what it should be; sets the password when one
/// is given. May run any number of times.
pub async fn ensure(
    socket_dir: &Path,
    port: u16,
    major: u16,
    login: &str,
    password: Option<&SecretString>,
) -> Result<()> {
    check_login(login)?;
    let role = sql::identifier(login)?;
    let session = connection::connect(socket_dir, port).await?;
    let exists = session
        .query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&login])
        .await
        .map_err(Error::postgres("look up the administrator"))?
        .is_some();
    let create_role = if major > LAST_UNSAFE_CREATEROLE {
        "CREATEROLE"
    } else {
        "NOCREATEROLE"
    };
    let verb = if exists { "ALTER" } else { "CREATE" };
    session
        .batch_execute(&format!(
            "{verb} ROLE {role} LOGIN CREATEDB {create_role} NOSUPERUSER NOREPLICATION NOBYPASSRLS"
        ))
        .await
        .map_err(Error::postgres("make the administrator"))?;
    if let Some(password) = password {
        set_password(&session, login, password).await?;
    }
    // The database `postgres` stays the agent's, so that a tenant cannot drop it; they may use it.
    session
        .batch_execute(&format!(
            "GRANT CREATE, CONNECT, TEMPORARY ON DATABASE {} TO {role} WITH GRANT OPTION;
             GRANT ALL ON SCHEMA public TO {role} WITH GRANT OPTION",
            connection::DATABASE
        ))
        .await
        .map_err(Error::postgres("give the administrator their rights"))?;
    make_operator(&session, &role).await?;
    if major <= LAST_UNSAFE_CREATEROLE {
        install_functions(&session, &role).await?;
        drop(session);
        let template = connection::connect_to(socket_dir, port, "template1").await?;
        install_functions(&template, &role).await?;
    }
    Ok(())
}

/// The way in for whoever runs the agent on this machine, without the administrator's password: a
/// role that `pg_hba.conf` lets in by peer on the socket only, and that *is* the administrator from
/// its first statement on. What it makes belongs to the administrator; it can do nothing more.
async fn make_operator(session: &Client, administrator: &str) -> Result<()> {
    session
        .batch_execute(&format!(
            "DO $do$ BEGIN
                 IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{OPERATOR_ROLE}') THEN
                     CREATE ROLE {OPERATOR_ROLE} LOGIN NOINHERIT;
                 END IF;
             END $do$;
             GRANT {administrator} TO {OPERATOR_ROLE};
             ALTER ROLE {OPERATOR_ROLE} SET role = {administrator}"
        ))
        .await
        .map_err(Error::postgres("make the operator's way in"))
}

/// Sets a password without ever sending it: what reaches the server (and, should anything log a
/// statement, its log) is the scram verifier, salted anew each time.
pub async fn set_password(session: &Client, login: &str, password: &SecretString) -> Result<()> {
    check_login(login)?;
    let secret = password.expose_secret();
    if secret.is_empty() || secret.contains('\0') {
        return Err(Error::Unquotable {
            what: "the password",
        });
    }
    let verifier = postgres_protocol::password::scram_sha_256(secret.as_bytes());
    session
        .batch_execute(&format!(
            "ALTER ROLE {} PASSWORD {}",
            sql::identifier(login)?,
            sql::literal(&verifier)?
        ))
        .await
        .map_err(Error::postgres("set the administrator's password"))
}

async fn install_functions(session: &Client, role: &str) -> Result<()> {
    // A schema of that name that is not ours would be somebody's trap.
    let owner = session
        .query_opt(
            "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'holdfast_admin'",
            &[],
        )
        .await
        .map_err(Error::postgres("look up the administrator's functions"))?;
    if owner.is_some_and(|row| row.get::<_, String>(0) != AGENT_ROLE) {
        return Err(Error::Drift(
            "schema holdfast_admin belongs to somebody else".into(),
        ));
    }
    session
        .batch_execute(&format!(
            "BEGIN;
             {FUNCTIONS}
             GRANT USAGE ON SCHEMA holdfast_admin TO {role};
             GRANT EXECUTE ON FUNCTION
                 holdfast_admin.create_role(text, text, boolean, boolean, integer, timestamptz),
                 holdfast_admin.alter_role(text, text, boolean, boolean, integer, timestamptz),
                 holdfast_admin.drop_role(text),
                 holdfast_admin.grant_role(text, text, boolean),
                 holdfast_admin.revoke_role(text, text) TO {role};
             COMMIT"
        ))
        .await
        .map_err(Error::postgres("install the administrator's functions"))
}

/// A login that PostgreSQL or the agent keeps for itself.
fn check_login(login: &str) -> Result<()> {
    let lower = login.to_ascii_lowercase();
    if lower.starts_with("pg_")
        || lower.starts_with(AGENT_ROLE)
        || ["public", "none"].contains(&lower.as_str())
    {
        return Err(Error::ReservedLogin(login.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::postgres::cluster_fixture::{Cluster, PORT, majors};
    use crate::postgres::{Instance, StopMode};

    async fn refused(session: &Client, statement: &str) {
        let error = session
            .batch_execute(statement)
            .await
            .expect_err(&format!("must be refused: {statement}"));
        assert!(error.code().is_some(), "{statement}: {error}");
    }

    /// Whether the user that runs PostgreSQL – where an escaped tenant would be – is taken for the agent.
    async fn service_user_gets_in(cluster: &Cluster) -> bool {
        if cluster.user().ids().is_none() {
            return false; // The agent is not root here: there is only one user.
        }
        let spec = cluster.spec();
        let mut psql = tokio::process::Command::new(spec.installation.program("psql"));
        cluster.user().apply(&mut psql);
        psql.args([
            "--no-password",
            "--no-psqlrc",
            "-U",
            AGENT_ROLE,
            "-c",
            "SELECT 1",
            "postgres",
            "-h",
        ])
        .arg(&spec.socket_dir)
        .current_dir("/");
        psql.output()
            .await
            .expect("psql is installed")
            .status
            .success()
    }

    /// Refused on every major.
    const ESCALATIONS: [&str; 24] = [
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "COPY t FROM '/etc/passwd'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT lo_import('/etc/passwd')",
        "CREATE ROLE mallory SUPERUSER",
        "CREATE ROLE mallory REPLICATION",
        "CREATE ROLE mallory BYPASSRLS",
        "ALTER ROLE boss SUPERUSER",
        "ALTER ROLE boss REPLICATION",
        "ALTER ROLE holdfast PASSWORD 'x'",
        "SET ROLE holdfast",
        "SET SESSION AUTHORIZATION holdfast",
        "GRANT pg_execute_server_program TO boss",
        "GRANT pg_read_server_files TO boss",
        "GRANT holdfast TO boss",
        "GRANT holdfast_operator TO boss",
        "DROP ROLE holdfast_operator",
        "ALTER SYSTEM SET archive_mode = on",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'system'",
        "SELECT pg_drop_replication_slot('holdfast')",
        "SELECT pg_create_physical_replication_slot('mine')",
        "DROP DATABASE postgres",
        "SELECT * FROM pg_authid",
        "CREATE SUBSCRIPTION s CONNECTION 'host=/tmp' PUBLICATION p",
    ];

    #[tokio::test]
    async fn an_administrator_with_createrole_reaches_only_roles_of_their_own_making() {
        // DESIGN §3.18, from 16 on
        for major in majors()
            .await
            .into_iter()
            .filter(|major| *major > LAST_UNSAFE_CREATEROLE)
        {
            let cluster = Cluster::create_major(major).await;
            let instance = Instance::start(cluster.spec());
            instance.ready().await.expect("started");
            let password = SecretString::from("quite-secret-1");
            for _ in 0..2 {
                ensure(&cluster.socket_dir(), PORT, major, "boss", Some(&password))
                    .await
                    .expect("made");
            }
            let boss = cluster
                .connect_as("boss", password.expose_secret(), "postgres")
                .await
                .expect("the password works");
            for allowed in [
                "CREATE TABLE t (x int)",
                "CREATE DATABASE shop",
                "CREATE ROLE clerk LOGIN PASSWORD 'secret-1'",
                "CREATE ROLE staff",
                "GRANT staff TO clerk",
                "ALTER ROLE clerk CONNECTION LIMIT 5",
                "DROP ROLE staff",
            ] {
                boss.batch_execute(allowed)
                    .await
                    .unwrap_or_else(|e| panic!("{major}: {allowed}: {e:?}"));
            }
            for escalation in ESCALATIONS {
                refused(&boss, escalation).await;
            }
            for through_a_role in [
                "GRANT pg_execute_server_program TO clerk",
                "GRANT pg_write_server_files TO clerk",
                "GRANT boss TO clerk WITH ADMIN TRUE",
                "ALTER ROLE clerk SUPERUSER",
                "ALTER ROLE clerk REPLICATION",
                "ALTER ROLE holdfast_operator PASSWORD 'x'",
                "GRANT clerk TO holdfast WITH INHERIT TRUE GRANTED BY holdfast",
            ] {
                refused(&boss, through_a_role).await;
            }
            assert_eq!(powerful(&cluster).await, ["boss", AGENT_ROLE]);
            instance
                .stop(StopMode::Fast, Duration::from_secs(30))
                .await
                .expect("stopped");
        }
    }

    /// Roles that can do more than use what they were given.
    async fn powerful(cluster: &Cluster) -> Vec<String> {
        let rows = cluster
            .connect()
            .await
            .query(
                "SELECT rolname::text FROM pg_roles
                  WHERE rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls ORDER BY 1",
                &[],
            )
            .await
            .expect("read");
        rows.iter().map(|row| row.get(0)).collect()
    }

    #[tokio::test]
    async fn an_administrator_rules_their_databases_and_never_reaches_the_operating_system() {
        // DESIGN §3.18, up to 15
        let cluster = Cluster::create().await;
        let instance = Instance::start(cluster.spec());
        instance.ready().await.expect("started");
        let password = SecretString::from("pa'ss\\word-1");
        for _ in 0..2 {
            ensure(&cluster.socket_dir(), PORT, 15, "boss", Some(&password))
                .await
                .expect("made");
        }
        assert!(
            cluster
                .connect_as("boss", "wrong", "postgres")
                .await
                .is_err()
        );
        assert!(
            !service_user_gets_in(&cluster).await,
            "peer must tell the agent from PostgreSQL's user"
        );
        // The operator's way in: the operating system's word instead of a password.
        let operator = cluster
            .connect_as(OPERATOR_ROLE, "", "postgres")
            .await
            .expect("by peer");
        let row = operator
            .query_one("SELECT current_user::text, session_user::text", &[])
            .await
            .expect("a row");
        assert_eq!((row.get(0), row.get(1)), ("boss", OPERATOR_ROLE));
        let boss = cluster
            .connect_as("boss", password.expose_secret(), "postgres")
            .await
            .expect("the password works");

        for allowed in [
            "CREATE TABLE t (x int)",
            "CREATE DATABASE shop",
            "SELECT holdfast_admin.create_role('clerk', 'secret-1')",
            "SELECT holdfast_admin.create_role('Group; DROP ROLE \"x\"', can_login => false)",
            "SELECT holdfast_admin.grant_role('Group; DROP ROLE \"x\"', 'clerk')",
            "SELECT holdfast_admin.alter_role('clerk', can_create_db => true, connection_limit => 5)",
            "SELECT holdfast_admin.revoke_role('Group; DROP ROLE \"x\"', 'clerk')",
            "SELECT holdfast_admin.drop_role('Group; DROP ROLE \"x\"')",
            "SELECT holdfast_admin.alter_role('boss', 'another-1')",
        ] {
            boss.batch_execute(allowed)
                .await
                .unwrap_or_else(|e| panic!("{allowed}: {e:?}"));
        }
        let shop = cluster
            .connect_as("boss", "another-1", "shop")
            .await
            .expect("a new database");
        shop.batch_execute("SELECT holdfast_admin.create_role('seller', 's-1')")
            .await
            .expect("there too");

        for escalation in ESCALATIONS.into_iter().chain([
            "CREATE ROLE mallory",
            "ALTER ROLE boss CREATEROLE",
            "SELECT holdfast_admin.alter_role('holdfast_operator', 'x')",
            "SELECT holdfast_admin.create_role('Holdfast_x')",
            "CREATE FUNCTION holdfast_admin.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "DROP SCHEMA holdfast_admin CASCADE",
            "SELECT holdfast_admin.grant_role('pg_execute_server_program', 'boss')",
            "SELECT holdfast_admin.grant_role('pg_read_server_files', 'clerk')",
            "SELECT holdfast_admin.grant_role('holdfast', 'boss')",
            "SELECT holdfast_admin.grant_role('boss', 'holdfast')",
            "SELECT holdfast_admin.alter_role('holdfast', 'x')",
            "SELECT holdfast_admin.drop_role('holdfast')",
            "SELECT holdfast_admin.drop_role('boss')",
            "SELECT holdfast_admin.create_role('pg_mine')",
            "SELECT holdfast_admin.create_role('PG_mine')",
            "SELECT holdfast_admin.create_role('mallory\" SUPERUSER --', connection_limit => null); SET ROLE holdfast",
            "SELECT holdfast_admin.ordinary_role('clerk')",
        ]) {
            refused(&boss, escalation).await;
        }
        // Objects of the tenant's own do not stand in for what the functions mean.
        boss.batch_execute(
            "CREATE SCHEMA trap;
             CREATE FUNCTION trap.starts_with(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
             CREATE FUNCTION trap.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql
                 AS $$SELECT 'ALTER ROLE boss SUPERUSER'$$;
             CREATE TABLE trap.pg_roles (oid oid, rolname name);
             SET search_path = trap, pg_catalog",
        )
        .await
        .expect("their own schema");
        refused(
            &boss,
            "SELECT holdfast_admin.grant_role('pg_execute_server_program', 'boss')",
        )
        .await;
        boss.batch_execute("SELECT holdfast_admin.alter_role('clerk', 'secret-2')")
            .await
            .expect("allowed");

        // A clerk may not call them, and nobody became more than they were.
        let clerk = cluster
            .connect_as("clerk", "secret-2", "postgres")
            .await
            .expect("a login");
        refused(&clerk, "SELECT holdfast_admin.create_role('x')").await;
        assert_eq!(powerful(&cluster).await, [AGENT_ROLE]);
        // No password was ever in a statement that the server could have logged.
        let log = std::fs::read_to_string(cluster.spec().log_file).expect("there");
        assert!(!log.contains("pa'ss") && !log.contains("pa''ss"));
        instance
            .stop(StopMode::Fast, Duration::from_secs(30))
            .await
            .expect("stopped");
    }

    #[test]
    fn reserved_logins_are_refused() {
        for login in ["pg_boss", "PG_boss", "holdfast", "public"] {
            assert!(
                matches!(check_login(login), Err(Error::ReservedLogin(_))),
                "{login}"
            );
        }
        assert!(check_login("boss").is_ok());
    }
}
