//! The simulated disk: a directory tree in memory that can crash, tear, fail and fill up.
//!
//! What a crash may do ([`SimDisk::crash`]), sector (512 bytes) by sector and independently:
//! - a write that was not synced, or a dsync write that had not returned, is kept, dropped, or torn;
//!   unsynced writes to one sector may apply in part: any prefix of them, in order;
//! - a name that was created, renamed or removed since its directory was synced is so, or as before; in
//!   one half of all crashes changes are lost from some moment on, as a journal loses them, in the other
//!   half each by itself, since nothing promises their order;
//! - what was synced stays; what a sync that failed was to make durable may never be, though a later one succeeds.
//!
//! Operations suspend for a random virtual time, so concurrent ones complete in any order.

mod contents;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use self::contents::{Contents, Page, bytes_of, pages_of};
use super::{DirEntry, Disk, DiskError, File, OpenMode, OpenOptions, Result, Space};
use crate::base::PAGE_SIZE;
use crate::env::Notify;
use crate::env::sim::SimWorld;

/// The unit that a power cut leaves whole.
const SECTOR: usize = 512;

/// One write that is not durable yet.
struct Pending {
    offset: usize,
    pages: Vec<Page>,
}

#[derive(Default)]
struct Inode {
    durable: Contents,
    /// What a reader sees: durable with all pending writes applied.
    current: Contents,
    pending: Vec<Rc<Pending>>,
}

type InodeRef = Rc<RefCell<Inode>>;
type Names = BTreeMap<String, InodeRef>;

/// A change of names since the last sync of its directory.
#[derive(Clone)]
enum NameChange {
    Link(String, InodeRef),
    Unlink(String),
    Rename(String, String, InodeRef),
}

/// How many operations a fault lets pass before it strikes. Clones share it.
#[derive(Clone)]
pub struct Countdown {
    left: Rc<Cell<Option<u64>>>,
}

impl Countdown {
    /// `None`: it has struck, or is over.
    pub fn left(&self) -> Option<u64> {
        self.left.get()
    }

    /// Lets it strike after so many, unless it has.
    pub fn set(&self, skip: u64) {
        self.left.set(self.left().map(|_| skip));
    }
}

/// A fault to inject: the operation and path it hits, and what happens.
struct Fault {
    operation: &'static str,
    path_contains: String,
    skip: Countdown,
    outcome: Outcome,
    once: bool,
}

/// What happens to an operation that a fault hits.
#[derive(Clone, Copy)]
enum Outcome {
    Fails(i32),
    Takes(Duration),
}

struct State {
    dirs: RefCell<std::collections::BTreeSet<String>>,
    names: RefCell<Names>,
    durable_names: RefCell<Names>,
    name_changes: RefCell<Vec<NameChange>>,
    capacity: Cell<u64>,
    operations: Cell<u64>,
    crash_at: Cell<u64>,
    went_down: Notify,
    faults: RefCell<Vec<Fault>>,
}

/// A simulated directory tree. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    world: SimWorld,
    state: Rc<State>,
}

/// An open simulated file.
pub struct SimFile {
    disk: SimDisk,
    path: String,
    inode: InodeRef,
    dsync: bool,
    is_writable: bool,
}

impl SimDisk {
    /// An empty one.
    pub fn new(world: &SimWorld) -> SimDisk {
        SimDisk::with(world, Names::new(), std::iter::once(String::new()).collect(), u64::MAX)
    }

    fn with(
        world: &SimWorld,
        names: Names,
        dirs: std::collections::BTreeSet<String>,
        capacity: u64,
    ) -> SimDisk {
        SimDisk {
            world: world.clone(),
            state: Rc::new(State {
                dirs: RefCell::new(dirs),
                durable_names: RefCell::new(names.clone()),
                names: RefCell::new(names),
                name_changes: RefCell::default(),
                capacity: Cell::new(capacity),
                operations: Cell::new(0),
                crash_at: Cell::new(u64::MAX),
                went_down: Notify::new(),
                faults: RefCell::default(),
            }),
        }
    }

