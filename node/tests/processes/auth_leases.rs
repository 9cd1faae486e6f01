//! Permissions on leases, locks and elections: the same calls to etcd and to a member of ours, as everybody, must be
//! answered alike. Leases themselves are free to every user; what hangs on them is not. etcd 3.7 is asked, because 3.6.8
//! lets everybody list, renew and ask for any lease, without a user too.

use std::time::Duration;

use balsa_proto::etcdserverpb as pb;
use balsa_proto::etcdserverpb::auth_client::AuthClient;
use balsa_proto::etcdserverpb::kv_client::KvClient;
use balsa_proto::etcdserverpb::lease_client::LeaseClient;
use balsa_proto::etcdserverpb::watch_client::WatchClient;
use balsa_proto::etcdserverpb::watch_request::RequestUnion;
use balsa_proto::v3electionpb as election;
use balsa_proto::v3electionpb::election_client::ElectionClient;
use balsa_proto::v3lockpb as lock;
use balsa_proto::v3lockpb::lock_client::LockClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::auth::{Etcd, etcdctl, with};
use crate::cluster::Cluster;

/// alice may read and write [a, b), rita may read [a, b), carol may do nothing.
const SETUP: [&str; 13] = [
    "user add root:pw",
    "user grant-role root root",
    "user add alice:pw",
    "user add rita:pw",
    "user add carol:pw",
    "role add writer",
    "role grant-permission writer readwrite a b",
    "user grant-role alice writer",
    "role add reader",
    "role grant-permission reader read a b",
    "user grant-role rita reader",
    "put b 1",
    "auth enable",
];

const NOBODY: &str = "";
const CALLERS: [&str; 5] = [NOBODY, "carol", "rita", "alice", "root"];

/// One server, asked by one user at a time.
struct Asked {
    channel: Channel,
    token: String,
    user: &'static str,
    told: Vec<String>,
}

impl Asked {
    fn new(url: &str) -> Self {
        for line in SETUP {
            let (code, _, error) = etcdctl(url, line);
            assert_eq!((code, error), (Some(0), None), "{line}");
        }
        let channel = Endpoint::from_shared(url.to_owned()).expect("a URL").connect_lazy();
        Self { channel, token: String::new(), user: NOBODY, told: Vec::new() }
    }

    async fn be(&mut self, user: &'static str) {
        self.user = user;
        self.token = String::new();
        if user != NOBODY {
            let request = pb::AuthenticateRequest { name: user.into(), password: "pw".into() };
            let answer = AuthClient::new(self.channel.clone()).authenticate(request).await.expect("a token");
            self.token = answer.into_inner().token;
        }
    }

