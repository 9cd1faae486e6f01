//! Users, roles and permissions by the commands of the log, and what the members keep of them. The security bugs that
//! etcd had are tests by their names.

use std::sync::Arc;

use balsa_proto::authpb::{Permission, UserAddOptions, permission::Type};
use balsa_proto::{etcdserverpb as pb, log};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pb::request_op::Request;
use prost::Message as _;
use raft::eraftpb::Entry;

use super::*;
use crate::domain::apply::StateMachine;
use crate::domain::command::{Command, Outcome};
use crate::domain::mvcc::ReadError;
use crate::domain::refusal::Refusal;
use crate::storage::KeySpace;
use crate::storage::memory::MemoryKeySpace;

use AuthRefusal as Refused;

/// A member that applies one command at a time.
struct Cluster {
    machine: StateMachine<MemoryKeySpace>,
    key_space: Arc<MemoryKeySpace>,
    tokens: Vec<TokenChange>,
    index: u64,
}

type Answer = Result<Outcome, Refusal>;

impl Cluster {
    fn new() -> Self {
        let key_space = Arc::new(MemoryKeySpace::default());
        let machine = StateMachine::open(key_space.clone()).unwrap();
        Self { machine, key_space, tokens: Vec::new(), index: 0 }
    }

    /// As [`new`](Self::new) with auth enabled, and alice who may read [r, s), write [w, x) and do both in [b, c).
    fn guarded() -> Self {
        let mut cluster = Self::new();
        cluster.add_user("root");
        cluster.grant_role("root", "root").unwrap();
        cluster.add_user("alice");
        cluster.add_role("role").unwrap();
        for (kind, key, end) in [(Type::Read, "r", "s"), (Type::Write, "w", "x"), (Type::Readwrite, "b", "c")] {
            cluster.grant("role", kind, key, end).unwrap();
        }
        cluster.grant_role("alice", "role").unwrap();
        cluster.change(Command::AuthEnable(pb::AuthEnableRequest {})).unwrap();
        cluster
    }

    fn apply(&mut self, proposal: log::Proposal) -> Answer {
        self.index += 1;
        let data = log::Batch { proposals: vec![proposal] }.encode_to_vec().into();
        let entry = Entry { index: self.index, term: 1, data, ..Default::default() };
        let mut effects = self.machine.apply(&[entry]).unwrap();
        self.tokens.append(&mut effects.tokens);
        effects.outcomes.pop().unwrap().1
    }

    /// As a client whose credentials are of now.
    fn run(&mut self, username: &str, command: Command) -> Answer {
        let auth_revision = if username.is_empty() { 0 } else { self.auth().revision() };
        let (username, command) = (username.to_owned(), Some(command));
        self.apply(log::Proposal { username, auth_revision, command, ..Default::default() })
    }

    /// As root.
    fn change(&mut self, command: Command) -> Result<(), Refusal> {
        self.run("root", command).map(|_| ())
    }

    fn auth(&self) -> Arc<AuthState> {
        self.machine.auth().clone()
    }

    fn add_user(&mut self, name: &str) {
        let hashed_password = STANDARD.encode("hash");
        let request = pb::AuthUserAddRequest { name: name.into(), hashed_password, ..Default::default() };
        self.change(Command::UserAdd(request)).unwrap();
    }

    fn add_role(&mut self, name: &str) -> Result<(), Refusal> {
        self.change(Command::RoleAdd(pb::AuthRoleAddRequest { name: name.into() }))
    }

