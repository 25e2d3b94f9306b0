//! That the known differences are as they are told.

use crate::differences::DIFFERENCES;
use crate::servers::{self, Redis, Subject};
use crate::wire::Wire;

#[test]
fn known_differences_are_as_they_are_told() {
    let (redis, subject) = (Redis::start(&[]), Subject::start("none"));
    if !subject.is_atlas() {
        return;
    }
    let connect = |address| Wire::connect(address).expect("the server serves");
    let (mut redis, mut subject) = (connect(redis.address), connect(subject.address()));
    let mut wrong = Vec::new();
    for difference in DIFFERENCES {
        for example in difference.examples {
            let command = example.command();
            for (name, wire, expected) in
                [("redis", &mut redis, example.redis), ("atlaskv", &mut subject, example.atlas)]
            {
                servers::flush(wire).expect("FLUSHALL is answered");
                for line in example.before {
                    wire.say(line).expect("it is answered");
                }
                let reply = wire.ask(&command).expect("it is answered");
                // Some are about what is within a transaction. Elsewhere it is an error that nobody looks at.
                wire.say("DISCARD").expect("it is answered");
                if !reply.bytes.starts_with(expected.as_bytes()) {
                    let (what, why) = (difference.name, difference.why);
                    wrong.push(format!(
                        "{what}, because {why}: to {command}, {name} says {reply}, not {expected}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "the list of differences is wrong:\n{}", wrong.join("\n"));
}
