//! Durations as Go writes them: `1h30m`, `500ms`, `1.5s`, `-1s`.

use std::time::Duration;

/// Units in nanoseconds. Longer names first where one is the beginning of another.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Why a text is no duration, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is not written as one, or is longer than 292 years.
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    /// A number without a unit.
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    /// A unit that there is not.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// All of it.
        text: String,
    },
}

/// Nanoseconds. A sign, then numbers with units, at least one pair, in any order; a bare `0` needs no unit.
///
/// # Errors
/// [`Wrong`].
pub fn nanoseconds(text: &str) -> Result<i64, Wrong> {
    let invalid = || Wrong::Invalid(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut sum: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        sum += pair(text, number, unit)?;
        rest = behind;
    }
    i64::try_from(if negative { -sum } else { sum }).map_err(|_| invalid())
}

/// One number with its unit. Digits after the point below a nanosecond are cut off.
fn pair(text: &str, number: &str, unit: &str) -> Result<i128, Wrong> {
    let invalid = || Wrong::Invalid(text.to_owned());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return Err(invalid());
    }
    let factor = match UNITS.iter().find(|(known, _)| *known == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => return Err(Wrong::MissingUnit(text.to_owned())),
        None => return Err(Wrong::UnknownUnit { unit: unit.to_owned(), text: text.to_owned() }),
    };
    let digits = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u64>() };
    let whole = digits(whole).map_err(|_| invalid())?;
    // More digits than that say nothing any more: an hour has 13.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or_default());
    let part = u128::from(digits(fraction).map_err(|_| invalid())?) * u128::from(factor) / scale;
    let nanoseconds = u128::from(whole) * u128::from(factor) + part;
    i64::try_from(nanoseconds).map(i128::from).map_err(|_| invalid())
}

/// A duration, where one below zero means as much as none.
///
/// # Errors
/// [`Wrong`].
pub fn parse(text: &str) -> Result<Duration, Wrong> {
    nanoseconds(text).map(|nanoseconds| Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_understood() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("10m", 600_000_000_000),
            ("500ms", 500_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("+1s1s", 2_000_000_000),
            ("100us", 100_000),
            ("1µs1μs", 2_000),
            ("-1s", -1_000_000_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("9223372036854775807ns", i64::MAX),
        ] {
            assert_eq!(nanoseconds(text), Ok(expected), "{text}");
        }
        assert_eq!(parse("-1s"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_none_is_said_in_gos_words() {
        for (text, words) in [
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("1s5", "time: missing unit in duration \"1s5\""),
            ("s", "time: invalid duration \"s\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("1d", "time: unknown unit \"d\" in duration \"1d\""),
            ("1 s", "time: unknown unit \" s\" in duration \"1 s\""),
            ("1..5s", "time: invalid duration \"1..5s\""),
            (".s", "time: invalid duration \".s\""),
            ("--1s", "time: invalid duration \"--1s\""),
            ("-", "time: invalid duration \"-\""),
            ("9223372036854775808ns", "time: invalid duration \"9223372036854775808ns\""),
            ("2562047h47m17s", "time: invalid duration \"2562047h47m17s\""),
        ] {
            assert_eq!(nanoseconds(text).unwrap_err().to_string(), words);
        }
    }
}
