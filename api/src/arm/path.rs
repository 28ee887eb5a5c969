//! Paths as callers write them, and as the router knows them.
//!
//! Fixed words (`resourceGroups`, `flexibleServers`, `providers`…) are matched without case and
//! rewritten to the spelling of the routes; names stay as they were sent. Decoded exactly once; what
//! could mean something to a path afterwards is refused (RELIABILITY §4.5, §4.9 row 13).

use std::borrow::Cow;

use holdfast_domain::resource_id::{PROVIDER, SERVERS};
use holdfast_domain::{Refusal, SubscriptionId, name};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

/// Every fixed word of a route, spelled as the routes spell it.
const WORDS: &[&str] = &[
    "subscriptions",
    "resourceGroups",
    "providers",
    "locations",
    "azureAsyncOperation",
    "operationResults",
    "operations",
    "checkNameAvailability",
    SERVERS,
    "backups",
    "replicas",
    "start",
    "stop",
    "restart",
    "locks",
    "eventtypes",
    "values",
    "restorePoints",
    "connection",
    PROVIDER,
    "Microsoft.Authorization",
    "Microsoft.Insights",
    "Holdfast.Recovery",
];

const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Rewrites a request's path to the spelling of the routes.
///
/// # Errors
/// [`Refusal::InvalidResourceName`] for a segment that is not plain text after one decoding.
pub fn canonical(raw: &str) -> Result<String, Refusal> {
    let raw = &*unquoted_before_locks(raw);
    let mut segments: Vec<String> = raw
        .strip_prefix('/')
        .unwrap_or(raw)
        .split('/')
        .map(decode)
        .collect::<Result<_, _>>()?;
    if segments.last().is_some_and(String::is_empty) {
        segments.pop();
    }
    collapse_before_locks(&mut segments);
    // Types and names alternate, and begin anew after a provider's namespace. So a server may be
    // called `providers` and a group `Backups`: names are never taken for words.
    let mut word_next = true;
    let mut namespace_next = false;
    for index in 0..segments.len() {
        let under_eventtypes = index > 0 && segments[index - 1] == "eventtypes";
        let segment = &mut segments[index];
        if namespace_next {
            *segment = spelled(segment);
            namespace_next = false;
            word_next = true;
        } else if word_next {
            *segment = spelled(segment);
            namespace_next = segment == "providers";
            word_next = false;
        } else {
            if under_eventtypes && segment.eq_ignore_ascii_case("management") {
                "management".clone_into(segment);
            }
            word_next = true;
        }
    }
    let mut path = String::with_capacity(raw.len());
    for segment in &segments {
        path.push('/');
        path.extend(utf8_percent_encode(segment, ESCAPED));
    }
    if path.is_empty() {
        path.push('/');
    }
    Ok(path)
}

fn spelled(segment: &str) -> String {
    WORDS
        .iter()
        .find(|word| word.eq_ignore_ascii_case(segment))
        .map_or_else(|| segment.to_owned(), |word| (*word).to_owned())
}

/// The lock clients join a provider and an empty parent path, which doubles the slash before
/// `flexibleServers` (contract, other-apis §2). Nowhere else does an empty segment pass.
fn collapse_before_locks(segments: &mut Vec<String>) {
    let is = |index: usize, word: &str| {
        segments
            .get(index)
            .is_some_and(|segment| segment.eq_ignore_ascii_case(word))
    };
    let Some(empty) = segments.iter().position(String::is_empty) else {
        return;
    };
    let locks = segments
        .iter()
        .rposition(|segment| segment.eq_ignore_ascii_case("Microsoft.Authorization"))
        .is_some_and(|authorization| authorization > empty && is(authorization + 1, "locks"));
    if locks && is(empty + 1, SERVERS) {
        segments.remove(empty);
    }
}

/// The lock clients' calls by scope send a whole resource id as one segment, its slashes quoted. What comes
/// out of it is read like every other path; nowhere else does a quoted slash pass.
fn unquoted_before_locks(raw: &str) -> Cow<'_, str> {
    let path = raw.strip_prefix('/').unwrap_or(raw);
    let Some((scope, rest)) = path.split_once('/') else {
        return Cow::Borrowed(raw);
    };
    let of_locks = rest
        .to_ascii_lowercase()
        .starts_with("providers/microsoft.authorization/locks");
    let plain = scope.replace("%2F", "/").replace("%2f", "/");
    let plain = plain.strip_prefix('/').unwrap_or(&plain);
    if of_locks && plain.to_ascii_lowercase().starts_with("subscriptions/") {
        return Cow::Owned(format!("/{plain}/{rest}"));
    }
    Cow::Borrowed(raw)
}

