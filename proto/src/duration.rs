//! Durations as people write them in configuration: `500ms`, `30s`, `5m`, `12h`, `14d`.
//!
//! One whole number and one unit, so that there is one way to read each text. The module fits
//! `#[serde(with = "wavry_proto::duration")]` on a field of type [`Duration`].

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

/// Units, longest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a duration: write a whole number and one of ms, s, m, h, d, as in \"30s\"")]
pub struct Malformed;

/// Reads a duration.
pub fn parse(text: &str) -> Result<Duration, Malformed> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| Malformed)?;
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(Malformed)?;
    let millis = number.checked_mul(*factor).ok_or(Malformed)?;
    Ok(Duration::from_millis(millis))
}

/// Writes a duration in the longest unit that holds it exactly; below a millisecond it is cut.
pub fn format(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, factor) = UNITS
        .into_iter()
        .find(|(_, factor)| millis.is_multiple_of(*factor))
        .unwrap_or(("ms", 1));
    format!("{}{unit}", millis / factor)
}

/// Serializes as text.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// Deserializes from text. The error does not repeat the text.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = Cow::<'_, str>::deserialize(deserializer)?;
    parse(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_unit_is_read() {
        for (text, seconds) in [
            ("30s", 30),
            ("5m", 300),
            ("12h", 43_200),
            ("14d", 1_209_600),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "s",
            "30",
            "-1s",
            "1.5s",
            "1 s",
            "1s ",
            "1S",
            "1h30m",
            "99999999999999999999s",
            "18446744073709551615d",
            "1µs",
        ] {
            assert_eq!(parse(text), Err(Malformed), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_its_text(millis in 0..u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
