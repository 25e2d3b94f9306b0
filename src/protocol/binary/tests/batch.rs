//! The items of BATCH, byte by byte.

use super::*;

#[test]
fn batches_are_of_one_slot_and_within_limits() {
    let refuse = |list: &OpList, limits: &Limits| {
        let mut out = Vec::new();
        encode_request(&mut out, 1, &Request::Batch { ops: list.ops(), durability: Durability::Default });
        decode(&out, limits).map(|_| ()).unwrap_err()
    };
    let mut list = OpList::default();
    assert_eq!(refuse(&list, &limits()).code, Code::Malformed);
    list.put(b"a", b"1");
    list.put(b"b", b"1");
    let refusal = refuse(&list, &limits());
    assert_eq!(refusal.code, Code::CrossSlot);
    assert!(refusal.message.contains(&Slot::of_key(b"a").to_string()), "{refusal}");
    assert_eq!(refuse(&list, &Limits { items_max: 1, ..limits() }).code, Code::BatchTooLarge);
    assert_eq!(refuse(&list, &Limits { batch_bytes_max: 10, ..limits() }).code, Code::BatchTooLarge);
    list.clear();
    list.put(b"a", &[0; 11]);
    assert_eq!(refuse(&list, &Limits { value_bytes_max: 10, ..limits() }).code, Code::ValueTooLarge);
}

#[test]
fn items_of_a_batch_look_as_drawn() {
    let mut list = OpList::default();
    let key = &b"k"[..];
    list.put(key, b"v");
    list.delete(key);
    let (condition, expiry) = (Condition::IfVersion(Lsn(7)), Expiry::Set(Deadline::In(9)));
    list.push(&BatchOp { key, condition, action: Action::Put { value: b"w", expiry } });
    list.push(&BatchOp { key, condition: Condition::IfPresent, action: Action::Expire(Deadline::At(5)) });
    list.push(&BatchOp { key, condition: Condition::None, action: Action::Persist });
    list.push(&BatchOp { key, condition: Condition::IfAbsent, action: Action::Check });
    let expiry = Expiry::Keep;
    list.push(&BatchOp { key, condition: Condition::None, action: Action::Put { value: b"", expiry } });
    let drawn = [
        &[1, 0, 1, 0, 1, 0, 0, 0][..],
        b"kv",
        &[2, 0, 1, 0, 0, 0, 0, 0],
        b"k",
        &[1, 0b1101, 1, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
        b"kw",
        &[3, 0b1010, 1, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
        b"k",
        &[4, 0, 1, 0, 0, 0, 0, 0],
        b"k",
        &[5, 0b0100, 1, 0, 0, 0, 0, 0],
        b"k",
        &[1, 0b0011, 1, 0, 0, 0, 0, 0],
        b"k",
    ];
    assert_eq!(list.ops().wire_bytes(), drawn.concat());
    assert_eq!((list.len(), list.writes()), (7, 6));
    let mut out = Vec::new();
    encode_reply(&mut out, OpCode::Batch, 1, 0, &Reply::BatchFailed { item: 3, current: Some(Lsn(8)) });
    assert_eq!((out[6], out[24], &out[HEADER_BYTES..]), (2, 8, &[3, 0, 0, 0][..]));
}

#[test]
fn items_that_make_no_sense_are_refused() {
    let code = |ops: &[BatchOp<'_>], damage: &[(usize, u8)]| {
        let mut list = OpList::default();
        ops.iter().for_each(|op| list.push(op));
        let mut out = Vec::new();
        encode_request(&mut out, 1, &Request::Batch { ops: list.ops(), durability: Durability::Default });
        damage.iter().for_each(|(at, byte)| out[HEADER_BYTES + 4 + at] = *byte);
        decode(&out, &limits()).map(|_| ()).map_err(|refusal| refusal.code)
    };
    let op = |condition, action| BatchOp { key: b"k", condition, action };
    let put = |deadline| Action::Put { value: b"v", expiry: Expiry::Set(deadline) };
    let (none, absent) = (Condition::None, Condition::IfAbsent);
    for (item, why) in [
        (op(absent, Action::Delete), Code::InvalidOption),
        (op(absent, Action::Persist), Code::InvalidOption),
        (op(absent, Action::Expire(Deadline::In(1))), Code::InvalidOption),
        (op(none, Action::Check), Code::InvalidOption),
        (op(absent, Action::Check), Code::Malformed),
        (op(none, Action::Expire(Deadline::In(0))), Code::InvalidExpiry),
        (op(none, put(Deadline::At(EXPIRY_MS_MAX + 1))), Code::InvalidExpiry),
        (op(Condition::IfVersion(Lsn::ZERO), Action::Delete), Code::Malformed),
    ] {
        assert_eq!(code(&[item], &[]), Err(why), "{item:?}");
    }
    let plain = [BatchOp::put(b"k", b"v")];
    assert_eq!(code(&plain, &[]), Ok(()));
    // An unknown kind, a reserved bit, an expiry that is not there, and one where none is taken.
    for damage in [&[(0, 6)][..], &[(0, 0)], &[(1, 16)], &[(1, 128)], &[(1, 2)], &[(0, 2), (4, 0), (1, 3)]] {
        assert_eq!(code(&plain, damage), Err(Code::Malformed), "{damage:?}");
    }
}