    fn grant_role(&mut self, user: &str, role: &str) -> Result<(), Refusal> {
        self.change(Command::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }))
    }

    fn grant(&mut self, role: &str, kind: Type, key: &str, end: &str) -> Result<(), Refusal> {
        let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
        let perm = Some(Permission { perm_type: kind.into(), key, range_end });
        let request = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm };
        self.change(Command::RoleGrantPermission(request))
    }

    fn delete_user(&mut self, name: &str) -> Result<(), Refusal> {
        self.change(Command::UserDelete(pb::AuthUserDeleteRequest { name: name.into() }))
    }

    fn delete_role(&mut self, role: &str) -> Result<(), Refusal> {
        self.change(Command::RoleDelete(pb::AuthRoleDeleteRequest { role: role.into() }))
    }

    fn authenticate(&mut self, name: &str, checked_revision: u64) -> Answer {
        let request = log::Authenticate { name: name.into(), token_prefix: "prefix".into(), checked_revision };
        self.run("", Command::Authenticate(request))
    }

    /// What applying `command` as alice answers: nothing, or why not.
    fn alice(&mut self, command: Command) -> Result<(), Refused> {
        match self.run("alice", command) {
            Ok(_) => Ok(()),
            Err(Refusal::Auth(refusal)) => Err(refusal),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn reads(&self, name: &str, key: &str, end: &str) -> Result<(), Refused> {
        let who = Identity { username: name.into(), revision: self.auth().revision() };
        self.auth().check_keys(&who, Need::Read, key.as_bytes(), end.as_bytes())
    }
}

fn no(refusal: Refused) -> Result<(), Refusal> {
    Err(Refusal::Auth(refusal))
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

fn range(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

fn delete(key: &str, end: &str, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv }
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn txn(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { compare: Vec::new(), success, failure }
}

fn nested(request: Request) -> [Command; 2] {
    let inner = |success, failure| op(Request::RequestTxn(txn(success, failure)));
    let (first, second) = (inner(vec![op(request.clone())], vec![]), inner(vec![], vec![op(request)]));
    [Command::Txn(txn(vec![first], vec![])), Command::Txn(txn(vec![], vec![second]))]
}

#[test]
fn enabling_needs_somebody_in_charge() {
    let mut cluster = Cluster::new();
    let enable = || Command::AuthEnable(pb::AuthEnableRequest {});
    assert_eq!(cluster.change(enable()), no(Refused::RootUserNotExist));
    cluster.add_user("root");
    assert_eq!(cluster.change(enable()), no(Refused::RootRoleNotExist));
    cluster.grant_role("root", "root").unwrap();
    assert_eq!(cluster.run("", enable()).map(|_| ()), Ok(()), "anybody may while it is disabled");
    assert_eq!(cluster.change(enable()), Ok(()), "again without effect");
    assert!(cluster.auth().is_enabled());
}

#[test]
fn the_revision_counts_changes() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.auth().revision(), 1);
    cluster.add_user("root");
    cluster.grant_role("root", "root").unwrap();
    cluster.add_role("role").unwrap();
    assert_eq!(cluster.auth().revision(), 4);
    cluster.grant_role("root", "root").unwrap();
    assert_eq!(cluster.auth().revision(), 4, "a grant that is there already changes nothing");
    cluster.change(Command::AuthEnable(pb::AuthEnableRequest {})).unwrap();
    assert_eq!(cluster.auth().revision(), 4, "enabling does not count");
    assert_eq!(cluster.add_role("role"), no(Refused::RoleAlreadyExists));
    assert_eq!(cluster.auth().revision(), 4, "nor does what is refused");
    cluster.change(Command::AuthDisable(pb::AuthDisableRequest {})).unwrap();
    assert_eq!(cluster.auth().revision(), 5);
    cluster.change(Command::AuthDisable(pb::AuthDisableRequest {})).unwrap();
    assert_eq!(cluster.auth().revision(), 5, "it was disabled");
}

#[test]
fn users_and_roles_are_managed_by_etcds_rules() {
    let mut cluster = Cluster::guarded();
    let unnamed = Command::UserAdd(pb::AuthUserAddRequest::default());
    assert_eq!(cluster.change(unnamed), no(Refused::UserEmpty));
    let again = pb::AuthUserAddRequest { name: "alice".into(), ..Default::default() };
    assert_eq!(cluster.change(Command::UserAdd(again)), no(Refused::UserAlreadyExists));
    assert_eq!(cluster.add_role(""), no(Refused::RoleEmpty));
    assert_eq!(cluster.add_role("role"), no(Refused::RoleAlreadyExists));
    assert_eq!(cluster.grant_role("nobody", "role"), no(Refused::UserNotFound));
    assert_eq!(cluster.grant_role("alice", "nothing"), no(Refused::RoleNotFound));
    assert_eq!(cluster.delete_user("nobody"), no(Refused::UserNotFound));
    assert_eq!(cluster.delete_role("nothing"), no(Refused::RoleNotFound));
    let revoke = |name: &str, role: &str| {
        Command::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() })
    };
    assert_eq!(cluster.change(revoke("nobody", "role")), no(Refused::UserNotFound));
    assert_eq!(cluster.change(revoke("alice", "root")), no(Refused::RoleNotGranted));
    for last in [revoke("root", "root"), Command::UserDelete(pb::AuthUserDeleteRequest { name: "root".into() })] {
        assert_eq!(cluster.change(last), no(Refused::InvalidAuthMgmt), "somebody must stay in charge");
    }
    assert_eq!(cluster.delete_role("root"), no(Refused::InvalidAuthMgmt));
    cluster.delete_role("role").unwrap();
    assert!(cluster.auth().user("alice").unwrap().roles().is_empty());
    assert_eq!(cluster.reads("alice", "r", ""), Err(Refused::PermissionDenied));
}

