//! From a file and the environment to a checked configuration, or to the list of what is wrong.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use config::{ConfigError, Environment, File, FileFormat, Source};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{AgentFile, ApiFile, Check, Config, SchedulerFile};

const PREFIX: &str = "HOLDFAST";
const SEPARATOR: &str = "__";
/// No file has more mistakes than this that are worth reading.
const MOST_PROBLEMS: usize = 50;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `api.tls.certificate_file`; empty for the file as a whole.
    pub key: String,
    pub what: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub fn add(&mut self, key: &str, what: impl fmt::Display) {
        self.0.push(Problem {
            key: key.to_owned(),
            what: what.to_string(),
        });
    }

    fn of_file(what: impl fmt::Display) -> Self {
        let mut problems = Self::default();
        problems.add("", what);
        problems
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, problem) in self.0.iter().enumerate() {
            let end = if nth == 0 { "" } else { "\n" };
            match problem.key.as_str() {
                "" => write!(f, "{end}{}", problem.what)?,
                key => write!(f, "{end}{key}: {}", problem.what)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

pub(super) fn load(
    path: &Path,
    environment: Option<HashMap<String, String>>,
) -> Result<Config, Problems> {
    let environment = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .source(environment);
    let overrides = Overrides::of(&environment).map_err(Problems::of_file)?;
    let merged: Value = config::Config::builder()
        .add_source(File::from(path).format(FileFormat::Toml))
        .add_source(environment)
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(Problems::of_file)?;
    let has = |section: &str| merged.get(section).is_some();
    match (has("api"), has("scheduler"), has("agent")) {
        (true, false, false) => {
            read::<ApiFile>(merged, &overrides).map(|it| Config::Api(Box::new(it)))
        }
        (false, true, false) => {
            read::<SchedulerFile>(merged, &overrides).map(|it| Config::Scheduler(Box::new(it)))
        }
        (false, false, true) => {
            read::<AgentFile>(merged, &overrides).map(|it| Config::Agent(Box::new(it)))
        }
        (false, false, false) => Err(Problems::of_file(
            "it has neither [api] nor [scheduler] nor [agent]",
        )),
        _ => Err(Problems::of_file(
            "it has more than one of [api], [scheduler] and [agent]",
        )),
    }
}

/// What the environment says, by key. A variable is text, as it stands; where no text can be, it is read
/// as TOML writes values: `6543`, `true`, `["a", "b"]`.
#[derive(Debug, Default)]
pub(super) struct Overrides(HashMap<String, String>);

impl Overrides {
    fn of(environment: &Environment) -> Result<Self, ConfigError> {
        let variables = environment.collect()?;
        let texts = variables
            .into_iter()
            .map(|(key, value)| Ok((key, value.into_string()?)));
        texts.collect::<Result<_, ConfigError>>().map(Self)
    }

    /// The value of a variable that cannot be taken as text, if it is one.
    fn as_value(&self, key: &str) -> Option<Value> {
        let text = format!("value = {}", self.0.get(key)?);
        config::Config::builder()
            .add_source(File::from_str(&text, FileFormat::Toml))
            .build()
            .and_then(|read| read.get("value"))
            .ok()
    }
}

/// A file that nothing in the environment wins over.
pub(super) fn load_plain<T: DeserializeOwned + Check>(path: &Path) -> Result<T, Problems> {
    let merged: Value = config::Config::builder()
        .add_source(File::from(path).format(FileFormat::Toml))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(Problems::of_file)?;
    read(merged, &Overrides::default())
}

/// Reads section by section, so that a mistake in one hides none in another, and then the whole.
fn read<T: DeserializeOwned + Check>(
    mut merged: Value,
    overrides: &Overrides,
) -> Result<T, Problems> {
    let mut problems = Problems::default();
    for (section, collect) in T::SECTIONS {
        if let Some(value) = merged.get_mut(section) {
            collect(value, section, overrides, &mut problems);
        }
    }
    if !problems.0.is_empty() {
        return Err(problems);
    }
    match serde_path_to_error::deserialize::<_, T>(merged.clone()) {
        Ok(read) => {
            read.check(&mut problems);
            if problems.0.is_empty() {
                Ok(read)
            } else {
                Err(problems)
            }
        }
        Err(_) => {
            collect::<T>(&mut merged, "", overrides, &mut problems);
            Err(problems)
        }
    }
}

/// Everything that keeps `value` from being a `T`. After a mistake at some key that key is taken out and
/// the rest is read; a key that is missing ends it, because nobody knows what should be there. A variable
/// that cannot be taken as text becomes the value that it writes.
pub(super) fn collect<T: DeserializeOwned>(
    value: &mut Value,
    section: &str,
    overrides: &Overrides,
    problems: &mut Problems,
) {
    let join = |key: &str, next: &str| match (key, next) {
        ("", only) | (only, "") => only.to_owned(),
        (key, next) => format!("{key}.{next}"),
    };
    let mut rest = value.clone();
    let mut taken_out: Vec<String> = Vec::new();
    let mut read_again: Vec<String> = Vec::new();
    while let Err(error) = serde_path_to_error::deserialize::<_, T>(rest.clone()) {
        let path: Vec<String> = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                serde_path_to_error::Segment::Map { key } => Some(key.clone()),
                serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
                _ => None,
            })
            .collect();
        let key = join(section, &path.join("."));
        if !read_again.contains(&key)
            && let Some(written) = overrides.as_value(&key)
        {
            for tree in [&mut *value, &mut rest] {
                if let Some(at) = find(tree, &path) {
                    *at = written.clone();
                }
            }
            read_again.push(key);
            continue;
        }
        let what = error.inner().to_string();
        let missing = missing_field(&what).map(|field| join(&key, field));
        match missing {
            // It is missing because it was taken out; what is wrong with it was said then.
            Some(field) if taken_out.contains(&field) => return,
            Some(field) => return problems.add(&field, "it is missing"),
            None => problems.add(&key, what),
        }
        if !remove(&mut rest, &path) || problems.0.len() >= MOST_PROBLEMS {
            return;
        }
        taken_out.push(key);
    }
}

