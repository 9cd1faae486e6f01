//! A bound that may change while the member runs, and is asked for at each use.

use std::fmt;
use std::sync::Arc;

/// A bound, read anew each time.
#[derive(Clone)]
pub struct Limit<T>(Arc<dyn Fn() -> T + Send + Sync>);

impl<T> Limit<T> {
    /// The bound that `read` answers; it must be cheap.
    pub fn new(read: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The bound now.
    pub fn get(&self) -> T {
        (self.0)()
    }
}

impl<T: fmt::Debug> fmt::Debug for Limit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