#[test]
fn a_permission_is_for_a_range_that_can_hold_a_key() {
    let mut cluster = Cluster::guarded();
    let bare = pb::AuthRoleGrantPermissionRequest { name: "role".into(), perm: None };
    assert_eq!(cluster.change(Command::RoleGrantPermission(bare)), no(Refused::PermissionNotGiven));
    for (key, end) in [("", ""), ("", "a"), ("", "\0"), ("b", "a"), ("a", "a")] {
        assert_eq!(cluster.grant("role", Type::Read, key, end), no(Refused::InvalidAuthMgmt), "{key:?} {end:?}");
    }
    assert_eq!(cluster.grant("nothing", Type::Read, "a", ""), no(Refused::RoleNotFound));
    for (key, end) in [("a", ""), ("a", "b"), ("a", "\0"), ("\0", "\0"), ("\0", "")] {
        assert_eq!(cluster.grant("role", Type::Read, key, end), Ok(()), "{key:?} {end:?}");
    }
}

#[test]
fn granting_a_range_again_changes_its_kind_and_revoking_needs_it_exactly() {
    let mut cluster = Cluster::guarded();
    let kinds = |cluster: &Cluster| {
        let permissions = cluster.auth().permissions("role").unwrap();
        permissions.iter().map(|p| (p.key.clone(), p.perm_type)).collect::<Vec<_>>()
    };
    cluster.grant("role", Type::Write, "r", "s").unwrap();
    assert_eq!(kinds(&cluster), [("b".into(), 2), ("r".into(), 1), ("w".into(), 1)].map(|k: (Bytes, i32)| k));
    assert_eq!(cluster.reads("alice", "r", ""), Err(Refused::PermissionDenied));
    let revoke = |key: &str, end: &str| {
        let (role, key, range_end) = ("role".into(), key.to_owned().into(), end.to_owned().into());
        Command::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest { role, key, range_end })
    };
    assert_eq!(cluster.change(revoke("b", "")), no(Refused::PermissionNotGranted));
    assert_eq!(cluster.change(revoke("b", "c")), Ok(()));
    assert_eq!(kinds(&cluster).len(), 2);
}

#[test]
fn the_role_root_shows_all_keys() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.auth().permissions("root"), Err(Refused::RoleNotFound));
    cluster.add_role("root").unwrap();
    let all = Permission { perm_type: Type::Readwrite.into(), key: "".into(), range_end: "\0".into() };
    assert_eq!(cluster.auth().permissions("root"), Ok(vec![all]));
}

