//! A server that takes no more for now.

use super::*;

#[test]
fn overloaded_servers_are_asked_again_for_some_time() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    (0..4).for_each(|_| fake.fail_next(Fault::Refuse(Code::Overloaded)));
    let version = client.set(b"k", b"v").unwrap();
    assert_eq!(client.get(b"k").unwrap().unwrap().version, version);
    // A range delete that is done in part is repeated, whatever the reason.
    [Code::PartlyDone, Code::Overloaded].into_iter().for_each(|code| fake.fail_next(Fault::Refuse(code)));
    client.delete_range(&KeyRange::prefix(b"k")).unwrap();
    assert_eq!(client.get(b"k").unwrap(), None);
    // Not for ever, not what would be refused again, and not in a pipeline.
    let mut hasty = Client::connect(Config { overload_patience: Duration::ZERO, ..fake.config() }).unwrap();
    let code = |error: Error| error.refusal().unwrap().code;
    for why in [Code::Overloaded, Code::DiskFull] {
        fake.fail_next(Fault::Refuse(why));
        let client = if why == Code::Overloaded { &mut hasty } else { &mut client };
        assert_eq!(code(client.set(b"k", b"v").unwrap_err()), why);
        assert_eq!(client.get(b"k").unwrap(), None);
    }
    fake.fail_next(Fault::Refuse(Code::Overloaded));
    let mut pipeline = client.pipeline();
    pipeline.set(b"k", b"v");
    assert_eq!(code(pipeline.run().remove(0).unwrap_err()), Code::Overloaded);
    assert_eq!(fake.connections(), 2, "each refusal leaves its connection as it is");
}
