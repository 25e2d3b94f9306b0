//! CONFIG: settings are flags, so it tells them, and takes those that are so already.

use super::Session;
use crate::protocol::resp;
use crate::redis::fault::Fault;
use crate::redis::glob;

/// Bytes that a number with a unit stands for, as Redis reads those.
fn bytes_of(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let unit: u64 = match text[digits..].to_ascii_lowercase().as_slice() {
        b"" | b"b" => 1,
        b"k" => 1_000,
        b"kb" => 1 << 10,
        b"m" => 1_000_000,
        b"mb" => 1 << 20,
        b"g" => 1_000_000_000,
        b"gb" => 1 << 30,
        _ => return None,
    };
    std::str::from_utf8(&text[..digits]).ok()?.parse::<u64>().ok()?.checked_mul(unit)
}

/// Whether a setting that is `now` would stay what it is.
fn stays(name: &str, now: &str, wanted: &[u8]) -> bool {
    match name {
        "maxmemory" | "proto-max-bulk-len" => {
            bytes_of(wanted).is_some_and(|bytes| bytes_of(now.as_bytes()) == Some(bytes))
        }
        "appendonly" | "appendfsync" | "maxmemory-policy" => now.as_bytes().eq_ignore_ascii_case(wanted),
        _ => now.as_bytes() == wanted,
    }
}

impl Session {
    pub(super) fn config_get(&mut self, args: &[&[u8]]) {
        let config = self.context.clone();
        let found: Vec<&(&str, String)> = config
            .config
            .iter()
            .filter(|(name, _)| {
                args[2..].iter().any(|glob| glob::matches_ignoring_case(glob, name.as_bytes()))
            })
            .collect();
        self.say_or_queue(|out, proto| {
            resp::map(out, found.len(), proto);
            for (name, value) in found {
                resp::bulk(out, name.as_bytes());
                resp::bulk(out, value.as_bytes());
            }
        });
    }

    pub(super) fn config_set(&mut self, args: &[&[u8]]) {
        let pairs = &args[2..];
        if !pairs.len().is_multiple_of(2) {
            return self.say_or_queue(|out, _| Fault::Syntax.write(args, out));
        }
        match self.refused_setting(pairs) {
            None => self.say_or_queue(|out, _| resp::simple(out, "OK")),
            Some(text) => self.say_or_queue(|out, _| resp::error_bytes(out, &text)),
        }
    }

    /// Why some of these names and values can't be set, if so.
    fn refused_setting(&self, pairs: &[&[u8]]) -> Option<Vec<u8>> {
        let known = |name: &[u8]| {
            self.context.config.iter().find(|(other, _)| other.as_bytes().eq_ignore_ascii_case(name))
        };
        let (names, values) = (|| pairs.iter().step_by(2), || pairs.iter().skip(1).step_by(2));
        if let Some(name) = names().find(|name| known(name).is_none()) {
            // As C ends it.
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(
                [b"ERR Unknown option or number of arguments for CONFIG SET - '", name, b"'"].concat(),
            );
        }
        let failed = |name: &[u8], why: &str| {
            let begin = b"ERR CONFIG SET failed (possibly related to argument '";
            Some([begin, name, b"') - ", why.as_bytes()].concat())
        };
        for (index, name) in names().enumerate() {
            if names().take(index).any(|other| other.eq_ignore_ascii_case(name)) {
                return failed(name, "duplicate parameter");
            }
        }
        for (name, value) in names().zip(values()) {
            if !known(name).is_some_and(|(name, now)| stays(name, now, value)) {
                return failed(name, "settings are flags of the server, read at its start");
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_stays_if_it_means_the_same() {
        for (name, now, wanted) in [
            ("save", "", ""),
            ("appendonly", "yes", "YES"),
            ("maxmemory", "104857600", "100mb"),
            ("maxmemory", "2000", "2K"),
            ("timeout", "0", "0"),
        ] {
            assert!(stays(name, now, wanted.as_bytes()), "{name} {wanted}");
        }
        for (name, now, wanted) in [
            ("save", "", "900 1"),
            ("appendonly", "yes", "no"),
            ("maxmemory", "104857600", "100m"),
            ("maxmemory", "0", ""),
            ("maxmemory", "0", "99999999999999999999gb"),
            ("dir", "/a", "/A"),
        ] {
            assert!(!stays(name, now, wanted.as_bytes()), "{name} {wanted}");
        }
    }
}