    /// A copy of the tree below `dir` as it is now, for use in `world`. Files with two names there stay one.
    pub fn below(&self, dir: &str, world: &SimWorld) -> SimDisk {
        let copy = self.crash(world, &mut fastrand::Rng::with_seed(0), 100);
        let inner = |path: &str| Some(path.strip_prefix(dir)?.strip_prefix('/')?.to_owned());
        let names = copy.state.names.borrow();
        let names = names.iter().filter_map(|(path, inode)| Some((inner(path)?, inode.clone())));
        let dirs = copy.state.dirs.borrow();
        let dirs = dirs.iter().filter_map(|dir| inner(dir)).chain([String::new()]);
        SimDisk::with(world, names.collect(), dirs.collect(), self.state.capacity.get())
    }

    /// Operations begun so far.
    pub fn operations(&self) -> u64 {
        self.state.operations.get()
    }

    /// From the `operation`-th operation on (counted from 1), none ever returns.
    pub fn crash_at(&self, operation: u64) {
        self.state.crash_at.set(operation);
    }

    /// Whether [`SimDisk::crash_at`] has struck.
    pub fn is_down(&self) -> bool {
        self.state.operations.get() >= self.state.crash_at.get()
    }

    /// Waits until it has.
    pub async fn until_down(&self) {
        self.state.went_down.until(|| self.is_down()).await;
    }

