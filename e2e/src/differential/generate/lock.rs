//! Locks and elections. Only those are sent that need not wait for another owner; see `lockstep.rs`.

use balsa_proto::{v3electionpb as election, v3lockpb as lock};
use bytes::Bytes;

use super::Draw;
use crate::differential::call::Call;
use crate::differential::revision::current;
use crate::differential::step::Step;

impl Draw {
    pub(super) fn lock(&mut self) -> Step {
        let name = Bytes::from_static(self.pick::<&[u8]>(&[b"l", b"m", b"n"]));
        let lease = self.owner();
        let key: Bytes = [&name[..], b"/", format!("{lease:x}").as_bytes()].concat().into();
        let rev = if self.chance(85) { current(-self.rng.i64(0..6)) } else { self.pick(&[0, -1, i64::MAX]) };
        let leader = self.chance(97).then(|| election::LeaderKey { name: name.clone(), key: key.clone(), rev, lease });
        Step::Call(match self.rng.u32(0..100) {
            0..25 => Call::Lock(lock::LockRequest { name, lease }),
            25..45 => Call::Unlock(lock::UnlockRequest { key }),
            45..65 => Call::Campaign(election::CampaignRequest { name, lease, value: self.value() }),
            65..75 => Call::Proclaim(election::ProclaimRequest { leader, value: self.value() }),
            75..87 => Call::Leader(election::LeaderRequest { name }),
            _ => Call::Resign(election::ResignRequest { leader }),
        })
    }

    /// Never 0: then the server draws a lease, which is part of the key.
    fn owner(&mut self) -> i64 {
        if self.chance(90) { self.rng.i64(1..6) } else { self.pick(&[777, i64::MAX]) }
    }
}
