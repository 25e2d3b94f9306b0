//! Reads segments whole, the next one while what is in this one is looked through.

use std::pin::Pin;

use futures_lite::future::{poll_once, zip};

use super::WalError;
use super::scan::SegmentFile;
use crate::base::PAGE_SIZE;
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::Env;

/// Bytes of a segment read at once.
const READ_BYTES: usize = 1 << 20;
/// Bytes of a segment that are looked through between two looks at the read of the next: half of what may have been
/// read meanwhile. Segments of tests are smaller, and are to be read like that as well.
pub const LOOK_BYTES: usize = if cfg!(test) { 8 << 10 } else { READ_BYTES };

/// Reads a whole segment in place of what `bytes` holds. Its size bounds the memory this takes.
async fn read_segment<E: Env>(
    env: &E,
    segment: &SegmentFile,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, WalError> {
    let file = env.disk().open(&segment.path, OpenOptions { mode: OpenMode::Read, dsync: false }).await?;
    // A segment that was being filled when the machine stopped may end anywhere.
    let len = file.len() - file.len() % PAGE_SIZE as u64;
    bytes.clear();
    bytes.reserve_exact(len as usize);
    let mut result = Ok(());
    while result.is_ok() && (bytes.len() as u64) < len {
        // Two requests in flight keep the disk busy while the first is copied.
        let at = bytes.len() as u64;
        let first = (len - at).min(READ_BYTES as u64);
        let second = (len - at - first).min(READ_BYTES as u64);
        if second == 0 {
            result = file.read_at(at, first as usize).await.map(|piece| bytes.extend_from_slice(&piece));
            continue;
        }
        let both = zip(file.read_at(at, first as usize), file.read_at(at + first, second as usize));
        result = match both.await {
            (Ok(a), Ok(b)) => {
                bytes.extend_from_slice(&a);
                bytes.extend_from_slice(&b);
                Ok(())
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
    }
    file.close().await?;
    Ok(result.map(|()| bytes)?)
}

/// A segment that is being read. It goes on when it is looked at, and whoever does that suspends in between.
pub struct SegmentRead {
    read: Pin<Box<dyn Future<Output = Result<Vec<u8>, WalError>>>>,
    landed: Option<Result<Vec<u8>, WalError>>,
}

impl SegmentRead {
    /// Nothing is read yet. The bytes will be where `buffer` is: memory that is new to the process would have to be
    /// cleared by the system first, page by page.
    pub fn new<E: Env>(env: &E, segment: &SegmentFile, buffer: Vec<u8>) -> SegmentRead {
        let (env, segment) = (env.clone(), segment.clone());
        let read = Box::pin(async move { read_segment(&env, &segment, buffer).await });
        SegmentRead { read, landed: None }
    }

    /// Goes on with the read, and lets the disk have its turn. Suspends.
    pub async fn go_on<E: Env>(&mut self, env: &E) {
        if self.landed.is_none() {
            self.landed = poll_once(&mut self.read).await;
            env.rest().await;
        }
    }

    /// The bytes of the segment. Suspends.
    pub async fn land(self) -> Result<Vec<u8>, WalError> {
        match self.landed {
            Some(landed) => landed,
            None => self.read.await,
        }
    }
}
