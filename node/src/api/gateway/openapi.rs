//! What the gateway serves, as an OpenAPI document, out of the table of paths and the descriptors. Names of operations and
//! schemas are those of etcd's own `rpc.swagger.json`.

use std::collections::BTreeMap;

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::paths::Method;
use crate::config::version::ETCD_VERSION;

/// The schema of an error.
const ERROR: &str = "rpcStatus";

/// The document.
pub(super) fn document<'a>(methods: impl Iterator<Item = (&'a str, &'a Method)>) -> String {
    let mut schemas = Schemas::default();
    let paths: BTreeMap<_, _> =
        methods.map(|(path, method)| (path, json!({"post": schemas.operation(path, method)}))).collect();
    let error = json!({"type": "object", "properties": {
        "code": {"type": "integer", "format": "int32"},
        "message": {"type": "string"},
    }});
    schemas.found.insert(ERROR.to_owned(), error);
    let document = json!({
        "openapi": "3.0.3",
        "info": {"title": "etcd API over JSON", "version": ETCD_VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas.found,
            "securitySchemes": {"ApiKey": {"type": "apiKey", "name": "Authorization", "in": "header"}},
        },
        "security": [{"ApiKey": []}],
    });
    document.to_string()
}

/// The messages and enums that have been met.
#[derive(Default)]
struct Schemas {
    found: Map<String, Value>,
}

impl Schemas {
    fn operation(&mut self, path: &str, method: &Method) -> Value {
        let (service, name) = method.path.rsplit_once('/').unwrap_or_default();
        let service = service.rsplit('.').next().unwrap_or_default();
        // A method with two paths is two operations, which must not share a name.
        let second = if path.starts_with("/v3/kv/lease/") { "2" } else { "" };
        let answer = self.message(&method.output);
        let answer = match method.answers_stream {
            true => json!({"type": "object", "properties": {"result": answer, "error": reference(ERROR)}}),
            false => answer,
        };
        let request = self.message(&method.input);
        let note = |streams: bool| if streams { " (a stream, one object per line)" } else { "" };
        json!({
            "operationId": format!("{service}_{name}{second}"),
            "tags": [service],
            "requestBody": {
                "description": format!("The request{}", note(method.takes_stream)),
                "required": true,
                "content": {"application/json": {"schema": request}},
            },
            "responses": {
                "200": {
                    "description": format!("The answer{}", note(method.answers_stream)),
                    "content": {"application/json": {"schema": answer}},
                },
                "default": {
                    "description": "An error",
                    "content": {"application/json": {"schema": reference(ERROR)}},
                },
            },
        })
    }

    /// A reference to a message, which is described with all that it holds when it is met first.
    fn message(&mut self, message: &MessageDescriptor) -> Value {
        let name = schema_name(message.full_name());
        if !self.found.contains_key(&name) {
            self.found.insert(name.clone(), Value::Null);
            let properties: Map<_, _> =
                message.fields().map(|field| (field.name().to_owned(), self.field(&field))).collect();
            self.found.insert(name.clone(), json!({"type": "object", "properties": properties}));
        }
        reference(&name)
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        let schema = match field.kind() {
            Kind::Message(message) => self.message(&message),
            Kind::Enum(values) => self.values(&values),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Int32 => json!({"type": "integer", "format": "int32"}),
            Kind::Uint32 => json!({"type": "integer", "format": "int64"}),
            Kind::Int64 => json!({"type": "string", "format": "int64"}),
            Kind::Uint64 => json!({"type": "string", "format": "uint64"}),
            _ => json!({"type": "string"}),
        };
        if field.is_list() { json!({"type": "array", "items": schema}) } else { schema }
    }

    fn values(&mut self, values: &EnumDescriptor) -> Value {
        let name = schema_name(values.full_name());
        let names: Vec<_> = values.values().map(|value| value.name().to_owned()).collect();
        let default = values.default_value().name().to_owned();
        self.found.insert(name.clone(), json!({"type": "string", "enum": names, "default": default}));
        reference(&name)
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// `etcdserverpb.RangeRequest` is `etcdserverpbRangeRequest`, `etcdserverpb.RangeRequest.SortOrder` is
/// `RangeRequestSortOrder`.
fn schema_name(full: &str) -> String {
    let (package, rest) = full.split_once('.').unwrap_or(("", full));
    if rest.contains('.') { rest.replace('.', "") } else { format!("{package}{rest}") }
}

#[cfg(test)]
mod tests {
    use super::super::paths::methods;
    use super::*;

    /// Every `$ref` of a document.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_describes_every_path_and_all_that_it_names() {
        let methods = methods().unwrap();
        let document: Value = serde_json::from_str(&document(methods.iter().map(|(path, it)| (*path, it)))).unwrap();
        let operations: std::collections::BTreeSet<_> = methods
            .keys()
            .map(|path| document["paths"][path]["post"]["operationId"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(operations.len(), methods.len(), "each has a name of its own");
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in &found {
            let schema = document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null);
            assert!(schema.is_object(), "{reference}");
        }
        let range = &document["components"]["schemas"]["etcdserverpbRangeRequest"]["properties"];
        assert_eq!(range["limit"], json!({"type": "string", "format": "int64"}));
        assert_eq!(range["sort_order"], reference("RangeRequestSortOrder"));
    }
}
