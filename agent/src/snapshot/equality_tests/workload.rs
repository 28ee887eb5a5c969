//! Random things that happen to a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::SOON;
use crate::postgres::ServiceUser;
use crate::postgres::connection::{Connection, connect_to};
use crate::restore::test_site::{Known, Site};

/// Statements over `{t}`, a table with columns `i`, `v` and `p`, `{u}`, another one, `{n}`, a number, and `{new}`,
/// a name that is free.
const STATEMENTS: [&str; 34] = [
    "UPDATE {t} SET v = v || 'x' WHERE i % 97 = {n}",
    "DELETE FROM {t} WHERE i % 13 = {n} % 13",
    "INSERT INTO {t} (i, v) SELECT i, md5(i::text) FROM generate_series({n}, {n} + 3000) i",
    "INSERT INTO {t} (i, v) SELECT i, v FROM {u} LIMIT 2000",
    "SELECT count(*) FROM {t}",
    "TRUNCATE {t}",
    "BEGIN; TRUNCATE {t}; INSERT INTO {t} (i, v) VALUES (1, 'rolled back'); ROLLBACK",
    "BEGIN; TRUNCATE {t}; INSERT INTO {t} (i, v) SELECT i, 'kept' FROM generate_series(1, 4000) i; COMMIT",
    "BEGIN; UPDATE {t} SET v = 'rolled back' WHERE i % 3 = 0; ROLLBACK",
    "VACUUM {t}",
    "VACUUM (FREEZE) {t}",
    "VACUUM FULL {t}",
    "CLUSTER {t} USING {t}_i",
    "REINDEX TABLE {t}",
    "ANALYZE",
    // What is behind the new end is cut off.
    "DELETE FROM {t} WHERE ctid > '(5,0)'; VACUUM {t}",
    "CREATE INDEX ON {t} USING gin (to_tsvector('simple', v))",
    "CREATE INDEX ON {t} USING hash (i)",
    "CREATE INDEX ON {t} USING brin (i)",
    "CREATE INDEX ON {t} USING spgist (v)",
    "CREATE INDEX ON {t} USING gist (p)",
    "CREATE INDEX CONCURRENTLY ON {t} (v)",
    "ALTER TABLE {t} ADD COLUMN c{n} int DEFAULT {n}",
    "ALTER TABLE {t} ALTER COLUMN v TYPE varchar(4000)",
    "ALTER TABLE {t} SET UNLOGGED; INSERT INTO {t} (i, v) SELECT i, 'light' FROM generate_series(1, 500) i",
    "ALTER TABLE {t} SET LOGGED",
    "CREATE UNLOGGED TABLE {new} AS SELECT i, md5(i::text) AS v FROM generate_series(1, 2000) i; CREATE INDEX ON {new} (i)",
    "ALTER TABLE {t} SET TABLESPACE far",
    "ALTER TABLE {t} SET TABLESPACE pg_default; ALTER INDEX {t}_i SET TABLESPACE far",
    "CREATE SEQUENCE {new}; SELECT nextval('{new}') FROM generate_series(1, 100)",
    "CREATE MATERIALIZED VIEW {new} AS SELECT i, v FROM {t}; REFRESH MATERIALIZED VIEW {new}",
    "SELECT lo_from_bytea(0, decode(repeat(md5('{n}'), 3000), 'hex'))",
    "UPDATE {t} SET v = (SELECT string_agg(md5((i * {n})::text), '') FROM generate_series(1, 300) i) WHERE i % 500 = 1",
    "CHECKPOINT",
];

pub(super) struct Workload {
    user: ServiceUser,
    spaces: PathBuf,
    tables: Vec<String>,
    databases: Vec<String>,
    made: u32,
    done: u32,
    refused: Vec<String>,
}

impl Workload {
    pub(super) fn new(site: &Site, spaces: &Path) -> Self {
        Self {
            user: site.node.service_user().clone(),
            spaces: spaces.to_owned(),
            tables: Vec::new(),
            databases: Vec::new(),
            made: 0,
            done: 0,
            refused: Vec::new(),
        }
    }

