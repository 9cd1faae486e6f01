//! Hashes and compares passwords as etcd does: bcrypt, version 2a. Each takes tens of milliseconds of a core, by intent,
//! so they run on threads of their own, as many at once as the member has cores, and not without bound behind that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Semaphore;

use super::failure::Error;
use crate::engine::Failure;

/// Passwords that wait for a thread. At 50 ms each on one core the last of them waits 13 s, longer than clients do;
/// above it the caller is refused.
const MAX_WAITING: usize = 256;

/// bcrypt looks at no more than this; a longer password is refused rather than cut.
const MAX_BYTES: usize = 72;

/// Where passwords are hashed.
pub struct Passwords {
    cost: u32,
    threads: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Passwords {
    /// `cost` is the strength of new hashes, `threads` how many are made at once, at least one.
    pub fn new(cost: u32, threads: usize) -> Self {
        Self { cost, threads: Arc::new(Semaphore::new(threads.max(1))), waiting: AtomicUsize::new(0) }
    }

    /// The hash of a password, in base64 as the log holds it.
    ///
    /// # Errors
    /// `PasswordTooLong`; `TooManyRequests`.
    pub async fn hash(&self, password: String) -> Result<String, Error> {
        if password.len() > MAX_BYTES {
            return Err(Error::PasswordTooLong);
        }
        let cost = self.cost;
        let hashed = self.run(move || bcrypt::hash_with_result(password, cost)).await?;
        let parts = hashed.map_err(|error| Error::Internal(error.to_string()))?;
        Ok(STANDARD.encode(parts.format_for_version(bcrypt::Version::TwoA)))
    }

    /// Whether a hash is of this password. Without a hash it takes as long, and the answer is no, so that the time does
    /// not tell which users exist.
    ///
    /// # Errors
    /// `TooManyRequests`.
    pub async fn matches(&self, password: String, hash: Option<Vec<u8>>) -> Result<bool, Error> {
        let decoy = format!("$2a${:02}${}", self.cost, ".".repeat(53));
        self.run(move || {
            let known = hash.and_then(|hash| String::from_utf8(hash).ok());
            let matches = bcrypt::verify(password, known.as_deref().unwrap_or(&decoy)).unwrap_or(false);
            known.is_some() && matches
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let _waiting = Waiting::new(&self.waiting)?;
        let permit = self.threads.clone().acquire_owned().await.map_err(|error| Error::Internal(error.to_string()))?;
        let worked = tokio::task::spawn_blocking(move || {
            // Held until the work is done, even when nobody waits for it any more.
            let _permit = permit;
            work()
        });
        worked.await.map_err(|error| Error::Internal(error.to_string()))
    }
}

/// One more that waits, for as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Result<Self, Error> {
        let counted = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            return Err(Failure::TooManyRequests.into());
        }
        Ok(counted)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lowest cost there is.
    const FAST: u32 = 4;

    async fn hash(password: &str) -> Vec<u8> {
        STANDARD.decode(Passwords::new(FAST, 1).hash(password.to_owned()).await.unwrap()).unwrap()
    }

    async fn matches(password: &str, hash: Option<Vec<u8>>) -> bool {
        Passwords::new(FAST, 1).matches(password.to_owned(), hash).await.unwrap()
    }

    #[tokio::test]
    async fn a_hash_is_bcrypts_2a_and_of_one_password_only() {
        let hashed = hash("secret").await;
        assert!(hashed.starts_with(b"$2a$04$"), "{}", String::from_utf8_lossy(&hashed));
        assert_ne!(hashed, hash("secret").await, "salted");
        assert!(matches("secret", Some(hashed.clone())).await);
        assert!(!matches("Secret", Some(hashed)).await);
        assert!(matches("", Some(hash("").await)).await);
    }

    #[tokio::test]
    async fn a_hash_that_go_made_is_understood() {
        let of_go = b"$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga".to_vec();
        assert!(matches("allmine", Some(of_go.clone())).await);
        assert!(!matches("allyours", Some(of_go)).await);
    }

    #[tokio::test]
    async fn no_password_matches_no_hash() {
        for password in ["", "secret"] {
            assert!(!matches(password, None).await);
            assert!(!matches(password, Some(Vec::new())).await);
            assert!(!matches(password, Some(b"no hash".to_vec())).await);
        }
    }

    #[test]
    fn the_decoy_is_compared_and_not_passed_over() {
        let decoy = format!("$2a$04${}", ".".repeat(53));
        assert!(matches!(bcrypt::verify("secret", &decoy), Ok(false)));
    }

    #[tokio::test]
    async fn a_password_longer_than_bcrypt_reads_is_refused() {
        let passwords = Passwords::new(FAST, 1);
        assert!(passwords.hash("x".repeat(72)).await.is_ok());
        assert_eq!(passwords.hash("x".repeat(73)).await, Err(Error::PasswordTooLong));
    }

    #[tokio::test]
    async fn more_than_the_bound_are_refused_at_once() {
        let passwords = Passwords::new(FAST, 1);
        passwords.waiting.store(MAX_WAITING, Ordering::Relaxed);
        assert_eq!(passwords.hash("x".into()).await, Err(Failure::TooManyRequests.into()));
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), MAX_WAITING, "the refused one does not count");
    }
}
