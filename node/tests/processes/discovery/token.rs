//! By a token at a registry, which is Balsa or etcd: of whom a cluster becomes, who comes too late, and how the registry is
//! spoken to.

use std::path::Path;
use std::process::Command;

use balsa_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use tonic::transport::{Channel, Endpoint};

use super::{Listed, Seekers, name_of, programs, refused};
use crate::cluster::{Cluster, Member, free_port};
use crate::etcd::Etcd;
use crate::tls::secured;

/// Where a token is written down.
struct Registry {
    url: String,
    token: String,
}

impl Registry {
    fn new(url: &str, token: &str) -> Self {
        Self { url: url.to_owned(), token: token.to_owned() }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(Endpoint::from_shared(self.url.clone()).expect("a URL").connect_lazy())
    }

    /// Says how many there are to be.
    async fn expect(&self, size: &str) {
        let key = format!("/_etcd/registry/{}/_config/size", self.token).into();
        let request = pb::PutRequest { key, value: size.to_owned().into(), ..Default::default() };
        self.kv().put(request).await.expect("a write");
    }

    /// Who has come.
    async fn written(&self) -> Vec<(String, String)> {
        let key = format!("/_etcd/registry/{}/members/", self.token);
        let range_end = format!("/_etcd/registry/{}/members0", self.token);
        let request = pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
        let found = self.kv().range(request).await.expect("a read").into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        found.kvs.iter().map(|pair| (text(&pair.key), text(&pair.value))).collect()
    }

    fn flags(&self) -> Vec<String> {
        vec![format!("--discovery-token={}", self.token), format!("--discovery-endpoints={}", self.url)]
    }
}

/// Starts the next one at a port of its own; its peer URL.
fn start(seekers: &mut Seekers, program: &Path, flags: &[String]) -> String {
    let url = format!("http://127.0.0.1:{}", free_port());
    seekers.start(Command::new(program), &url, &url, flags);
    url
}

/// What each must list.
fn all(urls: &[String]) -> Vec<Listed> {
    urls.iter().enumerate().map(|(index, url)| (format!("m{index}"), vec![url.clone()])).collect()
}

