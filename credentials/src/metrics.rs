//! The metrics of this crate.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// When a certificate that is in use expires; not a number once it is not. Labels: `name`, one of the certificate's
/// names; `source`, where it came from (`file`, `keyvault`, `acme`, `self`); `issuer`.
pub const CERTIFICATE_EXPIRY: &str = "wavry_gateway_certificate_expiry_timestamp_seconds";
/// From when a certificate that is in use holds. Labels: as those of when it expires.
pub(crate) const CERTIFICATE_NOT_BEFORE: &str =
    "wavry_gateway_certificate_not_before_timestamp_seconds";
/// Handshakes that asked for a certificate. Label: `outcome`, `hit`, `wildcard`, `default` or `miss`.
pub(crate) const LOOK_UPS: &str = "wavry_gateway_certificate_look_ups_total";
/// Attempts to load a certificate. Labels: `source`; `outcome`, `loaded` or `failed`.
pub const CERTIFICATE_LOADS: &str = "wavry_credentials_certificate_loads_total";
/// When the KeyVault that certificates are kept in last answered.
pub(crate) const KEYVAULT_HEARD: &str = "wavry_credentials_keyvault_heard_timestamp_seconds";
/// How often what handshakes read was replaced.
pub(crate) const CERTIFICATE_SWAPS: &str = "wavry_credentials_certificate_swaps_total";
/// Certificates that were to be made and signed here. Label: `outcome`, `made` or `failed`.
pub(crate) const SELF_SIGNED: &str = "wavry_credentials_self_signed_certificates_total";
/// When the next of them takes its turn.
pub(crate) const SELF_SIGNED_TURN: &str = "wavry_credentials_self_signed_turn_timestamp_seconds";
/// Attempts to read a secret that is watched. Labels: `secret`, its name; `outcome`, `loaded` or
/// `failed`.
pub const SECRET_LOADS: &str = "wavry_credentials_secret_loads_total";
/// Signatures that a vault's key was asked for. Label: `outcome`, `signed`, `refused`, `unreachable`,
/// `timeout` or `foreign`.
pub const SIGNATURES: &str = "wavry_credentials_signatures_total";
/// From being asked to the signature.
pub const SIGNATURE_SECONDS: &str = "wavry_credentials_signature_seconds";
/// How far the system's clock was set back.
pub(crate) const CLOCK_BEHIND: &str = "wavry_credentials_clock_behind_seconds";

/// Describes them to the recorder.
pub fn describe() {
    crate::acme::metrics::describe();
    crate::membership::describe_metrics();
    describe_gauge!(
        CERTIFICATE_EXPIRY,
        Unit::Seconds,
        "When a certificate that is in use expires, in seconds since the Unix epoch"
    );
    describe_gauge!(
        CERTIFICATE_NOT_BEFORE,
        Unit::Seconds,
        "From when a certificate that is in use holds, in seconds since the Unix epoch"
    );
    describe_counter!(
        LOOK_UPS,
        Unit::Count,
        "Handshakes that asked for a certificate, by how it was found"
    );
    describe_gauge!(
        KEYVAULT_HEARD,
        Unit::Seconds,
        "When the KeyVault that certificates are read from last answered, in seconds since the Unix epoch"
    );
    describe_gauge!(
        CLOCK_BEHIND,
        Unit::Seconds,
        "How far the system's clock was behind the time that tokens are checked against, when it was last set back; 0 once it caught up"
    );
    describe_counter!(
        SECRET_LOADS,
        Unit::Count,
        "Versions of a watched secret; after one that failed the last good one stays"
    );
    describe_counter!(
        SIGNATURES,
        Unit::Count,
        "Signatures that a key in a vault was asked for, by outcome"
    );
    describe_histogram!(
        SIGNATURE_SECONDS,
        Unit::Seconds,
        "From asking a vault for a signature to having it, or not"
    );
    describe_counter!(
        SELF_SIGNED,
        Unit::Count,
        "Self-signed certificates that were to be made, by outcome"
    );
    describe_gauge!(
        SELF_SIGNED_TURN,
        Unit::Seconds,
        "When the next self-signed certificate is put in use, in seconds since the Unix epoch"
    );
    describe_counter!(
        CERTIFICATE_SWAPS,
        Unit::Count,
        "Times that the certificates in use were replaced by others, many at once or one"
    );
    describe_counter!(
        CERTIFICATE_LOADS,
        Unit::Count,
        "Attempts to load a certificate; after one that failed the last good certificate stays"
    );
}
