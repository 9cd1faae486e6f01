//! What a server answered, with ids, terms and times taken out. What else may differ is in [`super::allowed`].

use std::collections::BTreeMap;
use std::fmt;

use balsa_proto::etcdserverpb as pb;
use pb::response_op::Response;
use tonic::Code;

use super::frames::Heard;
use super::step::brief;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Of KV.Range
    Range(pb::RangeResponse),
    /// Of KV.RangeStream: all chunks in one.
    RangeStream(pb::RangeResponse),
    /// Of KV.Put
    Put(pb::PutResponse),
    /// Of KV.DeleteRange
    DeleteRange(pb::DeleteRangeResponse),
    /// Of KV.Txn
    Txn(pb::TxnResponse),
    /// Of KV.Compact
    Compact(pb::CompactionResponse),
    /// Of a watch request: the answers to it, no events.
    Watch(Vec<pb::WatchResponse>),
    /// Of a progress request: the revision that is promised, if any.
    Progress(Option<i64>),
    /// Of Maintenance.Status
    Status(pb::StatusResponse),
    /// Of Maintenance.HashKV
    HashKv(pb::HashKvResponse),
    /// Of Maintenance.Hash
    Hash(pb::HashResponse),
    /// Of Cluster.MemberList
    MemberList(pb::MemberListResponse),
    /// Of Lease.LeaseGrant
    LeaseGrant(pb::LeaseGrantResponse),
    /// Of Lease.LeaseRevoke
    LeaseRevoke(pb::LeaseRevokeResponse),
    /// Of Lease.LeaseKeepAlive
    LeaseKeepAlive(pb::LeaseKeepAliveResponse),
    /// Of Lease.LeaseTimeToLive
    LeaseTimeToLive(pb::LeaseTimeToLiveResponse),
    /// Of Lease.LeaseLeases
    LeaseLeases(pb::LeaseLeasesResponse),
    /// Of any call.
    Call {
        /// Its header,
        header: Option<pb::ResponseHeader>,
        /// and the rest as text.
        rest: String,
    },
    /// Of a raw message that was taken for a request: how it ended. What does not decode has no text: each decoder has its own.
    Raw(Code, String),
    /// Of a call by hand.
    Heard(Heard),
    /// The call failed.
    Failed {
        /// With this code,
        code: Code,
        /// and this text.
        message: String,
    },
    /// No answer within the time that any answer may take.
    Silent,
}

impl Reply {
    /// The revision in the header, 0 when there is none.
    pub fn revision(&self) -> i64 {
        let header = match self {
            Reply::Range(reply) | Reply::RangeStream(reply) => &reply.header,
            Reply::Put(reply) => &reply.header,
            Reply::DeleteRange(reply) => &reply.header,
            Reply::Txn(reply) => &reply.header,
            Reply::Compact(reply) => &reply.header,
            Reply::LeaseRevoke(reply) => &reply.header,
            Reply::Call { header, .. } => header,
            _ => &None,
        };
        header.as_ref().map_or(0, |header| header.revision)
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&brief(&format!("{self:?}")))
    }
}

/// Who answers, learned from the first answer. Later ones must say the same.
#[derive(Debug)]
pub struct Identity {
    cluster_id: u64,
    /// The members who answer, by turn.
    own: Vec<u64>,
    /// All members and ids taken for such, in the order in which they came up.
    members: Vec<u64>,
    term: u64,
    /// Hashes by the revision and the compacted revision that they are of.
    hashes: BTreeMap<(i64, i64), u32>,
    /// Hashes of the whole by the same; None where they follow from more than keys.
    whole: Option<BTreeMap<(i64, i64), u32>>,
    /// The compacted revision.
    pub compacted: i64,
    /// Who answers now.
    turn: usize,
}

/// Members are sent in the order of their ids, which are random, and the ports of servers on one machine are as they
/// happen to be.
pub fn tidy_members(members: &mut [pb::Member]) {
    members.sort_by(|one, other| (&one.name, &one.peer_ur_ls).cmp(&(&other.name, &other.peer_ur_ls)));
    for member in members {
        for url in member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls) {
            url.truncate(url.rfind(':').unwrap_or(url.len()));
        }
    }
}

/// What stands for an id that is not the server's own.
const FOREIGN: u64 = 99;

impl Identity {
    /// Of a cluster of so many members, none of which has answered yet. `hashes_keys` says whether what Hash answers is
    /// of the keys alone.
    pub fn new(nodes: usize, hashes_keys: bool) -> Self {
        let (hashes, whole) = (BTreeMap::new(), hashes_keys.then(BTreeMap::new));
        let (own, members) = (vec![0; nodes], Vec::new());
        Self { cluster_id: 0, own, members, term: 0, hashes, whole, compacted: 0, turn: 0 }
    }

