//! How the golden scripts show answers.

use std::fmt::Write;
use std::ops::{Bound, ControlFlow};

use balsa_proto::mvccpb::{Event, KeyValue, event::EventType};
use balsa_proto::{etcdserverpb as pb, log};
use pb::response_op::Response;

use crate::domain::apply::{Effects, StateMachine};
use crate::domain::command::Outcome;
use crate::domain::lease::table;
use crate::domain::mvcc::encoding::{ChangeKind, RowKey, RowReader, VersionRef, decode_history_key};
use crate::domain::mvcc::{Changes, HashKv, RevisionEvents};
use crate::storage::memory::MemoryKeySpace;
use crate::storage::{StorageError, Table, View};

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace("\\x00", "\\0")
}

fn pair(kv: &KeyValue) -> String {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    let mut out = format!("{}={}", text(key), text(value));
    let numbers = [("create", create_revision), ("mod", mod_revision), ("version", version), ("lease", lease)];
    for (name, number) in numbers.iter().filter(|(_, number)| **number != 0) {
        write!(out, " {name}={number}").unwrap();
    }
    out
}

fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().unwrap().revision
}

pub(super) fn effects(effects: &Effects) -> String {
    let mut out = String::new();
    for (_, outcome) in &effects.outcomes {
        out += &match outcome {
            Ok(outcome) => self::outcome(outcome),
            Err(refusal) => format!("refused: {refusal}\n"),
        };
    }
    for change in &effects.conf_changes {
        writeln!(out, "raft: {:?} {}", change.change_type, change.node_id).unwrap();
    }
    for revision in &effects.events {
        out += &events(revision);
    }
    for change in &effects.leases {
        writeln!(out, "clock: {change:?}").unwrap();
    }
    out
}

/// All leases with their keys.
pub(super) fn leases(view: &impl View) -> Result<String, StorageError> {
    let mut out = String::new();
    for (id, log::Lease { ttl, remaining_ttl }) in table::leases(view)? {
        let left = if remaining_ttl == 0 { String::new() } else { format!(" left={remaining_ttl}") };
        let keys: Vec<String> = table::keys(view, id, usize::MAX)?.iter().map(|key| text(key)).collect();
        writeln!(out, "  lease {id} ttl={ttl}{left} keys=[{}]", keys.join(" ")).unwrap();
    }
    Ok(out)
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Put(response) => put(response),
        Outcome::DeleteRange(response) => delete(response),
        Outcome::Txn(response) => txn(response, ""),
        Outcome::Compact(response) => format!("compacted rev={}\n", revision(&response.header)),
        Outcome::LeaseGrant(response) => {
            format!("granted {} ttl={} rev={}\n", response.id, response.ttl, revision(&response.header))
        }
        Outcome::LeaseRevoke(response) => format!("revoked rev={}\n", revision(&response.header)),
        Outcome::LeaseCheckpoint => "checkpointed\n".to_owned(),
        Outcome::Publish => "published\n".to_owned(),
        Outcome::Alarm(response) => format!("alarms {}\n", response.alarms.len()),
        Outcome::Downgrade => "downgrade\n".to_owned(),
        Outcome::Auth { .. } => "auth\n".to_owned(),
        Outcome::Membership(membership) => format!("index={} next_id={}\n", membership.index, membership.next_id),
    }
}

fn put(response: &pb::PutResponse) -> String {
    let mut out = format!("put rev={}\n", revision(&response.header));
    if let Some(kv) = &response.prev_kv {
        writeln!(out, "  prev {}", pair(kv)).unwrap();
    }
    out
}

fn delete(response: &pb::DeleteRangeResponse) -> String {
    let mut out = format!("deleted {} rev={}\n", response.deleted, revision(&response.header));
    for kv in &response.prev_kvs {
        writeln!(out, "  prev {}", pair(kv)).unwrap();
    }
    out
}

pub(super) fn range(response: &pb::RangeResponse) -> String {
    let more = if response.more { " more" } else { "" };
    let mut out = format!("range rev={} count={}{more}\n", revision(&response.header), response.count);
    for kv in &response.kvs {
        writeln!(out, "  {}", pair(kv)).unwrap();
    }
    out
}

