//! Scans: an iterator that fetches pages, the next one while this one arrives and is looked at.

use super::config::Backoff;
use super::connection::Connection;
use super::error::Error;
use super::response::unexpected;
use super::session::{Client, check};
use crate::base::Lsn;
use crate::error::Class;
use crate::protocol::binary::{Cursor, ScanEntries, Status, encode_request, page_ahead};
use crate::protocol::{OpCode, Reply, Request, ScanRequest};

/// Which keys, by their order as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    start: Vec<u8>,
    end: Vec<u8>,
}

impl KeyRange {
    /// All keys.
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// Keys that begin with `prefix`. If that holds a whole hash tag, one shard is asked only.
    pub fn prefix(prefix: &[u8]) -> KeyRange {
        let len = prefix.iter().rposition(|byte| *byte < u8::MAX).map_or(0, |last| last + 1);
        let mut end = prefix[..len].to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        KeyRange { start: prefix.to_vec(), end }
    }

    /// The first key, and the first one behind the last; empty: none.
    pub(super) fn bounds(&self) -> (&[u8], &[u8]) {
        (&self.start, &self.end)
    }

    /// Keys from `start` on.
    pub fn from(start: &[u8]) -> KeyRange {
        KeyRange { start: start.to_vec(), end: Vec::new() }
    }

    /// Keys from `start` on and below `end`; an empty `end` is none.
    pub fn between(start: &[u8], end: &[u8]) -> KeyRange {
        KeyRange { start: start.to_vec(), end: end.to_vec() }
    }
}

/// A key with its value, or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// Its value; empty if the scan is of keys only.
    pub value: Vec<u8>,
    /// Its version.
    pub version: Lsn,
    /// When it expires, in milliseconds since the epoch.
    pub expires_at_ms: Option<u64>,
}

/// A page as it came, of which `left` entries from byte `at` on were not looked at.
#[derive(Default)]
struct Taken {
    bytes: Vec<u8>,
    at: usize,
    left: usize,
}

impl Taken {
    /// Holds the first `wanted` of these.
    fn take(&mut self, entries: ScanEntries<'_>, wanted: usize) {
        self.bytes.clear();
        self.bytes.extend_from_slice(entries.wire_bytes());
        (self.at, self.left) = (0, entries.len().min(wanted));
    }

    fn next(&mut self) -> Option<Entry> {
        let mut rest = ScanEntries::of_checked(self.left, &self.bytes[self.at..]);
        let entry = rest.next()?;
        self.left -= 1;
        self.at = self.bytes.len() - rest.wire_bytes().len();
        Some(Entry {
            key: entry.key.to_vec(),
            value: entry.value.to_vec(),
            version: entry.version,
            expires_at_ms: Some(entry.expiry_ms).filter(|ms| *ms != 0),
        })
    }
}

/// The keys of a range in order: of all shards in one order, of each as of one moment. Set it up first, then
/// iterate. After an error there is nothing more.
///
/// A scan whose session the server no longer has, because nothing was asked for a minute, or of a restart, goes on
/// behind the last key as of a later moment: [`Scan::was_renewed`].
pub struct Scan<'c> {
    client: &'c mut Client,
    range: KeyRange,
    is_reverse: bool,
    is_keys_only: bool,
    /// Entries that are still wanted of the server; 0: all.
    limit: u64,
    page_entries: u32,
    page_bytes: u32,
    page: Taken,
    cursor: Vec<u8>,
    /// The server has nothing more, or nothing more is wanted.
    is_over: bool,
    /// A connection on which the next page was asked for, and under which id.
    asked: Option<(u64, Connection)>,
    was_renewed: bool,
}

impl<'c> Scan<'c> {
    pub(super) fn new(client: &'c mut Client, range: KeyRange) -> Scan<'c> {
        Scan {
            client,
            range,
            is_reverse: false,
            is_keys_only: false,
            limit: 0,
            page_entries: 0,
            page_bytes: 0,
            page: Taken::default(),
            cursor: Vec::new(),
            is_over: false,
            asked: None,
            was_renewed: false,
        }
    }

    /// From the last key to the first.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.is_reverse = true;
        self
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.is_keys_only = true;
        self
    }

    /// At most so many entries.
    #[must_use]
    pub fn limit(mut self, entries: u64) -> Self {
        self.limit = entries;
        self.is_over = entries == 0;
        self
    }

    /// At most so many entries, or bytes of them, a page; 0 leaves it to the server.
    #[must_use]
    pub fn page(mut self, entries: u32, bytes: u32) -> Self {
        (self.page_entries, self.page_bytes) = (entries, bytes);
        self
    }

    /// Goes on where another scan of the same range has said it was: [`Scan::cursor`].
    #[must_use]
    pub fn resume(mut self, cursor: &[u8]) -> Self {
        self.cursor = cursor.to_vec();
        self
    }

