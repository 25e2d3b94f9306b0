//! What CLIENTS asks of a shard; drawn in the module above.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::decode::malformed;
use crate::error::{Code, Refusal};
use crate::protocol::{ClientsAction, ClientsRequest, Limits, Paused};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireClients {
    action: u8,
    paused: u8,
    shard: U16,
    count: U32,
    ms: U64,
}

const _: () = assert!(size_of::<WireClients>() == 16);

const DISCONNECT: u8 = 1;
const PAUSE: u8 = 2;
const UNPAUSE: u8 = 3;

/// Numbers of clients, back to back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientIds<'a> {
    bytes: &'a [U64],
}

impl<'a> ClientIds<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.bytes.iter().map(|id| id.get())
    }
}

/// The numbers of clients in the making.
#[derive(Clone, Debug, Default)]
pub struct ClientIdList {
    ids: Vec<U64>,
}

impl ClientIdList {
    /// Adds one.
    pub fn push(&mut self, id: u64) {
        self.ids.push(U64::new(id));
    }

    /// The list as [`ClientsAction::Disconnect`] takes it.
    pub fn ids(&self) -> ClientIds<'_> {
        ClientIds { bytes: &self.ids }
    }
}

/// Bytes of the value of a request.
pub(super) fn request_len(request: &ClientsRequest<'_>) -> usize {
    let ids = match request.action {
        ClientsAction::Disconnect(ids) => ids.len(),
        ClientsAction::Pause { .. } | ClientsAction::Unpause => 0,
    };
    size_of::<WireClients>() + ids * size_of::<U64>()
}

/// Appends the value of a request.
pub(super) fn encode_request(out: &mut Vec<u8>, request: &ClientsRequest<'_>) {
    let (action, paused, ms, ids) = match request.action {
        ClientsAction::Disconnect(ids) => (DISCONNECT, 0, 0, ids),
        ClientsAction::Pause { paused, ms } => (PAUSE, paused as u8, ms, ClientIds::default()),
        ClientsAction::Unpause => (UNPAUSE, 0, 0, ClientIds::default()),
    };
    let count = u32::try_from(ids.len()).expect("lists are within the server's limits");
    let (shard, count, ms) = (U16::new(request.shard), U32::new(count), U64::new(ms));
    out.extend_from_slice(WireClients { action, paused, shard, count, ms }.as_bytes());
    out.extend_from_slice(ids.bytes.as_bytes());
}

/// Reads the value of a request.
pub(super) fn decode_request<'a>(value: &'a [u8], limits: &Limits) -> Result<ClientsRequest<'a>, Refusal> {
    let Ok((wire, ids)) = WireClients::ref_from_prefix(value) else {
        return Err(malformed("CLIENTS: the request is cut short"));
    };
    let count = wire.count.get();
    if count > limits.items_max {
        let message = format!("CLIENTS: {count} numbers are more than the {} allowed", limits.items_max);
        return Err(Refusal::new(Code::BatchTooLarge, message));
    }
    let ids = <[U64]>::ref_from_bytes(ids).ok().filter(|ids| ids.len() == count as usize);
    let Some(ids) = ids else { return Err(malformed("CLIENTS: the list of numbers is broken")) };
    let is_plain = wire.paused == 0 && wire.ms.get() == 0;
    let action = match (wire.action, Paused::from_u8(wire.paused)) {
        (DISCONNECT, _) if is_plain && !ids.is_empty() => ClientsAction::Disconnect(ClientIds { bytes: ids }),
        (PAUSE, Some(paused)) if ids.is_empty() => ClientsAction::Pause { paused, ms: wire.ms.get() },
        (UNPAUSE, _) if is_plain && ids.is_empty() => ClientsAction::Unpause,
        _ => return Err(malformed("CLIENTS: what is to be done makes no sense")),
    };
    Ok(ClientsRequest { shard: wire.shard.get(), action })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(action: ClientsAction<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let request = ClientsRequest { shard: 3, action };
        encode_request(&mut out, &request);
        assert_eq!(out.len(), request_len(&request));
        out
    }

    #[test]
    fn a_request_looks_as_drawn_and_comes_back() {
        let limits = Limits::for_values(1 << 20);
        let mut list = ClientIdList::default();
        list.push(7);
        list.push(0x0102_0304_0506_0708);
        for (action, bytes) in [
            (
                ClientsAction::Disconnect(list.ids()),
                &b"\x01\0\x03\0\x02\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01"
                    [..],
            ),
            (
                ClientsAction::Pause { paused: Paused::Writes, ms: 258 },
                b"\x02\x01\x03\0\0\0\0\0\x02\x01\0\0\0\0\0\0",
            ),
            (ClientsAction::Pause { paused: Paused::All, ms: 0 }, b"\x02\x02\x03\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            (ClientsAction::Unpause, b"\x03\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ] {
            assert_eq!(encoded(action), bytes);
            assert_eq!(decode_request(bytes, &limits), Ok(ClientsRequest { shard: 3, action }));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let limits = Limits::for_values(1 << 20);
        let right = encoded(ClientsAction::Unpause);
        for (at, byte) in [(0, 0), (0, 1), (0, 2), (0, 4), (1, 1), (4, 1), (7, 255), (8, 1)] {
            let mut wrong = right.clone();
            wrong[at] = byte;
            assert!(decode_request(&wrong, &limits).is_err(), "{byte} at {at}");
        }
        assert!(decode_request(&right[..15], &limits).is_err());
        assert!(decode_request(&[&right[..], b"\0"].concat(), &limits).is_err());
        let mut pause = encoded(ClientsAction::Pause { paused: Paused::All, ms: 1 });
        pause[1] = 3;
        assert!(decode_request(&pause, &limits).is_err());
    }
}