#[test]
fn each_operation_needs_its_permission() {
    let mut cluster = Cluster::guarded();
    let denied = Err(Refused::PermissionDenied);
    assert_eq!(cluster.alice(Command::Put(put("w"))), Ok(()));
    assert_eq!(cluster.alice(Command::Put(put("r"))), denied);
    assert_eq!(cluster.alice(Command::Put(pb::PutRequest { prev_kv: true, ..put("w") })), denied, "it reads");
    assert_eq!(cluster.alice(Command::Put(pb::PutRequest { prev_kv: true, ..put("b") })), Ok(()));
    assert_eq!(cluster.alice(Command::DeleteRange(delete("w", "x", false))), Ok(()));
    assert_eq!(cluster.alice(Command::DeleteRange(delete("w", "x", true))), denied);
    assert_eq!(cluster.alice(Command::DeleteRange(delete("b", "c", true))), Ok(()));
    assert_eq!(cluster.alice(Command::DeleteRange(delete("w", "\0", false))), denied);
    let compare = vec![pb::Compare { key: "w".into(), ..Default::default() }];
    assert_eq!(cluster.alice(Command::Txn(pb::TxnRequest { compare, ..Default::default() })), denied, "it reads");
    let both = txn(vec![op(Request::RequestPut(put("w")))], vec![op(Request::RequestRange(range("x", "")))]);
    assert_eq!(cluster.alice(Command::Txn(both)), denied, "the branch that is not taken counts");
    for (name, refusal) in [("", Refused::UserEmpty), ("nobody", Refused::PermissionDenied)] {
        assert_eq!(cluster.run(name, Command::Put(put("w"))), Err(Refusal::Auth(refusal)), "{name:?}");
    }
    assert!(cluster.run("root", Command::Put(put("anything"))).is_ok());
}

#[test]
fn only_root_manages_and_only_while_it_is_root() {
    let mut cluster = Cluster::guarded();
    let add = || Command::RoleAdd(pb::AuthRoleAddRequest { name: "mine".into() });
    assert_eq!(cluster.alice(add()), Err(Refused::PermissionDenied));
    assert_eq!(cluster.run("", add()), Err(Refusal::Auth(Refused::UserEmpty)));
    assert_eq!(cluster.run("nobody", add()), Err(Refusal::Auth(Refused::UserNotFound)));
    cluster.grant_role("alice", "root").unwrap();
    assert_eq!(cluster.alice(add()), Ok(()));
}

#[test]
fn what_was_permitted_when_it_was_proposed_is_decided_when_it_is_applied() {
    let mut cluster = Cluster::guarded();
    let revision = cluster.auth().revision();
    let stale = |command| log::Proposal {
        username: "alice".into(),
        auth_revision: revision,
        command: Some(command),
        ..Default::default()
    };
    assert!(cluster.apply(stale(Command::Put(put("w")))).is_ok());
    cluster.add_role("other").unwrap();
    assert_eq!(cluster.apply(stale(Command::Put(put("w")))), Err(Refusal::Auth(Refused::AuthOldRevision)));
}

#[test]
fn a_members_own_commands_need_no_permission() {
    let mut cluster = Cluster::guarded();
    let own = log::Proposal { internal: true, command: Some(Command::Put(put("x"))), ..Default::default() };
    assert!(cluster.apply(own).is_ok());
    assert_eq!(cluster.run("", Command::Put(put("x"))), Err(Refusal::Auth(Refused::UserEmpty)));
}

#[test]
fn cve_2026_33343_nested_transactions_are_checked_in_both_branches() {
    let mut cluster = Cluster::guarded();
    for request in [
        Request::RequestPut(put("r")),
        Request::RequestRange(range("w", "")),
        Request::RequestDeleteRange(delete("r", "", false)),
    ] {
        for command in nested(request.clone()) {
            assert_eq!(cluster.alice(command), Err(Refused::PermissionDenied), "{request:?}");
        }
    }
    let compare = vec![pb::Compare { key: "w".into(), ..Default::default() }];
    let inner = op(Request::RequestTxn(pb::TxnRequest { compare, ..Default::default() }));
    assert_eq!(cluster.alice(Command::Txn(txn(vec![inner], vec![]))), Err(Refused::PermissionDenied));
    for command in nested(Request::RequestPut(put("w"))) {
        assert_eq!(cluster.alice(command), Ok(()));
    }
}

#[test]
fn etcd_3_6_11_a_nested_put_or_delete_that_shows_the_pair_before_it_reads() {
    let mut cluster = Cluster::guarded();
    for command in nested(Request::RequestPut(pb::PutRequest { prev_kv: true, ..put("w") })) {
        assert_eq!(cluster.alice(command), Err(Refused::PermissionDenied));
    }
    for command in nested(Request::RequestDeleteRange(delete("w", "x", true))) {
        assert_eq!(cluster.alice(command), Err(Refused::PermissionDenied));
    }
}

