//! The journal of systemd, in its own protocol: one datagram of fields for each line. What it does not take goes to stderr,
//! as etcd's does.

use std::env;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde_json::Value;

/// Where it takes them.
pub(super) const PATH: &str = "/run/systemd/journal/socket";

/// A connection to it.
pub(super) struct Journal {
    socket: UnixDatagram,
    program: String,
}

impl Journal {
    /// Connects to the journal that listens at `path`, for a program of this name.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path).map_err(|error| {
            let said = super::os_words(&error);
            let what = format!("can't find journal (dial unixgram {}: connect: {said})", path.display());
            io::Error::new(error.kind(), what)
        })?;
        let program = env::args().next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Self { socket, program })
    }

    /// Hands one line over.
    pub(super) fn write_line(&self, line: &[u8]) -> io::Result<()> {
        match self.socket.send(&datagram(line, &self.program)) {
            Ok(_) => Ok(()),
            Err(_) => io::stderr().write_all(line),
        }
    }
}

/// A line as the journal takes it. A line that is no JSON tells neither its level nor where it comes from.
fn datagram(line: &[u8], program: &str) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let fields: Value = serde_json::from_slice(line).unwrap_or_default();
    let priority = match fields["level"].as_str() {
        Some("debug") => 7,
        Some("warn") => 4,
        Some("error") => 3,
        _ => 6,
    };
    let mut datagram = Vec::with_capacity(line.len() + 128);
    if line.contains(&b'\n') {
        datagram.extend(b"MESSAGE\n");
        datagram.extend((line.len() as u64).to_le_bytes());
    } else {
        datagram.extend(b"MESSAGE=");
    }
    datagram.extend(line);
    datagram.extend(format!("\nPRIORITY={priority}\nSYSLOG_IDENTIFIER={program}\n").into_bytes());
    if let Some((folder, _)) = fields["caller"].as_str().and_then(|caller| caller.rsplit_once('/')) {
        datagram.extend(format!("PACKAGE={folder}\n").into_bytes());
    }
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_message_with_its_level() {
        let line = r#"{"level":"warn","caller":"engine/node.rs:1","msg":"x"}"#;
        let expected = format!("MESSAGE={line}\nPRIORITY=4\nSYSLOG_IDENTIFIER=balsa\nPACKAGE=engine\n");
        assert_eq!(datagram(format!("{line}\n").as_bytes(), "balsa"), expected.as_bytes());
        let two = datagram(b"a\nb\n", "balsa");
        assert_eq!(
            two,
            [b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n".as_slice(), b"PRIORITY=6\nSYSLOG_IDENTIFIER=balsa\n"].concat()
        );
    }

    #[test]
    fn it_reaches_a_journal_that_is_there_and_misses_one_that_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let missing = Journal::connect(&path).err().unwrap().to_string();
        let words =
            format!("can't find journal (dial unixgram {}: connect: no such file or directory)", path.display());
        assert_eq!(missing, words);
        let listening = UnixDatagram::bind(&path).unwrap();
        Journal::connect(&path).unwrap().write_line(b"line\n").unwrap();
        let mut taken = [0; 100];
        let length = listening.recv(&mut taken).unwrap();
        assert!(taken[..length].starts_with(b"MESSAGE=line\nPRIORITY=6\n"));
    }
}
