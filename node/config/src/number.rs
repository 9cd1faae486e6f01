//! Whole numbers as Go's flags take them: `10`, `0x10`, `0b1`, `0o17` or `017`, with `_` between digits.

use std::fmt;

/// Why a text is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It is written as none.
    Syntax,
    /// It is larger than its flag can hold.
    Range,
}

impl fmt::Display for Wrong {
    /// In the words of Go's flags.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wrong::Syntax => "parse error",
            Wrong::Range => "value out of range",
        })
    }
}

/// A number that may have a sign.
///
/// # Errors
/// [`Wrong`].
pub fn signed(text: &str) -> Result<i64, Wrong> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let number = i128::from(unsigned(digits)?);
    i64::try_from(if negative { -number } else { number }).map_err(|_| Wrong::Range)
}

/// A number without a sign.
///
/// # Errors
/// [`Wrong`].
pub fn unsigned(text: &str) -> Result<u64, Wrong> {
    let (radix, digits) = radix(text);
    // What stands before the digits counts as one: `0x_1` and `0_7` are numbers, `_1` is none.
    let separated = radix != 10 || !digits.starts_with('_');
    if digits.is_empty() || !separated || digits.ends_with('_') || digits.contains("__") {
        return Err(Wrong::Syntax);
    }
    let digits = digits.replace('_', "");
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(Wrong::Syntax);
    }
    u64::from_str_radix(&digits, radix).map_err(|_| Wrong::Range)
}

/// The base that a number's beginning names, and the rest.
fn radix(text: &str) -> (u32, &str) {
    let Some(rest) = text.strip_prefix('0').filter(|rest| !rest.is_empty()) else { return (10, text) };
    for (letter, radix) in [('x', 16), ('b', 2), ('o', 8)] {
        if let Some(digits) = rest.strip_prefix([letter, letter.to_ascii_uppercase()]) {
            return (radix, digits);
        }
    }
    (8, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_in_go() {
        for (text, number) in [
            ("0", 0),
            ("00", 0),
            ("10", 10),
            ("0x10", 16),
            ("0X1f", 31),
            ("0b11", 3),
            ("0o17", 15),
            ("017", 15),
            ("1_000", 1000),
            ("0x_1", 1),
            ("0_7", 7),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(unsigned(text), Ok(number), "{text}");
        }
        for (text, number) in [("-1", -1), ("+1", 1), ("-0x10", -16), ("-9223372036854775808", i64::MIN)] {
            assert_eq!(signed(text), Ok(number), "{text}");
            assert_eq!(unsigned(text), Err(Wrong::Syntax), "{text}");
        }
    }

    #[test]
    fn what_go_does_not_take_is_no_number() {
        for text in
            ["", " 1", "1 ", "x", "1e3", "1.0", "08", "0x", "0b2", "_1", "1_", "1__0", "0x_", "--1", "- 1", "+-1"]
        {
            assert_eq!(signed(text), Err(Wrong::Syntax), "{text:?}");
        }
        assert_eq!(unsigned("18446744073709551616"), Err(Wrong::Range));
        assert_eq!(signed("9223372036854775808"), Err(Wrong::Range));
    }
}