    /// Waits for an answer and notes it, with what `show` says of it.
    async fn tell<T>(
        &mut self,
        call: &str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::new(Code::Unknown, "no answer"))).map(Response::into_inner);
        let said = match &answer {
            Ok(answer) => show(answer),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.told.push(format!("{:5} {call}: {said}", self.user));
        answer.ok()
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel.clone())
    }

    fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }

    async fn grant(&mut self, id: i64) {
        let (mut client, token) = (self.lease(), self.token.clone());
        let grant = client.lease_grant(with(&token, pb::LeaseGrantRequest { id, ttl: 600 }));
        self.tell(&format!("grant {id}"), grant, |answer| answer.id.to_string()).await;
    }

    async fn put(&mut self, key: &str, lease: i64) {
        let (mut client, token) = (self.kv(), self.token.clone());
        let request = pb::PutRequest { key: key.to_owned().into(), lease, ..Default::default() };
        self.tell(&format!("put {key} {lease}"), client.put(with(&token, request)), |_| "done".to_owned()).await;
    }

    async fn revoke(&mut self, id: i64) {
        let (mut client, token) = (self.lease(), self.token.clone());
        let revoke = client.lease_revoke(with(&token, pb::LeaseRevokeRequest { id }));
        self.tell(&format!("revoke {id}"), revoke, |_| "done".to_owned()).await;
    }

    async fn ttl(&mut self, id: i64, keys: bool) {
        let (mut client, token) = (self.lease(), self.token.clone());
        let asked = client.lease_time_to_live(with(&token, pb::LeaseTimeToLiveRequest { id, keys }));
        let show = |answer: &pb::LeaseTimeToLiveResponse| {
            // etcd's order is that of a map.
            let mut keys = answer.keys.clone();
            keys.sort();
            format!("{} {keys:?}", answer.granted_ttl)
        };
        self.tell(&format!("ttl {id} {keys}"), asked, show).await;
    }

    async fn keep_alive(&mut self, id: i64) {
        let (mut client, token) = (self.lease(), self.token.clone());
        let renewed = async {
            let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
            let answers = client.lease_keep_alive(with(&token, requests)).await?;
            let answer = answers.into_inner().message().await?;
            answer.map(Response::new).ok_or_else(|| Status::new(Code::Unknown, "the stream ended"))
        };
        self.tell(&format!("renew {id}"), renewed, |answer| answer.ttl.to_string()).await;
    }

    /// Renews leases over one stream, all asked for in one write: every answer, and how the stream ends.
    async fn keep_all_alive(&mut self, ids: &[i64]) {
        let (mut client, token) = (self.lease(), self.token.clone());
        let requests: Vec<_> = ids.iter().map(|id| pb::LeaseKeepAliveRequest { id: *id }).collect();
        let renewed = async {
            let answers = client.lease_keep_alive(with(&token, tokio_stream::iter(requests))).await?;
            let (mut answers, mut said) = (answers.into_inner(), Vec::new());
            loop {
                match answers.message().await {
                    Ok(Some(answer)) => said.push(format!("{} for {}", answer.id, answer.ttl)),
                    Ok(None) => said.push("the end".to_owned()),
                    Err(status) => said.push(format!("{:?}: {}", status.code(), status.message())),
                }
                if !said.last().is_some_and(|last| last.contains(" for ")) {
                    return Ok(Response::new(said));
                }
            }
        };
        self.tell(&format!("renew {ids:?}"), renewed, |said| said.join(", ")).await;
    }

    /// What an observer of an election hears first.
    async fn observe(&mut self, name: &str) {
        let (mut client, token) = (self.election(), self.token.clone());
        let request = election::LeaderRequest { name: name.to_owned().into() };
        let heard = async {
            let mut answers = client.observe(with(&token, request)).await?.into_inner();
            answers.message().await?.map(Response::new).ok_or_else(|| Status::new(Code::Unknown, "the stream ended"))
        };
        // Who may not read the keys is left waiting, on etcd too.
        let heard = async {
            let heard = tokio::time::timeout(Duration::from_secs(5), heard).await;
            heard.unwrap_or_else(|_| Err(Status::new(Code::Unknown, "nothing is heard")))
        };
        let show = |answer: &election::LeaderResponse| format!("{:?}", answer.kv.as_ref().map(|kv| kv.value.clone()));
        self.tell(&format!("observe {name}"), heard, show).await;
    }

    /// What a watch of the past hears: that it is there or cancelled, and then the first events.
    async fn watch_from_the_start(&mut self, key: &str) {
        let (mut client, token) = (WatchClient::new(self.channel.clone()), self.token.clone());
        let create = pb::WatchCreateRequest {
            key: key.to_owned().into(),
            start_revision: 1,
            prev_kv: true,
            ..Default::default()
        };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
        let heard = async {
            let mut answers = client.watch(with(&token, requests)).await?.into_inner();
            let mut heard = Vec::new();
            while let Some(answer) = answers.message().await? {
                let pb::WatchResponse { created, canceled, cancel_reason, events, .. } = answer;
                heard.push(format!("{created} {canceled} {cancel_reason:?} {}", events.len()));
                if canceled || !events.is_empty() {
                    break;
                }
            }
            Ok(Response::new(heard))
        };
        self.tell(&format!("watch {key}"), heard, |heard| heard.join(", ")).await;
    }

    async fn leases(&mut self) {
        let (mut client, token) = (self.lease(), self.token.clone());
        let listed = client.lease_leases(with(&token, pb::LeaseLeasesRequest {}));
        let show = |answer: &pb::LeaseLeasesResponse| {
            let mut ids: Vec<_> = answer.leases.iter().map(|lease| lease.id).collect();
            ids.sort_unstable();
            format!("{ids:?}")
        };
        self.tell("leases", listed, show).await;
    }
}