/// Three by one token, the third only once the others wait, and a fourth too late. The third one starts again without the registry.
async fn three_of_a_token(program: &Path, url: &str) {
    let registry = Registry::new(url, &format!("three-{}", name_of(program)));
    registry.expect("3").await;
    let (mut seekers, flags) = (Seekers::none(), registry.flags());
    let mut urls = vec![start(&mut seekers, program, &flags), start(&mut seekers, program, &flags)];
    for index in 0..2 {
        seekers.says(index, "waiting for peers from discovery service").await;
    }
    assert!(seekers.asked(0).await.is_none(), "it waits for the third");
    urls.push(start(&mut seekers, program, &flags));
    for index in 0..3 {
        assert_eq!(seekers.listed_by(index).await, all(&urls), "{}", name_of(program));
    }
    let written = registry.written().await;
    assert_eq!(written.len(), 3, "{written:?}");
    let late: Vec<&str> = flags.iter().map(String::as_str).collect();
    let said = refused(Command::new(program), &format!("http://127.0.0.1:{}", free_port()), &late);
    assert!(said.contains("failed to join discovery cluster (discovery: cluster is full)"), "{said}");
    assert_eq!(registry.written().await, written, "who is too late leaves no word");
    let elsewhere = Registry::new("http://127.0.0.1:1", &registry.token).flags();
    seekers.restart(2, Command::new(program), &urls[2], &urls[2], &elsewhere);
    assert_eq!(seekers.listed_by(2).await, all(&urls), "{}", name_of(program));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_token_find_each_other_at_balsa() {
    let cluster = Cluster::start(1).await;
    for program in programs() {
        three_of_a_token(&program, &cluster.members[0].client_url()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_token_find_each_other_at_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    three_of_a_token(Path::new(env!("CARGO_BIN_EXE_balsa")), &format!("http://127.0.0.1:{}", etcd.port)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_a_size_ends_the_start_in_etcds_words() {
    let cluster = Cluster::start(1).await;
    let registry = Registry::new(&cluster.members[0].client_url(), "sizes");
    let flags = registry.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for size in [None, Some("0"), Some("-1"), Some("three"), Some("")] {
        let words = if size.is_some() { "discovery: size key is bad" } else { "discovery: size key not found" };
        if let Some(size) = size {
            registry.expect(size).await;
        }
        for program in programs() {
            let said = refused(Command::new(&program), &format!("http://127.0.0.1:{}", free_port()), &flags);
            let words = format!("failed to join discovery cluster ({words})");
            assert!(said.contains(&words), "{} {size:?}: {said}", name_of(&program));
        }
    }
    assert!(registry.written().await.is_empty(), "nobody leaves word there");
}

/// A member that begins anew writes the same key again, whatever program it is: the id in it is etcd's.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_token_is_known_by_its_urls() {
    let cluster = Cluster::start(1).await;
    let registry = Registry::new(&cluster.members[0].client_url(), "ids");
    registry.expect("2").await;
    let url = format!("http://127.0.0.1:{}", free_port());
    let mut keys = Vec::new();
    for program in programs() {
        let mut seekers = Seekers::none();
        seekers.start(Command::new(&program), &url, &url, &registry.flags());
        seekers.says(0, "register member itself successfully").await;
        let written = registry.written().await;
        assert!(matches!(&written[..], [(_, info)] if *info == format!("m0={url}")), "{written:?}");
        keys.extend(written.into_iter().map(|(key, _)| key));
    }
    keys.dedup();
    assert_eq!(keys.len(), 1, "{keys:?}");
}

/// Whoever waits when its registry goes away goes on when it is there again.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_token_wait_through_a_registry_that_is_away() {
    let mut cluster = Cluster::start(1).await;
    let registry = Registry::new(&cluster.members[0].client_url(), "away");
    registry.expect("2").await;
    let (mut seekers, program) = (Seekers::none(), Path::new(env!("CARGO_BIN_EXE_balsa")));
    let mut urls = vec![start(&mut seekers, program, &registry.flags())];
    seekers.says(0, "waiting for peers from discovery service").await;
    cluster.members[0].kill();
    seekers.says(0, "retry connecting to discovery service").await;
    cluster.restart(0);
    cluster.serves(0).await;
    urls.push(start(&mut seekers, program, &registry.flags()));
    assert_eq!(seekers.listed_by(0).await, all(&urls));
}

/// From now on only users are answered, and `root` is one.
async fn enable_users(member: &Member) {
    let mut auth = AuthClient::new(member.channel());
    let user = pb::AuthUserAddRequest { name: "root".into(), password: "secret".into(), ..Default::default() };
    auth.user_add(user).await.expect("a user");
    let role = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(role).await.expect("a role");
    auth.auth_enable(pb::AuthEnableRequest {}).await.expect("enabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_by_tls_and_as_a_user() {
    let (cluster, authority, client) = secured(1).await;
    let member = &cluster.members[0];
    for program in programs() {
        let key = format!("/_etcd/registry/{}/_config/size", name_of(&program));
        member.put(&key, "1").await.expect("a write");
    }
    enable_users(member).await;
    for program in programs() {
        let flags = vec![
            format!("--discovery-token={}", name_of(&program)),
            format!("--discovery-endpoints={}", member.client_url()),
            format!("--discovery-cert={}", client.cert.display()),
            format!("--discovery-key={}", client.key.display()),
            format!("--discovery-cacert={}", authority.ca().display()),
            "--discovery-user=root".to_owned(),
            "--discovery-password=secret".to_owned(),
        ];
        let mut seekers = Seekers::none();
        let url = start(&mut seekers, &program, &flags);
        assert_eq!(seekers.listed_by(0).await, all(&[url]), "{}", name_of(&program));
    }
}
