//! Large answers of a watch, encoded while they are sent.
//!
//! tonic encodes a message as a whole into a buffer of its stream, which stays as large as the largest message was for as
//! long as the stream lives. So a stream gives tonic an empty message in place of a large one, and hands the large one over
//! beside ([`Beside`], an extension of the response). The body that tonic made is wrapped here: where the empty message
//! stands it gives the large one, piece by piece. A watch never sends an empty message of its own: each has a header.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use balsa_proto::etcdserverpb::WatchResponse;
use balsa_proto::mvccpb::Event;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

/// Flag and length before each message.
const PREFIX: usize = 5;
/// Number of the field `events`, the last one of a response.
const EVENTS: u32 = 11;
/// Messages from this size on are sent so.
const LARGE: usize = 256 << 10;
/// Bytes that are encoded at once; one event can be larger.
const PIECE: usize = 64 << 10;

/// The way of a large message around tonic. There is one at a time.
#[derive(Clone, Default)]
pub(super) struct Beside(Arc<Mutex<Option<Pieces>>>);

impl Beside {
    /// The message to give to tonic, and if it only stands for this one, what resolves once this one is sent.
    pub(super) fn pass(&self, response: WatchResponse) -> (WatchResponse, Option<oneshot::Receiver<()>>) {
        match u32::try_from(response.encoded_len()) {
            Ok(length) if length as usize >= LARGE => {
                let (sent, all_sent) = oneshot::channel();
                *self.0.lock() = Some(Pieces::of(response, length, sent));
                (WatchResponse::default(), Some(all_sent))
            }
            _ => (response, None),
        }
    }
}

/// A message on its way out.
struct Pieces {
    head: Bytes,
    events: std::vec::IntoIter<Event>,
    /// Dropped with it.
    _sent: oneshot::Sender<()>,
}

impl Pieces {
    fn of(mut response: WatchResponse, length: u32, sent: oneshot::Sender<()>) -> Self {
        let events = std::mem::take(&mut response.events).into_iter();
        let mut head = BytesMut::with_capacity(PREFIX + response.encoded_len());
        head.put_u8(0);
        head.put_u32(length);
        head.put_slice(&response.encode_to_vec());
        Self { head: head.freeze(), events, _sent: sent }
    }

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = BytesMut::from(std::mem::take(&mut self.head));
        while piece.len() < PIECE {
            let Some(event) = self.events.next() else { break };
            prost::encoding::message::encode(EVENTS, &event, &mut piece);
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

/// Puts the large messages of a response in their places, if it has any.
pub(super) fn in_place(response: Response) -> Response {
    match response.extensions().get::<Beside>().cloned() {
        Some(beside) => response.map(|body| Body::new(Whole { body, beside, rest: Bytes::new(), pieces: None })),
        None => response,
    }
}

/// A body with its large messages.
struct Whole {
    body: Body,
    beside: Beside,
    /// What is left of the last frame: whole messages, as tonic gives them.
    rest: Bytes,
    pieces: Option<Pieces>,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let whole = self.get_mut();
        loop {
            if let Some(piece) = whole.pieces.as_mut().and_then(Pieces::next) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            whole.pieces = None;
            if !whole.rest.is_empty() {
                let plain = before_empty(&whole.rest);
                if plain > 0 {
                    return Poll::Ready(Some(Ok(Frame::data(whole.rest.split_to(plain)))));
                }
                whole.rest.advance(PREFIX);
                whole.pieces = whole.beside.0.lock().take();
                continue;
            }
            match ready!(Pin::new(&mut whole.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => whole.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
    }
}

/// Bytes of the messages in front of the first empty one.
fn before_empty(messages: &[u8]) -> usize {
    let mut at = 0;
    while let Some([_, length @ ..]) = messages.get(at..).and_then(|rest| rest.first_chunk::<PREFIX>()) {
        match u32::from_be_bytes(*length) {
            0 => return at,
            length => at += PREFIX + length as usize,
        }
    }
    messages.len()
}

#[cfg(test)]
mod tests {
    use balsa_proto::etcdserverpb::ResponseHeader;
    use balsa_proto::mvccpb::KeyValue;
    use futures::{StreamExt, stream};

    use super::*;

    fn response(events: usize, bytes: usize) -> WatchResponse {
        let kv = KeyValue { key: "k".into(), value: vec![7; bytes].into(), mod_revision: 9, ..Default::default() };
        let event = Event { r#type: 1, kv: Some(kv.clone()), prev_kv: Some(kv) };
        let header = Some(ResponseHeader { revision: 9, ..Default::default() });
        WatchResponse { header, watch_id: 4, fragment: true, events: vec![event; events], ..Default::default() }
    }

    fn framed(message: &WatchResponse) -> Vec<u8> {
        let length = u32::try_from(message.encoded_len()).expect("short");
        [&[0][..], &length.to_be_bytes(), &message.encode_to_vec()].concat()
    }

    /// What a body gives for `frames`, each of some messages.
    async fn sent(beside: &Beside, frames: Vec<Vec<u8>>) -> Vec<Bytes> {
        let frames = stream::iter(frames).map(|frame| Ok::<_, axum::Error>(Bytes::from(frame)));
        let mut response = Response::new(Body::from_stream(frames));
        response.extensions_mut().insert(beside.clone());
        in_place(response).into_body().into_data_stream().map(|piece| piece.expect("a piece")).collect().await
    }

    #[tokio::test]
    async fn a_large_message_comes_in_pieces_in_its_place_and_small_ones_as_they_are() {
        for large in [response(3000, 100), response(1, 400 << 10), response(40, 20 << 10)] {
            let (small, beside) = (response(2, 10), Beside::default());
            assert_eq!(beside.pass(small.clone()).0, small);
            let (empty, all_sent) = beside.pass(large.clone());
            let mut all_sent = all_sent.expect("it is large");
            assert!(all_sent.try_recv() == Err(oneshot::error::TryRecvError::Empty));
            let frame = [framed(&small), framed(&empty), framed(&small)].concat();
            let pieces = sent(&beside, vec![framed(&small), frame, framed(&small)]).await;
            let small = framed(&small);
            assert_eq!(pieces.concat(), [&small[..], &small, &framed(&large), &small, &small].concat());
            assert!(pieces.iter().all(|piece| piece.len() < PIECE + (900 << 10)));
            assert!(all_sent.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        }
    }

    #[tokio::test]
    async fn no_more_than_a_piece_is_encoded_ahead() {
        let beside = Beside::default();
        let (empty, _all_sent) = beside.pass(response(3000, 100));
        let pieces = sent(&beside, vec![framed(&empty)]).await;
        assert!(pieces.len() > 5 && pieces.iter().all(|piece| piece.len() < PIECE + 300), "{}", pieces.len());
    }
}
