use proptest::prelude::*;

use super::Redis;
use crate::protocol::resp::Proto;

#[test]
fn lcs_answers_text_length_or_places() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("MSET a ohmytext b mynewtext", "+OK"),
        ("LCS a b", "$6 mytext"),
        ("LCS a b LEN", ":6"),
        ("LCS a b IDX", "*4 $7 matches *2 *2 *2 :4 :7 *2 :5 :8 *2 *2 :2 :3 *2 :0 :1 $3 len :6"),
        ("LCS a b IDX MINMATCHLEN 4 WITHMATCHLEN", "*4 $7 matches *1 *3 *2 :4 :7 *2 :5 :8 :4 $3 len :6"),
        ("LCS a b MINMATCHLEN -5 IDX MINMATCHLEN 9", "*4 $7 matches *0 $3 len :6"),
        ("LCS a none", "$0 "),
        ("LCS none none LEN", ":0"),
        ("LCS a b LEN IDX", "-ERR If you want both the length and indexes, please just use IDX."),
        ("LCS a b MINMATCHLEN", "-ERR syntax error"),
        ("LCS a b MINMATCHLEN x", "-ERR value is not an integer or out of range"),
        ("LCS a b FOO", "-ERR syntax error"),
    ]);
    redis.proto = Proto::Resp3;
    redis.tells(&[("LCS a none IDX", "%2 $7 matches *0 $3 len :0")]);
}

#[test]
fn a_table_that_is_too_large_is_refused() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("SETBIT a 65535 1", ":0"),
        ("SETBIT b 131063 1", ":0"),
        // 8193 × 16384 cells.
        ("LCS a b LEN", "-ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len"),
    ]);
}

fn is_subsequence(part: &[u8], whole: &[u8]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|byte| whole.any(|other| other == byte))
}

/// The length by the definition, from the ends.
fn len_by_definition(a: &[u8], b: &[u8]) -> usize {
    match (a.split_last(), b.split_last()) {
        (Some((x, a_rest)), Some((y, b_rest))) if x == y => 1 + len_by_definition(a_rest, b_rest),
        (Some((_, a_rest)), Some((_, b_rest))) => {
            len_by_definition(a_rest, b).max(len_by_definition(a, b_rest))
        }
        _ => 0,
    }
}

proptest! {
    #[test]
    fn lcs_is_a_subsequence_of_both_and_there_is_no_longer_one(a in "[ab]{1,9}", b in "[abc]{1,9}") {
        let mut redis = Redis::new();
        redis.ask(&format!("MSET a {a} b {b}"));
        let text = redis.ask("LCS a b");
        let text = text.split(' ').nth(1).unwrap().to_string();
        prop_assert!(is_subsequence(text.as_bytes(), a.as_bytes()));
        prop_assert!(is_subsequence(text.as_bytes(), b.as_bytes()));
        let len = len_by_definition(a.as_bytes(), b.as_bytes());
        prop_assert_eq!(text.len(), len);
        prop_assert_eq!(redis.ask("LCS a b LEN"), format!(":{len}"));
    }
}
