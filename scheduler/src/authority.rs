//! The installation's own certificate authority.
//!
//! It signs two kinds of certificate: for the servers of this installation (API and agent gateway),
//! and 24-hour client certificates for agents, whose one name is `spiffe://holdfast/agent/{node}`
//! (RELIABILITY §4.3). Key and certificate lie in *one* file that is published by a hard link, so
//! that two processes that start together end up with one authority and a crash leaves none by half.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use uuid::Uuid;

use crate::{Error, Result};

/// How long an agent's certificate is good for; agents renew at two thirds (RELIABILITY §4.3).
pub const AGENT_CERTIFICATE_LIFE: TimeDelta = TimeDelta::hours(24);
/// Servers take a new certificate at each start, and the gateway at half of this.
pub const SERVER_CERTIFICATE_LIFE: TimeDelta = TimeDelta::days(90);
const AUTHORITY_LIFE: TimeDelta = TimeDelta::days(10 * 365);
/// Machines whose clocks are a little behind accept a fresh certificate all the same.
const CLOCK_SLACK: TimeDelta = TimeDelta::minutes(5);

/// Certificate and key together, readable by the owner alone.
const BUNDLE: &str = "authority.pem";
/// The certificate alone, for clients.
const PUBLIC: &str = "ca.pem";
const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";
const AGENT_URI: &str = "spiffe://holdfast/agent/";
/// A request of 4096-bit RSA in PEM is below 2 KiB.
const MAX_REQUEST_BYTES: usize = 16 << 10;

/// The certificate authority. Clones share it.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    public_file: PathBuf,
}

/// A certificate for a server, with its key, both PEM.
pub struct ServerCertificate {
    pub certificate_pem: String,
    pub key_pem: String,
    pub expires: DateTime<Utc>,
}

/// A client certificate for an agent, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertificate {
    pub certificate_pem: String,
    pub expires: DateTime<Utc>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authority")
            .field(&self.0.public_file)
            .finish()
    }
}

impl Authority {
    /// Opens the authority kept in `dir`, or makes one there.
    ///
    /// # Errors
    /// When the directory cannot be written or what is in it cannot be read.
    pub fn open_or_create(dir: &Path, now: DateTime<Utc>) -> Result<Self> {
        let failed = |what: &'static str| {
            let dir = dir.to_owned();
            move |source| Error::AuthorityFile { what, dir, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("make the directory of"))?;
        let bundle = dir.join(BUNDLE);
        if !bundle.try_exists().map_err(failed("look for"))? {
            publish(&bundle, &create(now)?).map_err(failed("write"))?;
        }
        let text = fs::read_to_string(&bundle).map_err(failed("read"))?;
        let (certificate_pem, key_pem) =
            text.find(KEY_BEGINS)
                .map(|at| text.split_at(at))
                .ok_or(Error::AuthorityDamaged {
                    file: bundle.clone(),
                })?;
        let issuer = KeyPair::from_pem(key_pem)
            .and_then(|key| Issuer::from_ca_cert_pem(certificate_pem, key))
            .map_err(|_| Error::AuthorityDamaged { file: bundle })?;
        let public_file = dir.join(PUBLIC);
        if fs::read_to_string(&public_file).ok().as_deref() != Some(certificate_pem) {
            replace(&public_file, certificate_pem).map_err(failed("write the certificate of"))?;
        }
        Ok(Self(Arc::new(Inner {
            issuer,
            certificate_pem: certificate_pem.to_owned(),
            public_file,
        })))
    }

    /// The authority's certificate, PEM: what clients are told to trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.0.certificate_pem
    }

    /// The file that holds [`Self::ca_pem`].
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.0.public_file
    }

    /// A certificate and a fresh key for a server that is reached under these names and addresses.
    ///
    /// # Errors
    /// When a name is not one that a certificate can carry.
    pub fn server_certificate(
        &self,
        names: &[String],
        now: DateTime<Utc>,
    ) -> Result<ServerCertificate> {
        let expires = now + SERVER_CERTIFICATE_LIFE;
        let mut params = CertificateParams::new(names.to_vec()).map_err(Error::Certificate)?;
        params.distinguished_name = common_name("Holdfast server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf(&mut params, now, expires);
        let key = KeyPair::generate().map_err(Error::Certificate)?;
        let certificate = params
            .signed_by(&key, &self.0.issuer)
            .map_err(Error::Certificate)?;
        Ok(ServerCertificate {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            expires,
        })
    }

    /// Whether [`Self::sign_agent`] would take this request; asked before a join token is spent.
    ///
    /// # Errors
    /// [`Error::CertificateRequest`].
    pub fn check_request(request_pem: &str) -> Result<()> {
        parse_request(request_pem).map(drop)
    }

    /// A client certificate for the key in `request_pem`. Only the key is taken from the request:
    /// name, use and life are ours.
    ///
    /// # Errors
    /// [`Error::CertificateRequest`] when it is not a PKCS #10 request signed by its own key.
    pub fn sign_agent(
        &self,
        request_pem: &str,
        node: NodeId,
        now: DateTime<Utc>,
    ) -> Result<AgentCertificate> {
        let public_key = parse_request(request_pem)?.public_key;
        let expires = now + AGENT_CERTIFICATE_LIFE;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Holdfast agent");
        let uri = agent_uri(node).try_into().map_err(Error::Certificate)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        leaf(&mut params, now, expires);
        let certificate = CertificateSigningRequestParams { params, public_key }
            .signed_by(&self.0.issuer)
            .map_err(Error::Certificate)?;
        Ok(AgentCertificate {
            certificate_pem: certificate.pem(),
            expires,
        })
    }
}

