//! The messages of a call, one by one, as they pass: each is held until it is whole, and goes on as it is to be.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use tonic::Status;

/// What stands before a message: whether it is compressed, and its length.
const HEAD: usize = 1 + 4;

/// Makes another message of one.
pub(super) type Rewrite = Arc<dyn Fn(Bytes) -> Result<Vec<u8>, Status> + Send + Sync>;

/// Why the messages of a call came to an end, if they did.
#[derive(Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<Status>>>);

impl Trouble {
    pub(super) fn take(&self) -> Option<Status> {
        self.0.lock().take()
    }
}

/// A body whose messages have at most `most` bytes, and are rewritten where there is something to rewrite.
pub(super) struct Messages {
    inner: Body,
    held: BytesMut,
    most: usize,
    rewrite: Option<Rewrite>,
    trouble: Trouble,
}

/// The messages have come to an end.
#[derive(Debug)]
struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

impl Messages {
    pub(super) fn of(inner: Body, most: usize, rewrite: Option<Rewrite>, trouble: Trouble) -> Self {
        Self { inner, held: BytesMut::new(), most, rewrite, trouble }
    }

    /// The next message that is held whole, as it is to be.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(head) = self.held.get(..HEAD) else { return Ok(None) };
        let (compressed, length) = (head[0] != 0, u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
        if length > self.most {
            let text = format!("trying to send message larger than max ({length} vs. {})", self.most);
            return Err(Status::resource_exhausted(text));
        }
        if self.held.len() < HEAD + length {
            return Ok(None);
        }
        let Some(rewrite) = &self.rewrite else { return Ok(Some(self.held.split_to(HEAD + length).freeze())) };
        if compressed {
            return Err(Status::unimplemented("grpc: a proxy with a namespace takes no compressed messages"));
        }
        self.held.advance(HEAD);
        let message = rewrite(self.held.split_to(length).freeze())?;
        let length =
            u32::try_from(message.len()).map_err(|_| Status::resource_exhausted("the message is too large"))?;
        Ok(Some([&[0][..], &length.to_be_bytes(), &message].concat().into()))
    }
}

impl HttpBody for Messages {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            match self.next() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                Ok(None) => {}
                Err(status) => {
                    let broken = Broken(status.message().to_owned());
                    *self.trouble.0.lock() = Some(status);
                    return Poll::Ready(Some(Err(axum::Error::new(broken))));
                }
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held.extend_from_slice(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
    }

    /// An answer that is an error alone has no messages, and says so with its head: it must not come as one that breaks off.
    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.inner.is_end_stream()
    }
}

/// One message, and that the call has come to a good end.
pub(super) struct Whole {
    message: Option<Bytes>,
    ended: bool,
}

impl Whole {
    pub(super) fn of(message: &[u8]) -> Self {
        let length = u32::try_from(message.len()).unwrap_or_default();
        Self { message: Some([&[0][..], &length.to_be_bytes(), message].concat().into()), ended: false }
    }
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        // It fails only for a message that cannot be a header, and here is none.
        let _ = Status::ok("").add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    fn message(text: &str) -> Vec<u8> {
        [&[0][..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
    }

    /// Everything that comes out when it came in in such pieces.
    async fn passed(bytes: &[u8], piece: usize, rewrite: Option<Rewrite>) -> Result<Vec<u8>, Status> {
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            bytes.chunks(piece).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
        let trouble = Trouble::default();
        let body = Messages::of(Body::from_stream(futures::stream::iter(pieces)), 10, rewrite, trouble.clone());
        let mut stream = Body::new(body).into_data_stream();
        let mut all = Vec::new();
        while let Some(Ok(data)) = stream.next().await {
            all.extend(data);
        }
        trouble.take().map_or(Ok(all), Err)
    }

    #[tokio::test]
    async fn messages_are_rewritten_however_they_come() {
        let bytes = [message("a"), message(""), message("ccc")].concat();
        let double: Rewrite = Arc::new(|message| Ok([&message[..], &message].concat()));
        for piece in [1, 3, 100] {
            assert_eq!(passed(&bytes, piece, None).await.unwrap(), bytes);
            let expected = [message("aa"), message(""), message("cccccc")].concat();
            assert_eq!(passed(&bytes, piece, Some(double.clone())).await.unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn an_answer_without_messages_ends_with_its_head() {
        let of = |body| Messages::of(body, 10, None, Trouble::default());
        assert!(of(Body::empty()).is_end_stream() && !of(Body::from("x")).is_end_stream());
    }

    #[tokio::test]
    async fn what_is_too_large_or_compressed_ends_the_call() {
        let large = passed(&message("more than ten"), 4, None).await.unwrap_err();
        assert_eq!(large.message(), "trying to send message larger than max (13 vs. 10)");
        let mut compressed = message("a");
        compressed[0] = 1;
        assert!(passed(&compressed, 4, None).await.is_ok());
        let same: Rewrite = Arc::new(|message| Ok(message.into()));
        assert_eq!(passed(&compressed, 4, Some(same)).await.unwrap_err().code(), tonic::Code::Unimplemented);
    }
}
