//! Releases replies when their block is durable, and tells everyone when the log has failed.

use std::rc::Rc;

use super::Shard;
use super::held::HeldReplies;
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::protocol::Limits;
use crate::protocol::binary::{decode_reply_header, encode_refusal};

impl<E: Env> Shard<E> {
    /// Runs until the shard closes.
    pub async fn release_loop(self: Rc<Self>) {
        let changed = self.engine.wal().durable_changed();
        loop {
            let next = changed.notified();
            let durable = self.engine.wal().durable();
            let released = self.held.borrow_mut().release(durable);
            for held in released {
                self.reply(held.origin, held.replies);
            }
            if let Some(cause) = self.engine.wal().failed() {
                let refusal = Refusal::new(
                    Code::WriteFailed,
                    format!(
                        "the log failed while this was on its way to the disk ({cause}); only a restart shows whether it is there"
                    ),
                );
                let lost = self.held.borrow_mut().fail();
                for HeldReplies { origin, mut replies } in lost {
                    replies.bytes = refuse_all(&replies.bytes, &refusal, self.slots.epoch());
                    self.reply(origin, replies);
                }
            }
            self.resume_after_room();
            self.end_turn();
            if self.is_closing.get() && self.held.borrow().is_empty() {
                return;
            }
            next.await;
        }
    }

    /// Looks again at what waits for memory whenever the engine has changed, or large replies have left.
    pub async fn room_loop(self: Rc<Self>) {
        loop {
            let (changed, left) = (self.engine.changed().notified(), self.replies_left.notified());
            if self.is_closing.get() {
                return;
            }
            self.resume_after_replies();
            self.resume_after_room();
            self.end_turn();
            futures_lite::future::or(changed, left).await;
        }
    }
}

/// The same replies, each turned into a refusal.
fn refuse_all(replies: &[u8], refusal: &Refusal, epoch: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Ok(Some(header)) = decode_reply_header(&replies[at..], Limits::FRAME_BYTES_LIMIT) {
        encode_refusal(&mut out, header.opcode.map_or(0, |op| op as u8), header.request_id, epoch, refusal);
        at += header.frame_bytes();
    }
    assert_eq!(at, replies.len(), "held replies are whole frames that this process encoded");
    out
}