    /// Takes ids and terms out of an answer: own ids become 1, absent ones stay 0, others become 99. A term that goes
    /// back becomes 99 too.
    pub fn normalise(&mut self, turn: usize, mut reply: Reply) -> Reply {
        self.turn(turn);
        match &mut reply {
            Reply::Range(reply) | Reply::RangeStream(reply) => self.header(&mut reply.header),
            Reply::Put(reply) => self.header(&mut reply.header),
            Reply::DeleteRange(reply) => self.header(&mut reply.header),
            Reply::Txn(reply) => self.txn(reply),
            Reply::Compact(reply) => self.header(&mut reply.header),
            Reply::Watch(replies) => replies.iter_mut().for_each(|reply| self.header(&mut reply.header)),
            Reply::Status(reply) => self.status(reply),
            Reply::HashKv(reply) => self.hash_kv(reply),
            Reply::Hash(reply) => self.hash(reply),
            Reply::MemberList(reply) => self.member_list(reply),
            Reply::LeaseGrant(reply) => {
                self.header(&mut reply.header);
                reply.id = named_lease(reply.id);
            }
            Reply::LeaseRevoke(reply) => self.header(&mut reply.header),
            Reply::LeaseKeepAlive(reply) => self.header(&mut reply.header),
            Reply::LeaseTimeToLive(reply) => {
                self.header(&mut reply.header);
                reply.ttl = reply.ttl.min(1);
                reply.keys.sort();
            }
            Reply::LeaseLeases(reply) => {
                self.header(&mut reply.header);
                reply.leases.retain(|lease| named_lease(lease.id) != 0);
                reply.leases.sort_by_key(|lease| lease.id);
            }
            Reply::Call { header, .. } => self.header(header),
            Reply::Progress(_) | Reply::Raw(..) | Reply::Heard(_) | Reply::Failed { .. } | Reply::Silent => {}
        }
        reply
    }

    /// Whose answers follow.
    pub fn turn(&mut self, turn: usize) {
        self.turn = turn % self.own.len();
    }

    /// Of any header, also those within a transaction, which are empty but for a revision.
    pub fn header(&mut self, header: &mut Option<pb::ResponseHeader>) {
        let Some(header) = header else { return };
        own(&mut self.cluster_id, &mut header.cluster_id);
        self.own(&mut header.member_id);
        if header.raft_term != 0 {
            // Members learn of an election one after the other.
            let back = header.raft_term < self.term && self.own.len() == 1;
            self.term = self.term.max(header.raft_term);
            header.raft_term = if back { FOREIGN } else { 1 };
        }
    }

    fn txn(&mut self, reply: &mut pb::TxnResponse) {
        self.header(&mut reply.header);
        for response in &mut reply.responses {
            match &mut response.response {
                Some(Response::ResponseRange(reply)) => self.header(&mut reply.header),
                Some(Response::ResponsePut(reply)) => self.header(&mut reply.header),
                Some(Response::ResponseDeleteRange(reply)) => self.header(&mut reply.header),
                Some(Response::ResponseTxn(nested)) => self.txn(nested),
                None => {}
            }
        }
    }

    fn status(&mut self, reply: &mut pb::StatusResponse) {
        self.header(&mut reply.header);
        if self.own.len() == 1 {
            self.own(&mut reply.leader);
        } else {
            reply.leader = reply.leader.min(1);
        }
        if let Some(header) = &mut reply.header {
            // The state of this member, not of a request.
            header.revision = 0;
        }
        self.name_members(&mut reply.errors);
        reply.raft_term = reply.raft_term.min(1);
        reply.raft_index = reply.raft_index.min(1);
        reply.raft_applied_index = reply.raft_applied_index.min(1);
        reply.db_size = reply.db_size.min(1);
        reply.db_size_in_use = reply.db_size_in_use.min(1);
        reply.db_size_quota = 0;
        reply.version.clear();
        reply.storage_version.clear();
    }

