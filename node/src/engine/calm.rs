//! What a member may hear without being woken for it.
//!
//! Where nothing is written, all that members say is that the leader leads, and all that a tick counts is whether it did. What is
//! heard of that between two ticks has the same effect at the next one: the tick comes after what arrived before it. So the
//! driver's thread sleeps on until then. On a leader of three that is 20 wake-ups a second.
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
    /// Nobody but the member itself waits for a read of an index.
    pub(crate) reads_wait: bool,
}

impl Calm {
    /// The same, and whether reads wait.
    pub(crate) fn with_reads(self, reads_wait: bool) -> Self {
        Self { reads_wait, ..self }
    }

    /// Whether a frame says nothing else. A leader whose ticks are shorter than those here must be answered more often than once a
    /// tick: of its heartbeats the second one in a tick wakes (`heard` notes the first).
    pub(crate) fn can_wait(&self, frame: &Frame, heard: &mut bool) -> bool {
        let Some(Body::Raft(raft)) = &frame.body else { return false };
        let known = raft.messages.iter().all(|message| self.is_known(frame.from, message));
        known && (self.role.leads || !std::mem::replace(heard, true))
    }

    fn is_known(&self, from: u64, message: &RaftMessage) -> bool {
        const HEARTBEAT: u32 = MessageType::MsgHeartbeat as u32;
        const ANSWER: u32 = MessageType::MsgHeartbeatResponse as u32;
        // With a context it is of a read, whose asker it begins with.
        let (asked, own) = (&message.context, self.role.leader.to_be_bytes());
        let of_no_read = asked.is_empty();
        message.term == self.role.term
            && match message.msg_type {
                HEARTBEAT => {
                    of_no_read && from == self.role.leader && !self.role.leads && message.commit <= self.commit
                }
                ANSWER => self.role.leads && (of_no_read || (self.reads_wait && asked.starts_with(&own))),
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
        let calm = Calm { role, commit, reads_wait: false };
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

    const FOLLOWER: Calm = Calm { role: Role { leader: 1, term: 5, leads: false }, commit: 9, reads_wait: false };
    const LEADER: Calm = Calm { role: Role { leader: 1, term: 5, leads: true }, commit: 9, reads_wait: false };

    fn said(kind: MessageType) -> RaftMessage {
        RaftMessage { msg_type: kind as u32, term: 5, commit: 9, ..RaftMessage::default() }
    }

    fn frame(from: u64, messages: Vec<RaftMessage>) -> Frame {
        Frame { from, body: Some(Body::Raft(RaftMessages { messages })), ..Frame::default() }
    }

    fn waits(calm: Calm, frame: &Frame) -> bool {
        calm.can_wait(frame, &mut false)
    }

    #[test]
    fn a_follower_is_not_woken_by_a_heartbeat_of_its_leader_that_brings_nothing() {
        let heartbeat = said(MessageType::MsgHeartbeat);
        assert!(waits(FOLLOWER, &frame(1, vec![heartbeat.clone()])));
        let of_another_term = RaftMessage { term: 6, ..heartbeat.clone() };
        let of_a_read = RaftMessage { context: "read".into(), ..heartbeat.clone() };
        let of_a_commit = RaftMessage { commit: 10, ..heartbeat.clone() };
        for wakes in [of_another_term, of_a_read, of_a_commit, said(MessageType::MsgAppend)] {
            assert!(!waits(FOLLOWER, &frame(1, vec![wakes.clone()])), "{wakes:?}");
            assert!(!waits(FOLLOWER, &frame(1, vec![heartbeat.clone(), wakes])), "beside one that may wait");
        }
        assert!(!waits(FOLLOWER, &frame(2, vec![heartbeat.clone()])), "of somebody else");
        assert!(!waits(LEADER, &frame(1, vec![heartbeat.clone()])), "that of itself is a lie");
        let (mut heard, heartbeat) = (false, frame(1, vec![heartbeat]));
        assert!(FOLLOWER.can_wait(&heartbeat, &mut heard) && !FOLLOWER.can_wait(&heartbeat, &mut heard));
    }

    #[test]
    fn a_leader_is_not_woken_by_answers_to_its_heartbeats() {
        let answer = said(MessageType::MsgHeartbeatResponse);
        assert!(waits(LEADER, &frame(2, vec![answer.clone()])));
        assert!(!waits(FOLLOWER, &frame(2, vec![answer.clone()])));
        let of = |id: u64| RaftMessage { context: [id, 1, 1].map(u64::to_be_bytes).concat().into(), ..answer.clone() };
        let background = LEADER.with_reads(true);
        assert!(waits(background, &frame(2, vec![of(1), answer.clone()])), "it asked for itself");
        assert!(!waits(background, &frame(2, vec![of(2)])) && !waits(LEADER, &frame(2, vec![of(1)])));
        let (mut heard, many) = (false, frame(2, vec![answer.clone()]));
        assert!(LEADER.can_wait(&many, &mut heard) && LEADER.can_wait(&many, &mut heard));
        let to_a_read = RaftMessage { context: "read".into(), ..answer.clone() };
        for wakes in [to_a_read, said(MessageType::MsgAppendResponse), said(MessageType::MsgRequestVote)] {
            assert!(!waits(LEADER, &frame(2, vec![wakes.clone()])), "{wakes:?}");
        }
        assert!(!waits(LEADER, &Frame { from: 2, body: None, ..Frame::default() }));
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