/// serde's sentence for a key that must be there and is not.
fn missing_field(what: &str) -> Option<&str> {
    what.strip_prefix("missing field `")?.split('`').next()
}

fn remove(value: &mut Value, path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    match find(value, parents) {
        Some(Value::Object(map)) => map.remove(last).is_some(),
        _ => false,
    }
}

fn find<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |at, key| match at {
        Value::Object(map) => map.get_mut(key),
        Value::Array(list) => list.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{Config, load_with};
    use super::*;

    const API: &str = r#"
        [api]
        listen = "0.0.0.0:8443"
        public_url = "https://holdfast.example:8443"
        [api.tls]
        certificate_file = "/etc/holdfast/api.pem"
        key_file = "/etc/holdfast/api.key"
        [api.auth]
        jwks_file = "/etc/holdfast/jwks.json"
        issuer = "https://login.example/"
        audiences = ["https://holdfast.example"]
        [database]
        host = "db"
        user = "holdfast"
        password_file = "/run/secrets/db"
    "#;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, Problems> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        load_with(file.path(), environment)
    }

    #[test]
    fn a_file_is_told_by_its_section() {
        assert_eq!(read(API, &[]).map(|config| config.kind()), Ok("api"));
        assert!(read("[telemetry]\n", &[]).is_err());
        assert!(read(&format!("{API}\n[agent]\n"), &[]).is_err());
    }

    #[test]
    fn the_environment_wins() {
        let environment = [
            ("HOLDFAST__API__LISTEN", "127.0.0.1:9000"),
            ("HOLDFAST__DATABASE__PORT", "6543"),
        ];
        let Ok(Config::Api(file)) = read(API, &environment) else {
            panic!("it is a good file");
        };
        assert_eq!((file.api.listen.port(), file.database.port), (9000, 6543));
    }

    #[test]
    fn limits_of_jobs_can_be_given_and_nothing_at_all_is_no_limit() {
        let agent = r#"
            [agent]
            name = "n1"
            region = "eastus2"
            gateway = "https://scheduler:7443"
            ca_file = "/ca.pem"
            state_dir = "/var/lib/holdfast"
            port_range = [5500, 5599]
            key_dir = "/keys"
            executable = "/usr/bin/holdfast"
            [agent.limits]
            read_mib_per_s = 40
            workers = 1
        "#;
        let environment = [
            ("HOLDFAST__AGENT__LIMITS__READ_MIB_PER_S", "20"),
            ("HOLDFAST__AGENT__LIMITS__LOW_PRIORITY", "false"),
        ];
        let read_agent = read(agent, &environment);
        let Ok(Config::Agent(file)) = &read_agent else {
            panic!("it is a good file: {read_agent:?}");
        };
        let limits = &file.agent.limits;
        assert_eq!(limits.read_mib_per_s.map(u32::from), Some(20));
        assert_eq!(limits.workers.map(u16::from), Some(1));
        assert_eq!(
            (limits.upload_mib_per_s, limits.low_priority),
            (None, false)
        );

        let wrong = format!("{agent}\nupload_mib_per_s = 0\nread_mb_per_s = 3\n");
        let problems = read(&wrong, &[]).expect_err("two mistakes");
        let keys: Vec<_> = problems.0.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "agent.limits.read_mb_per_s",
                "agent.limits.upload_mib_per_s"
            ],
            "{problems}"
        );
    }

    #[test]
    fn a_variable_is_text_where_text_belongs_and_a_value_where_none_does() {
        let agent = r#"
            [agent]
            name = "n1"
            region = "eastus2"
            gateway = "https://scheduler:7443"
            ca_file = "/ca.pem"
            state_dir = "/var/lib/holdfast"
            port_range = [5500, 5599]
            key_dir = "/keys"
            executable = "/usr/bin/holdfast"
        "#;
        let environment = [
            ("HOLDFAST__AGENT__NAME", "007"),
            ("HOLDFAST__AGENT__ZONE", "1"),
            ("HOLDFAST__AGENT__HOST", "true"),
            ("HOLDFAST__AGENT__MAX_JOBS", "3"),
            ("HOLDFAST__AGENT__PORT_RANGE", "[6000, 6001]"),
        ];
        let read_agent = read(agent, &environment);
        let Ok(Config::Agent(file)) = &read_agent else {
            panic!("it is a good file: {read_agent:?}");
        };
        let read_agent = &file.agent;
        assert_eq!(
            (read_agent.name.as_str(), read_agent.zone.as_deref()),
            ("007", Some("1"))
        );
        assert_eq!(read_agent.host, "true");
        assert_eq!(
            (read_agent.max_jobs, read_agent.port_range),
            (3, (6000, 6001))
        );

        let audiences = r#"["https://one.example", "https://2.example"]"#;
        let read_api = read(API, &[("HOLDFAST__API__AUTH__AUDIENCES", audiences)]);
        let Ok(Config::Api(file)) = &read_api else {
            panic!("it is a good file: {read_api:?}");
        };
        assert_eq!(
            file.api.auth.audiences,
            ["https://one.example", "https://2.example"]
        );
    }

    #[test]
    fn a_variable_that_is_neither_is_named_with_its_key() {
        for (key, text, expected) in [
            ("HOLDFAST__DATABASE__PORT", "many", "database.port: "),
            ("HOLDFAST__DATABASE__PORT", "[1]", "database.port: "),
            (
                "HOLDFAST__API__AUTH__AUDIENCES",
                "one",
                "api.auth.audiences: ",
            ),
            (
                "HOLDFAST__API__AUTH__AUDIENCES",
                "[1]",
                "api.auth.audiences.0: ",
            ),
            ("HOLDFAST__API__LISEN", "1", "api.lisen: unknown field"),
        ] {
            let problems = read(API, &[(key, text)]).expect_err(text).to_string();
            assert!(problems.starts_with(expected), "{key}={text}: {problems}");
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_key() {
        let text = API.replace("listen =", "lisen =").replace(
            "host = \"db\"",
            "host = \"db\"\nport = \"many\"\npasword = \"x\"",
        );
        let problems = read(&text, &[]).expect_err("three mistakes").to_string();
        for expected in [
            "api.lisen: unknown field",
            "database.port: ",
            "database.pasword: unknown field",
        ] {
            assert!(problems.contains(expected), "{expected} in\n{problems}");
        }
    }

    #[test]
    fn what_can_be_read_and_not_used_is_a_mistake_too() {
        let text = format!("{API}\n[telemetry]\nlog_filter = \"info,holdfast_api=loud\"\n");
        let problems = read(&text, &[]).expect_err("no such level").to_string();
        assert!(problems.starts_with("telemetry.log_filter: "), "{problems}");
        for url in [
            "https://holdfast.example/api",
            "https://holdfast.example/?x=1",
            "https://me@holdfast.example",
            "https://holdfast.example/#top",
        ] {
            let problems = read(API, &[("HOLDFAST__API__PUBLIC_URL", url)])
                .expect_err(url)
                .to_string();
            assert!(
                problems.starts_with("api.public_url: "),
                "{url}: {problems}"
            );
        }
    }

    #[test]
    fn a_password_cannot_be_written_into_the_file() {
        let text = API.replace(
            "password_file = \"/run/secrets/db\"",
            "password = \"secret\"",
        );
        let problems = read(&text, &[]).expect_err("no such key").to_string();
        assert!(
            problems.contains("password") && !problems.contains("secret\""),
            "{problems}"
        );
    }
}
