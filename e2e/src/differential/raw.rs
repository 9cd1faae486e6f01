//! Calls with any bytes as their message: what a broken or hostile client sends.

use bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// A client that neither encodes nor decodes.
pub struct RawClient {
    grpc: Grpc<Channel>,
}

impl RawClient {
    /// Over a connection.
    pub fn new(channel: Channel) -> Self {
        Self { grpc: Grpc::new(channel) }
    }

    /// Sends one message as a unary call; how it ended.
    pub async fn call(&mut self, path: &'static str, body: Bytes) -> Code {
        if let Err(error) = self.grpc.ready().await {
            return Status::from_error(Box::new(error)).code();
        }
        let request = Request::new(body);
        match self.grpc.unary(request, PathAndQuery::from_static(path), BytesCodec).await {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
