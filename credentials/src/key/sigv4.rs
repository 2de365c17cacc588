//! Keys that sign requests to AWS (Signature Version 4, as the IAM User Guide describes it).

use aws_lc_rs::hmac;
use http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, InvalidHeaderValue},
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::format::{self, Fault};
use crate::secret::Secret;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATION: &str = "aws4_request";

/// A secret access key.
pub(crate) struct Key(Secret<Vec<u8>>);

/// By whom a request is, and for what its signature holds.
pub(crate) struct Scope<'a> {
    pub(crate) access_key_id: &'a str,
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
}

impl Key {
    pub(crate) fn read(text: &Secret<Vec<u8>>) -> Result<Self, Fault> {
        format::password(text).map(Self)
    }

    /// Signs `POST /` without a query, with all of its `headers`, of which `host` is one and none is there twice;
    /// `now` is in seconds since the Unix epoch. Adds `x-amz-date` and `authorization`.
    pub(crate) fn sign(
        &self,
        scope: &Scope<'_>,
        now: u64,
        headers: &mut HeaderMap,
        body: &[u8],
    ) -> Result<(), InvalidHeaderValue> {
        let Scope {
            access_key_id,
            region,
            service,
        } = scope;
        let time = date_and_time(now);
        let date = &time[..8];
        headers.insert("x-amz-date", HeaderValue::from_str(&time)?);
        let (names, request) = canonical(headers, body);
        let within = format!("{date}/{region}/{service}/{TERMINATION}");
        let to_sign = format!("{ALGORITHM}\n{time}\n{within}\n{request}");
        let key = self.derived(date, scope);
        let signature = hex::encode(hmac::sign(&key, to_sign.as_bytes()));
        let authorization = format!(
            "{ALGORITHM} Credential={access_key_id}/{within}, SignedHeaders={names}, Signature={signature}"
        );
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&authorization)?);
        Ok(())
    }

    /// The key of one day, region and service.
    #[expect(clippy::disallowed_methods, reason = "a key is used here")]
    fn derived(&self, date: &str, scope: &Scope<'_>) -> hmac::Key {
        let secret = self.0.expose();
        let mut first = Zeroizing::new(Vec::with_capacity(4 + secret.len()));
        first.extend_from_slice(b"AWS4");
        first.extend_from_slice(secret);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &first);
        let steps = [date, scope.region, scope.service, TERMINATION];
        steps.iter().fold(key, |key, step| {
            let tag = hmac::sign(&key, step.as_bytes());
            hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref())
        })
    }
}

/// The names of the headers that are signed, and the hash of the request in the form that both sides make of it. The
/// form itself is nowhere: a session token is in it.
fn canonical(headers: &HeaderMap, body: &[u8]) -> (String, String) {
    let mut signed: Vec<_> = headers.iter().collect();
    signed.sort_unstable_by_key(|(name, _)| name.as_str());
    let names: Vec<_> = signed.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let mut hash = Sha256::new_with_prefix("POST\n/\n\n");
    for (name, value) in signed {
        for part in [
            name.as_str().as_bytes(),
            b":",
            value.as_bytes().trim_ascii(),
            b"\n",
        ] {
            hash.update(part);
        }
    }
    hash.update(format!("\n{names}\n{}", hex::encode(Sha256::digest(body))));
    (names, hex::encode(hash.finalize()))
}

/// As `20150830T123600Z`.
fn date_and_time(now: u64) -> String {
    let at = i64::try_from(now).ok();
    let at = at.and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    // No clock says what has no date; the other side would refuse it.
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let month = u8::from(month);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2015-08-30 12:36:00 UTC.
    const NOW: u64 = 1_440_938_160;

    /// The `authorization` of a request of AWS's test suite for Signature Version 4.
    fn authorization(more: &[(&'static str, &str)], body: &[u8]) -> String {
        let secret = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\n".to_vec();
        let key = Key::read(&Secret::new(secret)).unwrap();
        let scope = Scope {
            access_key_id: "AKIDEXAMPLE",
            region: "us-east-1",
            service: "service",
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [&[("host", "example.amazonaws.com")], more].concat() {
            headers.insert(name, value.parse().unwrap());
        }
        key.sign(&scope, NOW, &mut headers, body).unwrap();
        assert_eq!(headers["x-amz-date"], "20150830T123600Z");
        headers[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn requests_of_the_published_test_suite_are_signed_as_it_says() {
        // post-vanilla
        assert_eq!(
            authorization(&[], b""),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
        // post-x-www-form-urlencoded
        let form = ("content-type", "application/x-www-form-urlencoded");
        assert!(authorization(&[form], b"Param1=value1").ends_with(
            "SignedHeaders=content-type;host;x-amz-date, \
             Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        ));
        // post-sts-header-before
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRX\
            mxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDY\
            wT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8\
            FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        assert!(
            authorization(&[("x-amz-security-token", token)], b"").ends_with(
                "SignedHeaders=host;x-amz-date;x-amz-security-token, \
             Signature=85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"
            )
        );
    }

    #[test]
    fn a_time_is_written_in_utc_and_none_panics() {
        assert_eq!(date_and_time(0), "19700101T000000Z");
        assert_eq!(date_and_time(1_709_210_096), "20240229T123456Z");
        assert_eq!(date_and_time(u64::MAX), "19700101T000000Z");
    }
}
