//! Users and permissions as clients meet them. One script of etcdctl commands runs against etcd and against a member of
//! ours, and every line that it prints must be the same; what etcd's 3.6.8 still leaves open is tested by name.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::auth_client::AuthClient;
use pb::watch_request::RequestUnion;
use tempfile::TempDir;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cluster::{Cluster, Member, PATIENCE, free_port};

/// Cheap hashes: these tests are about who may do what.
const CHEAP: &[&str] = &["--bcrypt-cost=4"];

/// A line is a command. `@user:password` in front gives credentials.
const SCRIPT: &str = "
auth status
auth enable
user add root:rootpw
user add root:rootpw
auth enable
user grant-role root root
user grant-role root nothing
user grant-role nobody root
role add mixed
role add mixed
role grant-permission mixed read r s
role grant-permission mixed write w x
role grant-permission mixed readwrite b c
role grant-permission mixed read single
role grant-permission mixed read z a
role grant-permission nothing read a
role revoke-permission mixed nothing
role revoke-permission nothing a
role get mixed
role get nothing
role list
user add alice:alicepw
user add carol:carolpw
user add certified --no-password
user grant-role alice mixed
user get alice
user get nobody
user list
user passwd --interactive=false nobody
put r 1
put w 1
put b 1
put single 1
put single1 1
@root:rootpw get r
auth enable
auth enable
get r
put r 1
del r
user list
@alice:wrong get r
@nobody:pw get r
@certified:pw get r
@root:rootpw auth status
@alice:alicepw get r
@alice:alicepw get r s
@alice:alicepw get r t
@alice:alicepw get q s
@alice:alicepw get w
@alice:alicepw get single
@alice:alicepw get single --from-key
@alice:alicepw get single --prefix
@alice:alicepw get b --prefix
@alice:alicepw put w 2
@alice:alicepw put r 2
@alice:alicepw put w 2 --prev-kv
@alice:alicepw put b 2 --prev-kv
@alice:alicepw del w
@alice:alicepw del b --prev-kv
@alice:alicepw del w x --prev-kv
@alice:alicepw del a z
@alice:alicepw del '' --from-key
@alice:alicepw compact 1
@alice:alicepw user get alice
@alice:alicepw user get root
@alice:alicepw user list
@alice:alicepw user add dave:davepw
@alice:alicepw user delete carol
@alice:alicepw user grant-role alice root
@alice:alicepw role get mixed
@alice:alicepw role get root
@alice:alicepw role list
@alice:alicepw role add mine
@alice:alicepw role grant-permission mixed readwrite a z
@alice:alicepw auth disable
@alice:alicepw member remove 1
@alice:alicepw defrag
@carol:carolpw get r
@root:rootpw get '' --from-key --keys-only
@root:rootpw user delete root
@root:rootpw user revoke-role root root
@root:rootpw user revoke-role alice nothing
@root:rootpw role delete root
@root:rootpw role add root
@root:rootpw role get root
@root:rootpw role delete root
@root:rootpw user delete carol
@carol:carolpw get r
@root:rootpw role revoke-permission mixed r s
@alice:alicepw get r
@root:rootpw role revoke-permission mixed r s
@root:rootpw role delete mixed
@root:rootpw role delete mixed
@root:rootpw user get alice
@alice:alicepw put w 1
@root:rootpw user grant-role alice root
@alice:alicepw put anything 1
@alice:alicepw compact 3
@root:rootpw user revoke-role alice root
@alice:alicepw put anything 1
@root:rootpw auth disable
put r 1
auth disable
@alice:alicepw get r
auth status
";

/// etcd itself, alone, on a disk of its own.
pub(crate) struct Etcd {
    process: Child,
    pub(crate) url: String,
    _data: TempDir,
}

