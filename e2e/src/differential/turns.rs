//! Whoever waits for its turn at a lock or an office, and whoever looks on.
//!
//! Such a call is begun on both servers and answered some steps later. That nothing depends on which is faster, each step
//! ends with what it means for them: etcd's keys say who is served now, and both servers are waited for until they have
//! answered just those; and who is elected, and both servers must have told every observer. Two things would still be a
//! race and are not sent: a call whose beginning cannot be seen, as it changes nothing, and a compaction beyond the
//! revision from which a server may have begun to watch; whoever waits from before it goes away first.

use std::collections::BTreeMap;
use std::time::Duration;

use balsa_proto::mvccpb::KeyValue;
use bytes::Bytes;

use super::call::{Call, queue_of};
use super::observing::Observed;
use super::reply::Reply;
use super::side::{Pending, Side};
use super::step::Step;

/// The two servers.
pub type Sides<'a> = (&'a mut Side, &'a mut Side);

/// What both said.
pub type Both = (String, String);

/// Who may wait at a time.
const ROOM: usize = 12;

/// How long the place of a caller that is gone may take to go.
const GOES: Duration = Duration::from_secs(5);

/// A caller that goes away after its place is taken and before the server waits for it leaves its place to its lease, in
/// both programs. That moment is seldom met, so a second time in one sequence it is a difference.
const MAY_STAY: usize = 1;

/// What a call meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    /// It is answered at once.
    Served,
    /// It changes something, and waits then.
    Waits,
    /// It waits, and when it began to nobody can see.
    Unclear,
}

/// What a call that may have to wait meets in its queue.
fn prospect(call: &Call, own: &Bytes, pairs: &[KeyValue]) -> Prospect {
    let mine = pairs.iter().find(|kv| kv.key == own);
    let is_ahead = |kv: &KeyValue| kv.key != own && mine.is_none_or(|mine| kv.create_revision < mine.create_revision);
    if !pairs.iter().any(is_ahead) {
        return Prospect::Served;
    }
    match (mine, call) {
        (None, _) => Prospect::Waits,
        (Some(mine), Call::Campaign(request)) if mine.value != request.value => Prospect::Waits,
        _ => Prospect::Unclear,
    }
}

/// A call that waits on both servers.
struct Waiter {
    call: Call,
    queue: Bytes,
    own: Bytes,
    /// The revision at which it took its place.
    place: i64,
    /// No server watches from before this revision. It stays when the place before this one goes: etcd may hear of that
    /// late, when its watch is caught up, and a compaction before that ends the call.
    since: i64,
    etcd: Pending,
    balsa: Pending,
}

impl Waiter {
    /// Whether somebody is before it.
    fn waits(&self, pairs: &[KeyValue]) -> bool {
        pairs.iter().any(|kv| kv.create_revision < self.place)
    }
}

/// An observer at both servers.
struct Observer {
    queue: Bytes,
    /// The revision of the pair that it was told of last; 0 when nobody is elected.
    leader: i64,
    /// How many leaders it was told of.
    told: usize,
    /// No server watches from before this revision.
    since: i64,
    etcd: Observed,
    balsa: Observed,
}

/// All of them.
#[derive(Default)]
pub struct Turns {
    waiters: Vec<Waiter>,
    observers: BTreeMap<usize, Observer>,
    /// How many places stayed that should have gone.
    stayed: usize,
}

