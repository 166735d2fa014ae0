//! Fields of other APIs as JSON has them: whole numbers that are written as `4.0`, and objects that are objects. The code
//! that serde derives for a struct would also accept a list of the field values in order.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use crate::http::extract::fields::FromObject;

/// Deserializes an object.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    FromObject::deserialize(deserializer).map(|FromObject(value)| value)
}

/// Deserializes an object or null.
pub(super) fn object_or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::<FromObject<T>>::deserialize(deserializer)?;
    Ok(value.map(|FromObject(value)| value))
}

/// Deserializes a whole number of 64 bits or null.
pub(super) fn integer_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<i64>, D::Error> {
    Ok(Option::<Integer>::deserialize(deserializer)?.map(|Integer(value)| value))
}

struct Integer(i64);

struct IntegerVisitor;

impl Visitor<'_> for IntegerVisitor {
    type Value = Integer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Integer, E> {
        Ok(Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Integer, E> {
        let number = i64::try_from(value);
        number.map(Integer).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Integer, E> {
        // The next number below 2^63 that a double can hold.
        if value.fract() == 0.0 && value.abs() <= 9_223_372_036_854_774_784.0 {
            return Ok(Integer(value as i64));
        }
        Err(E::invalid_value(Unexpected::Float(value), &self))
    }
}

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(IntegerVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers_have_any_spelling() {
        for (value, expected) in [
            (json!(4), Some(4)),
            (json!(4.0), Some(4)),
            (json!(-1e0), Some(-1)),
            (json!(null), None),
            (json!(i64::MAX), Some(i64::MAX)),
            (json!(-9e18), Some(-9_000_000_000_000_000_000)),
        ] {
            assert_eq!(integer_or_null(&value).unwrap(), expected, "{value}");
        }
        for value in
            [json!(4.5), json!("4"), json!([4]), json!(true), json!(u64::MAX), json!(1e300)]
        {
            assert!(integer_or_null(&value).is_err(), "{value}");
        }
    }
}
