//! Whether what clients saw of one key can have happened one step at a time, each step between its call and its answer:
//! the search of Wing and Gong with the memory of Lowe, over a register.

use std::collections::HashSet;

/// What a client asked, and what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A write of a value. Values are never written twice.
    Write(u64),
    /// A read of a value; 0 when the key was not there.
    Read(u64),
}

/// One operation. Times are of one clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) called: u64,
    /// None: nobody knows whether it took place, or when.
    pub(crate) answered: Option<u64>,
}

/// Whether there is an order.
pub(crate) fn is_linearizable(history: &[Op]) -> bool {
    let reads: HashSet<u64> =
        history.iter().filter_map(|op| if let Kind::Read(value) = op.kind { Some(value) } else { None }).collect();
    // A write without an answer that nobody saw may be taken for one that never happened.
    let counts = |op: &&Op| op.answered.is_some() || matches!(op.kind, Kind::Write(value) if reads.contains(&value));
    let mut ops: Vec<Op> = history.iter().filter(counts).copied().collect();
    ops.sort_by_key(|op| op.called);
    let mut search = Search { done: vec![false; ops.len()], ops, seen: HashSet::new() };
    search.from(0, 0)
}

struct Search {
    ops: Vec<Op>,
    done: Vec<bool>,
    /// What was done and the value then, where the search failed.
    seen: HashSet<(Vec<bool>, u64)>,
}

impl Search {
    /// Whether the rest can follow; all operations before `first` are done.
    fn from(&mut self, first: usize, value: u64) -> bool {
        let first = first + self.done[first..].iter().take_while(|done| **done).count();
        let open = |at: &usize| !self.done[*at];
        // Whatever comes next was called before any that is not done was answered.
        let bound = (first..self.ops.len()).filter(open).filter_map(|at| self.ops[at].answered).min();
        let Some(bound) = bound else { return true };
        if !self.seen.insert((self.done.clone(), value)) {
            return false;
        }
        let mut next: Vec<usize> =
            (first..self.ops.len()).take_while(|at| self.ops[*at].called <= bound).filter(open).collect();
        // The likely ones first.
        next.sort_by_key(|at| self.ops[*at].answered.unwrap_or(u64::MAX));
        for at in next {
            let after = match self.ops[at].kind {
                Kind::Write(written) => written,
                Kind::Read(read) if read == value => value,
                Kind::Read(_) => continue,
            };
            self.done[at] = true;
            if self.from(first, after) {
                return true;
            }
            self.done[at] = false;
        }
        false
    }
}

mod tests {
    use super::*;

    fn op(kind: Kind, called: u64, answered: u64) -> Op {
        Op { kind, called, answered: Some(answered) }
    }

    #[test]
    fn a_read_sees_the_last_write_or_one_beside_it() {
        use Kind::{Read, Write};
        assert!(is_linearizable(&[op(Write(1), 0, 10), op(Read(1), 20, 30)]));
        assert!(is_linearizable(&[op(Write(1), 0, 10), op(Read(0), 5, 30)]), "at the same time: either");
        assert!(!is_linearizable(&[op(Write(1), 0, 10), op(Read(0), 20, 30)]), "stale");
        assert!(!is_linearizable(&[op(Read(1), 0, 10), op(Write(1), 20, 30)]), "from the future");
        assert!(!is_linearizable(&[op(Write(1), 0, 10), op(Write(2), 20, 30), op(Read(1), 40, 50)]), "lost");
    }

    #[test]
    fn reads_agree_on_the_order_of_writes() {
        use Kind::{Read, Write};
        let writes = [op(Write(1), 0, 100), op(Write(2), 0, 100)];
        let reads = |a, b| [op(Read(a), 10, 20), op(Read(b), 30, 40)];
        assert!(is_linearizable(&[writes.as_slice(), &reads(1, 2)].concat()));
        assert!(is_linearizable(&[writes.as_slice(), &reads(2, 1)].concat()));
        assert!(!is_linearizable(&[writes.as_slice(), &reads(1, 2), &[op(Read(1), 50, 60)]].concat()), "back again");
    }

    #[test]
    fn a_write_without_an_answer_happened_at_any_time_or_never() {
        use Kind::{Read, Write};
        let unknown = Op { kind: Write(2), called: 0, answered: None };
        let first = op(Write(1), 1, 2);
        assert!(is_linearizable(&[unknown, first, op(Read(1), 10, 20), op(Read(2), 30, 40)]), "late");
        assert!(is_linearizable(&[unknown, first, op(Read(1), 10, 20), op(Read(1), 30, 40)]), "never");
        assert!(!is_linearizable(&[unknown, first, op(Read(2), 10, 20), op(Read(1), 30, 40)]), "taken back");
    }
}
