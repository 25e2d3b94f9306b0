use super::*;

/// As slow and as plain as can be: every way to divide the text, by the rules at the top of the module.
fn reference(pattern: &[u8], text: &[u8]) -> bool {
    fn rest(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', after @ ..] => (0..=text.len()).any(|taken| rest(after, &text[taken..])),
            [b'?', after @ ..] => !text.is_empty() && rest(after, &text[1..]),
            [b'\\', byte, after @ ..] => text.first() == Some(byte) && rest(after, &text[1..]),
            [b'[', ..] => {
                let negated = pattern.get(1) == Some(&b'^');
                let mut at = if negated { 2 } else { 1 };
                let mut members = [false; 256];
                while at < pattern.len() && pattern[at] != b']' {
                    if pattern[at] == b'\\' && at + 1 < pattern.len() {
                        members[usize::from(pattern[at + 1])] = true;
                        at += 2;
                    } else if pattern.get(at + 1) == Some(&b'-') && at + 2 < pattern.len() {
                        let ends = [pattern[at] as i8, pattern[at + 2] as i8];
                        let (low, high) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
                        (low..=high).for_each(|byte| members[usize::from(byte as u8)] = true);
                        at += 3;
                    } else {
                        members[usize::from(pattern[at])] = true;
                        at += 1;
                    }
                }
                let after = pattern.get(at + 1..).unwrap_or_default();
                !text.is_empty() && members[usize::from(text[0])] != negated && rest(after, &text[1..])
            }
            [byte, after @ ..] => text.first() == Some(byte) && rest(after, &text[1..]),
        }
    }
    if text.is_empty() { pattern.is_empty() } else { rest(pattern, text) }
}

fn seed() -> u64 {
    match std::env::var("ATLASKV_SEED") {
        Ok(seed) => seed.parse().expect("ATLASKV_SEED is a number"),
        Err(_) => fastrand::u64(..),
    }
}

/// Bytes that mean something in a pattern, and few others, so that much matches.
fn random(rng: &mut fastrand::Rng, alphabet: &[u8], len_max: usize) -> Vec<u8> {
    (0..rng.usize(..=len_max)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect()
}

#[test]
fn patterns_match_what_their_rules_say() {
    let seed = seed();
    println!("ATLASKV_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut matched = 0;
    for _ in 0..200_000 {
        let pattern = random(&mut rng, b"abc-]^[\\*?*?\x80\xff", 10);
        let text = random(&mut rng, b"abcab-]^[\\\x80\xff", 7);
        let found = matches(&pattern, &text);
        let shown = (pattern.escape_ascii().to_string(), text.escape_ascii().to_string());
        assert_eq!(found, reference(&pattern, &text), "{shown:?}");
        matched += u32::from(found);
        let prefix = literal_prefix(&pattern);
        assert!(!found || text.starts_with(&prefix), "{shown:?} {prefix:?}");
    }
    assert!(matched > 2_000, "{matched} matched");
}

#[test]
fn a_text_is_matched_by_itself_escaped() {
    let seed = seed();
    println!("ATLASKV_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let text: Vec<u8> = (0..rng.usize(1..20)).map(|_| rng.u8(..)).collect();
        let escaped: Vec<u8> = text.iter().flat_map(|byte| [b'\\', *byte]).collect();
        assert!(matches(&escaped, &text));
        assert!(matches_ignoring_case(&escaped, &text.to_ascii_uppercase()));
        assert_eq!(literal_prefix(&escaped), &*text);
        let mut more = text.clone();
        more.push(0);
        assert!(!matches(&escaped, &more));
    }
}

#[test]
fn classes_end_where_redis_ends_them() {
    for (pattern, text, expected) in [
        (&b"[abc]x"[..], &b"bx"[..], true),
        (b"[^abc]x", b"bx", false),
        (b"[a-c]", b"b", true),
        (b"[c-a]", b"b", true),
        (b"[a-", b"-", true),
        (b"[a-", b"b", false),
        (b"[a", b"a", true),
        (b"[", b"[", false),
        (b"[^", b"x", true),
        (b"[]a]", b"a", false),
        (b"[^]a]", b"xa]", true),
        (b"[\\]]", b"]", true),
        (b"[\\", b"\\", true),
        (b"[a-]x", b"^", true),
        (b"[+-\\]", b"A", true),
        (b"x\\", b"x\\", true),
        (b"[\x01-\xff]", b"\x00", true),
        (b"[\x01-\xff]", b"\x02", false),
    ] {
        assert_eq!(matches(pattern, text), expected, "{} {}", pattern.escape_ascii(), text.escape_ascii());
    }
}

#[test]
fn case_matters_only_where_it_does_in_redis() {
    for (pattern, expected) in [
        (&b"GET"[..], true),
        (b"\\G\\E\\T", true),
        (b"[G]et", true),
        (b"[\\G]et", false),
        (b"[A-z]et", true),
        (b"[a-Z]et", false),
        (b"[g-G]et", true),
        (b"[Z-A]et", true),
        (b"[\x80-z]et", false),
        (b"[\x01-\xff]et", false),
    ] {
        assert_eq!(matches_ignoring_case(pattern, b"get"), expected, "{}", pattern.escape_ascii());
    }
}

#[test]
fn an_empty_text_matches_nothing_but_itself() {
    assert!(matches(b"", b""));
    assert!(!matches(b"*", b""));
    assert!(!matches(b"", b"a"));
}

#[test]
fn many_stars_take_no_exponential_time() {
    let text = vec![b'a'; 2000];
    let mut pattern = b"a*".repeat(500);
    assert!(matches(&pattern, &text));
    pattern.push(b'b');
    // Every way to divide the text would be more than there are atoms.
    assert!(!matches(&pattern, &text));
}

#[test]
fn a_prefix_ends_where_a_pattern_is_no_longer_plain() {
    for (pattern, prefix) in [
        (&b"user:*"[..], &b"user:"[..]),
        (b"user", b"user"),
        (b"*", b""),
        (b"a?b", b"a"),
        (b"a[b]", b"a"),
        (b"a\\*b*", b"a*b"),
        (b"\\", b"\\"),
        (b"", b""),
    ] {
        assert_eq!(literal_prefix(pattern), prefix, "{}", pattern.escape_ascii());
    }
    assert!(matches!(literal_prefix(b"user:*"), Cow::Borrowed(_)));
}
