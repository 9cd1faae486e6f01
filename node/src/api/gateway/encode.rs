//! A protobuf message becomes JSON as etcd's gateway writes it: names as declared, zero values left out, 64-bit integers as
//! strings, bytes in base64, enums by name.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use super::text::push_quoted;

/// The JSON object of `message`.
pub(super) fn message(message: &DynamicMessage) -> String {
    let mut out = String::new();
    push_message(&mut out, message);
    out
}

/// The body of an error, of a stream's last line too.
pub(super) fn error(code: i32, text: &str) -> String {
    let mut out = format!("{{\"code\":{code}");
    if !text.is_empty() {
        out.push_str(",\"message\":");
        push_quoted(&mut out, text);
    }
    out.push('}');
    out
}

fn push_message(out: &mut String, message: &DynamicMessage) {
    out.push('{');
    let mut first = true;
    for field in message.descriptor().fields().filter(|field| message.has_field(field)) {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        push_quoted(out, field.name());
        out.push(':');
        push_value(out, &message.get_field(&field), &field.kind());
    }
    out.push('}');
}

fn push_value(out: &mut String, value: &Value, kind: &Kind) {
    match value {
        Value::List(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                push_value(out, value, kind);
            }
            out.push(']');
        }
        Value::Message(message) => push_message(out, message),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::I32(value) => out.push_str(&value.to_string()),
        Value::U32(value) => out.push_str(&value.to_string()),
        Value::I64(value) => out.push_str(&format!("\"{value}\"")),
        Value::U64(value) => out.push_str(&format!("\"{value}\"")),
        Value::String(value) => push_quoted(out, value),
        Value::Bytes(value) => out.push_str(&format!("\"{}\"", STANDARD.encode(value))),
        Value::EnumNumber(number) => match kind.as_enum().and_then(|values| values.get_value(*number)) {
            Some(value) => push_quoted(out, value.name()),
            None => out.push_str(&number.to_string()),
        },
        // The contract has no floating-point number and no map; a test holds it to that.
        Value::F32(_) | Value::F64(_) | Value::Map(_) => out.push_str("null"),
    }
}
