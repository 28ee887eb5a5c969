//! From a file and the environment to a checked configuration, or to the list of what is wrong.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use config::{Environment, File, FileFormat};
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
    let overrides = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .try_parsing(true)
        .source(environment);
    let merged: Value = config::Config::builder()
        .add_source(File::from(path).format(FileFormat::Toml))
        .add_source(overrides)
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(Problems::of_file)?;
    let has = |section: &str| merged.get(section).is_some();
    match (has("api"), has("scheduler"), has("agent")) {
        (true, false, false) => read::<ApiFile>(merged).map(|it| Config::Api(Box::new(it))),
        (false, true, false) => {
            read::<SchedulerFile>(merged).map(|it| Config::Scheduler(Box::new(it)))
        }
        (false, false, true) => read::<AgentFile>(merged).map(|it| Config::Agent(Box::new(it))),
        (false, false, false) => Err(Problems::of_file(
            "it has neither [api] nor [scheduler] nor [agent]",
        )),
        _ => Err(Problems::of_file(
            "it has more than one of [api], [scheduler] and [agent]",
        )),
    }
}

/// A file that nothing in the environment wins over.
pub(super) fn load_plain<T: DeserializeOwned + Check>(path: &Path) -> Result<T, Problems> {
    let merged: Value = config::Config::builder()
        .add_source(File::from(path).format(FileFormat::Toml))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(Problems::of_file)?;
    read(merged)
}

/// Reads section by section, so that a mistake in one hides none in another, and then the whole.
fn read<T: DeserializeOwned + Check>(merged: Value) -> Result<T, Problems> {
    let mut problems = Problems::default();
    for (section, collect) in T::SECTIONS {
        if let Some(value) = merged.get(section) {
            collect(value.clone(), section, &mut problems);
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
            collect::<T>(merged, "", &mut problems);
            Err(problems)
        }
    }
}

/// Everything that keeps `value` from being a `T`. After a mistake at some key that key is taken out and
/// the rest is read; a key that is missing ends it, because nobody knows what should be there.
pub(super) fn collect<T: DeserializeOwned>(
    mut value: Value,
    section: &str,
    problems: &mut Problems,
) {
    let join = |key: &str, next: &str| match (key, next) {
        ("", only) | (only, "") => only.to_owned(),
        (key, next) => format!("{key}.{next}"),
    };
    let mut taken_out: Vec<String> = Vec::new();
    while let Err(error) = serde_path_to_error::deserialize::<_, T>(value.clone()) {
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
        let what = error.inner().to_string();
        let missing = missing_field(&what).map(|field| join(&key, field));
        match missing {
            // It is missing because it was taken out; what is wrong with it was said then.
            Some(field) if taken_out.contains(&field) => return,
            Some(field) => return problems.add(&field, "it is missing"),
            None => problems.add(&key, what),
        }
        if !remove(&mut value, &path) || problems.0.len() >= MOST_PROBLEMS {
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
    let mut at = value;
    for key in parents {
        let next = match at {
            Value::Object(map) => map.get_mut(key),
            Value::Array(list) => key
                .parse()
                .ok()
                .and_then(|index: usize| list.get_mut(index)),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => return false,
        }
    }
    match at {
        Value::Object(map) => map.remove(last).is_some(),
        _ => false,
    }
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
