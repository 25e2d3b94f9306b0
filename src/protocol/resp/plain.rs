//! GETs as nearly all clients write them, found without the [`Parser`](super::Parser): the commands of a read-mostly
//! pipeline, which are looked at in advance so that what they need is fetched while those before them are answered.

use super::decode::quick_length;

/// What such a command begins with; the name in either case.
const HEAD: &[u8; 8] = b"*2\r\n$3\r\n";
const NAME: &[u8; 3] = b"get";
/// Where the header of the key begins: behind the name and its end of line.
const KEY_AT: usize = HEAD.len() + NAME.len() + 2;

/// The key of the GET that `bytes` begin with, and the bytes of that command. `None`: it is another one, not whole, or
/// written in another way; the parser knows.
#[inline]
pub fn plain_get(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let head = bytes.first_chunk::<KEY_AT>()?;
    let (start, name) = head.split_first_chunk()?;
    if start != HEAD || !name[..NAME.len()].eq_ignore_ascii_case(NAME) || !name.ends_with(b"\r\n") {
        return None;
    }
    if bytes.get(KEY_AT) != Some(&b'$') {
        return None;
    }
    let (len, at) = quick_length(bytes, KEY_AT + 1)?;
    let end = at.checked_add(len)?;
    let key = bytes.get(at..end)?;
    bytes.get(end..end + 2).filter(|line_end| line_end == b"\r\n").map(|_| (key, end + 2))
}

#[cfg(test)]
mod tests {
    use super::super::{Args, Limits, Parsed, Parser};
    use super::*;

    #[test]
    fn it_finds_what_clients_send() {
        let bytes = b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n*2\r\n$3\r\ngEt\r\n$0\r\n\r\n";
        assert_eq!(plain_get(bytes), Some((&b"key"[..], 22)));
        assert_eq!(plain_get(&bytes[22..]), Some((&b""[..], 19)));
        for len in 0..22 {
            assert_eq!(plain_get(&bytes[..len]), None, "{len} bytes are not the whole command");
        }
        assert_eq!(plain_get(b"*2\r\n$3\r\nDEL\r\n$3\r\nkey\r\n"), None);
        assert_eq!(plain_get(b"GET key\r\n"), None);
    }

    /// Whatever it finds, the parser finds.
    #[test]
    fn it_agrees_with_the_parser() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut found = 0;
        for _ in 0..100_000 {
            let key: Vec<u8> = (0..rng.usize(..12)).map(|_| rng.u8(..)).collect();
            let mut bytes = format!("*2\r\n$3\r\nGeT\r\n${}\r\n", key.len()).into_bytes();
            bytes.extend_from_slice(&key);
            bytes.extend_from_slice(b"\r\n*1\r\n");
            if rng.bool() {
                let (at, with) = (rng.usize(..bytes.len()), *rng.choice(b"\r\n$*0129-Gg\0").unwrap());
                bytes[at] = with;
            }
            bytes.truncate(rng.usize(bytes.len() / 2..=bytes.len()));
            let Some((key, used)) = plain_get(&bytes) else { continue };
            found += 1;
            let mut args = Args::new();
            let parsed = Parser::new(Limits::default()).parse(&bytes, &mut args);
            assert!(
                matches!(parsed, Ok(Parsed::Command { used: of_parser }) if of_parser == used),
                "{parsed:?}"
            );
            assert_eq!(args.len(), 2, "{:?}", bytes.escape_ascii().to_string());
            assert!(
                args[0].eq_ignore_ascii_case(b"get") && args[1] == key,
                "{:?}",
                bytes.escape_ascii().to_string()
            );
        }
        assert!(found > 20_000, "{found} of 100,000 were found");
    }
}
