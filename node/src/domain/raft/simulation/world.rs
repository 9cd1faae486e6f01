//! A cluster in one process: members, the network between them, and the checker that watches both.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use balsa_proto::log::{self, AddMember, Member, PromoteMember, RemoveMember, membership_change::Change};

use super::checker::{Checker, Violation};
use super::member::{Disk, Process};
use super::network::{Body, Mutation, Outgoing, Stop};
use crate::domain::raft::Role;

/// Events that a failure shows.
const SHOWN: usize = 40;

/// Incarnations lie as far apart as the drawn ones of real processes, more or less.
const INCARNATION: u64 = 1 << 34;

/// A member of the world: running, crashed, or gone for good.
pub(super) enum Machine {
    /// A running process.
    Up(Box<Process>),
    /// A disk that nothing runs on.
    Down(Disk),
    /// Removed from the cluster.
    Gone,
}

/// See the module.
pub(super) struct World {
    seed: u64,
    mutation: Mutation,
    machines: BTreeMap<u64, Machine>,
    incarnations: u64,
    pub(super) flights: VecDeque<Outgoing>,
    /// Pairs that cannot reach each other, each way.
    pub(super) cut: BTreeSet<(u64, u64)>,
    pub(super) checker: Checker,
    /// Checks states after every event instead of where the caller says.
    pub(super) compare_states: bool,
    /// Crash points at which a process was cut off.
    pub(super) ended_at: BTreeSet<&'static str>,
    keys: u64,
    reads: u64,
    hash: DefaultHasher,
    recent: VecDeque<String>,
}

type Checked<T = ()> = Result<T, Violation>;

impl World {
    /// `voters` members that found a cluster together, all running.
    pub(super) fn found(seed: u64, voters: u64, mutation: Mutation) -> Checked<Self> {
        let member = |id| Member { id, peer_urls: vec![format!("http://{id}")], ..Default::default() };
        let members = (1..=voters).map(member).collect();
        let membership = log::Membership { cluster_id: 7, index: 1, next_id: voters + 1, members, removed: Vec::new() };
        let mut world = Self {
            seed,
            mutation,
            machines: BTreeMap::new(),
            incarnations: 0,
            flights: VecDeque::new(),
            cut: BTreeSet::new(),
            checker: Checker::default(),
            compare_states: false,
            ended_at: BTreeSet::new(),
            keys: 0,
            reads: 0,
            hash: DefaultHasher::new(),
            recent: VecDeque::new(),
        };
        for id in 1..=voters {
            let disk = Disk::founded(&membership).map_err(broken)?;
            world.machines.insert(id, Machine::Down(disk));
            world.restart(id)?;
        }
        Ok(world)
    }

    // ---- what is there

    /// Members with a running process.
    pub(super) fn up(&self) -> Vec<u64> {
        let is_up = |(id, machine): (&u64, &Machine)| matches!(machine, Machine::Up(_)).then_some(*id);
        self.machines.iter().filter_map(is_up).collect()
    }

    /// Members whose process is not running.
    pub(super) fn down(&self) -> Vec<u64> {
        let is_down = |(id, machine): (&u64, &Machine)| matches!(machine, Machine::Down(_)).then_some(*id);
        self.machines.iter().filter_map(is_down).collect()
    }

    /// Members that were not removed.
    pub(super) fn alive(&self) -> Vec<u64> {
        let alive = |(id, machine): (&u64, &Machine)| (!matches!(machine, Machine::Gone)).then_some(*id);
        self.machines.iter().filter_map(alive).collect()
    }

    /// A running process.
    pub(super) fn process(&self, id: u64) -> Option<&Process> {
        match self.machines.get(&id) {
            Some(Machine::Up(process)) => Some(process),
            _ => None,
        }
    }

    /// The running leader of the highest term.
    pub(super) fn leader(&self) -> Option<u64> {
        let roles = self.up().into_iter().filter_map(|id| Some((self.process(id)?.replica.role(), id)));
        roles.filter(|(role, _): &(Role, u64)| role.leads).max_by_key(|(role, _)| role.term).map(|(_, id)| id)
    }

    /// A number of everything that happened, in order.
    pub(super) fn trace(&self) -> u64 {
        self.hash.finish()
    }

    /// The last events, one a line.
    pub(super) fn recent(&self) -> String {
        self.recent.iter().map(|event| format!("    {event}\n")).collect()
    }

    // ---- events

