//! What clients ask of the replicated state, and what applying it answers. The vocabulary is etcd's own messages.

use balsa_proto::mvccpb::KeyValue;
use balsa_proto::{etcdserverpb as pb, log};
use pb::response_op::Response;

/// A command as it stands in the log.
pub use balsa_proto::log::proposal::Command;

/// etcd's word for a command, in its metrics.
pub fn name(command: &Command) -> &'static str {
    match command {
        Command::Put(_) => "Put",
        Command::DeleteRange(_) => "DeleteRange",
        Command::Txn(_) => "Txn",
        Command::Compact(_) => "Compaction",
        Command::Publish(_) => "ClusterMemberAttrSet",
        Command::LeaseGrant(_) => "LeaseGrant",
        Command::LeaseRevoke(_) | Command::LeaseExpire(_) => "LeaseRevoke",
        Command::LeaseCheckpoint(_) => "LeaseCheckpoint",
        Command::Alarm(_) => "Alarm",
        Command::Downgrade(_) => "DowngradeInfoSet",
        Command::AuthEnable(_) => "AuthEnable",
        Command::AuthDisable(_) => "AuthDisable",
        Command::Authenticate(_) => "Authenticate",
        Command::UserAdd(_) => "AuthUserAdd",
        Command::UserDelete(_) => "AuthUserDelete",
        Command::UserChangePassword(_) => "AuthUserChangePassword",
        Command::UserGrantRole(_) => "AuthUserGrantRole",
        Command::UserRevokeRole(_) => "AuthUserRevokeRole",
        Command::RoleAdd(_) => "AuthRoleAdd",
        Command::RoleDelete(_) => "AuthRoleDelete",
        Command::RoleGrantPermission(_) => "AuthRoleGrantPermission",
        Command::RoleRevokePermission(_) => "AuthRoleRevokePermission",
    }
}

/// The same word for what is no command: etcd measures it nowhere.
pub const MEMBERSHIP_CHANGE: &str = "ConfChange";

/// Names one proposal for its waiter. Never used twice: `incarnation` is drawn anew by each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProposalId {
    /// Raft id of the member that took the request from its client.
    pub origin: u64,
    /// Process incarnation of that member.
    pub incarnation: u64,
    /// Counts up within the incarnation.
    pub sequence: u64,
}

impl ProposalId {
    /// The id of a decoded proposal.
    pub const fn of(proposal: &log::Proposal) -> Self {
        Self { origin: proposal.origin, incarnation: proposal.incarnation, sequence: proposal.sequence }
    }
}

/// What an applied command answers. Headers carry only `revision`; the service fills ids and term.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of a put.
    Put(pb::PutResponse),
    /// Of a delete.
    DeleteRange(pb::DeleteRangeResponse),
    /// Of a transaction.
    Txn(pb::TxnResponse),
    /// Of a compaction; physical deletion goes on in the background.
    Compact(pb::CompactionResponse),
    /// Of the grant of a lease.
    LeaseGrant(pb::LeaseGrantResponse),
    /// Of the revocation of a lease, by a client or because it is over.
    LeaseRevoke(pb::LeaseRevokeResponse),
    /// Of a checkpoint of leases.
    LeaseCheckpoint,
    /// Of an alarm.
    Alarm(pb::AlarmResponse),
    /// Of an announced downgrade, or one that was taken back.
    Downgrade,
    /// Of a change of users and roles, or of an authentication.
    Auth {
        /// The current revision of the keys, for the header.
        revision: i64,
        /// The token that an authentication brought; else empty.
        token: String,
    },
    /// Of a member publishing itself.
    Publish,
    /// Of a membership change: the membership after it.
    Membership(log::Membership),
}

impl Outcome {
    /// Bytes of keys and values in the answer. Those before a put are the ones that it superseded.
    pub fn pair_bytes(&self) -> usize {
        match self {
            Outcome::DeleteRange(response) => bytes_of(&response.prev_kvs),
            Outcome::Txn(response) => bytes_of_txn(response),
            _ => 0,
        }
    }
}

fn bytes_of(pairs: &[KeyValue]) -> usize {
    pairs.iter().map(|pair| pair.key.len() + pair.value.len()).sum()
}

/// As deep as the request, whose depth is bounded.
fn bytes_of_txn(response: &pb::TxnResponse) -> usize {
    let of = |response: &pb::ResponseOp| match &response.response {
        Some(Response::ResponseRange(range)) => bytes_of(&range.kvs),
        Some(Response::ResponseDeleteRange(delete)) => bytes_of(&delete.prev_kvs),
        Some(Response::ResponseTxn(txn)) => bytes_of_txn(txn),
        Some(Response::ResponsePut(_)) | None => 0,
    };
    response.responses.iter().map(of).sum()
}

/// Where the sequences of a process begin: far from those of earlier processes of its member, because a refusal that
/// outlives a restart must not name a proposal of the new one. The highest bit stays free for membership changes.
pub fn first_sequence(incarnation: u64) -> u64 {
    incarnation >> 2
}
