//! The language of the golden scripts. Words are separated by spaces; `''` is an empty one, and `\0` and `\xNN` stand
//! for bytes.

use balsa_proto::etcdserverpb as pb;
use balsa_proto::log;
use bytes::Bytes;
use log::membership_change::Change;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;

use crate::domain::command::Command;
use crate::domain::mvcc::KeyRange;

/// One command of a script.
pub(super) enum Line {
    Write(Command),
    Change(log::MembershipChange),
    Read(ReadLine),
}

/// A command that writes nothing.
pub(super) enum ReadLine {
    Range(pb::RangeRequest),
    Txn(pb::TxnRequest),
    Changes { range: KeyRange, from: i64, to: i64, limit: usize },
    Hash(i64),
    Leases,
}

pub(super) fn line(text: &str) -> Line {
    let text = text.trim();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let words = Words::of(rest);
    match word {
        "put" => Line::Write(Command::Put(put(&words))),
        "del" => Line::Write(Command::DeleteRange(delete(&words))),
        "txn" => Line::Write(Command::Txn(txn(rest))),
        "compact" => {
            let revision = words.plain[0].parse().unwrap();
            Line::Write(Command::Compact(pb::CompactionRequest { revision, physical: false }))
        }
        "publish" => Line::Write(Command::Publish(log::PublishMember {
            id: words.plain[0].parse().unwrap(),
            name: words.plain[1].clone(),
            client_urls: vec![words.plain[2].clone()],
        })),
        "grant" => Line::Write(Command::LeaseGrant(pb::LeaseGrantRequest {
            id: words.plain[0].parse().unwrap(),
            ttl: words.plain[1].parse().unwrap(),
        })),
        "revoke" => Line::Write(Command::LeaseRevoke(pb::LeaseRevokeRequest { id: words.plain[0].parse().unwrap() })),
        "expire" => Line::Write(Command::LeaseExpire(log::ExpireLease {
            id: words.plain[0].parse().unwrap(),
            term: words.number("term") as u64,
        })),
        "checkpoint" => {
            let [id, remaining_ttl] = [0, 1].map(|position: usize| words.plain[position].parse().unwrap());
            let checkpoints = vec![log::LeaseCheckpoint { id, remaining_ttl }];
            Line::Write(Command::LeaseCheckpoint(log::CheckpointLeases {
                term: words.number("term") as u64,
                checkpoints,
            }))
        }
        "leases" => Line::Read(ReadLine::Leases),
        "add" | "promote" | "remove" | "update" => Line::Change(change(word, &words)),
        "range" => Line::Read(ReadLine::Range(range(&words))),
        "read_txn" => Line::Read(ReadLine::Txn(txn(rest))),
        "hash" => Line::Read(ReadLine::Hash(words.number("rev"))),
        "changes" => Line::Read(ReadLine::Changes {
            range: KeyRange::of(&words.key(0), &words.key(1)),
            from: words.number("from"),
            to: Some(words.number("to")).filter(|to| *to != 0).unwrap_or(i64::MAX),
            limit: Some(words.number("limit")).filter(|limit| *limit != 0).unwrap_or(1000) as usize,
        }),
        other => panic!("no such command: {other}"),
    }
}

/// The words behind a command: those with `=` are settings.
struct Words {
    plain: Vec<String>,
    settings: Vec<(String, String)>,
}

impl Words {
    fn of(text: &str) -> Self {
        let mut words = Self { plain: Vec::new(), settings: Vec::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => words.settings.push((name.to_owned(), value.to_owned())),
                None => words.plain.push(word.to_owned()),
            }
        }
        words
    }

    fn has(&self, flag: &str) -> bool {
        self.plain.iter().any(|word| word == flag)
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(own, _)| own == name).map(|(_, value)| &value[..])
    }

    fn number(&self, name: &str) -> i64 {
        self.setting(name).map_or(0, |value| value.parse().unwrap())
    }

    /// The key at a position, flags left out; empty when there is none.
    fn key(&self, position: usize) -> Bytes {
        let flags = ["prev", "ignore_value", "ignore_lease", "keys_only", "count_only", "voter"];
        let mut keys = self.plain.iter().filter(|word| !flags.contains(&&word[..]));
        keys.nth(position).map(|word| bytes(word)).unwrap_or_default()
    }
}