impl Etcd {
    pub(crate) fn start(program: &str) -> Self {
        let data = TempDir::new().expect("a directory");
        let url = || format!("http://127.0.0.1:{}", free_port());
        let (client, peer) = (url(), url());
        let process = Command::new(program)
            .arg(format!("--data-dir={}", data.path().display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .arg("--bcrypt-cost=4")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} is on the PATH, `make install` builds it: {error}"));
        let etcd = Self { process, url: client, _data: data };
        let deadline = Instant::now() + PATIENCE;
        while etcdctl(&etcd.url, "put started 1").1 != "OK\n" {
            assert!(Instant::now() < deadline, "etcd does not start");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a command: its exit code, what it prints, and the line of its error.
pub(crate) fn etcdctl(url: &str, line: &str) -> (Option<i32>, String, Option<String>) {
    let words = line.split(' ').map(|word| word.trim_matches('\''));
    let (user, words): (Option<&str>, Vec<&str>) = match line.strip_prefix('@') {
        Some(_) => (words.clone().next().map(|word| &word[1..]), words.skip(1).collect()),
        None => (None, words.collect()),
    };
    let mut command = Command::new("etcdctl");
    command.arg(format!("--endpoints={url}")).args(words).stdin(Stdio::null());
    command.args(user.map(|user| format!("--user={user}")));
    let output = command.output().expect("etcdctl is on the PATH: `make install` builds it");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let error = errors.lines().rfind(|line| line.starts_with("Error: ")).map(str::to_owned);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), error)
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_sees_no_difference_from_etcd() {
    let (etcd, cluster) = (Etcd::start("etcd"), Cluster::start_with(1, CHEAP).await);
    let ours = cluster.members[0].client_url();
    etcdctl(&ours, "put started 1");
    let mut differences = Vec::new();
    for line in SCRIPT.lines().filter(|line| !line.is_empty()) {
        let (expected, found) = (etcdctl(&etcd.url, line), etcdctl(&ours, line));
        if expected != found {
            differences.push(format!("{line}\n  etcd:  {expected:?}\n  balsa: {found:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

impl Member {
    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel())
    }

    async fn token(&self, name: &str, password: &str) -> Result<String, Status> {
        let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        Ok(self.auth().authenticate(request).await?.into_inner().token)
    }
}

/// A request with a token; without one when it is empty.
pub(crate) fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("text"));
    }
    request
}

/// Auth enabled, with root:pw, and alice:pw who may read and write [a, b).
pub(crate) async fn guarded(size: usize) -> Cluster {
    guarded_and_led(size).await.0
}

/// As [`guarded`], and which member leads: one that is asked for that afterwards wants to know by whom.
async fn guarded_and_led(size: usize) -> (Cluster, usize) {
    let cluster = Cluster::start_with(size, CHEAP).await;
    let leader = cluster.leader().await;
    let url = cluster.members[0].client_url();
    for line in [
        "user add root:pw",
        "user grant-role root root",
        "user add alice:pw",
        "role add role",
        "role grant-permission role readwrite a b",
        "user grant-role alice role",
        "put a 1",
        "put b 1",
        "auth enable",
    ] {
        let (code, _, error) = etcdctl(&url, line);
        assert_eq!((code, error), (Some(0), None), "{line}");
    }
    (cluster, leader)
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

pub(crate) fn texts<T>(answer: Result<T, Status>) -> Result<(), (Code, String)> {
    answer.map(|_| ()).map_err(|status| (status.code(), status.message().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_member_is_good_at_every_member() {
    let cluster = guarded(3).await;
    for giver in &cluster.members {
        let token = giver.token("alice", "pw").await.expect("a token");
        for taker in &cluster.members {
            let serializable = pb::RangeRequest { serializable: true, ..get("a") };
            taker.kv().range(with(&token, serializable)).await.expect("a read of what the member has");
            taker.kv().put(with(&token, put("a"))).await.expect("a write");
        }
    }
    let bad = (Code::Unauthenticated, "etcdserver: invalid auth token".to_owned());
    for token in ["prefix.1", "prefix.999999999", "prefix", "a.b.c"] {
        assert_eq!(texts(cluster.members[0].kv().range(with(token, get("a"))).await), Err(bad.clone()), "{token}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_roles_outlive_a_restart_and_tokens_the_change_of_the_leader() {
    let (mut cluster, leader) = guarded_and_led(3).await;
    let follower = (leader + 1) % 3;
    let token = cluster.members[follower].token("alice", "pw").await.expect("a token");
    cluster.members[leader].kill();
    let other = &cluster.members[(leader + 2) % 3];
    cluster.eventually("writes go on", || async { other.kv().put(with(&token, put("a"))).await.is_ok() }).await;
    cluster.restart(leader);
    let back = &cluster.members[leader];
    cluster.eventually("it is back", || async { back.token("alice", "pw").await.is_ok() }).await;
    let token = back.token("alice", "pw").await.expect("a token");
    let denied = (Code::PermissionDenied, "etcdserver: permission denied".to_owned());
    assert_eq!(texts(back.kv().range(with(&token, get("b"))).await), Err(denied));
    assert_eq!(texts(back.kv().range(with(&token, get("a"))).await), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_33413_every_call_is_guarded() {
    let cluster = guarded(1).await;
    let member = &cluster.members[0];
    let (root, alice) =
        (member.token("root", "pw").await.expect("root"), member.token("alice", "pw").await.expect("alice"));
    let anonymous = (Code::InvalidArgument, "etcdserver: user name is empty".to_owned());
    let denied = (Code::PermissionDenied, "etcdserver: permission denied".to_owned());
    let target = pb::MoveLeaderRequest { target_id: 99 };
    for (token, refusal) in [("", &anonymous), (alice.as_str(), &denied)] {
        let (mut maintenance, mut members) = (member.maintenance(), member.cluster());
        let learner = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: true };
        let raise = pb::AlarmRequest { action: 1, member_id: 0, alarm: 1 };
        let downgrade = pb::DowngradeRequest { action: 1, version: "3.5".into() };
        let update = pb::MemberUpdateRequest { id: 1, peer_ur_ls: vec!["http://127.0.0.1:1".into()] };
        let answers = [
            texts(maintenance.hash(with(token, pb::HashRequest {})).await),
            texts(maintenance.hash_kv(with(token, pb::HashKvRequest { revision: 0 })).await),
            texts(maintenance.snapshot(with(token, pb::SnapshotRequest {})).await),
            texts(maintenance.defragment(with(token, pb::DefragmentRequest {})).await),
            texts(maintenance.move_leader(with(token, target)).await),
            texts(maintenance.alarm(with(token, raise)).await),
            texts(maintenance.downgrade(with(token, downgrade)).await),
            texts(members.member_add(with(token, learner)).await),
            texts(members.member_update(with(token, update)).await),
            texts(members.member_remove(with(token, pb::MemberRemoveRequest { id: 1 })).await),
            texts(members.member_promote(with(token, pb::MemberPromoteRequest { id: 1 })).await),
            texts(member.kv().compact(with(token, pb::CompactionRequest { revision: 2, physical: false })).await),
            texts(member.auth().auth_disable(with(token, pb::AuthDisableRequest {})).await),
        ];
        for (at, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer, Err(refusal.clone()), "call {at} with {token:?}");
        }
    }
    let look = pb::AlarmRequest::default();
    let list = pb::MemberListRequest { linearizable: false };
    for (token, expected) in [("", Err(anonymous)), (alice.as_str(), Ok(())), (root.as_str(), Ok(()))] {
        assert_eq!(texts(member.maintenance().status(with(token, pb::StatusRequest {})).await), expected, "{token:?}");
        assert_eq!(texts(member.maintenance().alarm(with(token, look)).await), expected, "{token:?}");
        assert_eq!(texts(member.cluster().member_list(with(token, list)).await), expected, "{token:?}");
    }
    let status = member.auth().auth_status(pb::AuthStatusRequest {}).await.expect("needs no credentials");
    assert!(status.into_inner().enabled);
    assert!(member.maintenance().hash(with(&root, pb::HashRequest {})).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_range_is_guarded_as_a_range_is() {
    let cluster = guarded(1).await;
    let member = &cluster.members[0];
    let alice = member.token("alice", "pw").await.expect("a token");
    let anonymous = (Code::InvalidArgument, "etcdserver: user name is empty".to_owned());
    let denied = (Code::PermissionDenied, "etcdserver: permission denied".to_owned());
    assert_eq!(texts(member.kv().range_stream(with("", get("a"))).await), Err(anonymous));
    assert_eq!(texts(member.kv().range_stream(with(&alice, get("b"))).await), Err(denied));
    let pieces =
        member.kv().range_stream(with(&alice, get("a"))).await.expect("permitted").into_inner().message().await;
    assert_eq!(pieces.expect("a piece").expect("one").range_response.expect("an answer").kvs.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_pass_for_a_member() {
    let (cluster, leader) = guarded_and_led(3).await;
    let follower = &cluster.members[(leader + 1) % 3];
    let mut request = Request::new(pb::MemberRemoveRequest { id: 1 });
    request.metadata_mut().insert("balsa-forwarded", "1".parse().expect("text"));
    let refused = follower.cluster().member_remove(request).await.expect_err("refused");
    assert_eq!(refused.message(), "etcdserver: user name is empty");
}

/// What a watch of `key` and `range_end` answers first: whether it was cancelled, and why.
async fn watch(member: &Member, token: &str, key: &str, range_end: &str) -> (bool, String) {
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(create).await.expect("sent");
    let answers = member.watch().watch(with(token, ReceiverStream::new(stream))).await.expect("a stream");
    let answer = answers.into_inner().message().await.expect("open").expect("an answer");
    assert!(answer.created);
    assert_eq!(answer.watch_id == -1, answer.canceled);
    (answer.canceled, answer.cancel_reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn ghsa_xg4h_6gfc_h4m8_a_watch_needs_every_key_that_it_names() {
    let cluster = guarded(1).await;
    let member = &cluster.members[0];
    let alice = member.token("alice", "pw").await.expect("a token");
    let denied = (true, "rpc error: code = PermissionDenied desc = etcdserver: permission denied".to_owned());
    for (key, end) in [("a", ""), ("a", "b"), ("a1", "a2")] {
        assert_eq!(watch(member, &alice, key, end).await, (false, String::new()), "{key:?} {end:?}");
    }
    for (key, end) in [("b", ""), ("a", "\0"), ("a", "c"), ("", ""), ("", "\0"), ("\0", "\0")] {
        assert_eq!(watch(member, &alice, key, end).await, denied, "{key:?} {end:?}");
    }
    let reason = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
    assert_eq!(watch(member, "", "a", "").await, (true, reason.to_owned()));
    let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert_eq!(watch(member, "nobody.1", "a", "").await, (true, reason.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_void_once_the_password_is_changed() {
    let cluster = guarded(3).await;
    let (one, other) = (&cluster.members[1], &cluster.members[2]);
    let (root, alice) = (one.token("root", "pw").await.expect("root"), one.token("alice", "pw").await.expect("alice"));
    other.kv().range(with(&alice, get("a"))).await.expect("good at first");
    let change =
        pb::AuthUserChangePasswordRequest { name: "alice".into(), password: "new".into(), ..Default::default() };
    one.auth().user_change_password(with(&root, change)).await.expect("changed");
    let void = Err((Code::Unauthenticated, "etcdserver: invalid auth token".to_owned()));
    assert_eq!(texts(one.kv().range(with(&alice, get("a"))).await), void);
    assert_eq!(texts(other.kv().range(with(&alice, get("a"))).await), void);
    let failed = (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password".to_owned());
    assert_eq!(texts(other.token("alice", "pw").await), Err(failed));
    let alice = other.token("alice", "new").await.expect("the new one");
    one.kv().range(with(&alice, get("a"))).await.expect("good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_token_is_of_one_auth_revision() {
    let keys = TempDir::new().expect("a directory");
    let secret = keys.path().join("secret");
    std::fs::write(&secret, "between us").expect("written");
    let flag = format!("jwt,sign-method=HS256,priv-key={}", secret.display());
    let mut cluster = Cluster::unstarted(1);
    let all = cluster.initial_cluster();
    cluster.run_with(0, &all, "new", &[("BALSA_AUTH_TOKEN", &flag)]);
    cluster.leader().await;
    let (member, url) = (&cluster.members[0], cluster.members[0].client_url());
    for line in ["user add root:pw", "user grant-role root root", "auth enable"] {
        assert_eq!(etcdctl(&url, line).0, Some(0), "{line}");
    }
    let token = member.token("root", "pw").await.expect("a token");
    assert_eq!(token.split('.').count(), 3, "{token}");
    member.kv().put(with(&token, put("a"))).await.expect("a write");
    member.auth().role_add(with(&token, pb::AuthRoleAddRequest { name: "role".into() })).await.expect("a change");
    let old = (Code::InvalidArgument, "etcdserver: revision of auth store is old".to_owned());
    assert_eq!(texts(member.kv().range(with(&token, get("a"))).await), Err(old.clone()));
    assert_eq!(texts(member.kv().put(with(&token, put("a"))).await), Err(old));
    let token = member.token("root", "pw").await.expect("another");
    member.kv().range(with(&token, get("a"))).await.expect("a read");
}
