//! What a member may hear without being woken for it.
//!
//! Where nothing is written, all that members say is that the leader leads, and all that a tick counts is whether it did. What is
//! heard of that between two ticks has the same effect at the next one: the tick comes after what arrived before it. So the
//! driver's thread sleeps on until then. On a leader of three that is two of three wake-ups.
//!
//! A member whose log is behind waits for just such an answer to be sent more, so nothing may wait before nothing has moved for
//! an election time-out.

use std::time::{Duration, Instant};

use balsa_proto::peer::frame::Body;
use balsa_proto::peer::{Frame, RaftMessage};
use raft::eraftpb::MessageType;

use crate::domain::raft::Role;

/// What is so for as long as nothing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Calm {
    role: Role,
    commit: u64,
}

impl Calm {
    /// Whether a frame says nothing else.
    pub(crate) fn can_wait(&self, frame: &Frame) -> bool {
        let Some(Body::Raft(raft)) = &frame.body else { return false };
        raft.messages.iter().all(|message| self.is_known(frame.from, message))
    }

    fn is_known(&self, from: u64, message: &RaftMessage) -> bool {
        const HEARTBEAT: u32 = MessageType::MsgHeartbeat as u32;
        const ANSWER: u32 = MessageType::MsgHeartbeatResponse as u32;
        // With a context it is of a read, for which somebody waits.
        let is_of_the_term = message.term == self.role.term && message.context.is_empty();
        is_of_the_term
            && match message.msg_type {
                HEARTBEAT => from == self.role.leader && !self.role.leads && message.commit <= self.commit,
                ANSWER => self.role.leads,
                _ => false,
            }
    }
}

/// Since when nothing has moved.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Option<(Calm, u64, Instant)>);

impl Quiet {
    /// What others may say without waking this member, if nothing has moved for `bound`: neither what is so nor the `last` index.
    pub(crate) fn calm(&mut self, role: Role, commit: u64, last: u64, bound: Duration, now: Instant) -> Option<Calm> {
        let calm = Calm { role, commit };
        match self.0 {
            Some((before, index, since)) if (before, index) == (calm, last) => {
                (role.leader != 0 && now.saturating_duration_since(since) >= bound).then_some(calm)
            }
            _ => {
                self.0 = Some((calm, last, now));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use balsa_proto::peer::RaftMessages;

    use super::*;

    const FOLLOWER: Calm = Calm { role: Role { leader: 1, term: 5, leads: false }, commit: 9 };
    const LEADER: Calm = Calm { role: Role { leader: 1, term: 5, leads: true }, commit: 9 };

    fn said(kind: MessageType) -> RaftMessage {
        RaftMessage { msg_type: kind as u32, term: 5, commit: 9, ..RaftMessage::default() }
    }

    fn frame(from: u64, messages: Vec<RaftMessage>) -> Frame {
        Frame { from, body: Some(Body::Raft(RaftMessages { messages })), ..Frame::default() }
    }

    #[test]
    fn a_follower_is_not_woken_by_a_heartbeat_of_its_leader_that_brings_nothing() {
        let heartbeat = said(MessageType::MsgHeartbeat);
        assert!(FOLLOWER.can_wait(&frame(1, vec![heartbeat.clone()])));
        let of_another_term = RaftMessage { term: 6, ..heartbeat.clone() };
        let of_a_read = RaftMessage { context: "read".into(), ..heartbeat.clone() };
        let of_a_commit = RaftMessage { commit: 10, ..heartbeat.clone() };
        for wakes in [of_another_term, of_a_read, of_a_commit, said(MessageType::MsgAppend)] {
            assert!(!FOLLOWER.can_wait(&frame(1, vec![wakes.clone()])), "{wakes:?}");
            assert!(!FOLLOWER.can_wait(&frame(1, vec![heartbeat.clone(), wakes])), "beside one that may wait");
        }
        assert!(!FOLLOWER.can_wait(&frame(2, vec![heartbeat.clone()])), "of somebody else");
        assert!(!LEADER.can_wait(&frame(1, vec![heartbeat])), "that of itself is a lie");
    }

    #[test]
    fn a_leader_is_not_woken_by_answers_to_its_heartbeats() {
        let answer = said(MessageType::MsgHeartbeatResponse);
        assert!(LEADER.can_wait(&frame(2, vec![answer.clone()])));
        assert!(!FOLLOWER.can_wait(&frame(2, vec![answer.clone()])));
        let to_a_read = RaftMessage { context: "read".into(), ..answer };
        for wakes in [to_a_read, said(MessageType::MsgAppendResponse), said(MessageType::MsgRequestVote)] {
            assert!(!LEADER.can_wait(&frame(2, vec![wakes.clone()])), "{wakes:?}");
        }
        assert!(!LEADER.can_wait(&Frame { from: 2, body: None, ..Frame::default() }));
    }

    #[test]
    fn it_is_calm_once_nothing_has_moved_for_the_bound() {
        let (began, bound) = (Instant::now(), Duration::from_secs(1));
        let at = |millis| began + Duration::from_millis(millis);
        let (role, nobody) = (FOLLOWER.role, Role { leader: 0, term: 5, leads: false });
        let mut quiet = Quiet::default();
        assert_eq!(quiet.calm(role, 9, 9, bound, at(0)), None);
        assert_eq!(quiet.calm(role, 9, 9, bound, at(999)), None);
        assert_eq!(quiet.calm(role, 9, 9, bound, at(1_000)), Some(FOLLOWER));
        assert_eq!(quiet.calm(role, 9, 10, bound, at(1_100)), None, "an entry came");
        assert_eq!(quiet.calm(role, 10, 10, bound, at(2_200)), None, "it is committed");
        assert!(quiet.calm(role, 10, 10, bound, at(3_200)).is_some());
        assert_eq!(quiet.calm(nobody, 10, 10, bound, at(3_300)), None, "the leader is gone");
        assert_eq!(quiet.calm(nobody, 10, 10, bound, at(9_000)), None, "and nobody leads");
    }
}
