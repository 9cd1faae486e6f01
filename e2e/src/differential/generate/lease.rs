//! Leases under a few ids, with times to live that no sequence lives to see the end of.

use balsa_proto::etcdserverpb as pb;

use super::Draw;
use crate::differential::step::Step;

impl Draw {
    pub(super) fn lease(&mut self) -> Step {
        match self.rng.u32(0..100) {
            0..40 => Step::LeaseGrant(self.grant()),
            40..60 => Step::LeaseRevoke(pb::LeaseRevokeRequest { id: self.lease_id() }),
            60..72 => Step::LeaseKeepAlive(pb::LeaseKeepAliveRequest { id: self.lease_id() }),
            72..92 => Step::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id: self.lease_id(), keys: self.chance(70) }),
            _ => Step::LeaseLeases,
        }
    }

    /// A lease that mostly is one of a few.
    pub(super) fn lease_id(&mut self) -> i64 {
        match self.rng.u32(0..100) {
            0..92 => self.rng.i64(1..6),
            _ => self.pick(&[0, 777, -1, i64::MAX, i64::MIN]),
        }
    }

    fn grant(&mut self) -> pb::LeaseGrantRequest {
        match self.rng.u32(0..100) {
            0..85 => pb::LeaseGrantRequest { ttl: self.pick(&[3600, 7200, 9_000_000_000]), id: self.rng.i64(1..6) },
            85..93 => pb::LeaseGrantRequest { ttl: self.pick(&[9_000_000_001, i64::MAX]), id: self.rng.i64(1..6) },
            // Short ones end within the sequence, so they have ids that nothing names.
            _ => pb::LeaseGrantRequest { ttl: self.pick(&[3600, 0, -1, 1, i64::MIN]), id: 0 },
        }
    }
}
