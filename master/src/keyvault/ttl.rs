//! Times to live as Vault's clients write them: a number of seconds, or `1h30m`, `30m0s`, `90`.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

/// A time to live, in whole seconds. Zero is "not said".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(pub u64);

/// Longest there is: a hundred years. What is longer cannot be meant, and would not fit a calendar.
pub const MAX: Ttl = Ttl(100 * 365 * 24 * 3600);

/// Not a time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a duration: write seconds, or numbers with s, m, h or d, as in \"1h30m\"")]
pub struct Malformed;

impl Ttl {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.is_empty() {
            return Ok(Self(0));
        }
        if let Ok(seconds) = text.parse() {
            return Self(seconds).checked();
        }
        let (mut rest, mut seconds) = (text, 0_u64);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| Malformed)?;
            let unit = rest[digits..].chars().next().ok_or(Malformed)?;
            let factor = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 24 * 3600,
                _ => return Err(Malformed),
            };
            let part = number.checked_mul(factor).ok_or(Malformed)?;
            seconds = seconds.checked_add(part).ok_or(Malformed)?;
            rest = &rest[digits + 1..];
        }
        Self(seconds).checked()
    }

    fn checked(self) -> Result<Self, Malformed> {
        if self > MAX { Err(Malformed) } else { Ok(self) }
    }

    /// It, if it was said.
    pub fn said(self) -> Option<Duration> {
        (self.0 > 0).then(|| self.duration())
    }

    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

/// As Go writes durations, and Vault with it: `1h0m0s`, `30m0s`, `45s`.
impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        match (hours, minutes) {
            (0, 0) => write!(f, "{seconds}s"),
            (0, _) => write!(f, "{minutes}m{seconds}s"),
            _ => write!(f, "{hours}h{minutes}m{seconds}s"),
        }
    }
}

/// As seconds.
impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// From seconds or text. The error does not repeat the text.
impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Ttl;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration")
            }
            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Ttl, E> {
                Ttl(seconds).checked().map_err(E::custom)
            }
            // `null` says nothing.
            fn visit_unit<E: Error>(self) -> Result<Ttl, E> {
                Ok(Ttl(0))
            }
            fn visit_i64<E: Error>(self, _negative: i64) -> Result<Ttl, E> {
                Err(E::custom(Malformed))
            }
            fn visit_f64<E: Error>(self, _number: f64) -> Result<Ttl, E> {
                Err(E::custom(Malformed))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Ttl, E> {
                Ttl::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttls_are_read_as_vaults_clients_write_them() {
        for (text, seconds) in [
            ("", 0),
            ("0", 0),
            ("90", 90),
            ("30m0s", 1800),
            ("1h30m", 5400),
            ("768h", 2_764_800),
            ("2d", 172_800),
        ] {
            assert_eq!(Ttl::parse(text), Ok(Ttl(seconds)), "{text}");
        }
        for (text, seconds) in [("1", 1), ("\"1s\"", 1), ("null", 0)] {
            assert_eq!(serde_json::from_str::<Ttl>(text).unwrap(), Ttl(seconds));
        }
    }

    #[test]
    fn what_is_no_ttl_is_refused() {
        for text in [
            "h",
            "1x",
            "-1s",
            "1.5h",
            "1hm",
            " 1s",
            "1ms",
            "é",
            "1é",
            "99999999999999999999",
            "5124095576030431h",
            "36501d",
        ] {
            assert_eq!(Ttl::parse(text), Err(Malformed), "{text}");
        }
        for text in ["-1", "1.5", "true", "3153600001"] {
            assert!(serde_json::from_str::<Ttl>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ttls_are_written_as_go_writes_durations() {
        for text in ["0s", "45s", "30m0s", "1h0m0s", "768h0m5s"] {
            assert_eq!(Ttl::parse(text).unwrap().to_string(), text);
        }
    }
}