pub(super) fn txn(response: &pb::TxnResponse, indent: &str) -> String {
    let word = if response.succeeded { "succeeded" } else { "failed" };
    let mut out = format!("txn rev={} {word}\n", revision(&response.header));
    for op in &response.responses {
        let shown = match &op.response {
            Some(Response::ResponseRange(response)) => range(response),
            Some(Response::ResponsePut(response)) => put(response),
            Some(Response::ResponseDeleteRange(response)) => delete(response),
            Some(Response::ResponseTxn(response)) => txn(response, indent),
            None => "nothing\n".to_owned(),
        };
        for line in shown.lines() {
            writeln!(out, "{indent}  {line}").unwrap();
        }
    }
    out
}

fn event(event: &Event) -> String {
    let word = if event.r#type() == EventType::Put { "PUT" } else { "DELETE" };
    let prev = event.prev_kv.as_ref().map(|prev| format!(" (before: {})", pair(prev)));
    format!("{word} {}{}", pair(event.kv.as_ref().unwrap()), prev.unwrap_or_default())
}

fn events(revision: &RevisionEvents) -> String {
    let mut out = String::new();
    for shown in &revision.events {
        writeln!(out, "event {}: {}", revision.revision, event(shown)).unwrap();
    }
    out
}

pub(super) fn changes(changes: &Changes) -> String {
    let events: String = changes.revisions.iter().map(events).collect();
    format!("{events}next={}\n", if changes.next_revision == i64::MAX { -1 } else { changes.next_revision })
}

pub(super) fn hash(hash: &HashKv) -> String {
    let HashKv { hash, compact_revision, hash_revision, revision } = hash;
    format!("hash={hash:08x} compacted={compact_revision} hashed={hash_revision} rev={revision}\n")
}

pub(super) fn membership(state: &StateMachine<MemoryKeySpace>) -> String {
    let membership: &log::Membership = state.membership();
    let conf = &state.applied().conf_state;
    let mut out =
        format!("index={} next_id={} removed={:?}\n", membership.index, membership.next_id, membership.removed);
    for member in &membership.members {
        let log::Member { id, name, peer_urls, client_urls, is_learner, started } = member;
        let role = if *is_learner { "learner" } else { "voter" };
        writeln!(out, "  {id} {role} name={name:?} peers={peer_urls:?} clients={client_urls:?} started={started}")
            .unwrap();
    }
    writeln!(out, "  raft: voters={:?} learners={:?}", conf.voters, conf.learners).unwrap();
    out
}

/// The rows of the data tables, decoded.
pub(super) fn tables(view: &impl View) -> String {
    let mut out = String::new();
    for table in [Table::Live, Table::History, Table::Revision] {
        let everything = (Bound::Unbounded, Bound::Unbounded);
        let show = &mut |key: &[u8], value: &[u8]| {
            writeln!(out, "{} {}", table.name(), row(table, key, value)).unwrap();
            ControlFlow::Continue(())
        };
        view.scan(table, everything, false, show).unwrap();
    }
    out
}

fn row(table: Table, key: &[u8], value: &[u8]) -> String {
    let version = |key: &[u8], value| {
        let VersionRef { create_revision, mod_revision, version, value, .. } = VersionRef::decode(value).unwrap();
        format!("{}={} create={create_revision} mod={mod_revision} version={version}", text(key), text(value))
    };
    match table {
        Table::Live => version(key, value),
        Table::History => {
            let (key, revision) = decode_history_key(key).unwrap();
            if value.is_empty() { format!("{} deleted at {revision}", text(&key)) } else { version(&key, value) }
        }
        _ => {
            let changes = RowReader::new(RowKey::decode(key).unwrap(), value).unwrap().map(Result::unwrap);
            let shown = changes.map(|change| {
                let kind = match change.kind {
                    ChangeKind::Put => "put",
                    ChangeKind::Delete => "del",
                    ChangeKind::PutInPassing(_) => "(put)",
                    ChangeKind::DeleteInPassing => "(del)",
                };
                let (revision, sub, previous) = (change.revision, change.sub, change.previous);
                let before = if previous == 0 { String::new() } else { format!(" over {previous}") };
                format!("{revision}.{sub} {kind} {}{before}", text(change.key))
            });
            shown.collect::<Vec<_>>().join(", ")
        }
    }
}
