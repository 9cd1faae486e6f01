//! etcd's feature gates: which there are, whether they are on, and why those that change nothing do not. They are
//! accepted, checked as etcd checks them, and published as metrics, because manifests and dashboards name them.

use std::collections::BTreeMap;

use super::sources::Raw;
use super::{ConfigError, flags, invalid};

/// One gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// `ALPHA` or `BETA`, as its metric says.
    pub stage: &'static str,
    /// Whether it is on when nothing is said.
    pub default: bool,
    /// The flag of etcd 3.5 that became the gate.
    flag: Option<&'static str>,
    /// Why it changes nothing; empty for one that has its effect.
    reason: &'static str,
}

/// Every gate of etcd 3.6, and those that 3.7 added.
pub const GATES: [Gate; 9] = [
    Gate {
        name: "CompactHashCheck",
        stage: "ALPHA",
        default: false,
        flag: Some("experimental-compact-hash-check-enabled"),
        reason: SERVED,
    },
    Gate {
        name: "FastLeaseKeepAlive",
        stage: "BETA",
        default: true,
        flag: None,
        reason: "a lease is kept alive the same way with and without it",
    },
    Gate {
        name: "InitialCorruptCheck",
        stage: "ALPHA",
        default: false,
        flag: Some("experimental-initial-corrupt-check"),
        reason: SERVED,
    },
    Gate {
        name: "LeaseCheckpoint",
        stage: "ALPHA",
        default: false,
        flag: Some("experimental-enable-lease-checkpoint"),
        reason: SERVED,
    },
    Gate {
        name: "LeaseCheckpointPersist",
        stage: "ALPHA",
        default: false,
        flag: Some("experimental-enable-lease-checkpoint-persist"),
        reason: "what LeaseCheckpoint writes down survives a restart always",
    },
    Gate {
        name: "PriorityRequest",
        stage: "ALPHA",
        default: false,
        flag: None,
        reason: "all requests wait in the same order",
    },
    Gate {
        name: "SetMemberLocalAddr",
        stage: "ALPHA",
        default: false,
        flag: None,
        reason: "the system chooses the address that peers are dialled from",
    },
    Gate {
        name: "StopGRPCServiceOnDefrag",
        stage: "ALPHA",
        default: false,
        flag: Some("experimental-stop-grpc-service-on-defrag"),
        reason: "defragmentation stops nobody",
    },
    Gate {
        name: "TxnModeWriteWithSharedBuffer",
        stage: "BETA",
        default: true,
        flag: Some("experimental-txn-mode-write-with-shared-buffer"),
        reason: "transactions have no buffer to share",
    },
];

/// The reason of a gate that has its effect.
const SERVED: &str = "";

/// Those that stand for all of a stage, which etcd publishes like a gate.
const STAGES: [(&str, &str); 2] = [("AllAlpha", "ALPHA"), ("AllBeta", "BETA")];

/// Which gates are on.
pub type Gates = BTreeMap<&'static str, bool>;

/// Reads `--feature-gates` and the flags that became gates. Each gate that is set to what it is not by default adds a
/// warning to `warnings`.
///
/// # Errors
/// That of a [wrong](Raw::wrong) value for a gate that does not exist or has no value; `Invalid` for one that is set in
/// both ways, or without the one that it needs.
pub(super) fn read(raw: &Raw, warnings: &mut Vec<String>) -> Result<Gates, ConfigError> {
    let text = raw.text("feature-gates");
    let given = parse(text).map_err(|error| raw.wrong("feature-gates", error))?;
    let mut gates: Gates = GATES.iter().map(|gate| (gate.name, gate.default)).collect();
    gates.extend(STAGES.map(|(name, _)| (name, false)));
    for (name, on) in &given {
        set(&mut gates, name, *on);
    }
    for gate in GATES {
        let Some(flag) = gate.flag.filter(|flag| raw.is_set(flag)) else { continue };
        let on = raw.boolean(flag)?;
        if let Some((name, value)) = given.iter().find(|(name, _)| *name == gate.name) {
            let new = format!("--feature-gates={name}={value}");
            return Err(invalid(format!(
                "cannot specify both flags: --{flag}={on} and {new} at the same time, please just use {new}"
            )));
        }
        gates.insert(gate.name, on);
    }
    if gates["LeaseCheckpointPersist"] && !gates["LeaseCheckpoint"] {
        let text = "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint";
        return Err(invalid(text));
    }
    let changed = GATES.iter().filter(|gate| gates[gate.name] != gate.default && gate.reason != SERVED);
    warnings.extend(changed.map(|gate| format!("feature gate {} has no effect: {}", gate.name, gate.reason)));
    Ok(gates)
}