/// Runs the same calls against both and compares what they were told, call by call.
async fn compare(calls: impl AsyncFn(&mut Asked)) -> Vec<String> {
    let (etcd, cluster) = (Etcd::start("etcd-3.7"), Cluster::start_with(1, &["--bcrypt-cost=4"]).await);
    let (mut theirs, mut ours) = (Asked::new(&etcd.url), Asked::new(&cluster.members[0].client_url()));
    calls(&mut theirs).await;
    calls(&mut ours).await;
    let differ = |(theirs, ours): &(&String, &String)| theirs != ours;
    let differences: Vec<_> = theirs.told.iter().zip(&ours.told).filter(differ).collect();
    assert!(differences.is_empty(), "etcd and Balsa: {differences:#?}");
    assert_eq!(theirs.told.len(), ours.told.len());
    ours.told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_free_and_the_keys_on_it_are_not() {
    let told = compare(async |asked| {
        asked.be("root").await;
        for (id, key) in [(1, "a1"), (2, "a2"), (3, "b3")] {
            asked.grant(id).await;
            asked.put(key, id).await;
        }
        asked.grant(4).await;
        asked.put("a4", 4).await;
        asked.put("b4", 4).await;
        for (caller, user) in (10..).zip(CALLERS) {
            asked.be(user).await;
            asked.grant(caller).await;
            asked.leases().await;
            for id in [1, 3, 4, caller, 99] {
                asked.ttl(id, false).await;
                asked.ttl(id, true).await;
                asked.keep_alive(id).await;
                asked.put("a9", id).await;
            }
            for id in [caller, 4, 3, 2, 99] {
                asked.revoke(id).await;
            }
        }
    })
    .await;
    let denied = "PermissionDenied: etcdserver: permission denied";
    for (call, said) in [
        ("alice ttl 3 true", denied),
        ("alice revoke 3", denied),
        ("alice revoke 2", "done"),
        ("rita  revoke 2", denied),
    ] {
        assert!(told.contains(&format!("{call}: {said}")), "{call}: {said}\n{told:#?}");
    }
}

/// A client renews all its leases over one stream: what it may no longer renew must not cost it those before.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_renewals_answers_up_to_the_first_that_is_denied() {
    let told = compare(async |asked| {
        asked.be("root").await;
        for (id, key) in [(1, "a1"), (2, "b2"), (3, "a3")] {
            asked.grant(id).await;
            asked.put(key, id).await;
        }
        for user in CALLERS {
            asked.be(user).await;
            for ids in [&[1, 2, 3][..], &[1, 3, 99, 2, 2], &[3, 1], &[2, 1], &[99, 2]] {
                asked.keep_all_alive(ids).await;
            }
        }
    })
    .await;
    let denied = "PermissionDenied: etcdserver: permission denied";
    for said in [
        format!("alice renew [1, 2, 3]: 1 for 600, {denied}"),
        "alice renew [3, 1]: 3 for 600, 1 for 600, the end".to_owned(),
        format!("rita  renew [3, 1]: {denied}"),
    ] {
        assert!(told.contains(&said), "{said}\n{told:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_needs_what_its_key_needs() {
    let told = compare(async |asked| {
        for (id, user) in (1..).zip(CALLERS) {
            asked.be("root").await;
            asked.grant(id).await;
            asked.be(user).await;
            for name in ["a/lock", "b/lock"] {
                let (mut client, token) = (asked.lock(), asked.token.clone());
                let request = lock::LockRequest { name: name.into(), lease: id };
                let show = |answer: &lock::LockResponse| String::from_utf8_lossy(&answer.key).into_owned();
                let held = asked.tell(&format!("lock {name}"), client.lock(with(&token, request)), show).await;
                for key in [held.map(|held| held.key), Some("b/lock/1".into())].into_iter().flatten() {
                    let request = lock::UnlockRequest { key };
                    asked.tell("unlock", client.unlock(with(&token, request)), |_| "done".to_owned()).await;
                }
            }
        }
    })
    .await;
    assert!(told.contains(&"alice lock a/lock: a/lock/4".to_owned()), "{told:#?}");
    assert!(told.contains(&"alice lock b/lock: Unknown: etcdserver: permission denied".to_owned()), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_needs_what_its_keys_need() {
    let told = compare(async |asked| {
        for (id, user) in (1..).zip(CALLERS) {
            asked.be("root").await;
            asked.grant(id).await;
            asked.be(user).await;
            for name in ["a/post", "b/post"] {
                let (mut client, token) = (asked.election(), asked.token.clone());
                let request = election::CampaignRequest { name: name.into(), lease: id, value: "v".into() };
                let show = |answer: &election::CampaignResponse| {
                    answer
                        .leader
                        .as_ref()
                        .map(|leader| String::from_utf8_lossy(&leader.key).into_owned())
                        .unwrap_or_default()
                };
                let won = asked.tell(&format!("campaign {name}"), client.campaign(with(&token, request)), show).await;
                let ask = election::LeaderRequest { name: name.into() };
                let show =
                    |answer: &election::LeaderResponse| format!("{:?}", answer.kv.as_ref().map(|kv| kv.value.clone()));
                asked.tell("leader", client.leader(with(&token, ask)), show).await;
                let Some(leader) = won.and_then(|won| won.leader) else { continue };
                let proclaim = election::ProclaimRequest { leader: Some(leader.clone()), value: "w".into() };
                asked.tell("proclaim", client.proclaim(with(&token, proclaim)), |_| "done".to_owned()).await;
                let resign = election::ResignRequest { leader: Some(leader) };
                asked.tell("resign", client.resign(with(&token, resign)), |_| "done".to_owned()).await;
            }
        }
    })
    .await;
    assert!(told.contains(&"alice campaign a/post: a/post/4".to_owned()), "{told:#?}");
    assert!(told.contains(&"alice campaign b/post: Unknown: etcdserver: permission denied".to_owned()), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_observes_an_election_or_watches_the_past_must_be_able_to_read_it() {
    let told = compare(async |asked| {
        asked.be("root").await;
        for (id, name) in [(1, "a/post"), (2, "b/post")] {
            asked.grant(id).await;
            let (mut client, token) = (asked.election(), asked.token.clone());
            let request = election::CampaignRequest { name: name.into(), lease: id, value: "v".into() };
            asked.tell("campaign", client.campaign(with(&token, request)), |_| "won".to_owned()).await;
        }
        asked.put("a", 0).await;
        for user in CALLERS {
            asked.be(user).await;
            for name in ["a/post", "b/post"].into_iter().filter(|_| ["rita", "root"].contains(&user)) {
                asked.observe(name).await;
            }
            for key in ["a", "b"] {
                asked.watch_from_the_start(key).await;
            }
        }
    })
    .await;
    for said in [
        "rita  observe b/post: Unknown: the stream ended",
        "rita  watch a: true false \"\" 0, false false \"\" 1",
        "carol watch b: true true \"rpc error: code = PermissionDenied desc = etcdserver: permission denied\" 0",
    ] {
        assert!(told.contains(&said.to_owned()), "{said}\n{told:#?}");
    }
}
