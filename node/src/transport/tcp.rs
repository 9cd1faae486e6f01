//! How it is found out that the other end of a TCP connection is gone without a word: its host is, or the way there. Else a
//! connection on which nobody has anything to send would be kept for ever.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long nothing is heard before the system asks the other end whether it is there, and asks again; etcd's number.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Has the system watch over a connection. With `unheard` it is over when what was sent is not acknowledged for so long; else
/// the system decides, after a quarter of an hour or so.
pub fn watch_over(stream: &TcpStream, unheard: Option<Duration>) {
    let socket = SockRef::from(stream);
    // Where the system knows neither, the connection lasts until one end says something.
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_EVERY).with_interval(ASK_EVERY));
    let _ = socket.set_tcp_user_timeout(unheard);
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_system_asks_after_the_other_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        watch_over(&stream, Some(Duration::from_secs(20)));
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()),
            (ASK_EVERY, ASK_EVERY)
        );
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
    }
}
