//! The store of the local Kubernetes, and what befalls it: `e2e/kubernetes/store` does it.

use std::process::Command;

use anyhow::{Context, ensure};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/store");

/// The members under the API server.
pub(super) struct Store {
    endpoints: String,
}

impl Store {
    /// The store of the Kubernetes in use; `None` if that is not the local one.
    pub(super) fn found() -> anyhow::Result<Option<Self>> {
        let kube = std::env::var("BALSA_KUBE").unwrap_or_else(|_| "/run/balsa-kube".to_owned());
        if std::env::var("KUBECONFIG").is_ok_and(|used| used != format!("{kube}/kubeconfig")) {
            return Ok(None);
        }
        let output = Command::new(SCRIPT).arg("endpoints").output().context(SCRIPT)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Some(Self { endpoints: String::from_utf8(output.stdout)?.trim().to_owned() }))
    }

    pub(super) fn endpoints(&self) -> &str {
        &self.endpoints
    }

    pub(super) fn endpoint_list(&self) -> Vec<String> {
        self.endpoints.split(',').map(str::to_owned).collect()
    }

    /// How many there are.
    pub(super) fn members(&self) -> usize {
        self.endpoints.split(',').count()
    }

    /// `kill -9`.
    pub(super) fn kill(&self, member: usize) -> anyhow::Result<()> {
        run(&["kill", &member.to_string()])
    }

    /// Starts a killed member again and waits until it is ready.
    pub(super) fn start(&self, member: usize) -> anyhow::Result<()> {
        run(&["start", &member.to_string()])
    }

    /// Restarts the API server with flags beside its usual ones.
    pub(super) fn apiserver(&self, flags: &[&str]) -> anyhow::Result<()> {
        run(&[&["apiserver"], flags].concat())
    }
}

/// The scripts' daemons must not hold pipes of ours open, so their output goes where ours goes.
fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(SCRIPT).args(arguments).status().context(SCRIPT)?;
    ensure!(status.success(), "e2e/kubernetes/store {arguments:?}: {status}");
    Ok(())
}
