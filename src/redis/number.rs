//! Integers as Redis reads them.

/// The integer of 64 bits that `text` is in its one form: decimal, no "+", no spaces, no leading zero, no
/// "-0".
#[inline]
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        b"0" if !is_negative => return Some(0),
        // All of 19 digits fit an u64, and no more than 19 fit an i64.
        [b'1'..=b'9', rest @ ..] if rest.len() < 19 && rest.iter().all(u8::is_ascii_digit) => {}
        _ => return None,
    }
    let magnitude = digits.iter().fold(0u64, |sum, digit| 10 * sum + u64::from(digit - b'0'));
    if is_negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

#[cfg(test)]
mod tests {
    use super::parse_i64;

    #[test]
    fn an_integer_is_read_back_and_has_one_form() {
        for number in [0, 1, -1, 9, 10, -10, i64::MAX, i64::MIN, i64::MAX - 1, 1_000_000_000_000_000_000] {
            assert_eq!(parse_i64(number.to_string().as_bytes()), Some(number));
        }
        let refused = [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "-01",
            "00",
            "1a",
            "0x1",
            "1.0",
            "--1",
            "1\0",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "99999999999999999999",
            "10000000000000000000000000000000000000001",
        ];
        for text in refused {
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
        }
    }
}