fn decode(raw: &str) -> Result<String, Refusal> {
    let refused = |rule| Refusal::InvalidResourceName {
        what: "path segment",
        name: raw.to_owned(),
        rule,
    };
    let mut decoded = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let hex = |digit: Option<u8>| digit.and_then(|d| char::from(d).to_digit(16));
        match (hex(bytes.next()), hex(bytes.next())) {
            (Some(high), Some(low)) => {
                decoded.push(
                    u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"),
                );
            }
            _ => return Err(refused("a '%' must begin a two-digit escape")),
        }
    }
    if !decoded.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        return Err(refused("use printable ASCII characters only"));
    }
    if decoded
        .iter()
        .any(|byte| matches!(byte, b'/' | b'\\' | b'%'))
    {
        return Err(refused("'/', '\\' and '%' are not allowed inside a name"));
    }
    let text = String::from_utf8(decoded).expect("printable ASCII is UTF-8");
    if !text.is_empty() && text.bytes().all(|byte| byte == b'.') {
        return Err(refused("a name cannot consist of dots"));
    }
    Ok(text)
}

/// `/subscriptions/{subscription}`.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct SubscriptionPath {
    /// The subscription's GUID.
    pub subscription: String,
}

/// `/subscriptions/{subscription}/resourceGroups/{group}`.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct GroupPath {
    /// The subscription's GUID.
    pub subscription: String,
    /// The resource group's name.
    pub group: String,
}

/// `…/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}`.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ServerPath {
    /// The subscription's GUID.
    pub subscription: String,
    /// The resource group's name.
    pub group: String,
    /// The server's name.
    pub server: String,
}

/// `…/flexibleServers/{server}/backups/{backup}`.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct BackupPath {
    /// The subscription's GUID.
    pub subscription: String,
    /// The resource group's name.
    pub group: String,
    /// The server's name.
    pub server: String,
    /// The backup's name.
    pub backup: String,
}

/// `/subscriptions/{subscription}/providers/Microsoft.DBforPostgreSQL/locations/{location}`.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct LocationPath {
    /// The subscription's GUID.
    pub subscription: String,
    /// A region, by name or display name.
    pub location: String,
}

/// `…/locations/{location}/azureAsyncOperation/{operation}` and `…/operationResults/{operation}`.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OperationPath {
    /// The subscription's GUID.
    pub subscription: String,
    /// The region in which the operation was accepted.
    pub location: String,
    /// The operation's GUID.
    pub operation: String,
}

/// Parses a subscription. What is not a GUID names no subscription.
///
/// # Errors
/// [`Refusal::SubscriptionNotFound`].
pub fn subscription(text: &str) -> Result<SubscriptionId, Refusal> {
    Uuid::try_parse(text)
        .map(SubscriptionId)
        .map_err(|_| Refusal::SubscriptionNotFound(text.chars().take(64).collect()))
}

impl SubscriptionPath {
    #[must_use]
    pub fn scope(&self) -> String {
        format!("/subscriptions/{}", self.subscription)
    }
}

impl LocationPath {
    #[must_use]
    pub fn scope(&self) -> String {
        format!("/subscriptions/{}", self.subscription)
    }
}

impl OperationPath {
    #[must_use]
    pub fn scope(&self) -> String {
        format!("/subscriptions/{}", self.subscription)
    }
}

impl GroupPath {
    #[must_use]
    pub fn scope(&self) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}",
            self.subscription, self.group
        )
    }

    /// # Errors
    /// [`Refusal::SubscriptionNotFound`], [`Refusal::InvalidResourceName`].
    pub fn parse(&self) -> Result<SubscriptionId, Refusal> {
        name::new_resource_group(&self.group)?;
        subscription(&self.subscription)
    }
}

impl ServerPath {
    #[must_use]
    pub fn scope(&self) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}/providers/{PROVIDER}/{SERVERS}/{}",
            self.subscription, self.group, self.server
        )
    }

    /// Names that no server can have are refused for every verb; upper case is let through to the
    /// look-up, which ignores it.
    ///
    /// # Errors
    /// [`Refusal::SubscriptionNotFound`], [`Refusal::InvalidResourceName`].
    pub fn parse(&self) -> Result<SubscriptionId, Refusal> {
        let subscription = subscription(&self.subscription)?;
        name::new_resource_group(&self.group)?;
        name::new_server(&self.server.to_ascii_lowercase()).map_err(|_| {
            // Again, for a message that shows the name as it was sent.
            name::new_server(&self.server).expect_err("its lower case is not a name either")
        })?;
        Ok(subscription)
    }
}

impl BackupPath {
    #[must_use]
    pub fn server(&self) -> ServerPath {
        ServerPath {
            subscription: self.subscription.clone(),
            group: self.group.clone(),
            server: self.server.clone(),
        }
    }

    #[must_use]
    pub fn scope(&self) -> String {
        format!("{}/backups/{}", self.server().scope(), self.backup)
    }

