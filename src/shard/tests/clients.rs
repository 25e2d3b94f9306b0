//! Pauses of clients, in simulated time.

use std::time::Duration;

use super::store::Store;
use crate::env::Env;
use crate::env::sim::SimEnv;
use crate::error::Code;
use crate::protocol::{ClientsAction, ClientsRequest, Paused};

#[test]
fn a_pause_ends_by_itself_or_when_it_is_lifted_and_whoever_waits_is_told() {
    let (world, env) = SimEnv::fresh(3);
    world.run(async {
        let store = Store::open(&env, 2).await;
        let shard = &store.shards[1];
        let change = |action| shard.change_clients(&ClientsRequest { shard: 1, action }).expect("it is done");
        let pause = |paused, ms| drop(change(ClientsAction::Pause { paused, ms }));
        let over = async |ms: u64| {
            let begin = env.now();
            shard.relieved.until(|| shard.paused().is_none()).await;
            let took = env.now() - begin;
            // Each look at the clock takes a moment.
            let wanted = Duration::from_millis(ms.saturating_sub(1))..Duration::from_millis(ms + 10);
            assert!(wanted.contains(&took), "{took:?} of {ms} ms");
        };
        assert_eq!(shard.paused(), None);
        pause(Paused::Writes, 50);
        assert_eq!(shard.paused(), Some(Paused::Writes));
        over(50).await;
        // The longer and the stronger one count.
        pause(Paused::Writes, 100);
        pause(Paused::All, 10);
        assert_eq!(shard.paused(), Some(Paused::All));
        over(100).await;
        pause(Paused::All, 10);
        pause(Paused::Writes, 100);
        assert_eq!(shard.paused(), Some(Paused::All));
        over(100).await;
        // As long as can be said.
        pause(Paused::All, u64::MAX);
        env.sleep(Duration::from_secs(3 * 3600)).await;
        assert_eq!(shard.paused(), Some(Paused::All));
        drop(change(ClientsAction::Unpause));
        over(0).await;
        // Whoever watched that one watches this one.
        pause(Paused::All, 1_000_000);
        drop(change(ClientsAction::Unpause));
        pause(Paused::Writes, 20);
        assert_eq!(shard.paused(), Some(Paused::Writes));
        over(20).await;
        pause(Paused::All, 0);
        assert_eq!(shard.paused(), None);
        let wrong = shard.change_clients(&ClientsRequest { shard: 0, action: ClientsAction::Unpause });
        assert_eq!(wrong.expect_err("it is shard 1").code, Code::NoSuchShard);
        pause(Paused::All, u64::MAX);
        store.close().await;
    });
    world.kill();
}
