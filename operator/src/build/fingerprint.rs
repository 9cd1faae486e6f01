//! Short fingerprints by which a later pass, or a later release, knows what was applied.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// Annotation of the StatefulSet: fingerprint of the template as built.
pub const TEMPLATE_HASH: &str = "balsa.dev/template-hash";
/// Annotation of the StatefulSet: fingerprint of the part of the spec that the template was built from.
pub const SPEC_HASH: &str = "balsa.dev/spec-hash";
/// Annotation of the StatefulSet: fingerprint of the fields that cannot be changed, as it was made with them.
pub const FIXED_HASH: &str = "balsa.dev/fixed-hash";
/// Annotation of the pod template: fingerprint of the settings that a running member cannot
/// take over, so that a change of them restarts the pods.
pub(super) const CONFIG_HASH: &str = "balsa.dev/config-hash";

/// 16 hex digits over the value's JSON, whose maps are ordered.
pub(super) fn fingerprint(value: &impl Serialize) -> String {
    // Kubernetes objects always have a JSON form; if one had none, equal fingerprints would only hide a change.
    let json = serde_json::to_vec(value).unwrap_or_default();
    Sha256::digest(&json).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
