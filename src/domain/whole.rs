//! Whole numbers, as JSON has them.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Characters of a number that are repeated in an error.
const MAX_NUMBER_CHARS: usize = 40;

/// A whole number, also one that is written like `1.0` or `1e3`: JSON has one kind of numbers only, and to
/// JSON Schema that is an integer too. Read exactly, so that 0.99999999999999999999 is not 1.
#[derive(Debug)]
pub struct Whole<T>(pub T);

impl<'de, T: TryFrom<i64>> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = <&RawValue>::deserialize(deserializer)?.get();
        let whole = whole_number(number).and_then(|whole| T::try_from(whole).ok());
        whole.map(Self).ok_or_else(|| {
            D::Error::custom(format!("{} is no whole number in range", shown(number)))
        })
    }
}

/// What is repeated of a number, or of what is given instead of one.
pub(super) fn shown(number: &str) -> String {
    number.chars().take(MAX_NUMBER_CHARS).collect()
}

/// The value of a JSON number (RFC 8259 section 6), if it is whole.
pub(super) fn whole_number(text: &str) -> Option<i64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let power = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let scale = 10_i128.checked_pow(u32::try_from(power.unsigned_abs()).ok()?);
    let value = match (digits, scale) {
        (0, _) => 0,
        (_, Some(scale)) if power >= 0 => digits.checked_mul(scale)?,
        (_, Some(scale)) if digits % scale == 0 => digits / scale,
        _ => return None,
    };
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let whole = |text: &str| serde_json::from_str::<Whole<u32>>(text).map(|whole| whole.0).ok();
        for (text, value) in [
            ("0", 0),
            ("-0.0", 0),
            ("7.0", 7),
            ("4294967295", u32::MAX),
            ("1e3", 1000),
            ("20e-1", 2),
            ("0e999", 0),
        ] {
            assert_eq!(whole(text), Some(value), "{text}");
        }
        for bad in [
            "1.5",
            "-1",
            "4294967296",
            "1e300",
            "18446744073709551615",
            "\"1\"",
            "null",
            "0.99999999999999999999",
            "1.00000000000000000001",
            "1e-1",
            "1e99999999999",
            "{}",
            "true",
        ] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }
}
