//! Damage to files at rest: one bit is flipped, or a sector zeroed, in a copy of a store whose contents are known. It
//! may refuse to start, and it may refuse what needs the damaged part; whatever it answers is right.

use atlaskv::base::{PAGE_SIZE, is_blank};
use atlaskv::disk::sim::SimDisk;
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::protocol::Request;

use crate::keys::Key;
use crate::run::Run;
use crate::scans::Scan;
use crate::shape::Shape;
use crate::store::{Answer, Store};
use crate::verify::{Difference, ask};

/// Copies that are damaged of one store.
const COPIES: u32 = 4;
const SECTOR: usize = 512;

/// How a copy has shown its damage.
enum Shown {
    AtStart,
    OnRead,
    /// It did not: all that is read is as it should be.
    NotAtAll,
}

/// Damages copies of a store whose log is sealed and in which nothing is undecided.
pub fn try_damage(run: &mut Run, env: &SimEnv) -> Result<(), Difference> {
    for _ in 0..COPIES {
        let world = SimWorld::new(run.shapes.u64(..));
        let disk = env.disk().crash(&world, &mut run.shapes.fork(), 100);
        let Some(what) = damage(&disk, &mut run.shapes) else { return Ok(()) };
        let copy = SimEnv::new(&world, disk);
        world.jump_wall((run.time_ms(env) - copy.wall_ms()) as i64);
        let shape = run.stormy_shape();
        run.event(format!("of a copy {what}"));
        let shown = world.run(look(run, &copy, &shape));
        world.kill();
        run.met.damaged += 1;
        match shown {
            Ok(Shown::AtStart) => run.met.damage_at_start += 1,
            Ok(Shown::OnRead) => run.met.damage_on_read += 1,
            Ok(Shown::NotAtAll) => {}
            Err(difference) => {
                let what = format!("{what}: {}", difference.what);
                return Err(Difference::of(difference.keys, what));
            }
        }
    }
    Ok(())
}

/// Damages a random file; says which and where. `None`: there is none.
fn damage(disk: &SimDisk, rng: &mut fastrand::Rng) -> Option<String> {
    let paths: Vec<String> = disk.paths().into_iter().filter(|path| !path.starts_with("copy-")).collect();
    let path = paths.get(rng.usize(..paths.len().max(1)))?;
    let mut bytes = disk.peek(path)?;
    if bytes.is_empty() {
        return None;
    }
    // Most of a log is still empty.
    let pages = bytes.chunks(PAGE_SIZE);
    let blank: usize = pages.rev().take_while(|page| is_blank(page)).map(<[u8]>::len).sum();
    let used = bytes[..bytes.len() - blank].iter().rposition(|byte| *byte != 0);
    let used = used.map_or(bytes.len(), |last| last + 1);
    let end = if rng.u8(..8) > 0 { used } else { bytes.len() };
    let at = rng.usize(..end);
    let what = if rng.u8(..4) > 0 {
        let bit = rng.u8(..8);
        bytes[at] ^= 1 << bit;
        format!("bit {bit} of byte {at} of {path} flipped")
    } else {
        let start = at / SECTOR * SECTOR;
        let end = bytes.len().min(start + SECTOR);
        bytes[start..end].fill(0);
        format!("bytes {start} to {end} of {path} zeroed")
    };
    // Under all its names.
    disk.damage(path, bytes);
    Some(what)
}

/// Reads everything.
async fn look(run: &Run, env: &SimEnv, shape: &Shape) -> Result<Shown, Difference> {
    let Ok(store) = Store::open(env, shape).await else { return Ok(Shown::AtStart) };
    let mut is_shown = false;
    for key in &run.work.pool.keys {
        match ask(&store, 0, &Request::Get { key }).await {
            answer if answer.is_fault() => is_shown = true,
            answer => {
                let wanted = match run.reference.live.get(key) {
                    Some(live) => Answer::Value(live.version, live.value.to_vec()),
                    None => Answer::Absent,
                };
                if answer != wanted {
                    let what = format!("GET is answered {answer:.80?}, not {wanted:.80?}");
                    return Err(Difference::of(vec![key.clone()], what));
                }
            }
        }
    }
    is_shown |= scan(run, &store).await?;
    let _ = store.close().await; // what it can't write any more is no answer
    Ok(if is_shown { Shown::OnRead } else { Shown::NotAtAll })
}

/// Scans everything. Whether that was refused: then what came before is right nevertheless.
async fn scan(run: &Run, store: &Store) -> Result<bool, Difference> {
    let mut scan = Scan::of_all(0, 0);
    let mut wanted = run.reference.live.iter();
    loop {
        let answer = ask(store, 0, &Request::Scan(scan.ask.request())).await;
        if answer.is_fault() {
            return Ok(true);
        }
        let Answer::Page { entries, cursor, .. } = answer else {
            return Err(Difference::answered(Vec::new(), "a scan", &answer));
        };
        for (key, version, _, value) in entries {
            let next: Option<(&Key, _)> = wanted.next();
            let is_it = next.is_some_and(|(found, live)| {
                **found == key[..] && live.version == version && *live.value == value[..]
            });
            if !is_it {
                let what = format!("a scan gives {} with {version}, not {:.80?}", key.escape_ascii(), next);
                return Err(Difference::of(vec![key.into()], what));
            }
        }
        scan.ask.cursor = cursor;
        if scan.ask.cursor.is_none() {
            let missing = wanted.next().map(|(key, _)| key.clone());
            return match missing {
                None => Ok(false),
                Some(key) => Err(Difference::of(vec![key], "a scan does not give it".to_owned())),
            };
        }
    }
}