fn bytes(word: &str) -> Bytes {
    let mut out = Vec::new();
    let mut chars = word.strip_prefix("''").unwrap_or(word).chars();
    while let Some(char) = chars.next() {
        match (char, if char == '\\' { chars.next() } else { None }) {
            (_, Some('0')) => out.push(0),
            (_, Some('x')) => {
                let digits: String = chars.by_ref().take(2).collect();
                out.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            (char, _) => out.extend(char.to_string().bytes()),
        }
    }
    out.into()
}

fn put(words: &Words) -> pb::PutRequest {
    pb::PutRequest {
        key: words.key(0),
        value: words.key(1),
        lease: words.number("lease"),
        prev_kv: words.has("prev"),
        ignore_value: words.has("ignore_value"),
        ignore_lease: words.has("ignore_lease"),
    }
}

fn delete(words: &Words) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: words.key(0), range_end: words.key(1), prev_kv: words.has("prev") }
}

fn range(words: &Words) -> pb::RangeRequest {
    let (target, order) = words.setting("sort").and_then(|sort| sort.split_once(':')).unwrap_or(("KEY", "NONE"));
    let target = pb::range_request::SortTarget::from_str_name(&target.to_uppercase());
    let order = pb::range_request::SortOrder::from_str_name(&order.to_uppercase());
    pb::RangeRequest {
        key: words.key(0),
        range_end: words.key(1),
        limit: words.number("limit"),
        revision: words.number("rev"),
        sort_order: order.map_or(99, i32::from),
        sort_target: target.map_or(99, i32::from),
        keys_only: words.has("keys_only"),
        count_only: words.has("count_only"),
        min_mod_revision: words.number("min_mod"),
        max_mod_revision: words.number("max_mod"),
        min_create_revision: words.number("min_create"),
        max_create_revision: words.number("max_create"),
        serializable: false,
    }
}

/// Splits at a separator outside of brackets.
pub(super) fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for char in text.chars() {
        depth += i32::from(char == '[') - i32::from(char == ']');
        match char == separator && depth == 0 {
            true => parts.push(String::new()),
            false => parts.last_mut().unwrap().push(char),
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// `[compare ; ...] [op ; ...] [op ; ...]`
fn txn(text: &str) -> pb::TxnRequest {
    let groups = split(text, ' ');
    let group = |position: usize| {
        let group = groups.get(position).map_or("[]", |group| &group[..]);
        split(group.strip_prefix('[').unwrap().strip_suffix(']').unwrap(), ';')
    };
    let ops = |position| group(position).iter().map(|text| op(text)).collect();
    pb::TxnRequest { compare: group(0).iter().map(|text| compare(text)).collect(), success: ops(1), failure: ops(2) }
}

fn op(text: &str) -> pb::RequestOp {
    if text == "nothing" {
        return pb::RequestOp { request: None };
    }
    let request = match line(text) {
        Line::Write(Command::Put(put)) => Request::RequestPut(put),
        Line::Write(Command::DeleteRange(delete)) => Request::RequestDeleteRange(delete),
        Line::Write(Command::Txn(txn)) => Request::RequestTxn(txn),
        Line::Read(ReadLine::Range(range)) => Request::RequestRange(range),
        _ => panic!("no operation of a transaction: {text}"),
    };
    pb::RequestOp { request: Some(request) }
}

/// `target key [end] operator value`
fn compare(text: &str) -> pb::Compare {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (value, operator) = (words[words.len() - 1], words[words.len() - 2]);
    let number = || value.parse().unwrap();
    let (target, union) = match words[0] {
        "version" => (CompareTarget::Version, TargetUnion::Version(number())),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number())),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number())),
        "value" => (CompareTarget::Value, TargetUnion::Value(bytes(value))),
        other => panic!("no such target: {other}"),
    };
    let result = match operator {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        other => panic!("no such operator: {other}"),
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: bytes(words[1]),
        range_end: if words.len() == 5 { bytes(words[2]) } else { Bytes::new() },
        target_union: Some(union),
    }
}

fn change(word: &str, words: &Words) -> log::MembershipChange {
    let id = words.plain[0].parse().unwrap();
    let peer_urls = words.plain.iter().skip(1).filter(|word| *word != "voter").cloned().collect();
    let change = match word {
        "add" => Change::Add(log::AddMember { id, peer_urls, is_learner: !words.has("voter") }),
        "promote" => Change::Promote(log::PromoteMember { id }),
        "remove" => Change::Remove(log::RemoveMember { id }),
        _ => Change::Update(log::UpdateMember { id, peer_urls }),
    };
    log::MembershipChange { planned_on: words.number("on") as u64, change: Some(change), ..Default::default() }
}
