//! Signed tokens over the wire, beside a running etcd with the same keys: each takes the other's, and what is wrong with a token is
//! answered alike by every call.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use balsa_proto::etcdserverpb as pb;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::auth::{etcdctl, with};
use crate::cluster::Cluster;
use crate::etcd::{Etcd, RELEASES, program};
use crate::gateway::http::healthy;

const SETUP: [&str; 8] = [
    "user add root:pw",
    "user grant-role root root",
    "user add alice:pw",
    "role add role",
    "role grant-permission role readwrite a",
    "user grant-role alice role",
    "put a 1",
    "auth enable",
];

/// A time that has not come yet when this is read.
const LATER: u64 = 1 << 40;

/// Files of keys of every kind; the certificate is what stands for the public key.
struct Keys(TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(TempDir::new().expect("a directory"));
        let rsa = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let rsa: Pkcs8V1Der<'_> = rsa.as_der().expect("PKCS#8");
        keys.write("rsa", &pem::encode(&pem::Pem::new("PRIVATE KEY", rsa.as_ref())));
        keys.write("ec", &rcgen::KeyPair::generate().expect("a key").serialize_pem());
        let ed = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        keys.write("ed", &ed.serialize_pem());
        keys.write("ed.pub", &ed.public_key_pem());
        for name in ["rsa", "ec"] {
            let key = rcgen::KeyPair::from_pem(&keys.read(name)).expect("a key");
            let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            keys.write(&format!("{name}.pub"), &parameters.self_signed(&key).expect("a certificate").pem());
        }
        keys.write("secret", "between us");
        keys
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).expect("read")
    }

    /// The flag for a method by files of these names, empty for none.
    fn flag(&self, method: &str, private: &str, public: &str) -> String {
        let file = |option: &str, name: &str| match name {
            "" => String::new(),
            name => format!(",{option}={}", self.0.path().join(name).display()),
        };
        format!("--auth-token=jwt,sign-method={method}{}{},ttl=1h", file("priv-key", private), file("pub-key", public))
    }

    /// A token with these claims under this head, signed by the RSA key as RS256 signs.
    fn sign(&self, head: &Value, claims: &Value) -> String {
        let encoded = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encoded(head), encoded(claims));
        let key = RsaKeyPair::from_pkcs8(pem::parse(self.read("rsa")).expect("PEM").contents()).expect("a key");
        let mut signed = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signed).expect("signed");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signed))
    }
}

/// A server with users.
struct Asked {
    channel: Channel,
    /// Ends with it.
    _server: (Option<Cluster>, Option<Etcd>),
}

impl Asked {
    async fn ours(flag: &str) -> Self {
        let mut cluster = Cluster::unstarted(1);
        cluster.members[0].flags = vec![flag.to_owned(), "--bcrypt-cost=4".to_owned()];
        cluster.found().await;
        Self::new(cluster.members[0].client_port, (Some(cluster), None)).await
    }

    async fn etcds(release: &str, flag: &str) -> Option<Self> {
        let etcd = Etcd::run(&program(release)?, 1, &[flag.to_owned(), "--bcrypt-cost=4".to_owned()]);
        Some(Self::new(etcd.port, (None, Some(etcd))).await)
    }

    async fn new(port: u16, server: (Option<Cluster>, Option<Etcd>)) -> Self {
        healthy(port).await;
        let url = format!("http://127.0.0.1:{port}");
        for line in SETUP {
            let (code, _, error) = etcdctl(&url, line);
            assert_eq!((code, error), (Some(0), None), "{line}");
        }
        Self { channel: Endpoint::from_shared(url).expect("a URL").connect_lazy(), _server: server }
    }

    async fn token(&self, user: &str) -> Result<String, Status> {
        let request = pb::AuthenticateRequest { name: user.into(), password: "pw".into() };
        Ok(AuthClient::new(self.channel.clone()).authenticate(request).await?.into_inner().token)
    }

