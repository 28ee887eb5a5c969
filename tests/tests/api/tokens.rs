//! Who gets in: RELIABILITY §4.9 rows 1 to 8. Each of these is a 401, and nothing was looked up.

use std::net::TcpListener;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use holdfast_api::auth::issuer::Issuer;
use holdfast_tests::api_client::{
    AUDIENCE, Answer, ApiClient, ISSUER, OWNER, TENANT, request, servers_path,
};
use holdfast_tests::harness::Harness;
use http::{Method, header};
use insta::assert_json_snapshot;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

struct Setting {
    harness: Harness,
    api: ApiClient,
}

impl Setting {
    async fn new() -> Result<Self> {
        let harness = Harness::new().await?;
        let api = ApiClient::new(&harness).await?;
        Ok(Self { harness, api })
    }

    /// Good claims, to be spoiled.
    fn claims(&self) -> Value {
        let now = self.harness.now().timestamp();
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "tid": TENANT, "oid": OWNER, "sub": OWNER,
            "iat": now, "nbf": now, "exp": now + 3600,
        })
    }

    fn header(&self) -> Header {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.api.issuer().kid().to_owned());
        header
    }

    /// Puts a key into the API's file, beside its own.
    fn add_key(&self, jwk: Value) -> Result<()> {
        let mut keys: Value = serde_json::from_str(&self.api.issuer().jwks())?;
        keys["keys"].as_array_mut().expect("a list").push(jwk);
        let beside = self.api.jwks_file.with_extension("next");
        std::fs::write(&beside, keys.to_string())?;
        std::fs::rename(&beside, &self.api.jwks_file)?;
        Ok(())
    }

    /// Signed by the right key, whatever it says.
    fn sign(&self, header: &Header, claims: &Value) -> Result<String> {
        let key = EncodingKey::from_ed_pem(self.api.issuer().pem().as_bytes())?;
        Ok(jsonwebtoken::encode(header, claims, &key)?)
    }

    async fn with(&self, authorization: &[&str]) -> Result<Answer> {
        let mut request = request(Method::GET, &servers_path());
        for value in authorization {
            request = request.header(header::AUTHORIZATION, *value);
        }
        self.api
            .send(request.body(axum::body::Body::empty())?)
            .await
    }

    async fn bearer(&self, token: &str) -> Result<Answer> {
        self.with(&[&format!("Bearer {token}")]).await
    }

    async fn refused(&self, case: &str, token: &str) -> Result<()> {
        let answer = self.bearer(token).await?;
        assert_eq!(answer.status, 401, "{case}: {answer:?}");
        assert!(
            answer.headers.contains_key(header::WWW_AUTHENTICATE),
            "{case}"
        );
        assert!(
            answer.code().contains("Authentication"),
            "{case}: {}",
            answer.code()
        );
        Ok(())
    }
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[tokio::test]
async fn a_good_token_opens_the_door_that_the_bad_ones_find_shut() -> Result<()> {
    let setting = Setting::new().await?;
    let token = setting.sign(&setting.header(), &setting.claims())?;
    assert_eq!(setting.bearer(&token).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn row_1_a_request_without_a_token_is_told_how_to_get_one() -> Result<()> {
    let setting = Setting::new().await?;
    let answer = setting.with(&[]).await?;
    assert_json_snapshot!(answer.stable(), @r#"
    {
      "body": {
        "error": {
          "code": "AuthenticationFailed",
          "message": "Authentication failed. The 'Authorization' header is missing or is not one 'Bearer' token."
        }
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "www-authenticate": "Bearer authorization_uri=\"https://issuer.test/\", error=\"invalid_token\", error_description=\"Authentication failed. The 'Authorization' header is missing or is not one 'Bearer' token.\"",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 401
    }
    "#);
    Ok(())
}

#[tokio::test]
async fn row_2_what_is_not_one_bearer_token_is_refused() -> Result<()> {
    let setting = Setting::new().await?;
    let good = setting.sign(&setting.header(), &setting.claims())?;
    setting.refused("no token", "a.b.c").await?;
    setting
        .refused("9 KiB", &format!("{good}{}", "A".repeat(9 << 10)))
        .await?;
    let bearer = format!("Bearer {good}");
    for (case, headers) in [
        ("two headers", vec![bearer.as_str(), bearer.as_str()]),
        ("another scheme", vec!["Basic dXNlcjpwYXNz"]),
        ("no scheme", vec![good.as_str()]),
        ("nothing", vec!["Bearer "]),
    ] {
        assert_eq!(setting.with(&headers).await?.status, 401, "{case}");
    }
    Ok(())
}

#[tokio::test]
async fn row_3_an_unsigned_token_is_refused_however_it_spells_none() -> Result<()> {
    let setting = Setting::new().await?;
    let kid = setting.api.issuer().kid();
    for alg in ["none", "None", "nOnE", "NONE", ""] {
        let head = part(&json!({"alg": alg, "typ": "JWT", "kid": kid}));
        let token = format!("{head}.{}.", part(&setting.claims()));
        setting.refused(alg, &token).await?;
    }
    let good = setting.sign(&setting.header(), &setting.claims())?;
    let (signed, _) = good.rsplit_once('.').expect("a token has dots");
    setting
        .refused("empty signature", &format!("{signed}."))
        .await
}

#[tokio::test]
async fn row_4_a_public_key_is_no_shared_secret() -> Result<()> {
    let setting = Setting::new().await?;
    let jwks = setting.api.issuer().jwks();
    let key: Value = serde_json::from_str(&jwks)?;
    let x = key["keys"][0]["x"]
        .as_str()
        .expect("an Ed25519 key has x")
        .to_owned();
    let raw = URL_SAFE_NO_PAD.decode(&x)?;
    let secrets: [&[u8]; 4] = [
        &raw,
        x.as_bytes(),
        jwks.as_bytes(),
        &serde_json::to_vec(&key["keys"][0])?,
    ];
    for secret in secrets {
        for alg in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let header = Header {
                alg,
                ..setting.header()
            };
            let key = EncodingKey::from_secret(secret);
            let token = jsonwebtoken::encode(&header, &setting.claims(), &key)?;
            setting.refused("symmetric", &token).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn row_5_a_key_id_names_a_key_of_ours_and_its_own_algorithm() -> Result<()> {
    let setting = Setting::new().await?;
    let kid = setting.api.issuer().kid().to_owned();
    let good = setting.sign(&setting.header(), &setting.claims())?;
    let (signed, signature) = good.rsplit_once('.').expect("a token has dots");
    let (_, claims) = signed.split_once('.').expect("a token has dots");
    for alg in ["RS256", "ES256", "eddsa"] {
        let head = part(&json!({"alg": alg, "typ": "JWT", "kid": kid}));
        setting
            .refused(alg, &format!("{head}.{claims}.{signature}"))
            .await?;
    }
    let long = "k".repeat(64 << 10);
    for kid in ["../../etc/passwd", "' or 1=1 --", "", long.as_str()] {
        let header = Header {
            kid: Some(kid.to_owned()),
            ..setting.header()
        };
        setting
            .refused("foreign kid", &setting.sign(&header, &setting.claims())?)
            .await?;
    }
    let header = Header {
        kid: None,
        ..setting.header()
    };
    setting
        .refused("no kid", &setting.sign(&header, &setting.claims())?)
        .await
}

/// An RSA key of 2048 bits in the API's file, beside its own.
struct Rsa {
    signing: EncodingKey,
    public_pem: String,
    header: Header,
}

impl Rsa {
    fn beside(setting: &Setting) -> Result<Self> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)?;
        // RSAPublicKey of RFC 8017: SEQUENCE { INTEGER 0 n, INTEGER 65537 }.
        let der = pair.public_key_raw();
        anyhow::ensure!(
            der.len() == 270 && der.ends_with(&[2, 3, 1, 0, 1]),
            "{der:?}"
        );
        setting.add_key(json!({
            "kty": "RSA", "kid": "rsa-1", "use": "sig",
            "n": URL_SAFE_NO_PAD.encode(&der[9..265]), "e": "AQAB",
        }))?;
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some("rsa-1".to_owned());
        Ok(Self {
            signing: EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes())?,
            public_pem: pair.public_key_pem(),
            header,
        })
    }
}

#[tokio::test]
async fn rows_4_and_5_an_rsa_key_signs_and_does_nothing_else() -> Result<()> {
    let setting = Setting::new().await?;
    let rsa = Rsa::beside(&setting)?;
    let claims = setting.claims();
    let good = jsonwebtoken::encode(&rsa.header, &claims, &rsa.signing)?;
    assert_eq!(setting.bearer(&good).await?.status, 200);

    for secret in [rsa.public_pem.as_str(), rsa.public_pem.trim_end()] {
        let header = Header {
            alg: Algorithm::HS256,
            ..rsa.header.clone()
        };
        let key = EncodingKey::from_secret(secret.as_bytes());
        let token = jsonwebtoken::encode(&header, &claims, &key)?;
        setting
            .refused("the public key as a secret", &token)
            .await?;
    }
    let crossed = Header {
        kid: setting.header().kid,
        ..rsa.header.clone()
    };
    let token = jsonwebtoken::encode(&crossed, &claims, &rsa.signing)?;
    setting
        .refused("RS256 under the EdDSA key's id", &token)
        .await?;
    let crossed = Header {
        kid: rsa.header.kid.clone(),
        ..setting.header()
    };
    let token = setting.sign(&crossed, &claims)?;
    setting
        .refused("EdDSA under the RSA key's id", &token)
        .await
}

#[tokio::test]
async fn rows_4_and_5_a_key_on_a_curve_signs_es256_and_nothing_else() -> Result<()> {
    let setting = Setting::new().await?;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    // SEC 1 §2.3.3, uncompressed: 4, then x, then y.
    let point = pair.public_key_raw();
    anyhow::ensure!(point.len() == 65 && point[0] == 4, "{point:?}");
    setting.add_key(json!({
        "kty": "EC", "crv": "P-256", "kid": "ec-1", "use": "sig",
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]),
    }))?;
    let signing = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
    let claims = setting.claims();
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("ec-1".to_owned());
    let good = jsonwebtoken::encode(&header, &claims, &signing)?;
    assert_eq!(setting.bearer(&good).await?.status, 200);

    let crossed = Header {
        kid: setting.header().kid,
        ..header.clone()
    };
    let token = jsonwebtoken::encode(&crossed, &claims, &signing)?;
    setting
        .refused("ES256 under the EdDSA key's id", &token)
        .await?;
    let crossed = Header {
        kid: header.kid.clone(),
        ..setting.header()
    };
    let token = setting.sign(&crossed, &claims)?;
    setting
        .refused("EdDSA under the EC key's id", &token)
        .await?;
    let secret = Header {
        alg: Algorithm::HS256,
        ..header
    };
    let key = EncodingKey::from_secret(pair.public_key_pem().as_bytes());
    let token = jsonwebtoken::encode(&secret, &claims, &key)?;
    setting.refused("the public key as a secret", &token).await
}

#[tokio::test]
async fn row_6_a_token_does_not_bring_its_own_key() -> Result<()> {
    let setting = Setting::new().await?;
    let trap = TcpListener::bind("127.0.0.1:0")?;
    trap.set_nonblocking(true)?;
    let url = format!("http://{}/", trap.local_addr()?);

    let own = Issuer::generate()?;
    let keys: Value = serde_json::from_str(&own.jwks())?;
    let key = EncodingKey::from_ed_pem(own.pem().as_bytes())?;
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(own.kid().to_owned());
    header.jku = Some(url.clone());
    header.x5u = Some(url);
    header.jwk = Some(serde_json::from_value(keys["keys"][0].clone())?);
    let token = jsonwebtoken::encode(&header, &setting.claims(), &key)?;
    setting.refused("a key of its own", &token).await?;
    header.kid = Some(setting.api.issuer().kid().to_owned());
    let token = jsonwebtoken::encode(&header, &setting.claims(), &key)?;
    setting
        .refused("a key of its own under our name", &token)
        .await?;
    assert!(trap.accept().is_err(), "nobody called");
    Ok(())
}

#[tokio::test]
async fn row_7_times_issuer_and_audience_are_exactly_right() -> Result<()> {
    let setting = Setting::new().await?;
    let now = setting.harness.now().timestamp();
    let cases: [(&str, Value); 9] = [
        ("expired 31 s ago", json!({"exp": now - 31})),
        ("valid in 31 s", json!({"nbf": now + 31})),
        ("issued in 31 s", json!({"iat": now + 31})),
        ("longer than a day", json!({"exp": now + 24 * 3600 + 1})),
        ("another audience", json!({"aud": "https://graph.test/"})),
        (
            "audiences without ours",
            json!({"aud": ["https://a.test/", "https://b.test/"]}),
        ),
        (
            "issuer without its slash",
            json!({"iss": ISSUER.trim_end_matches('/')}),
        ),
        ("issuer with two", json!({"iss": format!("{ISSUER}/")})),
        (
            "another tenant",
            json!({"tid": "7e9a9700-0000-4000-8000-00000000ffff"}),
        ),
    ];
    for (case, change) in cases {
        let mut claims = setting.claims();
        for (name, value) in change.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        setting
            .refused(case, &setting.sign(&setting.header(), &claims)?)
            .await?;
    }
    for missing in ["exp", "nbf", "iat", "iss", "aud"] {
        let mut claims = setting.claims();
        claims.as_object_mut().expect("an object").remove(missing);
        setting
            .refused(missing, &setting.sign(&setting.header(), &claims)?)
            .await?;
    }
    // Half a minute of skew is nobody's fault.
    let mut claims = setting.claims();
    (claims["nbf"], claims["iat"]) = (json!(now + 29), json!(now + 29));
    assert_eq!(
        setting
            .bearer(&setting.sign(&setting.header(), &claims)?)
            .await?
            .status,
        200
    );
    Ok(())
}

#[tokio::test]
async fn row_8_a_retired_key_opens_nothing() -> Result<()> {
    let setting = Setting::new().await?;
    let old = setting.sign(&setting.header(), &setting.claims())?;
    assert_eq!(setting.bearer(&old).await?.status, 200);
    let next = Issuer::generate()?;
    let beside = setting.api.jwks_file.with_extension("next");
    std::fs::write(&beside, next.jwks())?;
    std::fs::rename(&beside, &setting.api.jwks_file)?;
    setting.refused("retired", &old).await?;
    let new = next.mint(&setting.api.mint(OWNER), setting.harness.now())?;
    assert_eq!(setting.bearer(&new).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_token_ends_with_its_hour() -> Result<()> {
    let setting = Setting::new().await?;
    let token = setting.api.token(OWNER)?;
    setting.harness.advance(TimeDelta::minutes(59)).await?;
    assert_eq!(setting.bearer(&token).await?.status, 200);
    setting.harness.advance(TimeDelta::minutes(2)).await?;
    let ended = setting.bearer(&token).await?;
    assert_eq!(ended.refusal(), (401, "ExpiredAuthenticationToken"));
    Ok(())
}
