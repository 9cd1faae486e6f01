//! Tells systemd, where it has started the process and asks for that, that the member serves.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// Says so at the socket that `NOTIFY_SOCKET` names, as etcd does.
pub fn tell_ready() {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = tell(&socket) {
        warn!(%error, socket = %socket.display(), "systemd could not be told that this member is ready");
    }
}

/// A name that begins with `@` is one of no file.
fn tell(socket: &OsStr) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_hear_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("notify");
        let name = format!("balsa-notify-{}", std::process::id());
        let named = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        let filed = UnixDatagram::bind(&path).unwrap();
        tell(path.as_os_str()).unwrap();
        tell(OsStr::new(&format!("@{name}"))).unwrap();
        for socket in [filed, named] {
            let mut said = [0; 16];
            let length = socket.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"READY=1");
        }
        assert!(tell(directory.path().join("nobody").as_os_str()).is_err());
    }
}
