//! The servers that a gateway passes connections on to, and which is next: those of the best class of priority that can be
//! reached, by their weights, or in turn where there are none.

use crate::transport::srv::Server;

/// All of them, and which cannot be reached.
pub(super) struct Remotes {
    servers: Vec<Server>,
    inactive: Vec<bool>,
    turn: usize,
}

impl Remotes {
    pub(super) fn new(servers: Vec<Server>) -> Self {
        Self { inactive: vec![false; servers.len()], servers, turn: 0 }
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(Server::address).collect()
    }

    pub(super) fn address(&self, index: usize) -> String {
        self.servers[index].address()
    }

    pub(super) fn set_active(&mut self, index: usize, active: bool) {
        self.inactive[index] = !active;
    }

    pub(super) fn inactive(&self) -> Vec<usize> {
        (0..self.servers.len()).filter(|index| self.inactive[*index]).collect()
    }

    /// The next one; None when there is none that can be reached. `draw` gives a number below its argument.
    pub(super) fn pick(&mut self, draw: impl Fn(u32) -> u32) -> Option<usize> {
        let active = || (0..self.servers.len()).filter(|index| !self.inactive[*index]);
        let best = active().map(|index| self.servers[index].priority).min()?;
        let (weighted, unweighted): (Vec<_>, Vec<_>) = active()
            .filter(|index| self.servers[*index].priority == best)
            .partition(|index| self.servers[*index].weight > 0);
        // Beside weights, one without any has a very small chance.
        if weighted.is_empty() || !unweighted.is_empty() && draw(100) == 1 {
            return Some(self.next_of(&unweighted));
        }
        let all = weighted.iter().map(|index| u32::from(self.servers[*index].weight)).sum();
        let mut left = draw(all);
        for index in &weighted {
            let weight = u32::from(self.servers[*index].weight);
            if left < weight {
                return Some(*index);
            }
            left -= weight;
        }
        weighted.last().copied()
    }

    /// The next of these, of which there is one at least, in the order of all.
    fn next_of(&mut self, servers: &[usize]) -> usize {
        loop {
            let next = self.turn % self.servers.len();
            self.turn = self.turn.wrapping_add(1);
            if servers.contains(&next) {
                return next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remotes(servers: &[(u16, u16)]) -> Remotes {
        let server =
            |(priority, weight): &(u16, u16)| Server { priority: *priority, weight: *weight, ..Server::at("h", 1) };
        Remotes::new(servers.iter().map(server).collect())
    }

    #[test]
    fn without_weights_they_take_turns_and_those_that_cannot_be_reached_are_left_out() {
        let mut equal = remotes(&[(0, 0), (0, 0), (0, 0)]);
        let next = |remotes: &mut Remotes| (0..4).filter_map(|_| remotes.pick(|_| 0)).collect::<Vec<_>>();
        assert_eq!(next(&mut equal), [0, 1, 2, 0]);
        equal.set_active(1, false);
        assert_eq!((next(&mut equal), equal.inactive()), (vec![2, 0, 2, 0], vec![1]));
        (0..3).for_each(|index| equal.set_active(index, false));
        assert_eq!(equal.pick(|_| 0), None);
        equal.set_active(1, true);
        assert_eq!(next(&mut equal), [1, 1, 1, 1]);
    }

    #[test]
    fn the_best_class_comes_first_and_is_drawn_from_by_weight() {
        let mut classes = remotes(&[(2, 1), (1, 3), (1, 1), (1, 0)]);
        let drawn = |remotes: &mut Remotes, number: u32| remotes.pick(|below| if below == 100 { 0 } else { number });
        let all: Vec<_> = (0..4).map(|number| drawn(&mut classes, number).unwrap()).collect();
        assert_eq!(all, [1, 1, 1, 2]);
        assert_eq!(classes.pick(|_| 1), Some(3), "one of a hundred");
        (1..4).for_each(|index| classes.set_active(index, false));
        assert_eq!(classes.pick(|_| 0), Some(0));
    }

    #[test]
    fn an_address_can_be_dialled() {
        assert_eq!(Server::at("::1", 2).address(), "[::1]:2");
        assert_eq!(Server::at("a.example.", 2).address(), "a.example:2");
    }
}
