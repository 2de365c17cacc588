//! Secrets that AWS KMS encrypted, and decrypts for who may ask it to.
//!
//! `WAVRY_<NAME>_KMS_FILE` is a file that holds the ciphertext in base64, as `aws kms encrypt --output text --query
//! CiphertextBlob` writes it. It was encrypted with the encryption context `wavry:secret=<name>`, and is decrypted
//! with it, so that the ciphertext of one secret does not pass for another's. `WAVRY_AWS_REGION` and
//! `WAVRY_AWS_ACCESS_KEY_ID` say where and as whom, the secrets `aws_secret_access_key` and, with temporary
//! credentials, `aws_session_token` prove it; both are read from files, each time that they are needed.

use std::{ffi::OsString, fmt, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{Error, Found, Source, Version, file::version_of, locate, read_as, read_public};
use crate::{
    bearer::{Malformed, Token},
    cert::{self, Trust},
    clock::unix_time,
    exchange,
    key::{
        format,
        sigv4::{Key, Scope},
    },
    secret::Secret,
};

const URL: &str = "WAVRY_AWS_KMS_URL";
const KEY: &str = "WAVRY_AWS_KMS_KEY";
const REGION: &str = "WAVRY_AWS_REGION";
const ACCESS_KEY_ID: &str = "WAVRY_AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "aws_secret_access_key";
const SESSION_TOKEN: &str = "aws_session_token";
/// Of the encryption context: what it is followed by is the secret's name.
const CONTEXT: &str = "wavry:secret";
/// From the first packet to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest ciphertext that KMS takes, in bytes.
const MAX_CIPHERTEXT: usize = 6144;

/// Where KMS is, and who asks it.
#[derive(Debug, Clone)]
pub(super) struct Config {
    region: String,
    access_key_id: String,
    /// Of another endpoint than the region's.
    url: Option<String>,
    /// PEM file of the authorities that vouch for it; those of the system if `None`.
    ca_file: Option<PathBuf>,
    /// The one key that may have encrypted it; any that decrypts it if `None`.
    key: Option<String>,
}

impl Config {
    pub(super) fn from_variables(
        variable_of: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let text = |variable: &'static str, is_one: fn(u8) -> bool| {
            let Some(value) = variable_of(variable) else {
                return Ok(None);
            };
            let value = value.into_string().ok();
            let value = value.filter(|value| value.bytes().all(is_one));
            value.map(Some).ok_or(Failure::Setting(variable))
        };
        let needed = |variable: &'static str, is_one: fn(u8) -> bool| {
            text(variable, is_one)?.ok_or(Failure::NotSet(variable))
        };
        Ok(Self {
            region: needed(REGION, |byte| byte.is_ascii_alphanumeric() || byte == b'-')?,
            access_key_id: needed(ACCESS_KEY_ID, |byte| byte.is_ascii_alphanumeric())?,
            url: text(URL, |byte| byte.is_ascii_graphic())?,
            ca_file: variable_of("WAVRY_AWS_KMS_CA").map(PathBuf::from),
            // A key's id or ARN, and not an alias, which KMS's answer does not tell.
            key: text(KEY, |byte| {
                byte.is_ascii_alphanumeric() || b"-:/".contains(&byte)
            })?
            .map(|key| match key.contains("alias/") {
                true => Err(Failure::Setting(KEY)),
                false => Ok(key),
            })
            .transpose()?,
        })
    }

    /// Where requests go, as a URL without a path.
    fn endpoint(&self) -> Result<Uri, Failure> {
        let url = self.url.clone();
        let url = url.unwrap_or_else(|| format!("https://kms.{}.amazonaws.com", self.region));
        let uri: Uri = url.parse().map_err(|_| Failure::Setting(URL))?;
        let has_more = uri.path() != "/" || uri.query().is_some();
        let authority = uri.authority().map_or("@", |authority| authority.as_str());
        match has_more || authority.contains('@') {
            true => Err(Failure::Setting(URL)),
            false => Ok(uri),
        }
    }
}

