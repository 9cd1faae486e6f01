//! Maintenance and membership calls that change nothing.

use balsa_proto::etcdserverpb as pb;

use super::Draw;

impl Draw {
    pub(super) fn hash_kv(&mut self) -> pb::HashKvRequest {
        pb::HashKvRequest { revision: self.revision() }
    }

    pub(super) fn member_list(&mut self) -> pb::MemberListRequest {
        pb::MemberListRequest { linearizable: self.chance(50) }
    }
}
