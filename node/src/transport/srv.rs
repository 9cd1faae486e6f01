//! SRV records of the DNS: which servers a domain names for a service. The standard library asks the system for addresses
//! only, so the one question is asked here, of the name servers that `/etc/resolv.conf` names.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one name server is waited for, and how often all are asked; the system's own numbers.
const PATIENCE: Duration = Duration::from_secs(5);
/// See [`PATIENCE`].
const ATTEMPTS: usize = 2;
/// The type of a record, and the class of all of them.
const SRV: u16 = 33;
/// See [`SRV`].
const INTERNET: u16 = 1;
const HEAD: usize = 12;
/// Of the head: it is an answer.
const IS_ANSWER: u8 = 0x80;
/// Of the head: there is more than fits; by TCP it does.
const IS_CUT: u8 = 0x02;
/// Of the code in the head: there is no such name.
const NO_NAME: u8 = 3;
/// A length of a name that is the place where the rest of it stands.
const REFERENCE: u8 = 0xc0;
/// Longest name, and so the most jumps on the way to its end.
const LONGEST_NAME: usize = 255;
/// Largest answer by UDP.
const DATAGRAM: usize = 4 << 10;

/// A server, as a record tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// A name, with the dot at its end, or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The lowest comes first.
    pub priority: u16,
    /// How much it takes, in relation to those of the same priority; nothing when there is no relation.
    pub weight: u16,
}

impl Server {
    /// One without any preference.
    pub fn at(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port, priority: 0, weight: 0 }
    }

    /// As a URL has it.
    pub fn address(&self) -> String {
        let host = self.host.trim_end_matches('.');
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }
}

/// Why there is no answer; in Go's words.
#[derive(Debug, thiserror::Error)]
#[error("lookup {name}{}: {why}", .server.map(|server| format!(" on {server}")).unwrap_or_default())]
pub struct LookupError {
    name: String,
    server: Option<SocketAddr>,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    NoName,
    TimedOut,
    Misbehaves,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::NoName => "no such host",
            Why::TimedOut => "i/o timeout",
            Why::Misbehaves => "server misbehaving",
        })
    }
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
    /// Domains that names may be meant in.
    search: Vec<String>,
}

impl Resolver {
    /// As the system is configured.
    pub fn of_system() -> Self {
        Self::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let (mut servers, mut search) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|address| address.parse::<IpAddr>().ok());
                    servers.extend(address.map(|address| SocketAddr::new(address, 53)));
                }
                Some("search" | "domain") => search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        if servers.is_empty() {
            servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53));
        }
        Self { servers, search }
    }

    /// The servers of a service, those of the best priority first.
    ///
    /// # Errors
    /// [`LookupError`], of the first name that was asked for; also when there is no server.
    pub async fn lookup(&self, service: &str, domain: &str) -> Result<Vec<Server>, LookupError> {
        let name = format!("_{service}._tcp.{}", domain.trim_end_matches('.'));
        let mut names = vec![name.clone()];
        if !domain.ends_with('.') {
            names.extend(self.search.iter().map(|search| format!("{name}.{}", search.trim_end_matches('.'))));
        }
        let mut first = None;
        for tried in names {
            match self.ask(&tried).await {
                Ok(mut found) => {
                    found.sort_by_key(|server| server.priority);
                    return Ok(found);
                }
                Err((server, why)) => first = first.or(Some((server, why))),
            }
        }
        let (server, why) = first.unwrap_or((None, Why::NoName));
        Err(LookupError { name, server, why })
    }

    async fn ask(&self, name: &str) -> Result<Vec<Server>, (Option<SocketAddr>, Why)> {
        let id = fastrand::u16(..);
        let question = question(id, name).ok_or((None, Why::NoName))?;
        let mut last = (None, Why::Misbehaves);
        for server in std::iter::repeat_n(&self.servers, ATTEMPTS).flatten() {
            let asked = timeout(PATIENCE, exchange(*server, id, &question)).await;
            match asked {
                Err(_) => last = (Some(*server), Why::TimedOut),
                Ok(Ok(answer)) if answer.code == NO_NAME || answer.code == 0 && answer.servers.is_empty() => {
                    return Err((Some(*server), Why::NoName));
                }
                Ok(Ok(answer)) if answer.code == 0 => return Ok(answer.servers),
                Ok(_) => last = (Some(*server), Why::Misbehaves),
            }
        }
        Err(last)
    }
}