/// One lease, 7, with keys.
struct OneLease(&'static [&'static str]);

impl LeaseKeys for OneLease {
    fn keys_of(&self, lease: i64) -> Result<Vec<Bytes>, crate::storage::StorageError> {
        Ok(if lease == 7 { self.0.iter().map(|key| Bytes::from_static(key.as_bytes())).collect() } else { Vec::new() })
    }
}

#[test]
fn etcd_3_6_11_attaching_a_lease_needs_all_its_keys_nested_too() {
    let cluster = Cluster::guarded();
    let auth = cluster.auth();
    let alice = Identity { username: "alice".into(), revision: auth.revision() };
    let root = Identity { username: "root".into(), revision: auth.revision() };
    let attach = || pb::PutRequest { lease: 7, ..put("w") };
    let mut commands = vec![Command::Put(attach())];
    commands.extend(nested(Request::RequestPut(attach())));
    for command in commands {
        let check = |who, keys| auth.check_command(who, &command, &OneLease(keys));
        assert!(check(&alice, &["w1", "b"]).is_ok());
        let denied = check(&alice, &["w1", "r"]);
        assert!(matches!(denied, Err(ReadError::Refused(Refusal::Auth(Refused::PermissionDenied)))), "{command:?}");
        assert!(check(&root, &["w1", "r"]).is_ok());
    }
    let shows = |keys| auth.check_lease(&alice, Need::Read, 7, &OneLease(keys)).is_ok();
    assert!(shows(&["r"]) && !shows(&["r", "w"]));
}

#[test]
fn a_lease_is_revoked_by_whoever_may_write_all_its_keys_and_expires_without_asking() {
    let mut cluster = Cluster::guarded();
    let grant = |id| Command::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id });
    let revoke = |id| Command::LeaseRevoke(pb::LeaseRevokeRequest { id });
    for (id, key) in [(1, "w"), (2, "r"), (3, "r"), (4, "")] {
        cluster.change(grant(id)).unwrap();
        if !key.is_empty() {
            cluster.change(Command::Put(pb::PutRequest { lease: id, ..put(key) })).unwrap();
        }
    }
    assert_eq!(cluster.alice(revoke(3)), Err(Refused::PermissionDenied));
    assert_eq!(cluster.alice(Command::Put(pb::PutRequest { lease: 3, ..put("w1") })), Err(Refused::PermissionDenied));
    assert_eq!(cluster.alice(revoke(1)), Ok(()));
    assert_eq!(cluster.alice(revoke(4)), Ok(()), "it holds no key");
    assert_eq!(cluster.alice(grant(5)), Ok(()));
    let expire = Command::LeaseExpire(log::ExpireLease { id: 3, term: 1 });
    assert!(cluster.run("", expire).is_ok(), "its time is over, whoever owns its keys");
}

#[test]
fn ghsa_xg4h_6gfc_h4m8_a_key_is_not_all_keys_from_it_on() {
    let mut cluster = Cluster::guarded();
    cluster.grant("role", Type::Read, "key", "").unwrap();
    assert_eq!(cluster.reads("alice", "key", ""), Ok(()));
    for end in ["\0", "kez", "key\0\0"] {
        assert_eq!(cluster.reads("alice", "key", end), Err(Refused::PermissionDenied), "{end:?}");
    }
}

#[test]
fn cve_2021_28235_the_log_holds_no_password() {
    // What a service proposes of an authentication has no field for one; what adds a user holds the hash alone.
    let mut cluster = Cluster::guarded();
    let revision = cluster.auth().revision();
    let answer = cluster.authenticate("alice", revision).unwrap();
    assert!(matches!(answer, Outcome::Auth { token, .. } if token == format!("prefix.{}", cluster.index)));
    let plain = pb::AuthUserAddRequest { name: "bob".into(), password: "secret".into(), ..Default::default() };
    cluster.change(Command::UserAdd(plain)).unwrap();
    assert_eq!(cluster.auth().user("bob").unwrap().password_hash(), b"", "a password in the clear is no hash");
}

