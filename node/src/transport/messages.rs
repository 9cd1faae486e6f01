//! Raft's messages in the shape of the wire and back, field by field. Payloads move as [`bytes::Bytes`], so nothing is
//! copied, and no byte of a peer is ever parsed by protobuf 2.
//!
//! It knows shapes only: whether a well-formed message may be stepped is for `domain/raft/validate.rs`.

use balsa_proto::{log, peer};
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

/// Why a peer's message is none of Raft's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedMessage {
    /// No message type has this number.
    #[error("unknown message type {0}")]
    UnknownType(u32),
    /// No entry type has this number.
    #[error("unknown entry type {0}")]
    UnknownEntryType(u32),
    /// A snapshot travels with its files by `Peer.Snapshot`, never in a frame.
    #[error("a snapshot message without its files")]
    BareSnapshot,
}

/// A message as it travels. Of a snapshot only the metadata is kept.
pub fn to_wire(mut message: Message) -> peer::RaftMessage {
    let snapshot = message.snapshot.take().map(|snapshot| {
        let metadata = snapshot.get_metadata();
        let conf_state = metadata.get_conf_state();
        peer::SnapshotPoint {
            index: metadata.index,
            term: metadata.term,
            conf_state: Some(log::ConfState {
                voters: conf_state.voters.clone(),
                learners: conf_state.learners.clone(),
            }),
        }
    });
    peer::RaftMessage {
        msg_type: message.msg_type as u32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.take_entries().into_iter().map(entry_to_wire).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    }
}

/// A peer's message as Raft takes it.
///
/// # Errors
/// [`MalformedMessage`]; nothing of the message is of use then.
pub fn from_wire(wire: peer::RaftMessage) -> Result<Message, MalformedMessage> {
    let msg_type = i32::try_from(wire.msg_type)
        .ok()
        .and_then(MessageType::from_i32)
        .ok_or(MalformedMessage::UnknownType(wire.msg_type))?;
    if msg_type == MessageType::MsgSnapshot || wire.snapshot.is_some() {
        return Err(MalformedMessage::BareSnapshot);
    }
    let entries = wire.entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, _>>()?;
    Ok(Message {
        msg_type,
        to: wire.to,
        from: wire.from,
        term: wire.term,
        log_term: wire.log_term,
        index: wire.index,
        entries: entries.into(),
        commit: wire.commit,
        commit_term: wire.commit_term,
        request_snapshot: wire.request_snapshot,
        reject: wire.reject,
        reject_hint: wire.reject_hint,
        context: wire.context,
        priority: wire.priority,
        ..Message::default()
    })
}

fn entry_to_wire(entry: Entry) -> peer::Entry {
    peer::Entry {
        entry_type: entry.entry_type as u32,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
    }
}

fn entry_from_wire(wire: peer::Entry) -> Result<Entry, MalformedMessage> {
    let entry_type = i32::try_from(wire.entry_type)
        .ok()
        .and_then(EntryType::from_i32)
        .ok_or(MalformedMessage::UnknownEntryType(wire.entry_type))?;
    Ok(Entry {
        entry_type,
        term: wire.term,
        index: wire.index,
        data: wire.data,
        context: wire.context,
        ..Entry::default()
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn full() -> Message {
        let entry = |index, entry_type| Entry {
            entry_type,
            term: 4,
            index,
            data: Bytes::from(vec![7; 100]),
            context: Bytes::from_static(b"entry context"),
            ..Entry::default()
        };
        Message {
            msg_type: MessageType::MsgAppend,
            to: 2,
            from: 1,
            term: 5,
            log_term: 3,
            index: 9,
            entries: vec![entry(10, EntryType::EntryNormal), entry(11, EntryType::EntryConfChange)].into(),
            commit: 8,
            commit_term: 2,
            request_snapshot: 6,
            reject: true,
            reject_hint: 12,
            context: Bytes::from_static(b"message context"),
            priority: -3,
            ..Message::default()
        }
    }

    #[test]
    fn a_message_comes_back_as_it_went() {
        assert_eq!(from_wire(to_wire(full())), Ok(full()));
    }

    #[test]
    fn every_message_type_keeps_its_number() {
        for msg_type in MessageType::values().iter().filter(|of| **of != MessageType::MsgSnapshot) {
            let message = Message { msg_type: *msg_type, ..Message::default() };
            assert_eq!(from_wire(to_wire(message.clone())), Ok(message));
        }
    }

    #[test]
    fn payloads_are_moved_not_copied() {
        let message = full();
        let (data, context) = (message.entries[0].data.as_ptr(), message.context.as_ptr());
        let wire = to_wire(message);
        assert_eq!((wire.entries[0].data.as_ptr(), wire.context.as_ptr()), (data, context));
        let back = from_wire(wire).expect("well-formed");
        assert_eq!((back.entries[0].data.as_ptr(), back.context.as_ptr()), (data, context));
    }

    #[test]
    fn unknown_numbers_are_malformed() {
        for number in [19, 1 << 31, u32::MAX] {
            let wire = peer::RaftMessage { msg_type: number, ..peer::RaftMessage::default() };
            assert_eq!(from_wire(wire), Err(MalformedMessage::UnknownType(number)));
            let entries = vec![peer::Entry { entry_type: number, ..peer::Entry::default() }];
            let wire = peer::RaftMessage { msg_type: 3, entries, ..peer::RaftMessage::default() };
            assert_eq!(from_wire(wire), Err(MalformedMessage::UnknownEntryType(number)));
        }
    }

    #[test]
    fn a_snapshot_in_a_frame_is_malformed() {
        let mut message = Message { msg_type: MessageType::MsgSnapshot, ..Message::default() };
        message.mut_snapshot().mut_metadata().index = 5;
        message.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1, 2];
        let wire = to_wire(message);
        let point = wire.snapshot.clone().expect("metadata");
        assert_eq!((point.index, point.conf_state.expect("voters").voters), (5, vec![1, 2]));
        assert_eq!(from_wire(wire.clone()), Err(MalformedMessage::BareSnapshot));
        let disguised = peer::RaftMessage { msg_type: 3, ..wire };
        assert_eq!(from_wire(disguised), Err(MalformedMessage::BareSnapshot));
    }
}