    /// Sets the bytes that fit. Writes beyond fail with ENOSPC.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.capacity.set(bytes);
    }

    /// Lets an operation (`read`, `write`, `sync`, `open`, …) on a path containing `path_contains` fail with
    /// `errno`, after `skip` more such operations succeeded; once, or from then on.
    pub fn fail(&self, operation: &'static str, path_contains: &str, skip: u64, errno: i32, once: bool) {
        self.inject(operation, path_contains, skip, Outcome::Fails(errno), once);
    }

    /// Lets one operation take `duration` longer, after `skip` more such operations went as usual.
    pub fn delay(&self, operation: &'static str, path_contains: &str, skip: u64, duration: Duration) {
        self.inject(operation, path_contains, skip, Outcome::Takes(duration), true);
    }

    fn inject(&self, operation: &'static str, path_contains: &str, skip: u64, outcome: Outcome, once: bool) {
        let path_contains = path_contains.to_owned();
        let skip = Countdown { left: Rc::new(Cell::new(Some(skip))) };
        self.state.faults.borrow_mut().push(Fault { operation, path_contains, skip, outcome, once });
    }

    /// When the fault strikes that was injected last.
    ///
    /// # Panics
    /// If there is none.
    pub fn countdown(&self) -> Countdown {
        self.state.faults.borrow().last().expect("a fault was injected").skip.clone()
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.state.faults.borrow_mut().drain(..).for_each(|fault| fault.skip.left.set(None));
    }

    /// Contents of a file at this moment.
    pub fn peek(&self, path: &str) -> Option<Vec<u8>> {
        self.state.names.borrow().get(path).map(|inode| inode.borrow().current.to_vec())
    }

    /// Replaces the contents of a file at rest, durable at once; creates it if need be.
    pub fn poke(&self, path: &str, bytes: Vec<u8>) {
        let contents = Contents::from(bytes);
        let inode = Inode { durable: contents.clone(), current: contents, pending: Vec::new() };
        let inode = Rc::new(RefCell::new(inode));
        self.state.names.borrow_mut().insert(path.to_owned(), inode.clone());
        self.state.durable_names.borrow_mut().insert(path.to_owned(), inode);
    }

    /// Replaces the contents of a file at rest under those who have it open, as damage does.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn damage(&self, path: &str, bytes: Vec<u8>) {
        let names = self.state.names.borrow();
        let mut inode = names[path].borrow_mut();
        inode.durable = bytes.into();
        inode.current = inode.durable.clone();
    }

    /// Paths of all files.
    pub fn paths(&self) -> Vec<String> {
        self.state.names.borrow().keys().cloned().collect()
    }

    /// The disk as a crash now might leave it, for use in `world`. `keep` is the chance, in percent, that
    /// each thing not durable survives. This disk may still be used, as a world in which it did not crash.
    pub fn crash(&self, world: &SimWorld, rng: &mut fastrand::Rng, keep: u32) -> SimDisk {
        let mut names = self.state.durable_names.borrow().clone();
        let is_ordered = rng.bool();
        for change in self.state.name_changes.borrow().iter() {
            if rng.u32(..100) < keep {
                apply(&mut names, change);
            } else if is_ordered {
                break;
            }
        }
        let mut after = Names::new();
        let mut seen: Vec<(InodeRef, InodeRef)> = Vec::new();
        for (path, inode) in names {
            let known = seen.iter().find(|(old, _)| Rc::ptr_eq(old, &inode)).map(|(_, new)| new.clone());
            let survivor = known.unwrap_or_else(|| {
                let contents = inode.borrow().after_crash(rng, keep);
                let new = Inode { current: contents.clone(), durable: contents, pending: Vec::new() };
                let new = Rc::new(RefCell::new(new));
                seen.push((inode.clone(), new.clone()));
                new
            });
            after.insert(path, survivor);
        }
        SimDisk::with(world, after, self.state.dirs.borrow().clone(), self.state.capacity.get())
    }

    /// Counts an operation, suspends for a while, and fails if it is to fail.
    async fn operate(&self, operation: &'static str, path: &str) -> Result<()> {
        let count = self.state.operations.get() + 1;
        self.state.operations.set(count);
        if count >= self.state.crash_at.get() {
            self.state.went_down.notify();
            std::future::pending::<()>().await;
        }
        self.world.sleep(Duration::from_micros(10 + self.world.random() % 200)).await;
        if self.is_down() {
            std::future::pending::<()>().await;
        }
        match self.fault(operation, path) {
            None => Ok(()),
            Some(Outcome::Fails(errno)) => {
                Err(DiskError::new(operation, path, io::Error::from_raw_os_error(errno)))
            }
            Some(Outcome::Takes(duration)) => {
                self.world.sleep(duration).await;
                Ok(())
            }
        }
    }

    fn fault(&self, operation: &'static str, path: &str) -> Option<Outcome> {
        let mut faults = self.state.faults.borrow_mut();
        let hit = faults
            .iter_mut()
            .position(|fault| fault.operation == operation && path.contains(&fault.path_contains))?;
        let left = &faults[hit].skip.left;
        if let Some(skip @ 1..) = left.get() {
            left.set(Some(skip - 1));
            return None;
        }
        left.set(None);
        let outcome = faults[hit].outcome;
        if faults[hit].once {
            faults.remove(hit);
        }
        Some(outcome)
    }

    fn change(&self, change: NameChange) {
        apply(&mut self.state.names.borrow_mut(), &change);
        self.state.name_changes.borrow_mut().push(change);
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        let names = self.state.names.borrow();
        let mut inodes: Vec<&InodeRef> = names.values().collect();
        // A file with several names is there once. This is slow, so nobody asks unless there is a limit.
        inodes.sort_by_key(|inode| Rc::as_ptr(inode));
        inodes.dedup_by_key(|inode| Rc::as_ptr(inode));
        inodes.into_iter().map(|inode| inode.borrow().current.len() as u64).sum()
    }
}

fn apply(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Link(path, inode) => {
            names.insert(path.clone(), inode.clone());
        }
        NameChange::Unlink(path) => {
            names.remove(path);
        }
        NameChange::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), inode.clone());
        }
    }
}

fn dir_of(path: &str) -> &str {
    path.rfind('/').map_or("", |slash| &path[..slash])
}

impl NameChange {
    fn dir(&self) -> &str {
        match self {
            NameChange::Link(path, _) | NameChange::Unlink(path) | NameChange::Rename(_, path, _) => {
                dir_of(path)
            }
        }
    }
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Rc<Pending> {
        let pending = Rc::new(Pending { offset, pages: pages_of(bytes) });
        self.current.put(offset, &pending.pages);
        self.pending.push(pending.clone());
        pending
    }

