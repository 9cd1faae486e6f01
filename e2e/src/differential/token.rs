//! The token that goes with a request.

use std::sync::{Arc, Mutex, PoisonError};

use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// A connection whose requests have the token of the moment.
pub type Wire = InterceptedService<Channel, Token>;

/// The token of the moment, shared by all clients of a server.
#[derive(Debug, Clone, Default)]
pub struct Token(Arc<Mutex<Option<String>>>);

impl Token {
    /// From now on.
    pub fn set(&self, token: Option<&str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = token.map(str::to_owned);
    }

    /// One that stays as this one is now: a stream keeps what it was opened with.
    pub fn frozen(&self) -> Self {
        Self(Arc::new(Mutex::new(self.now())))
    }

    fn now(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.now() {
            let value = MetadataValue::try_from(token).map_err(|error| Status::internal(error.to_string()))?;
            request.metadata_mut().insert("token", value);
        }
        Ok(request)
    }
}
