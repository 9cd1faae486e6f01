//! Whether an object is as wanted, without asking the API server. Pure.
//!
//! The API server adds defaults, so an object is as wanted when everything we write is in it. Fields that we no longer
//! write are found by a fingerprint of what was applied last, kept in an annotation.

use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Annotation of every applied object: fingerprint of all that was applied.
const APPLIED_HASH: &str = "balsa.dev/applied-hash";

/// What to send to make `live` as `desired`; `None` if it is so already.
pub(super) fn body<K: Resource + Serialize>(desired: &K, live: Option<&K>) -> Result<Option<Value>, serde_json::Error> {
    let mut wanted = serde_json::to_value(desired)?;
    let hash = hash(&wanted);
    set(&mut wanted, &["metadata", "annotations", APPLIED_HASH], json!(hash));
    let Some(live) = live else { return Ok(Some(wanted)) };
    let found = serde_json::to_value(live)?;
    let same = live.annotations().get(APPLIED_HASH) == Some(&hash) && contains(&found, &wanted, "");
    if same {
        return Ok(None);
    }
    set(&mut wanted, &["metadata", "uid"], json!(live.uid()));
    set(&mut wanted, &["metadata", "resourceVersion"], json!(live.resource_version()));
    Ok(Some(wanted))
}

/// Replicas are left out: they are changed by steps, which write nothing else.
fn hash(wanted: &Value) -> String {
    let mut wanted = wanted.clone();
    if let Some(Value::Object(spec)) = wanted.get_mut("spec") {
        spec.remove("replicas");
    }
    Sha256::digest(wanted.to_string()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn set(value: &mut Value, path: &[&str], new: Value) {
    match path {
        [] => *value = new,
        [key, rest @ ..] => {
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            if let Value::Object(map) = value {
                set(map.entry(*key).or_insert(Value::Null), rest, new);
            }
        }
    }
}

/// Whether all of `wanted` is in `found`. `key` is the name under which both stand.
pub(super) fn contains(found: &Value, wanted: &Value, key: &str) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted.iter().all(|(name, wanted)| {
            // Names below `requests` and `limits` are resources, whose amounts the API server writes its own way.
            let key = if matches!(key, "requests" | "limits") { key } else { name };
            contains(found.get(name).unwrap_or(&Value::Null), wanted, key)
        }),
        // Beside ours others may have theirs, as containers and variables: server-side apply leaves them alone.
        (Value::Array(found), Value::Array(wanted)) if are_named(found) && are_named(wanted) => {
            let same = |found: &Value, wanted: &Value| found["name"] == wanted["name"] && contains(found, wanted, key);
            wanted.iter().all(|wanted| found.iter().any(|found| same(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| contains(found, wanted, key))
        }
        // The API server leaves out what is empty.
        (Value::Null, wanted) => is_empty(wanted),
        (Value::String(found), Value::String(wanted)) if matches!(key, "requests" | "limits") => {
            found == wanted || (amount(found).is_some() && amount(found) == amount(wanted))
        }
        (found, wanted) => found == wanted,
    }
}

fn are_named(list: &[Value]) -> bool {
    list.iter().all(|entry| entry["name"].is_string())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A quantity in billionths; `None` if it is none or too large to compare.
fn amount(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator): (i128, i128) = match suffix {
        "n" => (1, 1),
        "u" => (1_000, 1),
        "m" => (1_000_000, 1),
        "" => (1_000_000_000, 1),
        "k" => (1_000_000_000_000, 1),
        "M" => (1_000_000_000_000_000, 1),
        "G" => (1_000_000_000_000_000_000, 1),
        "T" => (10_i128.pow(21), 1),
        "P" => (10_i128.pow(24), 1),
        "E" => (10_i128.pow(27), 1),
        "Ki" => (1_000_000_000 << 10, 1),
        "Mi" => (1_000_000_000 << 20, 1),
        "Gi" => (1_000_000_000 << 30, 1),
        "Ti" => (1_000_000_000 << 40, 1),
        "Pi" => (1_000_000_000 << 50, 1),
        "Ei" => (1_000_000_000 << 60, 1),
        exponent => match exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()? {
            e @ 0..=18 => (10_i128.pow(9 + e.unsigned_abs()), 1),
            e @ -9..=-1 => (10_i128.pow(9 - e.unsigned_abs()), 1),
            _ => return None,
        },
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains(['+', '-']) || fraction.len() > 18 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some(digits.checked_mul(numerator)? / scale.checked_mul(denominator)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn config_map(value: serde_json::Value) -> ConfigMap {
        serde_json::from_value(value).expect("a ConfigMap")
    }

    /// As the API server would have it after the write.
    fn applied(desired: &ConfigMap) -> ConfigMap {
        let mut body = body(desired, None).expect("JSON").expect("a write");
        set(&mut body, &["metadata", "uid"], json!("u"));
        set(&mut body, &["metadata", "resourceVersion"], json!("8"));
        config_map(body)
    }

    #[test]
    fn what_was_applied_is_not_applied_again() {
        let desired = config_map(json!({"metadata": {"name": "a"}, "data": {"x": "1"}}));
        let live = applied(&desired);
        assert_eq!(body(&desired, Some(&live)).expect("JSON"), None);
    }

    #[test]
    fn a_foreign_change_is_undone_on_the_version_that_was_read() {
        let desired = config_map(json!({"metadata": {"name": "a"}, "data": {"x": "1"}}));
        let mut live = applied(&desired);
        live.data = Some([("x".to_owned(), "2".to_owned())].into());
        let body = body(&desired, Some(&live)).expect("JSON").expect("a write");
        assert_eq!(body["data"]["x"], "1");
        assert_eq!((&body["metadata"]["uid"], &body["metadata"]["resourceVersion"]), (&json!("u"), &json!("8")));
    }

    #[test]
    fn a_field_that_is_no_longer_wanted_is_a_difference() {
        let old = config_map(json!({"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}}));
        let new = config_map(json!({"metadata": {"name": "a"}, "data": {"x": "1"}}));
        assert!(body(&new, Some(&applied(&old))).expect("JSON").is_some());
    }

    #[test]
    fn defaults_and_other_ways_to_write_an_amount_are_no_difference() {
        let found =
            json!({"a": 1, "b": {"c": [{"d": 1, "default": true}]}, "requests": {"cpu": "1", "storage": "1Gi"}});
        let wanted = json!({"b": {"c": [{"d": 1}]}, "requests": {"cpu": "1000m", "storage": "1024Mi"}, "empty": {}});
        assert!(contains(&found, &wanted, ""));
        for (field, value) in [("a", json!(2)), ("b", json!({"c": []})), ("requests", json!({"cpu": "2"}))] {
            let mut wanted = wanted.clone();
            wanted[field] = value;
            assert!(!contains(&found, &wanted, ""), "{field}");
        }
    }

    #[test]
    fn what_others_have_beside_ours_in_a_list_of_named_entries_is_no_difference() {
        let wanted = json!([{"name": "balsa", "image": "a"}, {"name": "other"}]);
        let found = json!([{"name": "mesh"}, {"name": "other"}, {"name": "balsa", "image": "a", "default": 1}]);
        assert!(contains(&found, &wanted, "containers"));
        let gone = json!([{"name": "mesh"}, {"name": "balsa", "image": "a"}]);
        let changed = json!([{"name": "balsa", "image": "b"}, {"name": "other"}]);
        assert!(!contains(&gone, &wanted, "containers") && !contains(&changed, &wanted, "containers"));
        let (others_too, ours) = (json!([{"key": "theirs"}, {"key": "ours"}]), json!([{"key": "ours"}]));
        assert!(!contains(&others_too, &ours, "tolerations"), "such a list is one value");
    }

    #[test]
    fn amounts_are_compared_by_value() {
        for (one, other) in [("1", "1000m"), ("0.5", "500m"), ("1Gi", "1024Mi"), ("1e3", "1k"), ("1.5Gi", "1536Mi")] {
            assert_eq!(amount(one), amount(other), "{one} {other}");
            assert!(amount(one).is_some(), "{one}");
        }
        for (one, other) in [("1", "1m"), ("1G", "1Gi"), ("2", "1")] {
            assert_ne!(amount(one), amount(other), "{one} {other}");
        }
        assert_eq!(amount("one"), None);
    }
}