    fn new_space(&mut self) -> String {
        self.made += 1;
        let space = self.spaces.join(format!("s{}", self.made));
        self.user.create_dir(&space).expect("made");
        space.display().to_string()
    }

    /// What is there before anything is backed up.
    pub(super) async fn begin(&mut self, known: &Known) {
        let session = connect(known, "postgres").await;
        for rows in [12_000, 6_000, 200] {
            self.new_table(&session, rows).await;
        }
    }

    /// Tablespaces of a server stay where they are; a copy gets its own.
    async fn tablespace(&mut self, session: &Connection) {
        let sql = "SELECT count(*) FROM pg_tablespace WHERE spcname = 'far'";
        let there: i64 = session.query_one(sql, &[]).await.expect("a row").get(0);
        if there == 0 {
            let sql = format!("CREATE TABLESPACE far LOCATION '{}'", self.new_space());
            session.batch_execute(&sql).await.expect("a tablespace");
        }
    }

    pub(super) async fn is_a_copy(&mut self, known: &Known) {
        let session = connect(known, "postgres").await;
        let sql =
            "SELECT relname::text FROM pg_class WHERE relname ~ '^t[0-9]+$' AND relkind = 'r'";
        let rows = session.query(sql, &[]).await.expect("rows");
        self.tables = rows.iter().map(|row| row.get(0)).collect();
        let sql = "SELECT datname::text FROM pg_database WHERE datname ~ '^d[0-9]+$'";
        let rows = session.query(sql, &[]).await.expect("rows");
        self.databases = rows.iter().map(|row| row.get(0)).collect();
    }