    /// Runs one step of a process, with at most `fuse` crash points before it is cut off.
    fn step(
        &mut self,
        id: u64,
        fuse: Option<u32>,
        event: String,
        step: impl FnOnce(&mut Process) -> Result<(), Stop>,
    ) -> Checked {
        let Some(Machine::Up(process)) = self.machines.get_mut(&id) else { return Ok(()) };
        process.fuse = fuse;
        let result = step(process);
        process.fuse = None;
        let seen = std::mem::take(&mut process.seen);
        let removed = process.is_removed();
        let (role, commit) = (process.replica.role(), process.replica.commit());
        self.note(format!("{event} | term {} leader {} commit {commit}", role.term, role.leader));
        for outgoing in &seen.sent {
            self.note(format!("    sends {outgoing}"));
        }
        self.checker.note(id, &seen)?;
        for (sequence, outcome) in &seen.changes {
            self.note(format!("    change {sequence:x} at {id} answers {outcome:?}"));
        }
        self.flights.extend(seen.sent);
        match result {
            Ok(()) => {}
            Err(Stop::Crashed(point)) => {
                self.ended_at.insert(point);
                return self.crash(id, 0);
            }
            Err(Stop::Broken(what)) => return Err(Violation::Broken(format!("member {id}: {what}"))),
        }
        if removed {
            self.note(format!("{id} was removed and ends"));
            self.machines.insert(id, Machine::Gone);
            return Ok(());
        }
        let compare = self.compare_states;
        match self.machines.get(&id) {
            Some(Machine::Up(process)) => self.checker.process(process, compare),
            _ => Ok(()),
        }
    }

    pub(super) fn tick(&mut self, id: u64, fuse: Option<u32>) -> Checked {
        self.step(id, fuse, format!("tick {id}"), Process::tick)
    }

    /// So many ticks of one member, and all messages of Raft after each.
    pub(super) fn ticks(&mut self, id: u64, count: usize) -> Checked {
        (0..count).try_for_each(|_| {
            self.tick(id, None)?;
            self.deliver_where(|body| matches!(body, Body::Raft(_)))
        })
    }

    /// A client creates a key of its own at `id`.
    pub(super) fn put(&mut self, id: u64, fuse: Option<u32>) -> Checked {
        self.keys += 1;
        let key = format!("k{}", self.keys);
        self.put_key(id, &key, fuse)
    }

    pub(super) fn put_key(&mut self, id: u64, key: &str, fuse: Option<u32>) -> Checked {
        self.step(id, fuse, format!("put {key} at {id}"), |process| process.put(key))
    }

    /// A client reads at `id`.
    pub(super) fn read(&mut self, id: u64) -> Checked {
        self.reads += 1;
        let (read, floor) = (self.reads, self.checker.floor);
        self.step(id, None, format!("read {read} at {id} from {floor}"), |process| process.read(read, floor))
    }

    pub(super) fn apply(&mut self, id: u64, together: bool, fuse: Option<u32>) -> Checked {
        self.step(id, fuse, format!("apply {id}"), |process| process.apply(together))
    }

    pub(super) fn report(&mut self, id: u64, fuse: Option<u32>) -> Checked {
        self.step(id, fuse, format!("report {id}"), Process::report)
    }

    pub(super) fn flush(&mut self, id: u64, keep: u64, fuse: Option<u32>) -> Checked {
        self.step(id, fuse, format!("flush {id} keep {keep}"), |process| process.flush(keep))
    }

    pub(super) fn make_checkpoint(&mut self, id: u64, fuse: Option<u32>) -> Checked {
        self.step(id, fuse, format!("checkpoint {id}"), Process::make_checkpoint)
    }

    pub(super) fn drop_checkpoint(&mut self, id: u64) -> Checked {
        self.step(id, None, format!("drop checkpoint {id}"), |process| {
            process.drop_checkpoint();
            Ok(())
        })
    }

    /// Applies and reports all that a member has to.
    pub(super) fn settle(&mut self, id: u64) -> Checked {
        while self.process(id).is_some_and(|process| process.has_work() || process.has_reports()) {
            self.apply(id, true, None)?;
            self.report(id, None)?;
        }
        Ok(())
    }

    pub(super) fn transfer(&mut self, id: u64, target: u64) -> Checked {
        self.step(id, None, format!("transfer {id} to {target}"), |process| process.transfer(target).map(drop))
    }

    /// Proposes a membership change at `id`; says why it was not taken.
    pub(super) fn change(&mut self, id: u64, change: Change) -> Checked<Result<(), String>> {
        let mut taken = Ok(());
        self.step(id, None, format!("change at {id}: {change:?}"), |process| {
            taken = process.change(change)?;
            Ok(())
        })?;
        Ok(taken)
    }

    pub(super) fn add(&mut self, id: u64) -> Checked<Result<(), String>> {
        let Some(process) = self.process(id) else { return Ok(Ok(())) };
        let new = process.machine.membership().next_id;
        let add = AddMember { id: new, peer_urls: vec![format!("http://{new}")], is_learner: true };
        self.change(id, Change::Add(add))
    }

    pub(super) fn promote(&mut self, id: u64, target: u64) -> Checked<Result<(), String>> {
        self.change(id, Change::Promote(PromoteMember { id: target }))
    }

