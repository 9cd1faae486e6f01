//! The difference of two statuses as a JSON merge patch. Pure.

use balsa_crds::RaftClusterStatus;
use serde_json::{Map, Value};

/// What to patch to make `old` into `new`; `None` when they are equal.
pub(super) fn changes(old: &RaftClusterStatus, new: &RaftClusterStatus) -> Result<Option<Value>, serde_json::Error> {
    let (old, new) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    Ok((old != new).then(|| merge(&old, &new)))
}

/// Only what differs; a field that is gone becomes null, which removes it.
fn merge(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            Some(before) => _ = patch.insert(key.clone(), merge(before, value)),
            None => _ = patch.insert(key.clone(), value.clone()),
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_statuses_need_no_patch() {
        let status = RaftClusterStatus { ready_replicas: 3, ..RaftClusterStatus::default() };
        assert_eq!(changes(&status, &status.clone()).expect("JSON"), None);
    }

    #[test]
    fn a_field_that_went_is_removed_and_the_rest_is_left_alone() {
        let old = json!({"leader": "db-0", "plan": {"step": "Wait", "blockedBy": {"reason": "X"}}, "members": [1, 2]});
        let new = json!({"plan": {"step": "Settled"}, "members": [1]});
        let wanted = json!({"leader": null, "plan": {"step": "Settled", "blockedBy": null}, "members": [1]});
        assert_eq!(merge(&old, &new), wanted);
    }
}
