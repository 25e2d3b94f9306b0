//! Slots and nodes: what CLUSTER tells. Each shard is a node with a port of its own, and there are no replicas.

use std::fmt::Write;
use std::sync::Arc;

use super::answer::{Outcome, What};
use super::context::Cluster;
use super::scan::{GATHERED_FREE, PAGE, ask_for_page};
use super::{Session, Step};
use crate::protocol::ScanPage;
use crate::protocol::binary::Cursor;
use crate::protocol::resp;
use crate::redis::fault::Fault;
use crate::redis::number::parse_i64;
use crate::slot::{SLOT_COUNT, Slot};

/// A COUNTKEYSINSLOT or GETKEYSINSLOT under way: keys are in the order of their bytes, so all are looked at.
pub(super) struct OfSlot {
    slot: Slot,
    is_local: bool,
    /// Keys that are wanted; `None`: their number.
    most: Option<usize>,
    /// Encoded.
    found: Vec<u8>,
    count: usize,
}

impl OfSlot {
    pub fn take(&mut self, number: u64, page: &ScanPage<'_>) -> Outcome {
        for entry in page.entries {
            if Slot::of_key(entry.key) == self.slot && self.most.is_none_or(|most| self.count < most) {
                self.count += 1;
                if self.most.is_some() {
                    resp::bulk(&mut self.found, entry.key);
                }
            }
        }
        let is_enough = self.most.is_some_and(|most| self.count >= most);
        let mut out = Vec::new();
        if self.found.len() > GATHERED_FREE {
            let text = format!("ERR these keys are more than {GATHERED_FREE} bytes; ask for fewer");
            resp::error(&mut out, &text);
            return Outcome::Reply(out);
        }
        match page.cursor.and_then(Cursor::decode) {
            Some(cursor) if !is_enough => {
                return Outcome::Ask(ask_for_page(number, b"", Some(cursor), PAGE, self.is_local));
            }
            _ if self.most.is_none() => resp::integer(&mut out, self.count as i64),
            _ => {
                resp::array(&mut out, self.count);
                out.append(&mut self.found);
            }
        }
        Outcome::Reply(out)
    }
}

impl Session {
    /// CLUSTER, and what only its clients send.
    pub(super) fn cluster(&mut self, name: &str, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        let Some(cluster) = self.context.cluster.clone() else {
            self.say_or_queue(|out, _| resp::error(out, "ERR This instance has cluster support disabled"));
            return Step::Taken;
        };
        let local = self.context.nodes.local();
        match name {
            // There are no replicas to read from, and no slot is open to two nodes.
            "readonly" | "readwrite" | "asking" => self.say_or_queue(|out, _| resp::simple(out, "OK")),
            "cluster|myid" | "cluster|myshardid" => {
                self.say_or_queue(|out, _| resp::bulk(out, cluster.ids[local].as_bytes()));
            }
            "cluster|keyslot" => {
                let slot = Slot::of_key(args[2]).number();
                self.say_or_queue(|out, _| resp::integer(out, i64::from(slot)));
            }
            "cluster|info" => self.say_text(&self.cluster_info()),
            "cluster|nodes" => self.say_text(&self.cluster_nodes(&cluster)),
            "cluster|slots" => self.cluster_slots(&cluster),
            "cluster|shards" => self.cluster_shards(&cluster),
            "cluster|links" => self.say_or_queue(|out, _| resp::array(out, 0)),
            "cluster|replicas" | "cluster|slaves" | "cluster|count-failure-reports" => {
                let is_known = cluster.ids.iter().any(|id| args[2].eq_ignore_ascii_case(id.as_bytes()));
                let unknown = [b"ERR Unknown node ", args[2]].concat();
                self.say_or_queue(|out, _| match is_known {
                    false => resp::error_bytes(out, &unknown),
                    true if name == "cluster|count-failure-reports" => resp::integer(out, 0),
                    true => resp::array(out, 0),
                });
            }
            "cluster|countkeysinslot" | "cluster|getkeysinslot" => return self.keys_of_slot(args, frames),
            _ => self.say_unknown(args),
        }
        Step::Taken
    }

    fn say_text(&mut self, text: &str) {
        self.say_or_queue(|out, proto| resp::verbatim(out, "txt", text.as_bytes(), proto));
    }

    /// The host that this client is to connect to, whichever node it wants.
    fn host<'a>(&'a self, cluster: &'a Cluster) -> &'a str {
        cluster.host.as_deref().unwrap_or(&self.client.local_ip)
    }

    /// The port of the shard that serves the connection, or of all.
    pub(super) fn port(&self) -> u16 {
        let node = self.context.cluster.as_ref().filter(|_| self.is_node());
        node.map_or(self.context.port, |cluster| cluster.ports[self.context.nodes.local()])
    }

    /// That the owner of a slot is another node.
    pub(super) fn moved_to(&self, slot: Slot, owner: usize) -> String {
        let Some(cluster) = &self.context.cluster else { unreachable!("nodes are those of a cluster") };
        format!("MOVED {} {}:{}", slot.number(), self.host(cluster), cluster.ports[owner])
    }

