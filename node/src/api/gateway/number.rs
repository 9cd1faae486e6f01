//! JSON numbers as integers, as Go's `protojson` takes them: `1`, `1.0` and `1e2` are whole, `1.5` is not.

/// Which integers a field holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Integer {
    min: i128,
    max: i128,
}

impl Integer {
    pub(super) const SIGNED_32: Self = Self { min: i32::MIN as i128, max: i32::MAX as i128 };
    pub(super) const SIGNED_64: Self = Self { min: i64::MIN as i128, max: i64::MAX as i128 };
    pub(super) const UNSIGNED_32: Self = Self { min: 0, max: u32::MAX as i128 };
    pub(super) const UNSIGNED_64: Self = Self { min: 0, max: u64::MAX as i128 };
}

/// Digits of the largest integer.
const MAX_DIGITS: usize = 20;

/// The integer that `text` writes, as a varint holds it (negative ones in two's complement of 64 bits); `None` when it is
/// no JSON number, not whole, or out of range.
pub(super) fn integer(text: &[u8], range: Integer) -> Option<u64> {
    let (negative, rest) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let digits = magnitude(rest)?;
    let value: i128 = digits.parse().ok()?;
    // Go reads no sign into an unsigned integer, not even that of zero with a fraction or an exponent.
    let value = if negative { -value } else { value };
    if value < range.min || value > range.max {
        return None;
    }
    Some(if value < 0 { i64::try_from(value).ok()?.cast_unsigned() } else { u64::try_from(value).ok()? })
}

/// The integer that a string holds. Go reads one value from its begin and does not look at what follows a delimiter, so
/// that `7,8` is 7; but nothing may stand around it that is space.
pub(super) fn quoted_integer(text: &str, range: Integer) -> Option<u64> {
    if text.trim() != text {
        return None;
    }
    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || b"-+._".contains(byte);
    let length = text.bytes().take_while(goes_on).count();
    integer(&text.as_bytes()[..length], range)
}

/// The digits of a whole number without its sign.
fn magnitude(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent_of(exponent)?),
        None => (text, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || (whole.len() > 1 && whole.starts_with('0')) {
        return None;
    }
    let (whole, fraction) = (if whole == "0" { "" } else { whole }, fraction.trim_end_matches('0'));
    if whole.is_empty() && fraction.is_empty() {
        return Some("0".to_owned());
    }
    shifted(whole, fraction, exponent)
}

/// Moves the decimal point; `None` when what is left is not whole or too long.
fn shifted(whole: &str, fraction: &str, exponent: i32) -> Option<String> {
    let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
    if exponent >= 0 {
        if fraction.len() > shift || whole.len() + shift > MAX_DIGITS {
            return None;
        }
        return Some(format!("{whole}{fraction}{}", "0".repeat(shift - fraction.len())));
    }
    let kept = whole.len().checked_sub(shift)?;
    let digits = &whole[..kept];
    let is_whole = fraction.is_empty() && whole[kept..].bytes().all(|byte| byte == b'0');
    (is_whole && !digits.is_empty()).then(|| digits.to_owned())
}

fn exponent_of(text: &str) -> Option<i32> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(text: &str) -> Option<i64> {
        integer(text.as_bytes(), Integer::SIGNED_64).map(u64::cast_signed)
    }

    #[test]
    fn whole_numbers_are_integers_however_written() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0", 0),
            ("1.0", 1),
            ("1e2", 100),
            ("1.5e1", 15),
            ("1200e-2", 12),
            ("-9223372036854775808", i64::MIN),
            ("9.007199254740993e15", 9_007_199_254_740_993),
        ] {
            assert_eq!(signed(text), Some(value), "{text}");
        }
        for text in [
            "",
            " 1",
            "1 ",
            "1.5",
            "1e-1",
            "00",
            "01",
            "0x1",
            "+1",
            "1.",
            ".5",
            "1e",
            "1e400",
            "9223372036854775808",
            "-",
        ] {
            assert_eq!(signed(text), None, "{text}");
        }
    }

    #[test]
    fn of_a_string_the_first_value_counts() {
        let quoted = |text: &str| quoted_integer(text, Integer::SIGNED_64).map(u64::cast_signed);
        for text in ["7", "7,7", "7 8", "7]x", "7\"", "7é", "7.0:"] {
            assert_eq!(quoted(text), Some(7), "{text}");
        }
        for text in ["", ",7", " 7", "7 ", "7\u{a0}", "7x", "7_", "7-1", "\"7\"", "[7"] {
            assert_eq!(quoted(text), None, "{text}");
        }
    }

    #[test]
    fn each_width_has_its_range() {
        assert_eq!(integer(b"18446744073709551615", Integer::UNSIGNED_64), Some(u64::MAX));
        assert_eq!(integer(b"-1", Integer::UNSIGNED_64), None);
        assert_eq!(integer(b"4294967296", Integer::UNSIGNED_32), None);
        assert_eq!(integer(b"2147483648", Integer::SIGNED_32), None);
        assert_eq!(integer(b"-1", Integer::SIGNED_32), Some(u64::MAX), "sign-extended, as varints are");
    }
}