/// Why KMS did not give a secret. Holds no answer's content, but for the name of an error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A variable is needed.
    #[error("{0} is not set")]
    NotSet(&'static str),
    /// A variable is not what it should be.
    #[error("{0} is not {expected}", expected = expected(.0))]
    Setting(&'static str),
    /// The file does not hold one.
    #[error("expected a ciphertext in base64, of {MAX_CIPHERTEXT} bytes at most")]
    Ciphertext,
    /// The file cannot be read, or what a request is signed with.
    #[error("{0}")]
    Unread(Box<Error>),
    /// The session token is none.
    #[error("secret {SESSION_TOKEN} is not a token")]
    SessionToken(#[from] Malformed),
    /// The authorities cannot be used.
    #[error(transparent)]
    Certificate(#[from] cert::Error),
    /// It cannot be reached, or does not speak HTTP.
    #[error("AWS KMS: {0}")]
    Unreachable(String),
    /// It took longer than ten seconds.
    #[error("AWS KMS did not answer within {DEADLINE:?}")]
    TooSlow,
    /// It said no.
    #[error("AWS KMS refused with {status}: {reason}")]
    Refused {
        /// Of its answer.
        status: StatusCode,
        /// Its name of the error, and what that means here.
        reason: String,
    },
    /// The ciphertext is another key's.
    #[error("AWS KMS decrypted it with another key than {KEY} names")]
    OtherKey,
    /// Its answer is none.
    #[error("the answer of AWS KMS cannot be read: {0}")]
    Malformed(#[from] format::Fault),
}

fn expected(variable: &str) -> &'static str {
    match variable {
        URL => "https://HOST[:PORT] (or http:// with a loopback address)",
        KEY => "the id or ARN of a key (an alias is neither)",
        REGION => "a region, as in eu-central-1",
        _ => "letters and digits",
    }
}

/// A secret as KMS's ciphertext in a file.
pub struct Kms {
    /// Of the secret, lower case.
    name: String,
    file: PathBuf,
    field: Option<String>,
    config: Config,
    endpoint: Uri,
}

impl Kms {
    /// Secret `name`, whose ciphertext is in `file`; where `field` is given, the plaintext is an object, and the
    /// secret is that field of it.
    pub(super) fn new(
        config: Config,
        name: &str,
        file: PathBuf,
        field: Option<String>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            name: name.to_owned(),
            endpoint: config.endpoint()?,
            file,
            field,
            config,
        })
    }

    async fn decrypted(&self) -> Result<Secret<Vec<u8>>, Failure> {
        let unread = |error| Failure::Unread(Box::new(error));
        let text = read_public(&self.file).map_err(unread)?;
        let body = decrypt(&self.name, &text, self.config.key.as_deref())?;
        let key = read_as(SECRET_ACCESS_KEY, None, Key::read).map_err(unread)?;
        let request = self.request(&key, unix_time(), body)?;
        let trust = match &self.config.ca_file {
            Some(file) => Trust::Authorities(file.clone()),
            None => Trust::System,
        };
        let client = exchange::Client::new(&trust)?.with_plain_loopback();
        let answer = timeout(DEADLINE, client.ask(request));
        let answer = answer.await.map_err(|_| Failure::TooSlow)?;
        let answer = answer.map_err(|error| match error {
            exchange::Transport::Address(_) => Failure::Setting(URL),
            error => Failure::Unreachable(error.to_string()),
        })?;
        let (parts, body) = answer.into_parts();
        let body = Secret::new(body.to_vec());
        let text = plaintext(&self.name, parts.status, &body, self.config.key.as_deref())?;
        match &self.field {
            Some(field) => Ok(format::field(&text, &[field])?),
            None => Ok(text),
        }
    }

    fn request(&self, key: &Key, now: u64, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
        let authority = self.endpoint.authority().map_or("", |host| host.as_str());
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_str(authority).map_err(|_| Failure::Setting(URL))?;
        headers.insert(header::HOST, host);
        let json = HeaderValue::from_static("application/x-amz-json-1.1");
        headers.insert(header::CONTENT_TYPE, json);
        let target = HeaderValue::from_static("TrentService.Decrypt");
        headers.insert("x-amz-target", target);
        if let Some(token) = session_token()? {
            headers.insert("x-amz-security-token", token.aws_header()?);
        }
        let scope = Scope {
            access_key_id: &self.config.access_key_id,
            region: &self.config.region,
            service: "kms",
        };
        let signed = key.sign(&scope, now, &mut headers, &body);
        signed.map_err(|_| Failure::Setting(ACCESS_KEY_ID))?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }
}

impl Source for Kms {
    fn place(&self) -> String {
        let variable = self.name.to_ascii_uppercase();
        format!(
            "the KMS ciphertext {} (WAVRY_{variable}_KMS_FILE)",
            self.file.display()
        )
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Found>, Error> {
        let version = version_of(&self.file);
        // A file that is away for a moment is being replaced.
        if known.is_some() && (version.is_none() || version.as_ref() == known) {
            return Ok(None);
        }
        let text = self.decrypted().await.map_err(|failure| Error::Kms {
            place: self.place(),
            failure: Box::new(failure),
        })?;
        let version = version.unwrap_or_else(|| Version(String::new()));
        Ok(Some(Found { version, text }))
    }
}

impl fmt::Debug for Kms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kms").field(&self.file).finish()
    }
}