    async fn new_table(&mut self, session: &Connection, rows: u32) {
        let name = format!("t{}", self.tables.len());
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS public.{name} (i int, v text, p point);
             CREATE INDEX IF NOT EXISTS {name}_i ON public.{name} (i);
             INSERT INTO public.{name} SELECT i, md5(i::text), point(i, -i) FROM generate_series(1, {rows}) i"
        );
        session.batch_execute(&sql).await.expect("a table");
        self.tables.push(name);
    }

    pub(super) fn some_table(&self, random: &mut StdRng) -> String {
        self.tables[random.random_range(0..self.tables.len())].clone()
    }

    /// One thing happens.
    pub(super) async fn step(&mut self, known: &Known, random: &mut StdRng) {
        let session = connect(known, "postgres").await;
        match random.random_range(0..10) {
            0 => {
                let rows = random.random_range(1..9000);
                self.new_table(&session, rows).await;
            }
            1 => self.database(known, &session, random).await,
            2 if !self.databases.is_empty() => {
                let at = random.random_range(0..self.databases.len());
                let session = connect(known, &self.databases[at]).await;
                let sql = "CREATE TABLE IF NOT EXISTS inside (i int, v text);
                           INSERT INTO inside SELECT i, md5(i::text) FROM generate_series(1, 3000) i";
                self.run(&session, sql).await;
            }
            3 if self.tables.len() > 3 => {
                let name = self.tables.pop().expect("one");
                self.run(&session, &format!("DROP TABLE {name} CASCADE"))
                    .await;
            }
            _ => {
                self.tablespace(&session).await;
                self.made += 1;
                let statement = STATEMENTS[random.random_range(0..STATEMENTS.len())]
                    .replace("{t}", &self.some_table(random))
                    .replace("{u}", &self.some_table(random))
                    .replace("{n}", &random.random_range(1..97).to_string())
                    .replace("{new}", &format!("new{}", self.made));
                self.run(&session, &statement).await;
            }
        }
    }

    async fn database(&mut self, known: &Known, session: &Connection, random: &mut StdRng) {
        self.made += 1;
        let name = format!("d{}", self.made);
        let own = self.databases.last().cloned();
        match (random.random_range(0..5), own) {
            (0, Some(gone)) => {
                self.run(session, &format!("DROP DATABASE {gone} WITH (FORCE)"))
                    .await;
                self.databases.pop();
            }
            (1, Some(moved)) => {
                self.tablespace(session).await;
                self.run(
                    session,
                    &format!("ALTER DATABASE {moved} SET TABLESPACE far"),
                )
                .await;
            }
            (kind, template) => {
                // One that has content of its own, when there is one.
                let template = template.unwrap_or_else(|| "template0".to_owned());
                let strategy = if kind % 2 == 0 {
                    "wal_log"
                } else {
                    "file_copy"
                };
                let sql = format!("CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}");
                if self.run(session, &sql).await {
                    let inside = connect(known, &name).await;
                    let sql = format!(
                        "CREATE TABLE only_{name} AS SELECT i FROM generate_series(1, 1000) i"
                    );
                    self.run(&inside, &sql).await;
                    self.databases.push(name);
                }
            }
        }
    }

    /// Statement by statement. What cannot be done – a second tablespace move, an index that is there – is no matter.
    async fn run(&mut self, session: &Connection, sql: &str) -> bool {
        for statement in sql.split(';').map(str::trim).filter(|sql| !sql.is_empty()) {
            match session.batch_execute(statement).await {
                Ok(()) => self.done += 1,
                Err(error) => {
                    let why = error
                        .as_db_error()
                        .map_or_else(|| error.to_string(), |error| error.message().to_owned());
                    self.refused.push(format!("{statement}: {why}"));
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn report(&self) {
        eprintln!("  {} statements, {} refused", self.done, self.refused.len());
        for refused in &self.refused {
            eprintln!("    {refused}");
        }
        assert!(
            self.refused.len() as u32 <= 2 + self.done / 4,
            "the workload does little"
        );
    }
}

async fn connect(known: &Known, database: &str) -> Connection {
    let session = connect_to(&known.server.socket_dir(), known.server.port(), database)
        .await
        .expect("connected");
    let path = "SET search_path = public";
    session.batch_execute(path).await.expect("set");
    session
}

/// `kill -9` of the postmaster or of a backend, with a transaction open; then PostgreSQL recovers.
pub(super) async fn crash(known: &Known, random: &mut StdRng) {
    let session = connect(known, "postgres").await;
    let open = "BEGIN; UPDATE t0 SET v = 'never committed' WHERE i % 5 = 0";
    session.batch_execute(open).await.expect("open");
    let row = session
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .expect("a row");
    let backend: i32 = row.get(0);
    let pid_file =
        std::fs::read_to_string(known.server.data_dir().join("postmaster.pid")).expect("it runs");
    let postmaster: i32 = pid_file
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .expect("a pid");
    let victim = match random.random_bool(0.5) {
        true => postmaster,
        false => backend,
    };
    eprintln!(
        "  the {} is killed",
        if victim == postmaster {
            "postmaster"
        } else {
            "backend"
        }
    );
    let pid = nix::unistd::Pid::from_raw(victim);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
    let recovered = async {
        // The session is over, and then there is another one.
        while session.batch_execute("SELECT 1").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        loop {
            if let Ok(session) = known.server.connect().await
                && session.batch_execute("SELECT 1").await.is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, recovered)
        .await
        .expect("it recovers");
}

/// Changes rows of a table until it is told to stop.
pub(super) fn write_all_the_time(
    known: &Known,
    table: &str,
) -> (JoinHandle<()>, CancellationToken) {
    let stop = CancellationToken::new();
    let (server, stopped, table) = (known.server.clone(), stop.clone(), table.to_owned());
    let writing = tokio::spawn(async move {
        let session = server.connect().await.expect("connected");
        for round in 0.. {
            if stopped.is_cancelled() {
                break;
            }
            let sql = format!(
                "INSERT INTO public.{table} (i, v) VALUES ({round}, 'meanwhile');
                 UPDATE public.{table} SET v = 'meanwhile' WHERE i % 211 = {round} % 211"
            );
            session.batch_execute(&sql).await.expect("written");
        }
    });
    (writing, stop)
}
