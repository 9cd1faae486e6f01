//! Calls with any bytes as their message: what a broken or hostile client sends, and what is encoded elsewhere.

use balsa_proto::raw::BytesCodec;
use bytes::Bytes;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use super::token::Wire;

/// A client that neither encodes nor decodes.
#[derive(Clone)]
pub struct RawClient {
    grpc: Grpc<Wire>,
}

impl RawClient {
    /// Over a connection.
    pub fn new(wire: Wire) -> Self {
        Self { grpc: Grpc::new(wire) }
    }

    /// Sends one message as a unary call; how it ended, and the text, unless it is that of a decoder.
    pub async fn call(&mut self, path: &'static str, body: Bytes) -> (Code, String) {
        match self.unary(path, body).await {
            Ok(_) => (Code::Ok, String::new()),
            Err(status) if status.code() == Code::Internal => (Code::Internal, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        }
    }

    /// Sends one message as a unary call; the one that comes back.
    ///
    /// # Errors
    /// The call's.
    pub async fn unary(&mut self, path: &'static str, body: Bytes) -> Result<Bytes, Status> {
        self.grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let reply = self.grpc.unary(Request::new(body), PathAndQuery::from_static(path), BytesCodec).await?;
        Ok(reply.into_inner())
    }
}
