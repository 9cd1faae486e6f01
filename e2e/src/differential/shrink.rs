//! Makes a failing sequence small: leaves out steps as long as the servers still differ. Every attempt is a replay on new
//! processes, so nothing of an earlier one can be the cause.

use std::future::Future;
use std::time::{Duration, Instant};

use super::step::Step;

/// Leaves out what it can, halves first, then quarters, down to single steps; stops when `patience` is used up.
///
/// # Errors
/// Those of `differs`.
pub async fn shrink<F>(
    mut steps: Vec<Step>,
    patience: Duration,
    mut differs: impl FnMut(Vec<Step>) -> F,
) -> anyhow::Result<Vec<Step>>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let deadline = Instant::now() + patience;
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        let mut smaller = false;
        while from < steps.len() {
            if Instant::now() > deadline {
                return Ok(steps);
            }
            let mut rest = steps.clone();
            rest.drain(from..(from + size).min(steps.len()));
            if differs(rest.clone()).await? {
                steps = rest;
                smaller = true;
            } else {
                from += size;
            }
        }
        // Single steps are tried until none can go.
        size = if size == 1 && smaller { 1 } else { size / 2 };
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use balsa_proto::etcdserverpb as pb;

    use super::*;

    fn put(lease: i64) -> Step {
        Step::Put(pb::PutRequest { lease, ..Default::default() })
    }

    #[tokio::test]
    async fn what_the_difference_does_not_need_goes() {
        let steps: Vec<Step> = (0..100).map(put).collect();
        let needed = [put(17), put(60), put(61)];
        let mut attempts = 0;
        let small = shrink(steps, Duration::from_secs(60), |steps| {
            attempts += 1;
            let differs = needed.iter().all(|step| steps.contains(step));
            async move { Ok(differs) }
        });
        assert_eq!(small.await.expect("no error"), needed);
        assert!(attempts < 120, "{attempts}");
    }

    #[tokio::test]
    async fn patience_ends_it() {
        let steps = vec![put(1), put(2)];
        let small = shrink(steps.clone(), Duration::ZERO, |_| async { Ok(true) }).await.expect("no error");
        assert!(small.len() <= steps.len());
    }
}
