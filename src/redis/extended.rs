//! The floating-point numbers of INCRBYFLOAT: x87's extended precision, which is what Redis computes with on
//! x86.
//!
//! A number is a sign, 64 bits and a power of two. Reading, adding and writing are done exactly and rounded
//! once, half to even, as the processor and the C library do it; so the bytes are the same on every machine.

use num_bigint::{BigInt, BigUint, Sign};

/// The least power of two: of the smallest number there is, 2^-16445.
const EXPONENT_MIN: i64 = -16_445;
/// Numbers are below 2 to this power.
const EXPONENT_LIMIT: i64 = 16_384;
/// Bits of a number.
const MANTISSA_BITS: u64 = 64;
/// Longer texts are no numbers to Redis.
const TEXT_BYTES_LIMIT: usize = 5 * 1024;
/// Decimal digits behind the point that are written.
const FRACTION_DIGITS: u32 = 17;
/// A number below 10^-4990 is nearer to 0 than to 2^-16445, and one from 10^4990 on is beyond 2^16384; the
/// rest is worth computing.
const DECIMAL_EXPONENT_MAX: i64 = 4_990;

/// A number of x87's extended precision, or an infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended {
    /// Beyond all numbers. The sign is of no use to anyone, since no sum with it is answered.
    Infinite,
    /// mantissa × 2^exponent.
    Finite {
        /// Whether it is below 0. A zero may be, too.
        is_negative: bool,
        /// Its bits.
        mantissa: u64,
        /// Of the lowest bit.
        exponent: i32,
    },
}

impl Extended {
    /// Zero, which an absent key counts as.
    pub const ZERO: Extended = Extended::Finite { is_negative: false, mantissa: 0, exponent: 0 };