    /// Where the pages taken in so far end; `None`: nothing comes after them. Entries that were taken in and not
    /// looked at are before it.
    pub fn cursor(&self) -> Option<&[u8]> {
        (!self.is_over).then_some(&self.cursor[..])
    }

    /// Whether a part of the scan shows keys as of a later moment than its beginning.
    pub fn was_renewed(&self) -> bool {
        self.was_renewed
    }

    fn request(&self) -> ScanRequest<'_> {
        ScanRequest {
            start: &self.range.start,
            end: &self.range.end,
            is_reverse: self.is_reverse,
            is_keys_only: self.is_keys_only,
            is_local: false,
            entries_max: self.page_entries,
            bytes_max: self.page_bytes,
            limit: self.limit,
            cursor: Cursor::decode(&self.cursor),
        }
    }

    /// Sends the request for the next page.
    fn ask(&mut self) -> Result<(), Error> {
        let slot = self.request().slot();
        check(&Request::Scan(self.request()), &self.client.topology().limits)?;
        let id = self.client.next_id();
        let mut connection = self.client.checkout(slot)?;
        connection.queue(id, &Request::Scan(self.request()));
        connection.flush()?;
        self.asked = Some((id, connection));
        Ok(())
    }

    /// Takes in the page that was asked for. While it arrives, asks for the one behind it.
    fn receive(&mut self) -> Result<(), Error> {
        if self.asked.is_none() {
            self.ask()?;
        }
        let Some((id, mut connection)) = self.asked.take() else { return Ok(()) };
        let next_id = self.client.next_id();
        let mut is_asked = false;
        let request = self.request();
        // The server reads both even if it can't send, if they fit what it has promised.
        let pipeline = self.client.topology().limits.pipeline_bytes_max as usize;
        let (header, reply) = connection.receive_ahead(|header, part| {
            let is_it = header.request_id == id && header.opcode == Some(OpCode::Scan);
            let (count, cursor) = page_ahead(part).filter(|_| is_it && header.status == Status::Done)?;
            let limit = request.limit.saturating_sub(u64::from(count));
            let is_wanted = request.limit == 0 || limit > 0;
            let next = ScanRequest { cursor: Some(Cursor::decode(cursor)?), limit, ..request };
            let mut frame = Vec::new();
            encode_request(&mut frame, id, &Request::Scan(request));
            let len = frame.len();
            frame.clear();
            encode_request(&mut frame, next_id, &Request::Scan(next));
            is_asked = is_wanted && len + frame.len() <= pipeline;
            is_asked.then_some(frame)
        })?;
        let is_it = header.request_id == id && header.opcode == Some(OpCode::Scan);
        let page = match reply {
            Reply::Page(page) if is_it => page,
            Reply::Refused(refusal) if is_it => {
                self.client.see_epoch(header.epoch);
                self.client.checkin(connection);
                return Err(refusal.into());
            }
            _ => return Err(unexpected(&self.client.config().address)),
        };
        self.was_renewed |= page.is_new_snapshot;
        // No more than was asked for, even if a server gives more.
        let wanted =
            if self.limit == 0 { usize::MAX } else { usize::try_from(self.limit).unwrap_or(usize::MAX) };
        let count = page.entries.len() as u64;
        self.page.take(page.entries, wanted);
        self.cursor.clear();
        self.cursor.extend_from_slice(page.cursor.unwrap_or_default());
        self.is_over = page.cursor.is_none() || (self.limit != 0 && count >= self.limit);
        self.limit = self.limit.saturating_sub(count);
        self.client.see_epoch(header.epoch);
        if is_asked {
            self.asked = Some((next_id, connection));
        } else {
            self.client.checkin(connection);
        }
        Ok(())
    }

    /// Fetches a page, again if that is of use: whoever asks twice gets the same keys, perhaps of a later moment.
    fn fetch(&mut self) -> Result<(), Error> {
        let mut backoff = Backoff::new(self.client.config());
        loop {
            match self.receive() {
                Err(error) if error.is_transport() && backoff.wait() => {}
                Err(Error::Refused(refusal)) if refusal.code.class() == Class::Later && backoff.wait() => {}
                result => return result,
            }
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.left == 0 && !self.is_over {
            if let Err(error) = self.fetch() {
                self.is_over = true;
                return Some(Err(error));
            }
            // Before this one is looked at, so that the server is at work meanwhile. What fails here is asked for
            // again when it is needed.
            if !self.is_over && self.asked.is_none() && self.ask().is_err() {
                self.asked = None;
            }
        }
        self.page.next().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        for (prefix, end) in
            [(&b"ab"[..], &b"ac"[..]), (b"a\xFF", b"b"), (b"\xFF\xFF", b""), (b"", b""), (b"{t}", b"{t~")]
        {
            assert_eq!(KeyRange::prefix(prefix), KeyRange::between(prefix, end));
        }
    }
}