    /// That of the users, which 3.6 tells root alone.
    async fn revision(&self) -> u64 {
        let token = self.token("root").await.expect("a token");
        let status = AuthClient::new(self.channel.clone()).auth_status(with(&token, pb::AuthStatusRequest {})).await;
        status.expect("a status").into_inner().auth_revision
    }

    async fn watch(&self, token: &str) -> Result<String, Status> {
        let create = pb::WatchCreateRequest { key: "a".into(), ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
        let mut answers = WatchClient::new(self.channel.clone()).watch(with(token, requests)).await?.into_inner();
        let answer = answers.message().await?.expect("an answer");
        Ok(format!("{} {} {}", answer.created, answer.canceled, answer.cancel_reason))
    }

    async fn renew(&self, token: &str) -> Result<i64, Status> {
        let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 99 }]);
        let answers = LeaseClient::new(self.channel.clone()).lease_keep_alive(with(token, requests)).await?;
        Ok(answers.into_inner().message().await?.expect("an answer").ttl)
    }

    /// What each call with this token is answered.
    async fn told(&self, token: &str) -> Vec<String> {
        let (mut kv, mut leases) = (KvClient::new(self.channel.clone()), LeaseClient::new(self.channel.clone()));
        let (mut auth, mut maintenance) =
            (AuthClient::new(self.channel.clone()), MaintenanceClient::new(self.channel.clone()));
        let mut members = ClusterClient::new(self.channel.clone());
        let get = |key: &'static str| pb::RangeRequest { key: key.into(), ..Default::default() };
        let put = pb::PutRequest { key: "a".into(), ..Default::default() };
        let list = pb::MemberListRequest { linearizable: false };
        let told = [
            ("range", said(kv.range(with(token, get("a"))).await)),
            ("denied range", said(kv.range(with(token, get("b"))).await)),
            ("put", said(kv.put(with(token, put)).await)),
            ("compact", said(kv.compact(with(token, pb::CompactionRequest::default())).await)),
            ("watch", self.watch(token).await.unwrap_or_else(|status| text(&status))),
            ("grant", said(leases.lease_grant(with(token, pb::LeaseGrantRequest { id: 0, ttl: 60 })).await)),
            ("leases", said(leases.lease_leases(with(token, pb::LeaseLeasesRequest {})).await)),
            ("renew", said(self.renew(token).await)),
            ("users", said(auth.user_list(with(token, pb::AuthUserListRequest {})).await)),
            ("members", said(members.member_list(with(token, list)).await)),
            ("status", said(maintenance.status(with(token, pb::StatusRequest {})).await)),
            ("hash", said(maintenance.hash(with(token, pb::HashRequest {})).await)),
        ];
        told.map(|(call, said)| format!("{call}: {said}")).into()
    }
}

fn said<T>(answer: Result<T, Status>) -> String {
    answer.map_or_else(|status| text(&status), |_| "done".to_owned())
}