    fn cluster_info(&self) -> String {
        let nodes = &self.context.nodes;
        let mut owners: Vec<usize> = nodes.ranges().into_iter().map(|(_, _, owner)| owner).collect();
        owners.sort_unstable();
        owners.dedup();
        let (size, known, epoch) = (owners.len(), nodes.count(), nodes.epoch());
        format!(
            "cluster_state:ok\r\ncluster_slots_assigned:{SLOT_COUNT}\r\ncluster_slots_ok:{SLOT_COUNT}\r\n\
             cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:{known}\r\n\
             cluster_size:{size}\r\ncluster_current_epoch:{epoch}\r\ncluster_my_epoch:{epoch}\r\n\
             cluster_stats_messages_sent:0\r\ncluster_stats_messages_received:0\r\n\
             total_cluster_links_buffer_limit_exceeded:0\r\n"
        )
    }

    /// A line for each node. Nodes have no bus among them: its port is told as 0.
    fn cluster_nodes(&self, cluster: &Cluster) -> String {
        let nodes = &self.context.nodes;
        let ranges = nodes.ranges();
        let (host, epoch) = (self.host(cluster), nodes.epoch());
        let is_ip = host.parse::<std::net::IpAddr>().is_ok();
        let (ip, name) =
            if is_ip { (host, String::new()) } else { (self.client.local_ip.as_str(), format!(",{host}")) };
        let mut text = String::new();
        for shard in 0..nodes.count() {
            let (id, port) = (&cluster.ids[shard], cluster.ports[shard]);
            let flags = if shard == nodes.local() { "myself,master" } else { "master" };
            // Writing to a string does not fail.
            let _ = write!(text, "{id} {ip}:{port}@0{name} {flags} - 0 0 {epoch} connected");
            for (first, last, _) in ranges.iter().filter(|(_, _, owner)| *owner == shard) {
                let _ = match first == last {
                    true => write!(text, " {first}"),
                    false => write!(text, " {first}-{last}"),
                };
            }
            text.push('\n');
        }
        text
    }

    fn cluster_slots(&mut self, cluster: &Arc<Cluster>) {
        let (ranges, host) = (self.context.nodes.ranges(), self.host(cluster).to_owned());
        self.say_or_queue(|out, proto| {
            resp::array(out, ranges.len());
            for (first, last, owner) in ranges {
                resp::array(out, 3);
                resp::integer(out, i64::from(first));
                resp::integer(out, i64::from(last));
                resp::array(out, 4);
                resp::bulk(out, host.as_bytes());
                resp::integer(out, i64::from(cluster.ports[owner]));
                resp::bulk(out, cluster.ids[owner].as_bytes());
                resp::map(out, 0, proto);
            }
        });
    }

    fn cluster_shards(&mut self, cluster: &Arc<Cluster>) {
        let nodes = &self.context.nodes;
        let (ranges, count) = (nodes.ranges(), nodes.count());
        let (host, ip) = (self.host(cluster).to_owned(), self.client.local_ip.clone());
        self.say_or_queue(|out, proto| {
            resp::array(out, count);
            for shard in 0..count {
                let slots: Vec<_> = ranges.iter().filter(|(_, _, owner)| *owner == shard).collect();
                resp::map(out, 2, proto);
                resp::bulk(out, b"slots");
                resp::array(out, slots.len() * 2);
                for (first, last, _) in slots {
                    resp::integer(out, i64::from(*first));
                    resp::integer(out, i64::from(*last));
                }
                resp::bulk(out, b"nodes");
                resp::array(out, 1);
                resp::map(out, 7, proto);
                let mut pair = |name: &str, value: &str| {
                    resp::bulk(out, name.as_bytes());
                    resp::bulk(out, value.as_bytes());
                };
                pair("id", &cluster.ids[shard]);
                pair("ip", &ip);
                pair("endpoint", &host);
                pair("role", "master");
                pair("health", "online");
                resp::bulk(out, b"port");
                resp::integer(out, i64::from(cluster.ports[shard]));
                resp::bulk(out, b"replication-offset");
                resp::integer(out, 0);
            }
        });
    }

    fn keys_of_slot(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let number = |index: usize| args.get(index).map(|arg| parse_i64(arg));
        if number(2).into_iter().chain(number(3)).any(|number| number.is_none()) {
            return self.fail(Fault::NotInteger, args);
        }
        let slot = number(2).flatten().and_then(|slot| u16::try_from(slot).ok()).and_then(Slot::new);
        let most = number(3).flatten().map(usize::try_from);
        let (slot, most) = match (slot, most) {
            (Some(slot), None) => (slot, None),
            (Some(slot), Some(Ok(most))) => (slot, Some(most)),
            (None, None) => {
                self.say_error("ERR Invalid slot");
                return Step::Taken;
            }
            _ => {
                self.say_error("ERR Invalid slot or number of keys");
                return Step::Taken;
            }
        };
        let is_local = self.is_node();
        let frame = ask_for_page(self.pending.next(), b"", None, PAGE, is_local);
        let of_slot = OfSlot { slot, is_local, most, found: Vec::new(), count: 0 };
        self.begin(What::OfSlot(Box::new(of_slot)), &frame, frames)
    }
}
