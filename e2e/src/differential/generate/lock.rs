//! Locks and elections: who must wait for another owner waits while the sequence goes on, and others look on.

use balsa_proto::etcdserverpb as pb;
use balsa_proto::{v3electionpb as election, v3lockpb as lock};
use bytes::Bytes;

use super::Draw;
use crate::differential::call::Call;
use crate::differential::revision::current;
use crate::differential::step::Step;

/// Observers of a sequence at a time.
const OBSERVERS: usize = 3;

impl Draw {
    pub(super) fn lock(&mut self) -> Step {
        if self.chance(25) { self.scene() } else { self.turn() }
    }

    fn turn(&mut self) -> Step {
        let name = self.name();
        let lease = self.owner();
        self.turn_of(name, lease)
    }

    fn name(&mut self) -> Bytes {
        Bytes::from_static(self.pick::<&[u8]>(&[b"l", b"m", b"n"]))
    }

    fn turn_of(&mut self, name: Bytes, lease: i64) -> Step {
        let key: Bytes = [&name[..], b"/", format!("{lease:x}").as_bytes()].concat().into();
        let rev = if self.chance(85) { current(-self.rng.i64(0..6)) } else { self.pick(&[0, -1, i64::MAX]) };
        let leader = self.chance(97).then(|| election::LeaderKey { name: name.clone(), key: key.clone(), rev, lease });
        Step::Call(match self.rng.u32(0..120) {
            0..25 => Call::Lock(lock::LockRequest { name, lease }),
            25..45 => Call::Unlock(lock::UnlockRequest { key }),
            45..65 => Call::Campaign(election::CampaignRequest { name, lease, value: self.value() }),
            65..75 => Call::Proclaim(election::ProclaimRequest { leader, value: self.value() }),
            75..87 => Call::Leader(election::LeaderRequest { name }),
            87..100 => Call::Resign(election::ResignRequest { leader }),
            100..110 => return Step::GiveUp { name },
            _ => return self.observe(name),
        })
    }

    fn observe(&mut self, name: Bytes) -> Step {
        let name = self.chance(85).then_some(name);
        Step::Observe { number: self.rng.usize(0..OBSERVERS), name }
    }

    /// Several who want the same one after the other, and the ways in which one ends: by themselves they would seldom meet,
    /// as so much is deleted. The first of the steps, the others come next.
    fn scene(&mut self) -> Step {
        let name = self.name();
        let leases = self.rng.i64(2..6);
        let mut steps: Vec<Step> = (1..=leases).map(lasting).collect();
        if self.chance(60) {
            steps.push(self.observe(name.clone()));
        }
        for lease in 1..=leases {
            steps.push(self.want(&name, lease));
            if self.chance(15) {
                steps.push(self.observe(name.clone()));
            }
        }
        for _ in 0..self.rng.usize(2..12) {
            let step = match self.rng.u32(0..100) {
                0..70 => self.end_of_turn(&name, leases),
                70..85 => self.turn(),
                _ => Step::Put(self.put()),
            };
            steps.push(step);
        }
        self.ahead.extend(steps);
        self.turn()
    }

    fn want(&mut self, name: &Bytes, lease: i64) -> Step {
        let (name, value) = (name.clone(), self.value());
        Step::Call(match self.chance(50) {
            true => Call::Lock(lock::LockRequest { name, lease }),
            false => Call::Campaign(election::CampaignRequest { name, lease, value }),
        })
    }

    /// What may end the turn of one of so many leases, or change what its holder says.
    fn end_of_turn(&mut self, name: &Bytes, leases: i64) -> Step {
        let lease = self.rng.i64(1..=leases);
        let key: Bytes = [&name[..], b"/", format!("{lease:x}").as_bytes()].concat().into();
        match self.rng.u32(0..100) {
            0..30 => Step::Call(Call::Unlock(lock::UnlockRequest { key })),
            30..45 => Step::LeaseRevoke(pb::LeaseRevokeRequest { id: lease }),
            45..65 => Step::GiveUp { name: name.clone() },
            65..75 => Step::Put(pb::PutRequest { key, value: self.value(), lease, ..Default::default() }),
            75..85 => self.want(name, lease),
            85..90 => {
                let range_end = super::prefix_end(&key);
                Step::DeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: true })
            }
            _ => self.turn_of(name.clone(), lease),
        }
    }

    /// Never 0: then the server draws a lease, which is part of the key.
    fn owner(&mut self) -> i64 {
        if self.chance(90) { self.rng.i64(1..6) } else { self.pick(&[777, i64::MAX]) }
    }
}

/// A lease that no sequence lives to see the end of.
fn lasting(id: i64) -> Step {
    Step::LeaseGrant(pb::LeaseGrantRequest { ttl: 3600, id })
}