    /// Alarms in texts, without the ids, in order.
    fn name_members(&self, errors: &mut [String]) {
        for (index, id) in self.members.iter().enumerate() {
            for error in errors.iter_mut() {
                *error = error.replace(&format!("memberID:{id} "), &format!("memberID:member {index} "));
            }
        }
        for error in errors.iter_mut() {
            *error = error.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        errors.sort();
    }

    /// A hash of the same revisions must be the same again: then it becomes 1, else 99.
    fn hash_kv(&mut self, reply: &mut pb::HashKvResponse) {
        self.header(&mut reply.header);
        let of = (reply.hash_revision, reply.compact_revision);
        let known = *self.hashes.entry(of).or_insert(reply.hash);
        reply.hash = if known == reply.hash { 1 } else { FOREIGN as u32 };
    }

    /// The same again from whichever member, unless something was written or compacted meanwhile; then another: 1, else
    /// 99.
    fn hash(&mut self, reply: &mut pb::HashResponse) {
        self.header(&mut reply.header);
        let of = (reply.header.as_ref().map_or(0, |header| header.revision), self.compacted);
        let hash = reply.hash;
        let as_it_must = |known: &mut BTreeMap<(i64, i64), u32>| {
            let mut others = known.iter().filter(|(other, _)| other.1 == of.1 && other.0 != of.0);
            let is_new = others.all(|(_, other)| *other != hash);
            *known.entry(of).or_insert(hash) == hash && is_new
        };
        let holds = self.whole.as_mut().is_none_or(as_it_must);
        // That of nothing at all is 0 in Balsa.
        reply.hash = if holds { 1 } else { FOREIGN as u32 };
    }

    fn member_list(&mut self, reply: &mut pb::MemberListResponse) {
        self.header(&mut reply.header);
        tidy_members(&mut reply.members);
        for member in &mut reply.members {
            member.id = self.ordinal(member.id);
        }
    }

    fn own(&mut self, id: &mut u64) {
        let turn = self.turn;
        if self.members.is_empty() && *id != 0 {
            self.members.push(*id);
        }
        own(&mut self.own[turn], id);
    }

    /// The number of a member in the order in which they came up.
    pub fn ordinal(&mut self, id: u64) -> u64 {
        if id == 0 {
            return 0;
        }
        let known = self.members.iter().position(|member| *member == id);
        let index = known.unwrap_or_else(|| {
            self.members.push(id);
            self.members.len() - 1
        });
        index as u64 + 1
    }

    /// The member of this number; a number too high for one is itself.
    pub fn member(&self, ordinal: u64) -> u64 {
        let index = ordinal.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.members.get(index)).copied().unwrap_or(ordinal)
    }
}

/// Ids up to here are the sequence's, others were drawn by the server.
const NAMED_LEASES: i64 = 1_000_000;

fn named_lease(id: i64) -> i64 {
    if (1..=NAMED_LEASES).contains(&id) { id } else { 0 }
}

fn own(known: &mut u64, id: &mut u64) {
    if *id == 0 {
        return;
    }
    if *known == 0 {
        *known = *id;
    }
    *id = if *id == *known { 1 } else { FOREIGN };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cluster_id: u64, raft_term: u64) -> Reply {
        let header = pb::ResponseHeader { cluster_id, member_id: 7, revision: 5, raft_term };
        Reply::Put(pb::PutResponse { header: Some(header), prev_kv: None })
    }

    #[test]
    fn ids_are_taken_out_and_must_not_change() {
        let (mut etcd, mut balsa) = (Identity::new(1, false), Identity::new(1, true));
        assert_eq!(etcd.normalise(0, put(3, 2)), balsa.normalise(0, put(4, 8)));
        assert_eq!(etcd.normalise(0, put(3, 2)), balsa.normalise(0, put(4, 9)));
        assert_ne!(etcd.normalise(0, put(3, 2)), balsa.normalise(0, put(5, 9)), "another cluster");
        assert_ne!(etcd.normalise(0, put(3, 2)), balsa.normalise(0, put(4, 8)), "a term that goes back");
        assert_ne!(etcd.normalise(0, put(3, 2)), balsa.normalise(0, put(0, 9)), "no id");
    }

    #[test]
    fn a_hash_is_the_same_again_until_something_is_written() {
        let mut balsa = Identity::new(3, true);
        let mut told = |turn: usize, revision: i64, hash: u32| {
            let header = Some(pb::ResponseHeader { cluster_id: 3, member_id: 7 + turn as u64, revision, raft_term: 1 });
            let Reply::Hash(reply) = balsa.normalise(turn, Reply::Hash(pb::HashResponse { header, hash })) else {
                panic!("another reply")
            };
            reply.hash
        };
        assert_eq!([told(0, 5, 70), told(1, 5, 70), told(2, 6, 80)], [1, 1, 1]);
        assert_eq!(told(0, 6, 81), 99, "another one of the same revision");
        assert_eq!(told(1, 7, 80), 99, "the same one of another revision");
        assert_eq!(told(1, 8, 0), 1, "that of nothing");
        let mut etcd = Identity::new(1, false);
        for hash in [70, 71] {
            let reply = etcd.normalise(0, Reply::Hash(pb::HashResponse { header: None, hash }));
            assert_eq!(reply, Reply::Hash(pb::HashResponse { header: None, hash: 1 }));
        }
    }
}
