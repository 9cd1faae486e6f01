//! HTTP/1.1 by hand: what a test sends may be wrong in every way, and what comes back is seen as it is.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::PATIENCE;

/// A request. `lines` is how many lines of an endless answer to wait for; 0 for the whole of one that ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) lines: usize,
}

/// Status, headers and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a header; names and values are in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        Self { method: "GET".into(), path: path.into(), ..Self::default() }
    }

    pub(crate) fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { method: "POST".into(), path: path.into(), body: body.into(), ..Self::default() }
    }

    pub(crate) async fn send(&self, port: u16) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the port is open");
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|header| header.starts_with("Host:")) {
            head += "Host: localhost\r\n";
        }
        for header in &self.headers {
            head += &format!("{header}\r\n");
        }
        let close = if self.lines == 0 { "Connection: close\r\n" } else { "" };
        head += &format!("{close}Content-Length: {}\r\n\r\n", self.body.len());
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        // A server may answer and close before it has read all of a body.
        let _ = stream.write_all(&self.body).await;
        let mut received = Vec::new();
        let read = async {
            let mut piece = vec![0; 64 << 10];
            while !self.is_enough(&received) {
                match stream.read(&mut piece).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => received.extend_from_slice(&piece[..length]),
                }
            }
        };
        assert!(
            timeout(PATIENCE, read).await.is_ok(),
            "{self:?} is not answered: {}",
            String::from_utf8_lossy(&received)
        );
        parse(&received).unwrap_or_else(|| panic!("{self:?}: no answer: {}", String::from_utf8_lossy(&received)))
    }

    fn is_enough(&self, received: &[u8]) -> bool {
        let lines = |answer: &Answer| answer.body.iter().filter(|byte| **byte == b'\n').count();
        let whole = |answer: &Answer| match answer.header("content-length") {
            Some(length) => length.parse() == Ok(answer.body.len()),
            None => received.ends_with(b"\r\n0\r\n\r\n"),
        };
        self.lines > 0 && parse(received).is_some_and(|answer| lines(&answer) >= self.lines || whole(&answer))
    }
}

fn parse(received: &[u8]) -> Option<Answer> {
    let split = received.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&received[..split]).to_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &received[split + 4..];
    let body = if head.contains("transfer-encoding: chunked") { dechunked(body) } else { body.to_vec() };
    Some(Answer { status, head, body })
}

/// The data of the chunks that are there whole.
fn dechunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(String::from_utf8_lossy(&rest[..end]).trim(), 16).unwrap_or_default();
        let Some(chunk) = rest.get(end + 2..end + 2 + length) else { break };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 2 + length + 2..).unwrap_or_default();
    }
    body
}

/// Waits until `port` answers `GET /health` with 200.
pub(crate) async fn healthy(port: u16) {
    let ask = || async move {
        let connected = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        connected && Request::get("/health").send(port).await.status == 200
    };
    let wait = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "port {port} is not healthy");
}