    pub(super) fn remove(&mut self, id: u64, target: u64) -> Checked<Result<(), String>> {
        self.change(id, Change::Remove(RemoveMember { id: target }))
    }

    /// Starts an empty process for every member that somebody has applied and that never ran, as the operator would.
    pub(super) fn start_joiners(&mut self) -> Checked {
        let members = |id: u64| self.process(id).map(|process| process.machine.membership().members.clone());
        let known: BTreeSet<u64> =
            self.up().into_iter().filter_map(members).flatten().map(|member| member.id).collect();
        for id in known {
            let known = self.machines.contains_key(&id);
            self.machines.entry(id).or_insert_with(|| Machine::Down(Disk::empty()));
            if !known {
                self.restart(id)?;
            }
        }
        Ok(())
    }

    /// Ends the members whose removal everybody but they themselves may know, as the operator would.
    pub(super) fn stop_removed(&mut self) {
        let removed = |id: u64| self.process(id).map(|process| process.machine.membership().removed.clone());
        let removed: BTreeSet<u64> = self.up().into_iter().filter_map(removed).flatten().collect();
        for id in removed {
            self.machines.insert(id, Machine::Gone);
        }
    }

    /// Loses power at `id`; the first `unsynced` writes after the last synced one survive.
    pub(super) fn crash(&mut self, id: u64, unsynced: usize) -> Checked {
        if let Some(Machine::Up(process)) = self.machines.remove(&id) {
            self.note(format!("crash {id} keeping {unsynced}"));
            self.machines.insert(id, Machine::Down(process.crash(unsynced)));
        }
        Ok(())
    }

    pub(super) fn restart(&mut self, id: u64) -> Checked {
        let Some(Machine::Down(_)) = self.machines.get(&id) else { return Ok(()) };
        let Some(Machine::Down(disk)) = self.machines.remove(&id) else { return Ok(()) };
        self.incarnations += INCARNATION;
        let process = Process::open(id, self.incarnations, self.seed, disk, self.mutation).map_err(broken)?;
        self.machines.insert(id, Machine::Up(Box::new(process)));
        self.step(id, None, format!("start {id}"), |_| Ok(()))
    }

    // ---- network

    /// Takes a flight out of the network and brings it to its end.
    pub(super) fn deliver(&mut self, at: usize, fuse: Option<u32>) -> Checked {
        let Some(flight) = self.flights.remove(at) else { return Ok(()) };
        if self.is_cut(&flight) || self.process(flight.to).is_none() {
            return self.lose(flight);
        }
        let Outgoing { from, to, body } = flight.clone();
        let is_snapshot = matches!(body, Body::Snapshot { .. });
        self.step(to, fuse, format!("deliver {flight}"), |process| process.take(from, body))?;
        if is_snapshot { self.snapshot_ended(from, to, true) } else { Ok(()) }
    }

    /// Delivers everything that `wanted` picks, until there is none of it.
    pub(super) fn deliver_where(&mut self, wanted: impl Fn(&Body) -> bool) -> Checked {
        while let Some(at) = self.flights.iter().position(|flight| wanted(&flight.body)) {
            self.deliver(at, None)?;
        }
        Ok(())
    }

    /// Loses a flight; the sender of a snapshot notices, that of a message may.
    pub(super) fn drop_at(&mut self, at: usize) -> Checked {
        let Some(flight) = self.flights.remove(at) else { return Ok(()) };
        self.lose(flight)
    }

    /// Lets a flight arrive once more later.
    pub(super) fn duplicate(&mut self, at: usize) {
        // Streams of frames never repeat what they carry; only Raft is made to bear it.
        if let Some(flight) = self.flights.get(at).filter(|flight| matches!(flight.body, Body::Raft(_))).cloned() {
            self.flights.push_back(flight);
        }
    }

    fn lose(&mut self, flight: Outgoing) -> Checked {
        self.note(format!("lost {flight}"));
        match flight.body {
            Body::Snapshot { .. } => self.snapshot_ended(flight.from, flight.to, false),
            Body::Raft(_) => {
                let (from, to) = (flight.from, flight.to);
                self.step(from, None, format!("unreachable {to} at {from}"), |process| process.unreachable(to))
            }
            _ => Ok(()),
        }
    }

    fn snapshot_ended(&mut self, from: u64, to: u64, arrived: bool) -> Checked {
        let event = format!("snapshot {from}->{to} arrived {arrived}");
        self.step(from, None, event, |process| process.snapshot_sent(to, arrived))
    }

    fn is_cut(&self, flight: &Outgoing) -> bool {
        self.cut.contains(&(flight.from, flight.to))
    }

    fn note(&mut self, event: String) {
        event.hash(&mut self.hash);
        self.recent.push_back(event);
        if self.recent.len() > SHOWN {
            self.recent.pop_front();
        }
    }
}

fn broken(stop: Stop) -> Violation {
    Violation::Broken(format!("{stop:?}"))
}
