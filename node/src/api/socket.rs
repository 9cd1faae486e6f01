//! What is listened on, and what is accepted there: a TCP port, or a socket in the file system (`unix://`).
//!
//! A socket's file is there as long as somebody listens. One that a killed process left is replaced, as etcd does; a file
//! that is no socket is not ours to remove, and stands in the way.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::config::url::Listen;
use crate::transport::tcp;

/// Connections that the system holds for us until they are accepted.
pub(super) const BACKLOG: u32 = 1_024;
/// A filter of packets (BPF) that takes none which asks for a new connection: SYN without ACK among the flags of TCP, of which
/// these two bits stand in byte 13. The instructions are: load a byte, mask it, compare it, leave out, take.
pub(super) const NOBODY_NEW: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// A client by TCP.
    Tcp(SocketAddr),
    /// A process of this host, which has no address.
    Unix,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Tcp(address) => address.fmt(f),
            // Go's name for a socket without one, as etcd logs it.
            Remote::Unix => f.write_str("@"),
        }
    }
}

/// What is listened on.
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A socket, and its file.
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Begins to listen.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(listen: &Listen, reuse_port: bool) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => bind_port(*address, reuse_port).map(Self::Tcp),
            Listen::Unix(path) => {
                let (listener, file) = bind_file(path)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The port's address; a socket has none.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Some),
            Self::Unix(..) => Ok(None),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Socket, Remote)> {
        match self {
            Self::Tcp(listener) => {
                listener.accept().await.map(|(stream, remote)| (Socket::Tcp(stream), Remote::Tcp(remote)))
            }
            Self::Unix(listener, _) => listener.accept().await.map(|(stream, _)| (Socket::Unix(stream), Remote::Unix)),
        }
    }

    /// Ends it. Who has connected and was not accepted yet is returned, because the system would send him a reset.
    pub(super) fn close(self) -> Vec<(Socket, Remote)> {
        match self {
            Self::Tcp(listener) => close_port(listener),
            Self::Unix(listener, file) => {
                // Whoever comes now finds nothing.
                drop(file);
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                let waiting = std::iter::from_fn(|| listener.accept().ok()).take(BACKLOG as usize);
                waiting.filter_map(|(stream, _)| unblocked_unix(stream)).collect()
            }
        }
    }
}

/// Go's listeners, and so etcd's, take a port over from connections that are still closing.
fn bind_port(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse_port)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn close_port(listener: TcpListener) -> Vec<(Socket, Remote)> {
    // Whoever comes now is not answered, and refused when the system tries again a second later. Without it he could be
    // accepted behind our back until the port is gone, and be reset then.
    let _ = SockRef::from(&listener).attach_filter(&NOBODY_NEW);
    // Asks the system itself: what it has told the runtime may be old.
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let waiting = std::iter::from_fn(|| listener.accept().ok()).take(BACKLOG as usize);
    waiting.filter_map(|(stream, remote)| unblocked_tcp(stream, remote)).collect()
}

fn unblocked_tcp(stream: std::net::TcpStream, remote: SocketAddr) -> Option<(Socket, Remote)> {
    stream.set_nonblocking(true).ok()?;
    Some((Socket::Tcp(TcpStream::from_std(stream).ok()?), Remote::Tcp(remote)))
}

fn unblocked_unix(stream: std::os::unix::net::UnixStream) -> Option<(Socket, Remote)> {
    stream.set_nonblocking(true).ok()?;
    Some((Socket::Unix(UnixStream::from_std(stream).ok()?), Remote::Unix))
}

fn bind_file(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile::of(path)?;
    Ok((socket.listen(BACKLOG)?, file))
}

/// The file of a socket. It goes when this does, unless another process has put its own in the place.
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A connection as the system has it.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Sends small answers at once, and gives up a client that takes nothing for so long.
    pub(super) fn set_up(&self, unread: Option<Duration>) {
        // A socket has neither: its bytes are with the other process as soon as they are written.
        let Self::Tcp(stream) = self else { return };
        let _ = stream.set_nodelay(true);
        // As etcd and gRPC-Go do.
        tcp::watch_over(stream, unread);
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, into),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn listener(path: &Path) -> io::Result<Listener> {
        Listener::bind(&Listen::Unix(path.to_owned()), false)
    }

    #[tokio::test]
    async fn a_sockets_file_is_there_as_long_as_somebody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket:1");
        let first = listener(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o700, 0o700);
        let second = listener(&path).expect("what a killed process left is replaced");
        drop(first);
        assert!(path.exists(), "it is the second's");
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut waiting = second.close();
        assert!(!path.exists());
        assert_eq!((waiting.len(), waiting[0].1.to_string().as_str()), (1, "@"), "who waited is not reset");
        waiting[0].0.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_client_that_vanishes_is_asked_after() {
        let listener = Listener::bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap()), false).unwrap();
        let address = listener.local_addr().unwrap().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, _) = accepted.unwrap();
        socket.set_up(None);
        let Socket::Tcp(stream) = &socket else { panic!("a port gives connections by TCP") };
        assert!(SockRef::from(stream).keepalive().unwrap());
        drop(client);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "data").unwrap();
        assert_eq!(listener(&path).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