impl Turns {
    /// Whether nobody waits or looks on.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty() && self.observers.is_empty()
    }

    /// Whether a step begins or ends waiting, so that the revision before it must be known.
    pub fn concern(&self, step: &Step) -> bool {
        match step {
            Step::Call(call) => call.waits_for().is_some(),
            Step::GiveUp { .. } | Step::Observe { .. } => true,
            Step::Compact(_) => !self.is_empty(),
            _ => false,
        }
    }

    /// What a call would meet.
    pub async fn prospect(&self, call: &Call, etcd: &mut Side) -> Prospect {
        let Some((queue, own)) = call.waits_for() else { return Prospect::Served };
        match etcd.pairs(&queue).await {
            Some(pairs) if self.waiters.len() < ROOM => prospect(call, &own, &pairs),
            Some(pairs) if prospect(call, &own, &pairs) == Prospect::Served => Prospect::Served,
            _ => Prospect::Unclear,
        }
    }

    /// Begins a call that waits, at the revision before it. Both answers, when it was answered after all.
    pub async fn begin(
        &mut self,
        at: usize,
        call: &Call,
        revision: i64,
        (etcd, balsa): Sides<'_>,
    ) -> Option<(Reply, Reply)> {
        let next = revision + 1;
        let ((one, begun), (other, begun_too)) = tokio::join!(etcd.begin(at, call, next), balsa.begin(at, call, next));
        let (queue, own) = call.waits_for()?;
        let pairs = etcd.pairs(&queue).await.unwrap_or_default();
        let place = pairs.iter().find(|kv| kv.key == own).map(|kv| kv.create_revision);
        let answered = one.is_answered() || other.is_answered();
        let (Some(place), true, false) = (place, begun && begun_too, answered) else {
            return Some(tokio::join!(etcd.end(call, one), balsa.end(call, other)));
        };
        self.waiters.push(Waiter { call: call.clone(), queue, own, place, since: next, etcd: one, balsa: other });
        None
    }

    /// Ends the calls whose turn has come, each with both answers.
    pub async fn served(&mut self, (etcd, balsa): Sides<'_>) -> Vec<(Call, Reply, Reply)> {
        let mut served = Vec::new();
        for waiter in std::mem::take(&mut self.waiters) {
            let pairs = etcd.pairs(&waiter.queue).await.unwrap_or_default();
            if waiter.waits(&pairs) && !waiter.etcd.is_answered() && !waiter.balsa.is_answered() {
                self.waiters.push(waiter);
                continue;
            }
            let Waiter { call, etcd: one, balsa: other, .. } = waiter;
            let (one, other) = tokio::join!(etcd.end(&call, one), balsa.end(&call, other));
            served.push((call, one, other));
        }
        served
    }

    /// Who has waited longest for this goes away. The revision after it, or what is wrong.
    pub async fn give_up(&mut self, name: &Bytes, revision: i64, sides: Sides<'_>) -> Result<i64, Both> {
        let queue = queue_of(name);
        match self.waiters.iter().position(|waiter| waiter.queue == queue) {
            Some(index) => Ok(self.leave(index, revision, sides).await?.unwrap_or(revision)),
            None => Ok(revision),
        }
    }

    /// None when a server would give up its place at a time that nobody can see.
    async fn leave(&mut self, index: usize, revision: i64, (etcd, balsa): Sides<'_>) -> Result<Option<i64>, Both> {
        let waiter = &self.waiters[index];
        let pairs = etcd.pairs(&waiter.queue).await.unwrap_or_default();
        let own = pairs.iter().find(|kv| kv.key == waiter.own);
        let deletes = match (own, &waiter.call) {
            (Some(own), Call::Campaign(_)) => own.create_revision == waiter.place,
            (None, Call::Campaign(_)) => false,
            (Some(_), _) => true,
            (None, _) => return Ok(None),
        };
        if deletes && etcd.is_corrupt().await {
            return Ok(None);
        }
        let Waiter { call, own, .. } = self.waiters.remove(index);
        if !deletes {
            return Ok(Some(revision));
        }
        let next = revision + 1;
        let left = tokio::join!(etcd.until(next, GOES, || false), balsa.until(next, GOES, || false));
        for (side, left) in [(etcd, left.0), (balsa, left.1)] {
            if !left {
                side.delete(&own).await;
            }
        }
        self.stayed += usize::from(left != (true, true));
        if self.stayed > MAY_STAY {
            let said = |left| format!("{call:?} was given up, and its place {}", if left { "went" } else { "stays" });
            return Err((said(left.0), said(left.1)));
        }
        Ok(Some(next))
    }

    /// Lets go whoever a compaction could overtake. The revision after it; None when that cannot be done.
    pub async fn make_way(
        &mut self,
        compaction: i64,
        mut revision: i64,
        (etcd, balsa): Sides<'_>,
    ) -> Result<Option<i64>, Both> {
        self.observers.retain(|_, observer| observer.since >= compaction);
        while let Some(index) = self.waiters.iter().rposition(|waiter| waiter.since < compaction) {
            match self.leave(index, revision, (&mut *etcd, &mut *balsa)).await? {
                Some(next) => revision = next,
                None => return Ok(None),
            }
        }
        Ok(Some(revision))
    }

    /// Begins or ends to observe.
    pub fn observe(&mut self, number: usize, name: Option<&Bytes>, revision: i64, (etcd, balsa): Sides<'_>) {
        self.observers.remove(&number);
        let Some(name) = name else { return };
        let (queue, etcd, balsa) = (queue_of(name), etcd.observe(number, name), balsa.observe(number, name));
        self.observers.insert(number, Observer { queue, leader: 0, told: 0, since: revision, etcd, balsa });
    }

    /// Waits until every observer was told who is elected, by both servers, and compares.
    pub async fn told(&mut self, revision: i64, (etcd, balsa): Sides<'_>) -> Result<(), (String, Both)> {
        for (number, observer) in &mut self.observers {
            let pairs = etcd.pairs(&observer.queue).await.unwrap_or_default();
            let leader = pairs.iter().min_by_key(|kv| kv.create_revision).map_or(0, |kv| kv.mod_revision);
            let before = observer.told;
            if leader != observer.leader {
                observer.leader = leader;
                if leader != 0 {
                    // That nobody is elected any more is not told, so nothing shows when a server has heard it.
                    (observer.told, observer.since) = (observer.told + 1, revision);
                }
                tokio::join!(observer.etcd.wait(observer.told), observer.balsa.wait(observer.told));
            }
            let one = observer.etcd.after(before, &mut etcd.identity);
            let other = observer.balsa.after(before, &mut balsa.identity);
            if one != other {
                return Err((format!("observer {number} of {:?}", observer.queue), (one, other)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::{v3electionpb as election, v3lockpb as lock};

    use super::*;

    #[test]
    fn only_who_is_seen_to_begin_waits() {
        let pair = |key: &'static str, create_revision| KeyValue {
            key: key.into(),
            value: "v".into(),
            create_revision,
            ..Default::default()
        };
        let lock = Call::Lock(lock::LockRequest { name: "l".into(), lease: 2 });
        let campaign = |value: &'static str| {
            Call::Campaign(election::CampaignRequest { name: "l".into(), lease: 2, value: value.into() })
        };
        let meets = |call: &Call, pairs: &[KeyValue]| prospect(call, &"l/2".into(), pairs);
        assert_eq!(meets(&lock, &[]), Prospect::Served);
        assert_eq!(meets(&lock, &[pair("l/2", 4), pair("l/1", 5)]), Prospect::Served, "it is the first");
        assert_eq!(meets(&lock, &[pair("l/1", 4)]), Prospect::Waits);
        let second = [pair("l/1", 4), pair("l/2", 5)];
        assert_eq!(meets(&lock, &second), Prospect::Unclear);
        assert_eq!(meets(&campaign("v"), &second), Prospect::Unclear);
        assert_eq!(meets(&campaign("w"), &second), Prospect::Waits, "it proclaims first");
    }
}