fn text(status: &Status) -> String {
    format!("{:?} {}", status.code(), status.message())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_takes_the_tokens_of_the_other() {
    let keys = Keys::new();
    for (method, private, public) in [
        ("RS256", "rsa", "rsa.pub"),
        ("PS384", "rsa", "rsa.pub"),
        ("ES256", "ec", "ec.pub"),
        ("EdDSA", "ed", "ed.pub"),
        ("HS512", "secret", ""),
    ] {
        let flag = keys.flag(method, private, public);
        let Some(etcd) = Asked::etcds(RELEASES[1], &flag).await else { return };
        let balsa = Asked::ours(&flag).await;
        for (giver, taker) in [(&etcd, &balsa), (&balsa, &etcd), (&balsa, &balsa)] {
            let token = giver.token("alice").await.expect("a token");
            assert_eq!(giver.told(&token).await, taker.told(&token).await, "{method}");
            assert_eq!(taker.told(&token).await[0], "range: done", "{method}");
        }
    }
}

/// Tokens at this revision of users, by what is wrong with them. One of a later revision is not among them: etcd refuses reads then,
/// and ours do not look whether users changed beside them (docs/decisions/0015).
fn tokens(keys: &Keys, revision: u64) -> Vec<(&'static str, String)> {
    let head = json!({"alg": "RS256", "typ": "JWT"});
    let claims =
        |username: &str, revision: u64, exp: u64| json!({"username": username, "revision": revision, "exp": exp});
    let good = claims("alice", revision, LATER);
    let signed = keys.sign(&head, &good);
    let (message, signature) = signed.rsplit_once('.').expect("three parts");
    let (_, payload) = message.split_once('.').expect("two parts");
    let headed = |alg: &str| URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT"}).to_string());
    vec![
        ("good", signed.clone()),
        ("root's", keys.sign(&head, &claims("root", revision, LATER))),
        ("of nobody", keys.sign(&head, &claims("nobody", revision, LATER))),
        ("over", keys.sign(&head, &claims("alice", revision, 1))),
        ("for ever", keys.sign(&head, &json!({"username": "alice", "revision": revision}))),
        (
            "not yet good",
            keys.sign(&head, &json!({"username": "alice", "revision": revision, "exp": LATER, "nbf": LATER})),
        ),
        ("of an old revision", keys.sign(&head, &claims("alice", revision - 1, LATER))),
        ("of root at an old revision", keys.sign(&head, &claims("root", revision - 1, LATER))),
        ("without a revision", keys.sign(&head, &json!({"username": "alice", "exp": LATER}))),
        ("without a name", keys.sign(&head, &json!({"revision": revision, "exp": LATER}))),
        ("with another head", format!("{}.{payload}.{signature}", headed("PS256"))),
        ("unsigned", format!("{}.{payload}.", headed("none"))),
        ("cut", format!("{message}.{}", &signature[..signature.len() - 4])),
        ("changed", format!("{}x{}", &signed[..60], &signed[61..])),
        ("no token", "prefix.7".to_owned()),
        ("empty", String::new()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_token_is_answered_as_by_etcd() {
    let keys = Keys::new();
    let flag = keys.flag("RS256", "rsa", "rsa.pub");
    let Some(etcd) = Asked::etcds(RELEASES[1], &flag).await else { return };
    let balsa = Asked::ours(&flag).await;
    let revision = balsa.revision().await;
    assert_eq!(revision, etcd.revision().await);
    let mut wrong = Vec::new();
    for (what, token) in tokens(&keys, revision) {
        let (ours, theirs) = (balsa.told(&token).await, etcd.told(&token).await);
        let differ = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs);
        wrong.extend(differ.map(|(ours, theirs)| format!("{what}: {ours}, etcd's {theirs}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_the_public_key_alone_takes_tokens_and_gives_none() {
    let keys = Keys::new();
    let flag = keys.flag("RS256", "", "rsa.pub");
    let Some(etcd) = Asked::etcds(RELEASES[1], &flag).await else { return };
    let balsa = Asked::ours(&flag).await;
    let (ours, theirs) = (balsa.token("root").await, etcd.token("root").await);
    assert_eq!(ours.as_ref().map_err(text), theirs.as_ref().map_err(text));
    assert_eq!(
        ours.map_err(|status| status.message().to_owned()),
        Err("auth: token signing attempted with verify-only key".into())
    );
    let revision = {
        let status = AuthClient::new(balsa.channel.clone()).auth_status(pb::AuthStatusRequest {}).await;
        status.expect("needs no user").into_inner().auth_revision
    };
    let claims = json!({"username": "root", "revision": revision, "exp": LATER});
    let token = keys.sign(&json!({"alg": "RS256", "typ": "JWT"}), &claims);
    let told = balsa.told(&token).await;
    assert_eq!(told[8], "users: done");
    assert_eq!(told, etcd.told(&token).await);
}