/// Only with temporary credentials there is one.
fn session_token() -> Result<Option<Token>, Failure> {
    let unread = |error| Failure::Unread(Box::new(error));
    match locate(SESSION_TOKEN) {
        Err(Error::Missing { .. }) => Ok(None),
        Err(error) => Err(unread(error)),
        Ok(file) => {
            let text = super::read_file(&file).map_err(unread)?;
            Ok(Some(Token::read(&text)?))
        }
    }
}

/// The body of a request to decrypt what the file of secret `name` holds.
fn decrypt(name: &str, file: &[u8], key: Option<&str>) -> Result<Bytes, Failure> {
    let text = std::str::from_utf8(file).map_err(|_| Failure::Ciphertext)?;
    let text = text.trim();
    let ciphertext = match text.len() > MAX_CIPHERTEXT.div_ceil(3) * 4 {
        true => None,
        false => STANDARD.decode(text).ok(),
    };
    let fits = |bytes: &Vec<u8>| (1..=MAX_CIPHERTEXT).contains(&bytes.len());
    ciphertext.filter(fits).ok_or(Failure::Ciphertext)?;
    let mut request = json!({"CiphertextBlob": text, "EncryptionContext": {CONTEXT: name}});
    if let Some(key) = key {
        request["KeyId"] = key.into();
    }
    Ok(request.to_string().into())
}

#[derive(Deserialize)]
struct Decrypted {
    #[serde(rename = "KeyId")]
    key: String,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "__type")]
    name: String,
}

/// What an answer says that secret `name` is.
fn plaintext(
    name: &str,
    status: StatusCode,
    answer: &Secret<Vec<u8>>,
    key: Option<&str>,
) -> Result<Secret<Vec<u8>>, Failure> {
    if !status.is_success() {
        let refusal = format::beside(answer).ok();
        let reason = reason(
            name,
            refusal.as_ref().map(|refusal: &Refusal| &*refusal.name),
        );
        return Err(Failure::Refused { status, reason });
    }
    if let Some(key) = key {
        let Decrypted { key: by } = format::beside(answer)?;
        // The answer has the ARN, whose end is the id.
        if by != key && by.rsplit('/').next() != Some(key) {
            return Err(Failure::OtherKey);
        }
    }
    let text = format::field(answer, &["Plaintext"])?;
    Ok(format::base64(&text)?)
}

/// The name of an error, and what can be done. Names are letters; what is none is not repeated.
fn reason(name: &str, error: Option<&str>) -> String {
    let error = error.map(|error| error.rsplit('#').next().unwrap_or(error));
    let is_name = |error: &&str| {
        let length = (1..=64).contains(&error.len());
        length && error.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let Some(error) = error.filter(is_name) else {
        return "it does not say why".to_owned();
    };
    let meaning = match error {
        "InvalidCiphertextException" => {
            return format!(
                "{error} (the ciphertext is damaged, or was encrypted without the context of secret {name})"
            );
        }
        "DisabledException" => " (its key is disabled)",
        "KMSInvalidStateException" => " (its key is to be deleted, or has no material)",
        "IncorrectKeyException" => " (another key made it than WAVRY_AWS_KMS_KEY names)",
        "AccessDeniedException" => " (kms:Decrypt is not allowed, or there is no such key)",
        "InvalidSignatureException" | "SignatureDoesNotMatch" => {
            " (the secret access key is not that of WAVRY_AWS_ACCESS_KEY_ID, or this clock is wrong)"
        }
        "ExpiredTokenException" => " (the session token has expired)",
        _ => "",
    };
    format!("{error}{meaning}")
}

#[cfg(test)]
mod tests;
