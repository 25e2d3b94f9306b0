//! Byte sizes and durations as people write them.

/// Reads a size: plain bytes, or a number with a unit. `KB`, `MB`, `GB`, `TB` count in thousands;
/// `KiB`, `MiB`, `GiB`, `TiB` and the single letters `k`, `M`, `G`, `T` in 1024s. Case does not matter,
/// fractions are allowed before a unit (`1.5GiB`), a space between number and unit is too.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    scale(number, factor)
}

/// Writes a size so that it reads back as the same number: in the largest binary unit that divides it.
/// `show_size(64 << 20)` is `64MiB`.
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Writes a size to three digits or so: for figures that are measured, not given. `rough_size(25_769_000_000)`
/// is `24.0GiB`.
pub fn rough_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}B")
}

/// Reads a duration in milliseconds: `500ms`, `30s`, `5m`, `2h`; a bare number counts seconds.
pub fn parse_millis(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    scale(number, factor)
}

fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (!number.is_empty()).then_some((number, unit.trim_start()))
}

/// `number` times `factor` in exact arithmetic; up to nine digits after the point.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.contains('.') && (whole.is_empty() || fraction.is_empty() || fraction.len() > 9) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let parts = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let extra = fraction.parse::<u128>().ok()? * u128::from(factor) / parts;
    whole.checked_add(u64::try_from(extra).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("1GB", 1_000_000_000),
            ("1GiB", 1 << 30),
            ("512k", 512 << 10),
            ("2G", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("0.5kb", 500),
            ("7b", 7),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_no_size() {
        for text in
            ["", "MiB", "-1", "1.2.3k", ".5k", "5.k", "12parsecs", "99999999999999999999", "20000000TiB"]
        {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn a_shown_size_reads_back_as_itself() {
        for bytes in [0, 1, 1000, 1023, 1024, 1 << 20, (1 << 20) + 1, 96 << 20, 3 << 40, u64::MAX] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes), "{bytes}");
        }
        assert_eq!(rough_size(25_769_803_776), "24.0GiB");
        assert_eq!(rough_size(12), "12B");
    }

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis) in
            [("0", 0), ("10", 10_000), ("250ms", 250), ("1.5s", 1500), ("5m", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse_millis(text), Some(millis), "{text}");
        }
        assert_eq!(parse_millis("soon"), None);
        assert_eq!(parse_millis("10 weeks"), None);
    }
}