#[test]
fn a_token_is_for_a_user_whose_password_was_checked_at_this_revision() {
    let mut cluster = Cluster::guarded();
    let certified = pb::AuthUserAddRequest {
        name: "certified".into(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    };
    cluster.change(Command::UserAdd(certified)).unwrap();
    let revision = cluster.auth().revision();
    for name in ["nobody", "certified"] {
        assert_eq!(cluster.authenticate(name, revision), Err(Refusal::Auth(Refused::AuthFailed)), "{name}");
    }
    assert_eq!(cluster.authenticate("alice", revision - 1), Err(Refusal::Auth(Refused::AuthOldRevision)));
    assert!(cluster.authenticate("alice", revision).is_ok());
    cluster.change(Command::AuthDisable(pb::AuthDisableRequest {})).unwrap();
    assert_eq!(cluster.authenticate("alice", revision + 1), Err(Refusal::Auth(Refused::AuthNotEnabled)));
}

#[test]
fn tokens_go_with_the_password_the_user_and_auth_itself() {
    let mut cluster = Cluster::guarded();
    let revision = cluster.auth().revision();
    cluster.authenticate("alice", revision).unwrap();
    let assigned = TokenChange::Assigned { token: format!("prefix.{}", cluster.index), username: "alice".into() };
    let hashed_password = STANDARD.encode("new");
    let request = pb::AuthUserChangePasswordRequest { name: "alice".into(), hashed_password, ..Default::default() };
    cluster.change(Command::UserChangePassword(request)).unwrap();
    assert_eq!(cluster.auth().user("alice").unwrap().password_hash(), b"new");
    cluster.delete_user("alice").unwrap();
    cluster.change(Command::AuthDisable(pb::AuthDisableRequest {})).unwrap();
    let gone = TokenChange::UserGone("alice".into());
    assert_eq!(cluster.tokens, [assigned, gone.clone(), gone, TokenChange::Cleared]);
}

#[test]
fn a_hash_that_is_no_base64_is_refused() {
    let mut cluster = Cluster::guarded();
    let change = |hash: &str| {
        let (name, hashed_password) = ("alice".into(), hash.into());
        Command::UserChangePassword(pb::AuthUserChangePasswordRequest { name, hashed_password, ..Default::default() })
    };
    assert_eq!(cluster.change(change("%")), no(Refused::NoPasswordUser));
    assert_eq!(cluster.change(change("aGFz\r\naA==")), Ok(()), "Go skips line breaks");
    assert_eq!(cluster.auth().user("alice").unwrap().password_hash(), b"hash");
}

#[test]
fn what_is_written_is_what_a_restart_finds() {
    let mut cluster = Cluster::guarded();
    cluster.add_user("bob");
    cluster.grant_role("bob", "role").unwrap();
    cluster.delete_user("bob").unwrap();
    cluster.add_role("gone").unwrap();
    cluster.grant_role("alice", "gone").unwrap();
    cluster.delete_role("gone").unwrap();
    assert_eq!(load(&cluster.key_space.view().unwrap()).unwrap(), *cluster.auth());
    let reopened = StateMachine::open(cluster.key_space.clone()).unwrap();
    assert_eq!(**reopened.auth(), *cluster.auth());
    cluster.change(Command::AuthDisable(pb::AuthDisableRequest {})).unwrap();
    assert_eq!(load(&cluster.key_space.view().unwrap()).unwrap(), *cluster.auth());
}

#[test]
fn changes_are_announced_before_a_view_shows_them() {
    let mut cluster = Cluster::guarded();
    let remove = Command::UserDelete(pb::AuthUserDeleteRequest { name: "alice".into() });
    let revision = cluster.auth().revision();
    let proposal =
        log::Proposal { username: "root".into(), auth_revision: revision, command: Some(remove), ..Default::default() };
    let data = log::Batch { proposals: vec![proposal] }.encode_to_vec().into();
    let entry = Entry { index: cluster.index + 1, term: 1, data, ..Default::default() };
    let (key_space, mut announced) = (cluster.key_space.clone(), None);
    let shown = || load(&key_space.view().unwrap()).unwrap().revision();
    cluster
        .machine
        .apply_announced(&[entry], |effects| {
            announced = Some((effects.auth.as_ref().unwrap().revision(), shown()));
        })
        .unwrap();
    assert_eq!((announced, shown()), (Some((revision + 1, revision)), revision + 1));
}
