//! A call by hand, over a connection of its own: whatever headers and bytes, ended or not, and what is heard of it. What no
//! client of gRPC would send.

use std::fmt;
use std::future::poll_fn;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderMap, HeaderValue, Method, Request, Version};
use tonic::{Code, Status};

use super::streams::PATIENCE;

/// How the client goes on behind its last bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Ends its direction.
    Half,
    /// Says nothing.
    Open,
    /// Takes the call back.
    Reset,
}

/// What is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Frames {
    /// Path of the method.
    pub path: String,
    /// Headers besides those that every call has; a content type takes the place of the usual one.
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// A frame of data each, or several where the server's window is smaller.
    pub pieces: Vec<Bytes>,
    /// What follows.
    pub end: End,
    /// Over HTTP/1.1 instead.
    pub http1: bool,
}

impl Frames {
    /// A call of gRPC with these bytes.
    pub fn new(path: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self { path: path.into(), headers: Vec::new(), pieces: vec![bytes.into()], end: End::Half, http1: false }
    }

    /// With a header.
    pub fn with(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name, value.as_ref().to_owned()));
        self
    }

    /// Ended so.
    pub fn ending(self, end: End) -> Self {
        Self { end, ..self }
    }

    fn request(&self) -> Option<Request<()>> {
        let uri = format!("http://localhost{}", self.path);
        let mut request = Request::builder().version(Version::HTTP_2).method(Method::POST).uri(uri).body(()).ok()?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value).ok()?;
            // There is one of these.
            if *name == CONTENT_TYPE {
                headers.remove(CONTENT_TYPE);
            }
            headers.append(*name, value);
        }
        Some(request)
    }

    /// Sends it to a server.
    pub async fn send(&self, address: &str) -> Heard {
        let mut heard = Heard::default();
        if self.http1 {
            return timeout(PATIENCE, self.over_http1(address)).await.ok().and_then(Result::ok).unwrap_or_default();
        }
        match timeout(PATIENCE, self.exchange(address, &mut heard)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => heard.broken = reason(&error),
            Err(_) => heard.broken = "open".to_owned(),
        }
        heard
    }

    async fn exchange(&self, address: &str, heard: &mut Heard) -> anyhow::Result<()> {
        let stream = TcpStream::connect(address).await?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = client::handshake(stream).await?;
        // Ends with its streams.
        tokio::spawn(connection);
        let Some(request) = self.request() else {
            heard.broken = "no request".to_owned();
            return Ok(());
        };
        let ends_at_once = self.end == End::Half && self.pieces.is_empty();
        let (response, mut body) = sender.ready().await?.send_request(request, ends_at_once)?;
        self.send_pieces(&mut body, ends_at_once).await;
        let response = response.await?;
        heard.status = response.status().as_u16();
        heard.content_type = text(response.headers().get(CONTENT_TYPE));
        heard.encoding = text(response.headers().get("grpc-encoding"));
        heard.told(response.headers());
        Ok(heard.read(response.into_body()).await?)
    }

    /// The status, and the body in place of what a call hears.
    async fn over_http1(&self, address: &str) -> io::Result<Heard> {
        let mut stream = TcpStream::connect(address).await?;
        let length: usize = self.pieces.iter().map(Bytes::len).sum();
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n",
            self.path
        );
        stream.write_all(&[head.as_bytes(), &self.pieces.concat()].concat()).await?;
        let mut answer = Vec::new();
        // Go's server answers and then resets a connection of whose body it has not read all.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Ok(Heard { status, broken: body.to_owned(), ..Heard::default() })
    }

    /// A server may have answered and reset before it has all of it.
    async fn send_pieces(&self, body: &mut SendStream<Bytes>, ended: bool) {
        for (index, piece) in self.pieces.iter().enumerate() {
            let last = self.end == End::Half && index + 1 == self.pieces.len();
            if send_piece(body, piece.clone(), last).await.is_none() {
                return;
            }
        }
        match self.end {
            End::Half if self.pieces.is_empty() && !ended => drop(body.send_data(Bytes::new(), true)),
            End::Reset => body.send_reset(h2::Reason::CANCEL),
            _ => {}
        }
    }
}

/// Sends as much at a time as the server's window takes; it may be smaller than the piece. `None` when nothing is taken any more.
async fn send_piece(body: &mut SendStream<Bytes>, mut piece: Bytes, last: bool) -> Option<()> {
    loop {
        body.reserve_capacity(piece.len());
        while body.capacity() == 0 && !piece.is_empty() {
            poll_fn(|cx| body.poll_capacity(cx)).await?.ok()?;
        }
        let part = piece.split_to(body.capacity().min(piece.len()));
        body.send_data(part, last && piece.is_empty()).ok()?;
        if piece.is_empty() {
            return Some(());
        }
    }
}

/// Why a stream was reset, or what else was wrong.
fn reason(error: &anyhow::Error) -> String {
    let reset = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
    reset.map_or_else(|| error.to_string(), |reason| format!("{reason:?}"))
}

fn text(value: Option<&HeaderValue>) -> String {
    value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

/// What came back.
#[derive(Clone, PartialEq, Default)]
pub struct Heard {
    /// Of HTTP; 0 when there was no head.
    pub status: u16,
    /// Of the answer.
    pub content_type: String,
    /// How messages are compressed.
    pub encoding: String,
    /// How many messages there were.
    pub messages: usize,
    /// Code and text, if the call was ended by the server.
    pub ended: Option<(Code, String)>,
    /// How it broke off, if it did: the reason of a reset, or that nothing came.
    pub broken: String,
}

impl Heard {
    fn told(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.ended = Some((status.code(), status.message().to_owned()));
        }
    }

    async fn read(&mut self, mut body: RecvStream) -> Result<(), h2::Error> {
        let mut bytes = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            let _ = body.flow_control().release_capacity(piece.len());
            bytes.extend_from_slice(&piece);
            while bytes.len() >= 5
                && bytes.len() - 5 >= u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize
            {
                let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
                bytes.advance(5 + length);
                self.messages += 1;
            }
        }
        if let Some(trailers) = body.trailers().await? {
            self.told(&trailers);
        }
        Ok(())
    }
}

impl fmt::Debug for Heard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, content_type, encoding, messages, ended, broken } = self;
        write!(formatter, "{status} {content_type} {encoding} {messages} messages {ended:?} {broken}")
    }
}

/// A message with its head.
pub fn message(flag: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&[flag][..], &length.to_be_bytes(), bytes].concat()
}