    /// # Errors
    /// [`Refusal::SubscriptionNotFound`], [`Refusal::InvalidResourceName`].
    pub fn parse(&self) -> Result<SubscriptionId, Refusal> {
        let subscription = self.server().parse()?;
        name::new_backup(&self.backup)?;
        Ok(subscription)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: &str = "/subscriptions/11111111-2222-3333-4444-555555555555";

    #[test]
    fn fixed_words_are_matched_without_case_and_names_are_kept() {
        let given = format!(
            "{}/RESOURCEGROUPS/Backups/PROVIDERS/microsoft.dbforpostgresql/FlexibleServers/Providers/BACKUPS/Start",
            S.to_uppercase().replace("SUBSCRIPTIONS", "Subscriptions")
        );
        assert_eq!(
            canonical(&given).as_deref(),
            Ok(format!("{S}/resourceGroups/Backups/providers/Microsoft.DBforPostgreSQL/flexibleServers/Providers/backups/Start").as_str())
        );
        assert_eq!(
            canonical(&format!(
                "{S}/providers/microsoft.insights/EventTypes/Management/Values"
            ))
            .as_deref(),
            Ok(format!("{S}/providers/Microsoft.Insights/eventtypes/management/values").as_str())
        );
        assert_eq!(
            canonical(&format!("{S}/providers/Microsoft.DBforPostgreSQL/locations/Canada%20Central/azureasyncoperation/x")).as_deref(),
            Ok(format!("{S}/providers/Microsoft.DBforPostgreSQL/locations/Canada%20Central/azureAsyncOperation/x").as_str())
        );
        assert_eq!(
            canonical(&format!("{S}/resourcegroups/g/")).as_deref(),
            Ok(format!("{S}/resourceGroups/g").as_str())
        );
        assert_eq!(canonical("/").as_deref(), Ok("/"));
    }

    #[test]
    fn the_double_slash_of_lock_clients_is_one_slash_and_others_are_not() {
        let lock = format!(
            "{S}/resourceGroups/g/providers/Microsoft.DBforPostgreSQL//flexibleServers/pg1/providers/Microsoft.Authorization/locks/l"
        );
        assert_eq!(
            canonical(&lock).as_deref(),
            Ok(lock.replace("//", "/").as_str())
        );
        let server = format!(
            "{S}/resourceGroups/g/providers/Microsoft.DBforPostgreSQL//flexibleServers/pg1"
        );
        assert!(canonical(&server).expect("parses").contains("//"));
    }

    #[test]
    fn a_quoted_scope_of_lock_clients_is_a_path_like_others() {
        let lock = format!(
            "{S}/resourceGroups/g/providers/{PROVIDER}/{SERVERS}/pg1/providers/Microsoft.Authorization/locks"
        );
        let (scope, rest) = lock.split_at(lock.rfind("/providers").expect("it has one"));
        let quoted = scope.replace('/', "%2F");
        for sent in [
            format!("/{quoted}{rest}"),
            format!("/{}{rest}", &quoted[3..].to_lowercase()),
        ] {
            let read = canonical(&sent).expect("parses");
            assert!(read.eq_ignore_ascii_case(&lock), "{read}");
        }
        // Nothing gets around the rules for names by being quoted, and nothing else may be.
        for sent in [
            format!("/{}{rest}", quoted.replace("pg1", "..")),
            format!("/{}{rest}", quoted.replace("pg1", "a%252fb")),
            format!("/{quoted}/backups"),
        ] {
            assert!(
                matches!(canonical(&sent), Err(Refusal::InvalidResourceName { .. })),
                "{sent}"
            );
        }
    }

    #[test]
    fn what_means_something_to_a_path_is_refused() {
        // RELIABILITY §4.9 row 13
        for name in [
            "..",
            ".",
            "a/../../b",
            "a%2f..%2fb",
            "a%2Fb",
            "a%00b",
            "%2e%2e",
            "a%252fb",
            "a%5cb",
            "%F0%9F%98%80",
            "a%0d%0ab",
            "a%",
            "a%zz",
        ] {
            let path = format!("{S}/resourceGroups/g/providers/{PROVIDER}/{SERVERS}/{name}");
            assert!(
                matches!(canonical(&path), Err(Refusal::InvalidResourceName { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn names_that_no_server_can_have_are_refused_for_every_verb() {
        // RELIABILITY §4.9 rows 13 and 14
        let path = |server: &str| ServerPath {
            subscription: S[15..].to_owned(),
            group: "rg1".into(),
            server: server.into(),
        };
        let long = "a".repeat(64);
        for bad in [
            "A_B",
            &long,
            "-x",
            "x-",
            "-xx",
            "xx-",
            "pg1;touch /tmp/p",
            "$(id)",
            "",
        ] {
            assert!(
                matches!(path(bad).parse(), Err(Refusal::InvalidResourceName { .. })),
                "{bad}"
            );
        }
        assert!(path("PG1").parse().is_ok());
        for bad in ["../../manifest", ".", &"b".repeat(300), "a b"] {
            let backup = BackupPath {
                subscription: S[15..].into(),
                group: "rg1".into(),
                server: "pg1".into(),
                backup: bad.into(),
            };
            assert!(
                matches!(backup.parse(), Err(Refusal::InvalidResourceName { .. })),
                "{bad}"
            );
        }
        assert!(matches!(
            subscription("mine"),
            Err(Refusal::SubscriptionNotFound(_))
        ));
    }
}