    /// Reads what C's `strtold` reads whole and finds within range: decimal or hexadecimal, with or without
    /// point and exponent, or an infinity. No spaces, and no NaN.
    pub fn parse(text: &[u8]) -> Option<Extended> {
        if text.len() >= TEXT_BYTES_LIMIT {
            return None;
        }
        let (is_negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        match rest {
            [b'0', b'x' | b'X', digits @ ..] => parse_hexadecimal(is_negative, digits),
            _ if rest.eq_ignore_ascii_case(b"inf") || rest.eq_ignore_ascii_case(b"infinity") => {
                Some(Extended::Infinite)
            }
            _ => parse_decimal(is_negative, rest),
        }
    }

    /// The sum, rounded; `None` if that is no number.
    pub fn checked_add(self, other: Extended) -> Option<Extended> {
        let (a_exponent, a) = self.exact()?;
        let (b_exponent, b) = other.exact()?;
        let exponent = a_exponent.min(b_exponent);
        let sum = (a << (a_exponent - exponent)) + (b << (b_exponent - exponent));
        let (sign, magnitude) = sum.into_parts();
        round(sign == Sign::Minus, &magnitude, i64::from(exponent), false)
    }

    fn exact(self) -> Option<(i32, BigInt)> {
        let Extended::Finite { is_negative, mantissa, exponent } = self else { return None };
        let magnitude = BigInt::from(mantissa);
        Some((exponent, if is_negative { -magnitude } else { magnitude }))
    }

    /// As Redis writes it: up to 17 digits behind the point, without zeros at the end. `None` for an
    /// infinity.
    pub fn to_text(self) -> Option<String> {
        let Extended::Finite { is_negative, mantissa, exponent } = self else { return None };
        let sign = if is_negative { "-" } else { "" };
        if exponent >= 0 {
            let sign = if mantissa == 0 { "" } else { sign };
            return Some(format!("{sign}{}", BigUint::from(mantissa) << exponent));
        }
        let scaled = round_fraction(mantissa, exponent.unsigned_abs());
        let one = 10u128.pow(FRACTION_DIGITS);
        let (whole, fraction) = (scaled / one, scaled % one);
        // Nothing is left of it: Redis writes no sign before a zero.
        let sign = if scaled == 0 { "" } else { sign };
        let text = format!("{sign}{whole}.{fraction:0digits$}", digits = FRACTION_DIGITS as usize);
        Some(text.trim_end_matches('0').trim_end_matches('.').to_string())
    }
}

/// mantissa × 2^-shift in units of the last digit that is written, half to even.
fn round_fraction(mantissa: u64, shift: u32) -> u128 {
    // 64 bits and the 57 of 10^17: it fits, and is less than half of 2^128.
    let scaled = u128::from(mantissa) * 10u128.pow(FRACTION_DIGITS);
    if shift >= u128::BITS {
        return 0;
    }
    let whole = scaled >> shift;
    let rest = scaled - (whole << shift);
    let half = 1u128 << (shift - 1);
    whole + u128::from(rest > half || (rest == half && whole % 2 == 1))
}

/// magnitude × 2^exponent, and a little more if there `is_more`, as a number. `None` if it is beyond the
/// largest, or nothing remains of what is no zero.
fn round(is_negative: bool, magnitude: &BigUint, exponent: i64, is_more: bool) -> Option<Extended> {
    let bits = magnitude.bits();
    if bits == 0 {
        return (!is_more).then_some(Extended::Finite { is_negative, mantissa: 0, exponent: 0 });
    }
    let bits_beyond = i64::try_from(bits).ok()? - MANTISSA_BITS as i64;
    let shift = u64::try_from(bits_beyond.max(EXPONENT_MIN - exponent)).unwrap_or(0);
    assert!(shift > 0 || !is_more, "what is not exact has bits to round away");
    let mut mantissa = u64::try_from(magnitude >> shift).ok()?;
    let mut exponent = exponent + i64::try_from(shift).ok()?;
    if shift > 0 && magnitude.bit(shift - 1) {
        let is_above_half = is_more || magnitude.trailing_zeros().is_some_and(|zeros| zeros < shift - 1);
        if is_above_half || mantissa % 2 == 1 {
            match mantissa.checked_add(1) {
                Some(next) => mantissa = next,
                None => (mantissa, exponent) = (1 << 63, exponent + 1),
            }
        }
    }
    let bits = i64::from(u64::BITS - mantissa.leading_zeros());
    if mantissa == 0 || bits + exponent > EXPONENT_LIMIT {
        return None;
    }
    Some(Extended::Finite { is_negative, mantissa, exponent: i32::try_from(exponent).ok()? })
}

/// Digits, maybe with a point among them, and what follows: the digits alone, and how many stood behind the
/// point.
fn split_digits(text: &[u8], is_digit: fn(&u8) -> bool) -> Option<(Vec<u8>, i64, &[u8])> {
    let whole = text.iter().take_while(|byte| is_digit(byte)).count();
    let mut digits = text[..whole].to_vec();
    let mut rest = &text[whole..];
    let mut fraction = 0;
    if let [b'.', behind @ ..] = rest {
        fraction = behind.iter().take_while(|byte| is_digit(byte)).count();
        digits.extend(&behind[..fraction]);
        rest = &behind[fraction..];
    }
    if digits.is_empty() {
        return None;
    }
    Some((digits, i64::try_from(fraction).ok()?, rest))
}

/// What follows the digits: nothing, or `mark`, a sign and digits, and no more. Beyond all reach it is just
/// far.
fn parse_exponent(text: &[u8], mark: u8) -> Option<i64> {
    let Some((first, rest)) = text.split_first() else { return Some(0) };
    if !first.eq_ignore_ascii_case(&mark) {
        return None;
    }
    let (sign, digits) = match rest {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let far = 1_000_000;
    Some(sign * digits.iter().fold(0, |sum, digit| (10 * sum + i64::from(digit - b'0')).min(far)))
}

fn parse_decimal(is_negative: bool, text: &[u8]) -> Option<Extended> {
    let (digits, fraction, rest) = split_digits(text, u8::is_ascii_digit)?;
    let exponent = parse_exponent(rest, b'e')? - fraction;
    let number = BigUint::parse_bytes(&digits, 10)?;
    if number.bits() == 0 {
        return round(is_negative, &number, 0, false);
    }
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    let magnitude = i64::try_from(digits.len() - zeros).ok()? + exponent;
    if magnitude.abs() > DECIMAL_EXPONENT_MAX {
        return None;
    }
    let power = BigUint::from(10u8).pow(u32::try_from(exponent.unsigned_abs()).ok()?);
    if exponent >= 0 {
        return round(is_negative, &(number * power), 0, false);
    }
    // So far to the left that the quotient has more bits than are kept.
    let shift = (power.bits() + MANTISSA_BITS + 2).saturating_sub(number.bits());
    let number = number << shift;
    let quotient = &number / &power;
    let is_more = &quotient * &power != number;
    round(is_negative, &quotient, -i64::try_from(shift).ok()?, is_more)
}

fn parse_hexadecimal(is_negative: bool, text: &[u8]) -> Option<Extended> {
    let (digits, fraction, rest) = split_digits(text, u8::is_ascii_hexdigit)?;
    let exponent = parse_exponent(rest, b'p')? - 4 * fraction;
    round(is_negative, &BigUint::parse_bytes(&digits, 16)?, exponent, false)
}

#[cfg(test)]
mod tests {
    use super::Extended;

    fn sum(a: &str, b: &str) -> Option<String> {
        Extended::parse(a.as_bytes())?.checked_add(Extended::parse(b.as_bytes())?)?.to_text()
    }

    #[test]
    fn what_strtold_leaves_a_rest_of_is_no_number() {
        let refused = [
            "",
            "-",
            "+",
            ".",
            "e1",
            " 1",
            "1 ",
            "1e",
            "1e+",
            "1e1x",
            "0x",
            "0x.",
            "0xp1",
            "0x1p",
            "1.2.3",
            "nan",
            "-nan",
            "infinit",
            "in",
            "--1",
            "1\0",
            "1e4933",
            "-1e5000",
            "1e-5000",
            "1e99999999999999999999",
            "1,5",
            "0x1p16384",
            "0x1p-16500",
            "1_0",
        ];
        for text in refused {
            assert_eq!(Extended::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Extended::parse(&[b'0'; 5 * 1024]), None);
        assert_eq!(Extended::parse(&[b'0'; 5 * 1024 - 1]), Some(Extended::ZERO));
    }

    #[test]
    fn sums_are_written_with_up_to_17_digits_behind_the_point() {
        let sums = [
            ("10.5", "0.1", "10.6"),
            ("3.0e3", "200", "3200"),
            ("5.0e3", "2.0e2", "5200"),
            ("0.1", "0.2", "0.3"),
            ("1", "-1", "0"),
            ("0", "-0.0", "0"),
            ("-0", "-0", "0"),
            ("0", "-1e-30", "0"),
            ("+.5", "5.", "5.5"),
            ("0x1.8p1", "0X.8", "3.5"),
            ("1e17", "0.3", "100000000000000000.296875"),
            ("1.23456789012345678901", "0", "1.23456789012345679"),
            ("0e9999999999", "1", "1"),
            ("9223372036854775807", "1", "9223372036854775808"),
            ("18446744073709551616", "1", "18446744073709551616"),
        ];
        for (a, b, expected) in sums {
            assert_eq!(sum(a, b).as_deref(), Some(expected), "{a} + {b}");
        }
    }

    #[test]
    fn the_largest_and_the_smallest_number_are_read_and_what_is_beyond_is_not() {
        let largest = format!("0x{}p16320", "f".repeat(16));
        let largest_text = sum(&largest, "0").unwrap();
        assert_eq!(largest_text.len(), 4933);
        assert!(largest_text.starts_with("118973149535723176502126385303"));
        assert_eq!(sum(&largest, &largest), None);
        assert_eq!(sum(&largest_text, "1").as_deref(), Some(&*largest_text));
        // As far from each other as two numbers can be.
        assert_eq!(sum(&largest_text, "0x1p-16445"), Some(largest_text));
        assert!(Extended::parse(b"0x1p-16445").is_some());
        // Half of it is as near to zero, which is even; a little more is nearer to it.
        assert_eq!(Extended::parse(b"0x1p-16446"), None);
        assert_eq!(Extended::parse(b"0x1.0001p-16446"), Extended::parse(b"0x1p-16445"));
    }

    #[test]
    fn an_infinity_is_read_but_its_sums_are_not_answered() {
        for text in ["inf", "-INF", "+Infinity"] {
            assert_eq!(Extended::parse(text.as_bytes()), Some(Extended::Infinite), "{text}");
            assert_eq!(sum(text, "1"), None);
            assert_eq!(sum("-inf", text), None);
        }
    }

    #[test]
    fn a_tie_goes_to_the_even_neighbour() {
        // 2^64 + 1 lies between two numbers.
        assert_eq!(sum("18446744073709551617", "0").as_deref(), Some("18446744073709551616"));
        assert_eq!(sum("18446744073709551619", "0").as_deref(), Some("18446744073709551620"));
        assert_eq!(sum("18446744073709551617.0000000001", "0").as_deref(), Some("18446744073709551618"));
        // 2^-18 has 18 digits behind the point, the last of them a 5: the digit before it stays even.
        assert_eq!(sum("0x1p-18", "0").as_deref(), Some("0.00000381469726562"));
        assert_eq!(sum("0x3p-18", "0").as_deref(), Some("0.00001144409179688"));
    }
}