    /// Makes one write durable. Earlier ones to the same sectors stay pending, but can only lose.
    fn settle(&mut self, write: &Rc<Pending>) {
        self.durable.put(write.offset, &write.pages);
        let at = self.pending.iter().position(|pending| Rc::ptr_eq(pending, write));
        if let Some(at) = at {
            self.pending.remove(at);
        }
    }

    fn after_crash(&self, rng: &mut fastrand::Rng, keep: u32) -> Contents {
        let mut contents = self.durable.clone();
        for write in &self.pending {
            // Half of the writes are whole or gone, the other half torn sector by sector.
            let fate = rng.u32(..100);
            if fate % 2 == 0 {
                if fate < keep {
                    contents.put(write.offset, &write.pages);
                }
                continue;
            }
            let sectors = write.pages.iter().flat_map(|page| bytes_of(page).chunks(SECTOR));
            for (number, sector) in sectors.enumerate() {
                if rng.u32(..100) < keep {
                    contents.put_part(write.offset + number * SECTOR, sector);
                }
            }
        }
        contents
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn alloc(&self, len: usize) -> Vec<u8> {
        assert!(len > 0 && len.is_multiple_of(PAGE_SIZE), "buffers are whole pages");
        vec![0xDB; len] // not zeroed, as on a real disk
    }

    async fn open(&self, path: &str, options: OpenOptions) -> Result<SimFile> {
        self.operate("open", path).await?;
        let existing = self.state.names.borrow().get(path).cloned();
        let error = |kind: io::ErrorKind| Err(DiskError::new("open", path, kind.into()));
        let inode = match (existing, options.mode) {
            (Some(_), OpenMode::CreateNew) => return error(io::ErrorKind::AlreadyExists),
            (Some(inode), _) => inode,
            (None, OpenMode::CreateNew) => {
                if !self.state.dirs.borrow().contains(dir_of(path)) {
                    return error(io::ErrorKind::NotFound);
                }
                let inode = InodeRef::default();
                self.change(NameChange::Link(path.to_owned(), inode.clone()));
                inode
            }
            (None, _) => return error(io::ErrorKind::NotFound),
        };
        let is_writable = options.mode != OpenMode::Read;
        Ok(SimFile { disk: self.clone(), path: path.to_owned(), inode, dsync: options.dsync, is_writable })
    }

    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.operate("rename", from).await?;
        assert_eq!(dir_of(from), dir_of(to), "renames stay within a directory");
        let inode = self.state.names.borrow().get(from).cloned();
        let inode = inode.ok_or_else(|| DiskError::new("rename", from, io::ErrorKind::NotFound.into()))?;
        self.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    async fn link(&self, from: &str, to: &str) -> Result<()> {
        self.operate("link", to).await?;
        let error = |kind: io::ErrorKind| Err(DiskError::new("link", to, kind.into()));
        let inode = self.state.names.borrow().get(from).cloned();
        let Some(inode) = inode else { return error(io::ErrorKind::NotFound) };
        if self.state.names.borrow().contains_key(to) {
            return error(io::ErrorKind::AlreadyExists);
        }
        if !self.state.dirs.borrow().contains(dir_of(to)) {
            return error(io::ErrorKind::NotFound);
        }
        self.change(NameChange::Link(to.to_owned(), inode));
        Ok(())
    }

    async fn remove(&self, path: &str) -> Result<()> {
        self.operate("remove", path).await?;
        if !self.state.names.borrow().contains_key(path) {
            return Err(DiskError::new("remove", path, io::ErrorKind::NotFound.into()));
        }
        self.change(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    async fn shrink(&self, path: &str, bytes: u64) -> Result<bool> {
        self.operate("shrink", path).await?;
        let names = self.state.names.borrow();
        let inode =
            names.get(path).ok_or_else(|| DiskError::new("shrink", path, io::ErrorKind::NotFound.into()))?;
        let has_others = names.values().filter(|other| Rc::ptr_eq(other, inode)).count() > 1;
        let mut inode = inode.borrow_mut();
        let left = inode.current.len().saturating_sub(bytes as usize);
        if has_others || left == 0 {
            return Ok(false);
        }
        // At once for good: whoever cuts off what is needed after a crash is found out.
        inode.pending.clear();
        inode.current.truncate(left);
        inode.durable.truncate(left);
        Ok(true)
    }

    async fn create_dir(&self, path: &str) -> Result<()> {
        self.operate("create_dir", path).await?;
        self.state.dirs.borrow_mut().insert(path.to_owned());
        Ok(())
    }

    async fn remove_dir(&self, path: &str) -> Result<()> {
        self.operate("remove_dir", path).await?;
        let error = |kind: io::ErrorKind| Err(DiskError::new("remove_dir", path, kind.into()));
        let is_in = |inner: &String| !inner.is_empty() && dir_of(inner) == path;
        if self.state.names.borrow().keys().any(is_in) || self.state.dirs.borrow().iter().any(is_in) {
            return error(io::ErrorKind::DirectoryNotEmpty);
        }
        match self.state.dirs.borrow_mut().remove(path) {
            true => Ok(()),
            false => error(io::ErrorKind::NotFound),
        }
    }

    async fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        self.operate("list", path).await?;
        if !self.state.dirs.borrow().contains(path) {
            return Err(DiskError::new("list", path, io::ErrorKind::NotFound.into()));
        }
        let name = |full: &str| full.rsplit('/').next().unwrap_or(full).to_owned();
        let mut entries: Vec<DirEntry> = Vec::new();
        for (full, inode) in self.state.names.borrow().iter().filter(|(full, _)| dir_of(full) == path) {
            let bytes = inode.borrow().current.len() as u64;
            entries.push(DirEntry { name: name(full), bytes, is_dir: false });
        }
        for dir in self.state.dirs.borrow().iter().filter(|dir| !dir.is_empty() && dir_of(dir) == path) {
            entries.push(DirEntry { name: name(dir), bytes: 0, is_dir: true });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    async fn sync_dir(&self, path: &str) -> Result<()> {
        self.operate("sync_dir", path).await?;
        let mut changes = self.state.name_changes.borrow_mut();
        let mut durable = self.state.durable_names.borrow_mut();
        changes.retain(|change| {
            let is_here = change.dir() == path;
            if is_here {
                apply(&mut durable, change);
            }
            !is_here
        });
        Ok(())
    }

    async fn space(&self) -> Result<Space> {
        self.operate("space", "").await?;
        let total = self.state.capacity.get();
        Ok(Space { free: if total == u64::MAX { total } else { total.saturating_sub(self.used()) }, total })
    }
}

impl SimFile {
    fn check(&self, offset: u64, len: usize) {
        let is_aligned = offset.is_multiple_of(PAGE_SIZE as u64) && len.is_multiple_of(PAGE_SIZE);
        assert!(is_aligned && len > 0, "{}: {len} bytes at {offset} are not whole pages", self.path);
    }
}

impl File for SimFile {
    type Buffer = Vec<u8>;
    type ReadBuffer = Vec<u8>;

    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> u64 {
        self.inode.borrow().current.len() as u64
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.check(offset, len);
        self.disk.operate("read", &self.path).await.map_err(|error| error.at(offset))?;
        let inode = self.inode.borrow();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match inode.current.read(start, len) {
            Some(bytes) => Ok(bytes),
            None => Err(DiskError::new("read", &self.path, io::ErrorKind::UnexpectedEof.into()).at(offset)),
        }
    }

    async fn write_at(&self, offset: u64, buffer: Vec<u8>) -> Result<()> {
        self.check(offset, buffer.len());
        assert!(self.is_writable, "{} is open for reading", self.path);
        let start = usize::try_from(offset)
            .map_err(|_| DiskError::new("write", &self.path, io::ErrorKind::FileTooLarge.into()))?;
        let grows = (start + buffer.len()).saturating_sub(self.inode.borrow().current.len()) as u64;
        let capacity = self.disk.state.capacity.get();
        if capacity != u64::MAX && grows > capacity.saturating_sub(self.disk.used()) {
            self.disk.operate("write", &self.path).await?;
            return Err(DiskError::new("write", &self.path, io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        // Visible to a crash as soon as it is under way.
        let write = self.inode.borrow_mut().write(start, &buffer);
        self.disk.operate("write", &self.path).await?;
        if self.dsync {
            self.disk.operate("dsync", &self.path).await?;
            self.inode.borrow_mut().settle(&write);
        }
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        let covered = self.inode.borrow().pending.clone();
        if let Err(error) = self.disk.operate("sync", &self.path).await {
            // The kernel may take pages for clean that it could not write.
            let mut inode = self.inode.borrow_mut();
            for write in covered.into_iter().filter(|_| self.disk.world.random().is_multiple_of(2)) {
                inode.pending.retain(|pending| !Rc::ptr_eq(pending, &write));
            }
            return Err(error);
        }
        let mut inode = self.inode.borrow_mut();
        for write in covered {
            inode.settle(&write);
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        self.disk.operate("close", &self.path).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: OpenOptions = OpenOptions { mode: OpenMode::CreateNew, dsync: false };

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; PAGE_SIZE]
    }

    #[test]
    fn synced_data_survives_and_unsynced_data_may_tear() {
        let world = SimWorld::new(1);
        let disk = SimDisk::new(&world);
        world.run(async {
            let file = disk.open("a", NEW).await.unwrap();
            file.write_at(0, page(1)).await.unwrap();
            file.sync().await.unwrap();
            disk.sync_dir("").await.unwrap();
            file.write_at(0, page(2)).await.unwrap();
        });
        let mut torn = 0;
        for seed in 0..50 {
            let after = disk.crash(&world, &mut fastrand::Rng::with_seed(seed), 50).peek("a").unwrap();
            assert!(after.chunks(SECTOR).all(|s| s.iter().all(|&b| b == s[0]) && (s[0] == 1 || s[0] == 2)));
            torn += usize::from(after.contains(&1) && after.contains(&2));
        }
        assert!(torn > 5, "only {torn} of 50 crashes tore the page");
    }

    #[test]
    fn a_name_lasts_only_once_its_directory_is_synced() {
        let world = SimWorld::new(1);
        let disk = SimDisk::new(&world);
        world.run(async { drop(disk.open("a", NEW).await.unwrap()) });
        let lost = (0..50)
            .filter(|&seed| disk.crash(&world, &mut fastrand::Rng::with_seed(seed), 50).peek("a").is_none());
        assert!((5..45).contains(&lost.count()));
        world.run(async { disk.sync_dir("").await.unwrap() });
        assert!(disk.crash(&world, &mut fastrand::Rng::with_seed(0), 0).peek("a").is_some());
    }

    #[test]
    fn a_linked_file_lasts_as_long_as_one_of_its_names_and_takes_space_once() {
        let world = SimWorld::new(1);
        let disk = SimDisk::new(&world);
        world.run(async {
            let file = disk.open("a", NEW).await.unwrap();
            file.write_at(0, page(3)).await.unwrap();
            file.sync().await.unwrap();
            disk.link("a", "b").await.unwrap();
            assert!(disk.link("a", "b").await.is_err() && disk.link("c", "d").await.is_err());
            disk.sync_dir("").await.unwrap();
            disk.set_capacity(1 << 20);
            assert_eq!(disk.space().await.unwrap().free, (1 << 20) - PAGE_SIZE as u64);
            disk.remove("a").await.unwrap();
            disk.sync_dir("").await.unwrap();
        });
        let after = disk.crash(&world, &mut fastrand::Rng::with_seed(0), 0);
        assert_eq!((after.peek("a"), after.peek("b")), (None, Some(page(3))));
    }

    #[test]
    fn a_dsync_write_that_returned_is_durable() {
        let world = SimWorld::new(1);
        let disk = SimDisk::new(&world);
        world.run(async {
            let file = disk.open("a", OpenOptions { mode: OpenMode::CreateNew, dsync: true }).await.unwrap();
            disk.sync_dir("").await.unwrap();
            file.write_at(0, page(7)).await.unwrap();
        });
        assert_eq!(disk.crash(&world, &mut fastrand::Rng::with_seed(0), 0).peek("a"), Some(page(7)));
    }
}
