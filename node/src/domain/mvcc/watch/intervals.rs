//! Key ranges and who watches them, found by a key within them: a treap ordered by range, each node knowing the
//! highest end below it.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::WatcherKey;
use crate::domain::random::Random;

/// Where a range ends; none is above all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl End {
    fn of(high: Option<&Bytes>) -> Self {
        high.map_or(End::Open, |high| End::Before(high.clone()))
    }

    fn is_above(&self, key: &[u8]) -> bool {
        match self {
            End::Before(high) => key < &high[..],
            End::Open => true,
        }
    }
}

/// A range with its watchers and the two subtrees of lower and higher ranges.
#[derive(Debug)]
struct Node {
    low: Bytes,
    high: End,
    watchers: BTreeSet<WatcherKey>,
    /// Parents have higher ones. Drawn at random, so the depth is logarithmic whatever the order of insertion.
    priority: u64,
    /// The highest end in this subtree.
    highest: End,
    left: Tree,
    right: Tree,
}

type Tree = Option<Box<Node>>;

/// The set of ranges.
#[derive(Debug)]
pub(super) struct Intervals {
    root: Tree,
    random: Random,
}

impl Intervals {
    pub(super) fn new(seed: u64) -> Self {
        Self { root: None, random: Random::new(seed) }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(super) fn insert(&mut self, low: &Bytes, high: Option<&Bytes>, watcher: WatcherKey) {
        let high = End::of(high);
        let node = Node {
            low: low.clone(),
            highest: high.clone(),
            high,
            watchers: BTreeSet::from([watcher]),
            priority: self.random.draw(),
            left: None,
            right: None,
        };
        self.root = Some(insert(self.root.take(), Box::new(node)));
    }

    pub(super) fn remove(&mut self, low: &Bytes, high: Option<&Bytes>, watcher: WatcherKey) {
        self.root = remove(self.root.take(), &(low, &End::of(high)), watcher);
    }

    /// Visits the watchers of all ranges that hold `key`.
    pub(super) fn stab(&self, key: &[u8], visit: &mut dyn FnMut(WatcherKey)) {
        stab(&self.root, key, visit);
    }
}

impl Node {
    fn range(&self) -> (&Bytes, &End) {
        (&self.low, &self.high)
    }

    /// Restores `highest` after a subtree changed.
    fn renewed(mut self: Box<Self>) -> Box<Self> {
        let below = [&self.left, &self.right].into_iter().flatten().map(|node| &node.highest);
        let highest = below.chain([&self.high]).max().cloned();
        self.highest = highest.unwrap_or(End::Open);
        self
    }

    fn with_left(mut self: Box<Self>, left: Tree) -> Box<Self> {
        self.left = left;
        self.renewed()
    }

    fn with_right(mut self: Box<Self>, right: Tree) -> Box<Self> {
        self.right = right;
        self.renewed()
    }
}

fn insert(tree: Tree, new: Box<Node>) -> Box<Node> {
    let Some(mut node) = tree else { return new };
    if new.range() == node.range() {
        node.watchers.extend(new.watchers);
        return node;
    }
    if new.range() < node.range() {
        let mut left = insert(node.left.take(), new);
        if left.priority <= node.priority {
            return node.with_left(Some(left));
        }
        let between = left.right.take();
        left.with_right(Some(node.with_left(between)))
    } else {
        let mut right = insert(node.right.take(), new);
        if right.priority <= node.priority {
            return node.with_right(Some(right));
        }
        let between = right.left.take();
        right.with_left(Some(node.with_right(between)))
    }
}

fn remove(tree: Tree, range: &(&Bytes, &End), watcher: WatcherKey) -> Tree {
    let mut node = tree?;
    if *range == node.range() {
        node.watchers.remove(&watcher);
        return if node.watchers.is_empty() { join(node.left.take(), node.right.take()) } else { Some(node) };
    }
    if *range < node.range() {
        let left = remove(node.left.take(), range, watcher);
        Some(node.with_left(left))
    } else {
        let right = remove(node.right.take(), range, watcher);
        Some(node.with_right(right))
    }
}

/// One tree of two, all of `left` being lower than all of `right`.
fn join(left: Tree, right: Tree) -> Tree {
    match (left, right) {
        (None, tree) | (tree, None) => tree,
        (Some(mut left), Some(right)) if left.priority >= right.priority => {
            let inner = join(left.right.take(), Some(right));
            Some(left.with_right(inner))
        }
        (Some(left), Some(mut right)) => {
            let inner = join(Some(left), right.left.take());
            Some(right.with_left(inner))
        }
    }
}

fn stab(tree: &Tree, key: &[u8], visit: &mut dyn FnMut(WatcherKey)) {
    let Some(node) = tree.as_ref().filter(|node| node.highest.is_above(key)) else { return };
    stab(&node.left, key, visit);
    if node.low[..] <= *key {
        if node.high.is_above(key) {
            node.watchers.iter().for_each(|watcher| visit(*watcher));
        }
        stab(&node.right, key, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(tree: &Tree) -> usize {
        tree.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    /// All that the treap promises is compared with a list, over random ranges that nest, overlap and repeat.
    #[test]
    fn finds_what_a_list_finds_after_any_changes() {
        let mut random = Random::new(42);
        let mut draw = |below: usize| random.below(below);
        for seed in 0..40 {
            let (mut tree, mut list) = (Intervals::new(seed), Vec::new());
            for step in 0..400u64 {
                let low = draw(30) as u8;
                let high = Some(low + 1 + draw(8) as u8).filter(|_| step % 7 != 0);
                if draw(3) > 0 {
                    tree.insert(&key(low), high.map(key).as_ref(), WatcherKey(step));
                    list.push((low, high, WatcherKey(step)));
                } else if !list.is_empty() {
                    let (low, high, watcher) = list.swap_remove(draw(list.len()));
                    tree.remove(&key(low), high.map(key).as_ref(), watcher);
                }
                let at = draw(40) as u8;
                let mut found = Vec::new();
                tree.stab(&[at], &mut |watcher| found.push(watcher));
                let holds = |(low, high, _): &&(u8, Option<u8>, WatcherKey)| *low <= at && high.is_none_or(|h| at < h);
                let mut expected: Vec<_> = list.iter().filter(holds).map(|(_, _, watcher)| *watcher).collect();
                found.sort();
                expected.sort();
                assert_eq!(found, expected, "seed {seed}, step {step}, key {at}");
            }
        }
    }

    fn key(byte: u8) -> Bytes {
        Bytes::copy_from_slice(&[byte])
    }

    #[test]
    fn stays_shallow_when_ranges_come_in_order() {
        let mut tree = Intervals::new(7);
        for number in 0..10_000u64 {
            let (low, high) = (number.to_be_bytes(), (number + 1).to_be_bytes());
            tree.insert(&Bytes::copy_from_slice(&low), Some(&Bytes::copy_from_slice(&high)), WatcherKey(number));
        }
        assert!(depth(&tree.root) < 60, "{}", depth(&tree.root));
        let mut found = Vec::new();
        tree.stab(&5000u64.to_be_bytes(), &mut |watcher| found.push(watcher));
        assert_eq!(found, [WatcherKey(5000)]);
    }
}
