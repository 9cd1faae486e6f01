//! What the operator counts. One struct, registered once, handed down; label values are the same words as in
//! conditions and events.

use std::sync::Mutex;
use std::time::Duration;

use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    passes: HistogramVec,
    steps: IntCounterVec,
    writes: IntCounterVec,
    refusals: IntCounterVec,
    plan: IntGaugeVec,
    ready_voters: IntGaugeVec,
    /// (namespace, name, step, reason) of the `plan` series that exist, so that a replaced plan loses its series.
    planned: Mutex<Vec<[String; 4]>>,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    ///
    /// # Errors
    /// Only when two metrics have one name, which the test of this module rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let passes = HistogramVec::new(
            HistogramOpts::new("balsa_operator_reconcile_seconds", "Duration of a pass, by how it ended")
                .buckets(buckets),
            &["result"],
        )?;
        let steps = IntCounterVec::new(
            Opts::new("balsa_operator_steps_total", "Steps executed, by step and result"),
            &["step", "result"],
        )?;
        let writes = IntCounterVec::new(
            Opts::new("balsa_operator_applied_total", "Objects applied, by kind; a settled cluster applies none"),
            &["kind"],
        )?;
        let refusals = IntCounterVec::new(
            Opts::new("balsa_operator_refused_total", "Passes in which what the spec leads to was refused, by reason"),
            &["reason"],
        )?;
        let plan = IntGaugeVec::new(
            Opts::new("balsa_operator_plan", "1 for the step each cluster is at and what it waits for"),
            &["namespace", "name", "step", "reason"],
        )?;
        let ready_voters = IntGaugeVec::new(
            Opts::new("balsa_operator_ready_voters", "Voters ready to serve, by cluster"),
            &["namespace", "name"],
        )?;
        registry.register(Box::new(passes.clone()))?;
        registry.register(Box::new(steps.clone()))?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(refusals.clone()))?;
        registry.register(Box::new(plan.clone()))?;
        registry.register(Box::new(ready_voters.clone()))?;
        Ok(Self { registry, passes, steps, writes, refusals, plan, ready_voters, planned: Mutex::default() })
    }

    /// A pass ended; `result` is `ok` or an error's reason.
    pub fn pass(&self, result: &str, took: Duration) {
        self.passes.with_label_values(&[result]).observe(took.as_secs_f64());
    }

    /// A step was executed; `result` is `ok` or an error's reason.
    pub fn step(&self, step: &str, result: &str) {
        self.steps.with_label_values(&[step, result]).inc();
    }

    /// An object of this kind was written.
    pub fn applied(&self, kind: &str) {
        self.writes.with_label_values(&[kind]).inc();
    }

    /// The API server, or somebody else's object, stands against what the spec leads to.
    pub fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// The plan of one cluster; replaces what was said of it before.
    pub fn planned(&self, namespace: &str, name: &str, step: &str, reason: &str, ready_voters: i32) {
        self.ready_voters.with_label_values(&[namespace, name]).set(ready_voters.into());
        let new = [namespace, name, step, reason].map(str::to_owned);
        let mut planned = self.planned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !planned.contains(&new) {
            self.drop_plan(&mut planned, namespace, name);
            self.plan.with_label_values(&new).set(1);
            planned.push(new);
        }
    }

    /// The cluster is gone: so are its series.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut planned = self.planned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.drop_plan(&mut planned, namespace, name);
        // A series that was never there is no error here.
        let _ = self.ready_voters.remove_label_values(&[namespace, name]);
    }

    fn drop_plan(&self, planned: &mut Vec<[String; 4]>, namespace: &str, name: &str) {
        planned.retain(|series| {
            let keep = series[0] != namespace || series[1] != name;
            if !keep {
                let _ = self.plan.remove_label_values(series);
            }
            keep
        });
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.text().expect("encodes")).expect("text")
    }

    #[test]
    fn a_cluster_has_one_plan_series_and_none_once_it_is_gone() {
        let metrics = Metrics::new().expect("registers");
        metrics.planned("ns", "a", "AddLearner", "", 1);
        metrics.planned("ns", "a", "Wait", "PodNotRunning", 1);
        metrics.planned("ns", "b", "Settled", "", 3);
        let shown = text(&metrics);
        assert!(!shown.contains("AddLearner"), "{shown}");
        assert!(shown.contains(r#"balsa_operator_plan{name="a",namespace="ns",reason="PodNotRunning",step="Wait"} 1"#));
        metrics.forget("ns", "a");
        let shown = text(&metrics);
        assert!(!shown.contains(r#"name="a""#), "{shown}");
        assert!(shown.contains(r#"name="b""#), "{shown}");
    }
}
