//! The form in which every folder declares its settings, and the checks and conversions that the declarations share.
//!
//! A settings type implements [`Section`] and describes a section of the settings file, or a part of one. Each of its
//! fields is one setting. The name that serde sees is the key in the file, with the unit in the name (`_ms`, `_bytes`);
//! the type of the field is the one that the code uses. If the file writes a value in another form, one of these
//! modules converts the value (`#[serde(with = "...")]`): [`millis`], [`optional_millis`], [`text`], [`empty_is_none`],
//! [`zero_is_none`].
//!
//! `config` fills the settings types and lists them in `config/sections.rs`. The settings themselves are declared in
//! the folders that use them. Rules about settings of different sections are in `config/validate.rs`.

use std::fmt::{self, Display};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The settings of one section of the settings file, or of a part of it. The implementation of [`Default`] returns the
/// default of each setting.
pub trait Section: Default + Serialize + DeserializeOwned {
    /// Name of the section in the settings file, such as `engine`.
    const NAME: &'static str;

    /// Keys whose values are never shown.
    const SECRETS: &'static [&'static str] = &[];

    /// Checks that each value is in its range.
    ///
    /// # Errors
    /// The first setting whose value is not accepted.
    fn check(&self) -> Result<(), InvalidSetting> {
        Ok(())
    }
}

/// A setting whose value is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value} is not accepted: it must be {accepted}")]
pub struct InvalidSetting {
    /// Key of the setting in its section.
    pub key: &'static str,
    /// The rejected value, as text; hidden if it may be secret.
    pub value: String,
    /// The accepted values, in words.
    pub accepted: &'static str,
}

/// Returns an error about the setting `key` unless its value is accepted.
///
/// # Errors
/// If `is_accepted` is false.
pub fn require(
    is_accepted: bool,
    key: &'static str,
    value: impl Display,
    accepted: &'static str,
) -> Result<(), InvalidSetting> {
    let refused = move || InvalidSetting { key, value: value.to_string(), accepted };
    if is_accepted { Ok(()) } else { Err(refused()) }
}

/// Error for a text that is not an accepted value of a setting. Its message lists the accepted values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAccepted(pub &'static str);

impl Display for NotAccepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NotAccepted {}

/// A time, written in whole milliseconds. `config` accepts at most a day.
pub mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the milliseconds, rounded down.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads the milliseconds.
    ///
    /// # Errors
    /// If the value is not a whole number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// An optional time in whole milliseconds, written as 0 if there is none. `config` accepts at most a day.
pub mod optional_millis {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use crate::settings::millis;

    /// Writes the milliseconds, rounded down, or 0.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        millis::serialize(&time.unwrap_or_default(), serializer)
    }

    /// Reads the milliseconds; 0 is `None`.
    ///
    /// # Errors
    /// If the value is not a whole number.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let time = millis::deserialize(deserializer)?;
        Ok((!time.is_zero()).then_some(time))
    }
}

/// A value that is written as a string. The error of `FromStr` is the text that describes the accepted values.
pub mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the value with its `Display`.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Display,
        S: Serializer,
    {
        serializer.collect_str(value)
    }

    /// Reads the value with its `FromStr`.
    ///
    /// # Errors
    /// If the value is not a string, or is not accepted.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// An optional value that is written as a string; the string is empty if there is no value.
pub mod empty_is_none {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the value with its `Display`, or an empty string.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<T, S>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Display,
        S: Serializer,
    {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str(""),
        }
    }

    /// Reads the value with its `FromStr`, unless the string is empty.
    ///
    /// # Errors
    /// If the value is not a string, or is not accepted.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        (!text.is_empty()).then(|| text.parse().map_err(D::Error::custom)).transpose()
    }
}

/// An optional number that is written as 0 if there is none.
pub mod zero_is_none {
    use std::num::NonZeroU64;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the number, or 0.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<N, S>(number: &Option<N>, serializer: S) -> Result<S::Ok, S::Error>
    where
        N: Serialize,
        S: Serializer,
    {
        match number {
            Some(number) => number.serialize(serializer),
            None => serializer.serialize_u64(0),
        }
    }

    /// Reads the number; 0 is `None`.
    ///
    /// # Errors
    /// If the value is not a whole number, or is too large for its type.
    pub fn deserialize<'de, N, D>(deserializer: D) -> Result<Option<N>, D::Error>
    where
        N: TryFrom<NonZeroU64>,
        D: Deserializer<'de>,
    {
        let number = NonZeroU64::new(u64::deserialize(deserializer)?);
        let converted = number.map(N::try_from).transpose();
        converted.map_err(|_| D::Error::custom("a smaller number"))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Written {
        #[serde(rename = "pause_ms", with = "millis")]
        pause: Duration,
        #[serde(with = "text")]
        character: char,
        #[serde(with = "empty_is_none")]
        address: Option<std::net::IpAddr>,
        #[serde(with = "zero_is_none")]
        threads: Option<NonZeroUsize>,
    }

    #[test]
    fn values_are_read_as_they_are_written() {
        let given = Written {
            pause: Duration::from_millis(1500),
            character: 'x',
            address: Some([127, 0, 0, 1].into()),
            threads: NonZeroUsize::new(3),
        };
        let none = Written { address: None, threads: None, ..given };
        let cases = [
            (
                given,
                json!({"pause_ms": 1500, "character": "x", "address": "127.0.0.1", "threads": 3}),
            ),
            (none, json!({"pause_ms": 1500, "character": "x", "address": "", "threads": 0})),
        ];
        for (value, written) in cases {
            assert_eq!(serde_json::to_value(&value).unwrap(), written);
            assert_eq!(serde_json::from_value::<Written>(written).unwrap(), value);
        }
    }

    #[test]
    fn a_value_that_is_not_accepted_is_named_with_what_is() {
        let error = require(false, "max_side", 70_000, "1 to 65535").unwrap_err();
        assert_eq!(error.to_string(), "max_side = 70000 is not accepted: it must be 1 to 65535");
        assert_eq!(require(true, "max_side", 1, "1 to 65535"), Ok(()));
    }
}