async fn exchange(server: SocketAddr, id: u16, question: &[u8]) -> io::Result<Answer> {
    let answer = by_datagram(server, id, question).await?;
    if answer.is_cut { by_stream(server, id, question).await } else { Ok(answer) }
}

async fn by_datagram(server: SocketAddr, id: u16, question: &[u8]) -> io::Result<Answer> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // So that nobody else is heard.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut datagram).await?;
        // An answer to an earlier question is none to this one.
        if let Some(answer) = Answer::read(id, &datagram[..length]) {
            return Ok(answer);
        }
    }
}

async fn by_stream(server: SocketAddr, id: u16, question: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Answer::read(id, &answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The question for the SRV records of a name; None if it cannot be one.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    // Please look further than what you know yourself; one question.
    let mut question = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        question.push(length);
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend(SRV.to_be_bytes());
    question.extend(INTERNET.to_be_bytes());
    (question.len() - HEAD <= LONGEST_NAME + 4).then_some(question)
}

/// What a name server says.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    is_cut: bool,
    code: u8,
    servers: Vec<Server>,
}

impl Answer {
    /// None when it is no answer to the question of this id.
    fn read(id: u16, message: &[u8]) -> Option<Self> {
        let mut reader = Reader { message, at: 0 };
        if reader.number()? != id {
            return None;
        }
        let [kind, code] = reader.number()?.to_be_bytes();
        if kind & IS_ANSWER == 0 {
            return None;
        }
        let (questions, answers) = (reader.number()?, reader.number()?);
        reader.at = HEAD;
        for _ in 0..questions {
            reader.name()?;
            reader.at += 4;
        }
        let is_cut = kind & IS_CUT != 0;
        let mut servers = Vec::new();
        for _ in 0..if is_cut { 0 } else { answers } {
            servers.extend(reader.record()?);
        }
        Some(Self { is_cut, code: code & 0x0f, servers })
    }
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn number(&mut self) -> Option<u16> {
        let bytes = self.message.get(self.at..self.at + 2)?;
        self.at += 2;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// The next record; Some(None) if it is of another type.
    fn record(&mut self) -> Option<Option<Server>> {
        self.name()?;
        let kind = self.number()?;
        // The class and how long it holds.
        self.at += 6;
        let length = self.number()?;
        let end = self.at + usize::from(length);
        let server = if kind == SRV {
            let (priority, weight, port) = (self.number()?, self.number()?, self.number()?);
            Some(Server { host: self.name()?, port, priority, weight })
        } else {
            None
        };
        self.at = end;
        Some(server)
    }

    fn name(&mut self) -> Option<String> {
        let (mut name, mut at, mut behind) = (String::new(), self.at, None);
        for _ in 0..LONGEST_NAME {
            let length = *self.message.get(at)?;
            at += 1;
            if length == 0 {
                self.at = behind.unwrap_or(at);
                return Some(name);
            }
            if length & REFERENCE == REFERENCE {
                let low = *self.message.get(at)?;
                behind = behind.or(Some(at + 1));
                at = usize::from(u16::from_be_bytes([length & !REFERENCE, low]));
                continue;
            }
            let label = self.message.get(at..at + usize::from(length))?;
            at += usize::from(length);
            name.push_str(&String::from_utf8_lossy(label));
            name.push('.');
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to `question` with these records, of which the names refer to the question's.
    fn answer(question: &[u8], kind: u8, code: u8, records: &[(u16, u16, u16, &str)]) -> Vec<u8> {
        let count = u8::try_from(records.len()).unwrap();
        let mut answer = [&question[..2], &[kind, code, 0, 1, 0, count, 0, 0, 0, 0], &question[HEAD..]].concat();
        for (priority, weight, port, label) in records {
            let length = u8::try_from(label.len()).unwrap();
            let mut data = [priority.to_be_bytes(), weight.to_be_bytes(), port.to_be_bytes()].concat();
            data.extend([&[length], label.as_bytes(), &[REFERENCE, 12 + 18]].concat());
            answer.extend([REFERENCE, 12, 0, 33, 0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).unwrap()]);
            answer.extend(data);
        }
        answer
    }

    /// A name server that answers as it is told, by UDP and by TCP, and a resolver that asks it.
    async fn resolver(by_datagram: Vec<Vec<(u16, u16, u16, &'static str)>>, flags: u8, code: u8) -> Resolver {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let servers = vec![udp.local_addr().unwrap()];
        tokio::spawn(async move {
            let mut datagram = [0; 512];
            for records in by_datagram {
                let (length, from) = udp.recv_from(&mut datagram).await.unwrap();
                // Somebody else's answer comes first.
                udp.send_to(&answer(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 33, 0, 1], IS_ANSWER, 0, &[]), from)
                    .await
                    .unwrap();
                udp.send_to(&answer(&datagram[..length], IS_ANSWER | flags, code, &records), from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut question = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut question).await.unwrap();
            let answer = answer(&question, IS_ANSWER, 0, &[(0, 0, 7, "tcp")]);
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        });
        Resolver { servers, search: Vec::new() }
    }

    #[tokio::test]
    async fn the_servers_of_a_domain_are_found() {
        let one = vec![vec![(20, 0, 2379, "b"), (10, 5, 2380, "a")]];
        let found = resolver(one, 0, 0).await.lookup("etcd-client", "example.com").await.unwrap();
        let server = |host: &str, port, priority, weight| Server { host: host.to_owned(), port, priority, weight };
        // `_etcd-client._tcp.` has 18 bytes with the length of the first label, so the rest is the domain.
        let expected = [server("a._tcp.example.com.", 2380, 10, 5), server("b._tcp.example.com.", 2379, 20, 0)];
        let short: Vec<_> = found.iter().map(|server| (server.port, server.priority, server.weight)).collect();
        assert_eq!(
            short,
            expected.iter().map(|server| (server.port, server.priority, server.weight)).collect::<Vec<_>>()
        );
        assert!(found[0].host.starts_with("a.") && found[0].host.ends_with("example.com."), "{found:?}");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_asked_for_by_tcp() {
        let found = resolver(vec![vec![]], IS_CUT, 0).await.lookup("etcd-client", "example.com").await.unwrap();
        assert_eq!((found.len(), found[0].port), (1, 7));
    }

    #[tokio::test]
    async fn a_name_that_there_is_not_is_said_in_gos_words() {
        for (code, why) in [(NO_NAME, "no such host"), (0, "no such host"), (2, "server misbehaving")] {
            let resolver = resolver(vec![vec![]; ATTEMPTS], 0, code).await;
            let error = resolver.lookup("etcd-client", "example.com").await.unwrap_err().to_string();
            assert_eq!(error, format!("lookup _etcd-client._tcp.example.com on {}: {why}", resolver.servers[0]));
        }
    }

    #[test]
    fn whom_to_ask_stands_in_a_file() {
        let resolver = Resolver::parse("# x\nnameserver 10.0.0.1\nnameserver ::1\nsearch a.b c\noptions ndots:5\n");
        let servers = vec!["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(resolver, Resolver { servers, search: vec!["a.b".into(), "c".into()] });
        assert_eq!(Resolver::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn whatever_comes_is_read_without_a_panic() {
        let question = question(7, "_etcd-client._tcp.example.com").unwrap();
        let whole = answer(&question, IS_ANSWER, 0, &[(1, 2, 3, "a")]);
        assert_eq!(Answer::read(7, &whole).unwrap().servers.len(), 1);
        for length in 0..whole.len() {
            assert_eq!(Answer::read(7, &whole[..length]), None, "{length}");
        }
        for place in 0..whole.len() {
            for byte in [0, 1, 63, REFERENCE, 255] {
                let mut other = whole.clone();
                other[place] = byte;
                let _ = Answer::read(7, &other);
            }
        }
        assert_eq!((question_of("a..b"), question_of(&"x".repeat(64))), (None, None));
    }

    fn question_of(name: &str) -> Option<Vec<u8>> {
        question(1, name)
    }
}
