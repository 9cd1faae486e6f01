//! Maintenance and membership: what changes nothing, alarms, and members that never start.

use balsa_proto::etcdserverpb as pb;

use super::Draw;
use crate::differential::call::Call;
use crate::differential::step::Step;

impl Draw {
    pub(super) fn hash_kv(&mut self) -> pb::HashKvRequest {
        pb::HashKvRequest { revision: self.revision() }
    }

    pub(super) fn member_list(&mut self) -> pb::MemberListRequest {
        pb::MemberListRequest { linearizable: self.chance(50) }
    }

    /// Alarms are mostly soon over, or the rest of a sequence would be nothing but refusals.
    pub(super) fn alarm(&mut self) -> Step {
        let action = self.pick(&[0, 0, 1, 1, 2, 2, 2, 2, 2]);
        let alarm = if action == 0 && self.chance(20) { self.pick(&[3, -1]) } else { self.pick(&[0, 1, 1, 2]) };
        Step::Call(Call::Alarm(pb::AlarmRequest { action, alarm, member_id: self.pick(&[0, 0, 1, 1, 1, 777]) }))
    }

    pub(super) fn maintenance(&mut self) -> Step {
        Step::Call(match self.rng.u32(0..100) {
            0..20 => Call::Defragment(pb::DefragmentRequest {}),
            20..45 => return Step::Hash,
            // Balsa passes for a 3.6, and which versions one can go back to is a matter of the version.
            45..65 if !self.scope.range_stream => self.downgrade(),
            // Of three, one that is asked in turn mostly is not the leader.
            _ if !self.scope.alone => return Step::Hash,
            _ => Call::MoveLeader(pb::MoveLeaderRequest { target_id: self.pick(&[0, 777, u64::MAX]) }),
        })
    }

    fn downgrade(&mut self) -> Call {
        let version = self.pick(&["", "x", "3", "3.4", "3.4.0", "2.3.0", "4.0.0", "3.99.0", "3.5.0-rc.1", "v3.5.0"]);
        let action = if self.chance(80) { 0 } else { self.pick(&[2, 3, -1]) };
        Call::Downgrade(pb::DowngradeRequest { action, version: version.into() })
    }

    /// A cluster of one would lose its quorum to a second voter, so only learners are added.
    pub(super) fn membership(&mut self) -> Step {
        Step::Call(match self.rng.u32(0..100) {
            0..30 => Call::MemberAdd(self.member_add()),
            30..65 => Call::MemberRemove(pb::MemberRemoveRequest { id: self.other_member() }),
            65..80 => {
                // etcd 3.6 forgets of a learner that it is one.
                let id = if self.scope.range_stream { self.other_member() } else { self.pick(&[777, 0, u64::MAX]) };
                Call::MemberUpdate(pb::MemberUpdateRequest { id, peer_ur_ls: self.peer_urls() })
            }
            _ => Call::MemberPromote(pb::MemberPromoteRequest { id: self.other_member() }),
        })
    }

    fn member_add(&mut self) -> pb::MemberAddRequest {
        if self.chance(80) {
            // etcd makes the id of the URLs and the second, so the same ones would be refused for their id at times.
            let url = format!("http://127.0.0.9:{}", self.rng.u32(10..60_000));
            return pb::MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
        }
        let wrong =
            self.pick(&["", "x", "127.0.0.9:1", "ftp://127.0.0.9:1", "http://127.0.0.9", "http://127.0.0.9:1/p"]);
        pb::MemberAddRequest { peer_ur_ls: vec![wrong.into()], is_learner: self.chance(50) }
    }

    fn peer_urls(&mut self) -> Vec<String> {
        match self.rng.u32(0..100) {
            0..85 => vec![format!("http://127.0.0.9:{}", self.rng.u32(1..4))],
            _ => vec!["http://127.0.0.9:2".into(), "http://127.0.0.9:1".into()],
        }
    }

    /// Never the only member that runs.
    fn other_member(&mut self) -> u64 {
        self.pick(&[2, 2, 3, 4, 5, 777, 0, u64::MAX])
    }
}