/// What is published of them: name, stage and whether each is on.
pub fn published(gates: &Gates) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    let gate = |(name, on): (&&'static str, &bool)| {
        let stages = STAGES.iter().copied().chain(GATES.iter().map(|gate| (gate.name, gate.stage)));
        let stage = stages.into_iter().find(|(known, _)| known == name).map_or("", |(_, stage)| stage);
        (*name, stage, *on)
    };
    gates.iter().map(gate)
}

/// One of [`STAGES`] stands for itself and for all of its stage.
fn set(gates: &mut Gates, name: &str, on: bool) {
    let stage = STAGES.iter().find(|(known, _)| *known == name);
    let matches = |gate: &&Gate| gate.name == name || stage.is_some_and(|(_, stage)| gate.stage == *stage);
    gates.extend(GATES.iter().filter(matches).map(|gate| (gate.name, on)));
    gates.extend(stage.map(|(name, _)| (*name, on)));
}

/// `Gate=true,Gate=false`.
fn parse(text: &str) -> Result<Vec<(&str, bool)>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("missing bool value for {part}"))?;
            let (name, value) = (name.trim(), value.trim());
            let known = STAGES.iter().any(|(stage, _)| *stage == name) || GATES.iter().any(|gate| gate.name == name);
            if !known {
                return Err(format!("unrecognized feature gate: {name}"));
            }
            let on = flags::boolean(value).ok_or_else(|| format!("invalid value of {name}={value}"))?;
            Ok((name, on))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::sources::{Merged, merge};
    use super::*;

    fn gates(args: &[&str]) -> Result<(Gates, Vec<String>), ConfigError> {
        let args = ["balsa"].iter().chain(args).map(|arg| (*arg).to_owned());
        let Merged::Values(raw) = merge(args, [])? else { panic!("values") };
        let mut warnings = Vec::new();
        read(&raw, &mut warnings).map(|gates| (gates, warnings))
    }

    #[test]
    fn a_gate_is_set_by_its_name_or_by_the_flag_it_was() {
        let (gates_of_none, warnings) = gates(&[]).unwrap();
        assert!(gates_of_none["TxnModeWriteWithSharedBuffer"] && !gates_of_none["CompactHashCheck"]);
        assert!(warnings.is_empty());
        for args in ["--feature-gates=CompactHashCheck=true", "--experimental-compact-hash-check-enabled"] {
            let (gates, warnings) = gates(&[args]).unwrap();
            assert!(gates["CompactHashCheck"], "{args}");
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        let (_, warnings) = gates(&["--feature-gates=PriorityRequest=true"]).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let (all, _) = gates(&["--feature-gates=AllAlpha=true,StopGRPCServiceOnDefrag=false"]).unwrap();
        assert!(all["LeaseCheckpointPersist"] && !all["StopGRPCServiceOnDefrag"]);
        assert!(published(&all).any(|shown| shown == ("AllAlpha", "ALPHA", true)));
        assert!(published(&all).any(|shown| shown == ("AllBeta", "BETA", false)));
        assert_eq!(published(&all).count(), GATES.len() + STAGES.len());
    }

    #[test]
    fn what_etcd_refuses_is_refused() {
        for (args, code) in [
            (&["--feature-gates=Foo=true"][..], 2),
            (&["--feature-gates=CompactHashCheck"], 2),
            (&["--feature-gates=CompactHashCheck=maybe"], 2),
            (&["--feature-gates=LeaseCheckpointPersist=true"], 1),
            (&["--feature-gates=CompactHashCheck=true", "--experimental-compact-hash-check-enabled=true"], 1),
        ] {
            assert_eq!(gates(args).unwrap_err().exit_code(), code, "{args:?}");
        }
    }
}
