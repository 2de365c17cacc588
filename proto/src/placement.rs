//! By what a gateway chooses among exits: where one is, how much it is to take, how full it is.

use std::{fmt, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::id::RegionName;

/// Where a node is and how much an exit is to take, as its registration token says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// The region; gateways prefer exits in their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionName>,
    /// The share of sessions that an exit is to take, beside others for the same service.
    #[serde(default, skip_serializing_if = "Weight::is_default")]
    pub weight: Weight,
    /// Names and addresses at which clients find a KeyVault: those of its certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// Names that a KeyVault may have.
pub const MAX_NAMES: usize = 16;

impl Placement {
    /// Whether it says nothing; then it is left out, so that nodes that do not know it read the roster.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The share of sessions that an exit is to take, and of flows that a transit relay is: 1 to 1,000, 100 unless told
/// otherwise. Only how the weights of a service's exits, or of relays that are equally near, compare matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Weight(NonZeroU16);

/// A number that is no weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a weight must be a number from 1 to 1000")]
pub struct InvalidWeight;

impl Weight {
    const MAX: u16 = 1000;

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(NonZeroU16::new(100).expect("it is not zero"))
    }
}

impl TryFrom<u16> for Weight {
    type Error = InvalidWeight;
    fn try_from(weight: u16) -> Result<Self, InvalidWeight> {
        let weight = NonZeroU16::new(weight).filter(|weight| weight.get() <= Self::MAX);
        weight.map(Self).ok_or(InvalidWeight)
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> u16 {
        weight.get()
    }
}

impl FromStr for Weight {
    type Err = InvalidWeight;
    fn from_str(text: &str) -> Result<Self, InvalidWeight> {
        let number: u16 = text.parse().map_err(|_| InvalidWeight)?;
        number.try_into()
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Header field by which an exit relay tells its [`Load`] with each answer. It never leaves the mesh.
pub const LOAD: &str = "x-wavry-load";

/// How full an exit is, in thousandths of the sessions that it takes at once; 1,000 at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Load(u16);

impl Load {
    /// It takes no more.
    pub const FULL: Self = Self(1000);

    /// Of an exit with so many sessions, which takes `most` at once.
    pub fn of(sessions: usize, most: usize) -> Self {
        let thousandths = sessions.saturating_mul(1000).checked_div(most);
        let thousandths = thousandths.and_then(|load| u16::try_from(load).ok());
        thousandths.map_or(Self::FULL, |load| Self(load).min(Self::FULL))
    }

    /// From 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::FULL.0)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Load {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse()?).min(Self::FULL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_load_survives_its_text_and_is_never_over_full(sessions: usize, most: usize, text: String) {
            let load = Load::of(sessions, most);
            prop_assert!(load <= Load::FULL);
            prop_assert_eq!(load.to_string().parse::<Load>(), Ok(load));
            prop_assert!(text.parse::<Load>().is_ok_and(|load| load <= Load::FULL) || text.parse::<u16>().is_err());
        }

        #[test]
        fn a_weight_survives_its_text_where_it_is_one(number: u16) {
            let weight = Weight::try_from(number);
            prop_assert_eq!(weight.is_ok(), (1..=1000).contains(&number));
            prop_assert_eq!(number.to_string().parse::<Weight>(), weight);
        }
    }

    #[test]
    fn an_exit_that_takes_none_is_full() {
        assert_eq!(Load::of(0, 0), Load::FULL);
        assert_eq!(Load::of(1, 4), Load(250));
        assert_eq!(Load::of(5, 4), Load::FULL);
    }

    #[test]
    fn a_placement_that_says_nothing_is_an_empty_object_and_none_other_is() {
        assert_eq!(serde_json::to_string(&Placement::default()).unwrap(), "{}");
        let placement = Placement {
            region: Some("eu-west".parse().unwrap()),
            weight: Weight::try_from(5).unwrap(),
            names: vec!["vault.example".to_owned()],
        };
        let text = serde_json::to_string(&placement).unwrap();
        let written = r#"{"region":"eu-west","weight":5,"names":["vault.example"]}"#;
        assert_eq!(text, written);
        assert_eq!(serde_json::from_str::<Placement>(&text).unwrap(), placement);
        for no_placement in [
            r#"{"weight":0}"#,
            r#"{"weight":1001}"#,
            r#"{"region":""}"#,
            r#"{"x":1}"#,
        ] {
            assert!(serde_json::from_str::<Placement>(no_placement).is_err());
        }
    }
}
