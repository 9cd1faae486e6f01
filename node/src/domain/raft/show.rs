//! Raft's values as one line of text each, for golden scripts and for the last events of a simulation.

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType, Message, MessageType};

/// A message without its way: `Append term=2 at=5/2 entries=6/2 commit=5`.
pub(super) fn message(message: &Message) -> String {
    let kind = format!("{:?}", message.get_msg_type());
    let mut text = format!("{} term={}", kind.trim_start_matches("Msg"), message.term);
    if message.index != 0 || message.log_term != 0 {
        text += &format!(" at={}/{}", message.index, message.log_term);
    }
    if message.get_msg_type() == MessageType::MsgSnapshot {
        let metadata = message.get_snapshot().get_metadata();
        text += &format!(" of={}/{} {}", metadata.index, metadata.term, configuration(metadata.get_conf_state()));
    }
    let entries: Vec<String> =
        message.entries.iter().filter(|e| e.index != 0).map(|e| format!("{}/{}", e.index, e.term)).collect();
    if !entries.is_empty() {
        text += &format!(" entries={}", entries.join(","));
    }
    if message.commit != 0 {
        text += &format!(" commit={}", message.commit);
    }
    if message.reject {
        text += &format!(" reject hint={}", message.reject_hint);
    }
    text
}

/// An entry: `6/2 "a"`, `7/2 +learner 4`, `8/2 empty`.
pub(super) fn entry(entry: &Entry) -> String {
    let content = match entry.get_entry_type() {
        EntryType::EntryNormal if entry.data.is_empty() => "empty".to_owned(),
        EntryType::EntryNormal if entry.data.len() > 64 => format!("{} bytes", entry.data.len()),
        EntryType::EntryNormal => format!("{:?}", String::from_utf8_lossy(&entry.data)),
        EntryType::EntryConfChange => ConfChange::parse_from_bytes(&entry.data).map_or("?".to_owned(), |c| change(&c)),
        EntryType::EntryConfChangeV2 => "joint change".to_owned(),
    };
    format!("{}/{} {content}", entry.index, entry.term)
}

/// A membership change: `+voter 4`.
pub(super) fn change(change: &ConfChange) -> String {
    let sign = match change.get_change_type() {
        ConfChangeType::AddNode => "+voter",
        ConfChangeType::AddLearnerNode => "+learner",
        ConfChangeType::RemoveNode => "-",
    };
    format!("{sign} {}", change.node_id)
}

/// A configuration: `voters=[1, 2] learners=[3]`.
pub(super) fn configuration(state: &ConfState) -> String {
    let (mut voters, mut learners) = (state.voters.clone(), state.learners.clone());
    voters.sort_unstable();
    learners.sort_unstable();
    format!("voters={voters:?} learners={learners:?}")
}
