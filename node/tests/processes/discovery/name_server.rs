//! A name server for one machine that a test makes up, and a namespace where it is the one to ask.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::namespace::Namespace;

/// SRV records by name: targets and ports. Each target is a host, and at the loopback.
pub(super) type Zone = BTreeMap<String, Vec<(String, u16)>>;

const ADDRESS: u16 = 1;
const SERVICE: u16 = 33;
const HEAD: usize = 12;
const NO_NAME: u8 = 3;

/// Whoever runs inside asks this server alone.
pub(super) struct NameServer {
    pub(super) address: Ipv4Addr,
    zone: Arc<Mutex<Zone>>,
    namespace: Namespace,
    _directory: TempDir,
}

impl NameServer {
    pub(super) fn start() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let own = std::process::id().to_le_bytes();
        let address = Ipv4Addr::new(127, own[0], own[1], NEXT.fetch_add(1, Ordering::Relaxed));
        let untested = |why: String| -> ! {
            panic!(
                "there can be no name server here, so it was NOT tested what SRV records do: be root, or leave this out with \
                 `-- --skip srv_records`. {why}"
            )
        };
        let socket = match UdpSocket::bind((address, 53)) {
            Ok(socket) => socket,
            Err(error) => untested(format!("port 53 of {address}: {error}")),
        };
        let zone = Arc::<Mutex<Zone>>::default();
        let served = zone.clone();
        std::thread::spawn(move || serve(&socket, &served));
        let directory = TempDir::new().expect("a directory");
        let file = directory.path().join("resolv.conf");
        std::fs::write(&file, format!("nameserver {address}\noptions timeout:2\n")).expect("written");
        match Namespace::after("mount --bind \"$0\" /etc/resolv.conf", &[&file]) {
            Ok(namespace) => Self { address, zone, namespace, _directory: directory },
            Err(why) => untested(why),
        }
    }

    /// From now on there are these records.
    pub(super) fn set(&self, zone: &[(&str, &[(String, u16)])]) {
        *self.zone.lock() = zone.iter().map(|(name, records)| ((*name).to_owned(), records.to_vec())).collect();
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// For as long as the test's process runs.
fn serve(socket: &UdpSocket, zone: &Mutex<Zone>) {
    let mut datagram = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut datagram) {
        if let Some(answer) = answer(&datagram[..length], &zone.lock()) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// None if it is no question.
fn answer(question: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let (name, end) = asked(question)?;
    let kind = u16::from_be_bytes([*question.get(end)?, *question.get(end + 1)?]);
    // Names of hosts stay, whatever becomes of the records that led to them.
    let is_host = name.strip_prefix('m').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let records: Vec<Vec<u8>> = match (zone.get(&name), kind) {
        (Some(records), SERVICE) => records.iter().map(|(target, port)| service(target, *port)).collect(),
        (None, ADDRESS) if is_host => vec![Ipv4Addr::LOCALHOST.octets().to_vec()],
        _ => Vec::new(),
    };
    let code = if zone.contains_key(&name) || is_host { 0 } else { NO_NAME };
    let count = u8::try_from(records.len()).ok()?;
    // It is an answer, from who should know, and it could be asked further.
    let mut answer =
        [&question[..2], &[0x85, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0], &question[HEAD..end + 4]].concat();
    for record in records {
        // Of the name that was asked for, for a minute.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60]);
        answer.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
        answer.extend(record);
    }
    Some(answer)
}

/// The name in small letters, and where it ends.
fn asked(question: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEAD);
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        at += length;
    }
}

fn service(target: &str, port: u16) -> Vec<u8> {
    let mut data = [[0, 0], [0, 0], port.to_be_bytes()].concat();
    for label in target.split('.') {
        data.push(u8::try_from(label.len()).expect("a label"));
        data.extend(label.as_bytes());
    }
    data.push(0);
    data
}