/// `spiffe://holdfast/agent/{node}`.
#[must_use]
pub fn agent_uri(node: NodeId) -> String {
    format!("{AGENT_URI}{node}")
}

/// The node that a certificate's URI names; `None` for any other text.
#[must_use]
pub fn parse_agent_uri(uri: &str) -> Option<NodeId> {
    let node: NodeId = uri.strip_prefix(AGENT_URI)?.parse().ok()?;
    (agent_uri(node) == uri).then_some(node)
}

fn parse_request(request_pem: &str) -> Result<CertificateSigningRequestParams> {
    if request_pem.len() > MAX_REQUEST_BYTES {
        return Err(Error::CertificateRequest);
    }
    CertificateSigningRequestParams::from_pem(request_pem).map_err(|_| Error::CertificateRequest)
}

/// A new authority: certificate and key, PEM, one after the other.
fn create(now: DateTime<Utc>) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Holdfast certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    life(&mut params, now, now + AUTHORITY_LIFE);
    let key = KeyPair::generate().map_err(Error::Certificate)?;
    let certificate = params.self_signed(&key).map_err(Error::Certificate)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

fn leaf(params: &mut CertificateParams, now: DateTime<Utc>, expires: DateTime<Utc>) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    // Not the hash of the key, which rcgen would take: a renewal may keep its key.
    params.serial_number = Some(SerialNumber::from_slice(Uuid::new_v4().as_bytes()));
    life(params, now, expires);
}

fn life(params: &mut CertificateParams, from: DateTime<Utc>, to: DateTime<Utc>) {
    let at = |time: DateTime<Utc>| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    params.not_before = at(from - CLOCK_SLACK);
    params.not_after = at(to);
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Holdfast");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Writes the file unless it is there: whoever comes second keeps what the first one wrote.
fn publish(file: &Path, text: &str) -> std::io::Result<()> {
    let temporary = file.with_extension(Uuid::new_v4().simple().to_string());
    let written =
        write_new(&temporary, text, 0o600).and_then(|()| match fs::hard_link(&temporary, file) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    fs::remove_file(&temporary).and(written)
}

fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let temporary = file.with_extension(Uuid::new_v4().simple().to_string());
    write_new(&temporary, text, 0o644)?;
    // Clients of other users read it, whatever the umask of whoever started us.
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    fs::rename(&temporary, file)
}

fn write_new(file: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut open = OpenOptions::new();
    let mut handle = open.write(true).create_new(true).mode(mode).open(file)?;
    handle.write_all(text.as_bytes())?;
    handle.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::pem::parse_x509_pem;
    use x509_parser::prelude::GeneralName;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("valid")
    }

    fn request() -> String {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .expect("a request")
    }

    #[test]
    fn an_authority_that_is_there_is_opened_and_not_made_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("ca");
        let first = Authority::open_or_create(&dir, now()).expect("made");
        let again = Authority::open_or_create(&dir, now()).expect("opened");
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(
            fs::read_to_string(first.ca_file()).expect("readable"),
            first.ca_pem()
        );
        let mode = |name| {
            fs::metadata(dir.join(name))
                .expect("there")
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode(BUNDLE), mode(PUBLIC)), (0o600, 0o644));
        assert_eq!(fs::read_dir(&dir).expect("readable").count(), 2);
    }

    #[test]
    fn a_damaged_authority_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(BUNDLE), "no key here").expect("written");
        let opened = Authority::open_or_create(dir.path(), now());
        assert!(matches!(opened, Err(Error::AuthorityDamaged { .. })));
    }

    #[test]
    fn an_agent_gets_its_own_name_for_a_day_and_nothing_it_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::open_or_create(dir.path(), now()).expect("made");
        let node = NodeId::new();
        let signed = authority
            .sign_agent(&request(), node, now())
            .expect("signed");
        assert_eq!(signed.expires, now() + TimeDelta::hours(24));
        let (_, pem) = parse_x509_pem(signed.certificate_pem.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("a certificate");
        let names = certificate.subject_alternative_name().expect("read");
        let names = &names.expect("there").value.general_names;
        let expected = agent_uri(node);
        assert_eq!(names[..], [GeneralName::URI(expected.as_str())]);
        assert!(!certificate.is_ca());
        let usage = certificate
            .extended_key_usage()
            .expect("read")
            .expect("there")
            .value;
        assert!(usage.client_auth && !usage.server_auth);
        assert_eq!(
            certificate.validity().not_after.timestamp(),
            signed.expires.timestamp()
        );
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        let pem = request();
        let forged = {
            let mut lines: Vec<String> = pem.lines().map(str::to_owned).collect();
            let at = lines.len() - 3;
            let flipped = if lines[at].starts_with('A') { "B" } else { "A" };
            lines[at].replace_range(0..1, flipped);
            lines.join("\n")
        };
        for bad in [
            String::new(),
            "hello".to_owned(),
            "x".repeat(1 << 20),
            forged,
        ] {
            assert!(matches!(
                Authority::check_request(&bad),
                Err(Error::CertificateRequest)
            ));
        }
        assert!(Authority::check_request(&pem).is_ok());
    }

    #[test]
    fn only_an_agents_uri_names_a_node() {
        let node = NodeId::new();
        assert_eq!(parse_agent_uri(&agent_uri(node)), Some(node));
        for foreign in [
            format!("spiffe://holdfast/api/{node}"),
            format!("{AGENT_URI}{}", node.0.simple()),
            format!("{AGENT_URI}{node}/x"),
            String::new(),
        ] {
            assert_eq!(parse_agent_uri(&foreign), None, "{foreign}");
        }
    }
}
