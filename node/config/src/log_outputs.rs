//! Where log lines go, and when a file of them is put aside: `--log-outputs`, `--enable-log-rotation` and
//! `--log-rotation-config-json`, refused in etcd's words.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::sources::Raw;
use super::{ConfigError, invalid};

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of a file.
    File(PathBuf),
    /// The journal of systemd.
    Journal,
}

/// When a log file is put aside, and what becomes of those that were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// How large it may become.
    pub max_bytes: u64,
    /// How long files that were put aside are kept; for ever without it.
    pub max_age: Option<Duration>,
    /// How many of them are kept; all without it.
    pub max_backups: Option<usize>,
    /// Whether their names tell the local time, and not UTC.
    pub local_time: bool,
    /// Whether they are compressed.
    pub compress: bool,
}

/// A megabyte, as the flag counts them.
const MEGABYTE: u64 = 1 << 20;
/// Of 0, which is etcd's default too.
const DEFAULT_MEGABYTES: u64 = 100;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// What is written there is not kept, whatever else is named.
const NOWHERE: &str = "/dev/null";

/// Where lines go, each once, and how the file among them is rotated, if it is.
pub(super) fn read(raw: &Raw) -> Result<(BTreeSet<LogOutput>, Option<Rotation>), ConfigError> {
    match raw.text("logger") {
        "zap" => {}
        "capnslog" => return Err(invalid("--logger=capnslog is removed in v3.5")),
        other => return Err(invalid(format!("unknown logger option {other:?}"))),
    }
    // Each once and in order, as etcd has them.
    let names: BTreeSet<&str> = raw.text("log-outputs").split(',').map(str::trim).collect();
    if names.len() > 1 && names.contains("default") {
        return Err(invalid("multi logoutput for \"default\" is not supported yet"));
    }
    let rotation = if raw.boolean("enable-log-rotation")? { Some(rotation(raw, &names)?) } else { None };
    if names.contains("") {
        return Err(invalid("open sink \"\": open : no such file or directory"));
    }
    if names.len() > 1 && names.contains("systemd/journal") {
        let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
        return Err(invalid(format!(
            "running with systemd/journal but other '--log-outputs' values ([{}]) are configured with 'default'; override \
             'default' value with something else",
            quoted.join(" ")
        )));
    }
    if rotation.is_none() && names.contains(NOWHERE) {
        return Ok((BTreeSet::from([LogOutput::File(NOWHERE.into())]), None));
    }
    Ok((names.into_iter().map(output).collect(), rotation))
}

fn output(name: &str) -> LogOutput {
    match name {
        "default" | "stderr" => LogOutput::Stderr,
        "stdout" => LogOutput::Stdout,
        "systemd/journal" => LogOutput::Journal,
        path => LogOutput::File(path.into()),
    }
}

fn rotation(raw: &Raw, names: &BTreeSet<&str>) -> Result<Rotation, ConfigError> {
    let files = names.iter().filter(|name| !["default", "stderr", "stdout"].contains(name)).count();
    // Without a file etcd refuses one output, and takes two, of which none is rotated.
    if files > 1 || files == 0 && names.len() == 1 {
        return Err(invalid("--log-outputs requires a single file path when --log-rotate-config-json is defined"));
    }
    let text = raw.text("log-rotation-config-json");
    let value = serde_json::from_str(text).map_err(|error| {
        invalid(format!("improperly formatted log rotation config: {}", syntax_error(text, &error)))
    })?;
    fields(&value)
}

/// What Go says of such a text.
fn syntax_error(text: &str, error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let words = error.to_string();
    let place = [
        ("key must be a string", "looking for beginning of object key string"),
        ("trailing comma", "looking for beginning of object key string"),
        ("expected value", "looking for beginning of value"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing characters", "after top-level value"),
    ];
    let place = place.into_iter().find(|(ours, _)| words.starts_with(ours));
    let line = text.lines().nth(error.line().saturating_sub(1));
    let wrong = line.and_then(|line| line.get(error.column().saturating_sub(1)..)).and_then(|rest| rest.chars().next());
    match (place, wrong) {
        (Some((_, place)), Some(wrong)) => format!("invalid character '{wrong}' {place}"),
        _ => words,
    }
}

/// The fields by their names, in capitals or not; what is no field is read over.
fn fields(value: &Value) -> Result<Rotation, ConfigError> {
    let none = serde_json::Map::new();
    let object = match value {
        Value::Object(object) => object,
        Value::Null => &none,
        other => {
            let kind = kind(other);
            let what = format!("json: cannot unmarshal {kind} into Go value of type embed.logRotationConfig");
            return Err(invalid(format!("invalid log rotation config: {what}")));
        }
    };
    let field = |name: &str| {
        object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).filter(|v| !v.is_null())
    };
    let number = |name| field(name).map_or(Ok(0), |value| value.as_i64().ok_or_else(|| mismatch(name, value, "int")));
    let boolean =
        |name| field(name).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| mismatch(name, value, "bool")));
    if let Some(value) = field("filename").filter(|value| !value.is_string()) {
        return Err(mismatch("filename", value, "string"));
    }
    let megabytes = number("maxsize")?;
    // etcd would start, and log nothing at all.
    let megabytes = u64::try_from(megabytes).map_err(|_| {
        invalid(format!("invalid log rotation config: maxsize must not be less than 0 (set to {megabytes})"))
    })?;
    let megabytes = if megabytes == 0 { DEFAULT_MEGABYTES } else { megabytes };
    let above_zero = |number: i64| usize::try_from(number).ok().filter(|number| *number > 0);
    let days = above_zero(number("maxage")?);
    Ok(Rotation {
        max_bytes: megabytes.saturating_mul(MEGABYTE),
        max_age: days.map(|days| DAY.saturating_mul(u32::try_from(days).unwrap_or(u32::MAX))),
        max_backups: above_zero(number("maxbackups")?),
        local_time: boolean("localtime")?,
        compress: boolean("compress")?,
    })
}

fn mismatch(name: &str, value: &Value, wanted: &str) -> ConfigError {
    let kind = match value {
        Value::Number(number) if wanted == "int" => format!("number {number}"),
        other => kind(other).to_owned(),
    };
    invalid(format!(
        "invalid log rotation config: json: cannot unmarshal {kind} into Go struct field logRotationConfig.Logger.{name} of \
         type {wanted}"
    ))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::load;

    fn rotated(json: &str) -> Result<Rotation, ConfigError> {
        let json = format!("--log-rotation-config-json={json}");
        load(&["--enable-log-rotation", "--log-outputs=/a,stderr", &json]).map(|config| config.log_rotation.unwrap())
    }

    #[test]
    fn rotation_has_etcds_fields_and_defaults() {
        let config = load(&["--enable-log-rotation", "--log-outputs=/a"]).unwrap();
        let defaults =
            Rotation { max_bytes: 100 << 20, max_age: None, max_backups: None, local_time: false, compress: false };
        assert_eq!(config.log_rotation, Some(defaults.clone()));
        assert_eq!((rotated("{}"), rotated("null")), (Ok(defaults.clone()), Ok(defaults)));
        let all = r#"{"MaxSize": 1, "maxage": 2, "maxbackups": 3, "localtime": true, "compress": true, "filename": "x", "y": []}"#;
        let max_age = Some(Duration::from_secs(2 * 24 * 3600));
        let expected = Rotation { max_bytes: 1 << 20, max_age, max_backups: Some(3), local_time: true, compress: true };
        assert_eq!(rotated(all), Ok(expected));
        let without = load(&["--log-outputs=/a", "--log-rotation-config-json={"]).unwrap();
        assert_eq!(without.log_rotation, None, "nobody asked for it");
    }

    /// The words are those of a running etcd; `node/tests/processes/flags.rs` compares some.
    #[test]
    fn what_cannot_be_rotated_is_refused_in_etcds_words() {
        let said = |json: &str| rotated(json).unwrap_err().to_string();
        for (json, words) in [
            ("", "improperly formatted log rotation config: unexpected end of JSON input"),
            ("{", "improperly formatted log rotation config: unexpected end of JSON input"),
            (
                "{x}",
                "improperly formatted log rotation config: invalid character 'x' looking for beginning of object key string",
            ),
            ("x", "improperly formatted log rotation config: invalid character 'x' looking for beginning of value"),
            (
                r#"{"maxsize":"x"}"#,
                "invalid log rotation config: json: cannot unmarshal string into Go struct field \
                 logRotationConfig.Logger.maxsize of type int",
            ),
            (
                r#"{"maxsize":1.5}"#,
                "invalid log rotation config: json: cannot unmarshal number 1.5 into Go struct field \
                 logRotationConfig.Logger.maxsize of type int",
            ),
            (
                r#"{"localtime":1}"#,
                "invalid log rotation config: json: cannot unmarshal number into Go struct field \
                 logRotationConfig.Logger.localtime of type bool",
            ),
            (
                "5",
                "invalid log rotation config: json: cannot unmarshal number into Go value of type embed.logRotationConfig",
            ),
            (r#"{"maxsize":-1}"#, "invalid log rotation config: maxsize must not be less than 0 (set to -1)"),
        ] {
            assert_eq!(said(json), words, "{json}");
        }
    }

    #[test]
    fn outputs_are_etcds() {
        let outputs = |list: &str| load(&[&format!("--log-outputs={list}")]).map(|config| config.log_outputs);
        assert_eq!(outputs("default"), Ok(BTreeSet::from([LogOutput::Stderr])));
        let file = |path: &str| LogOutput::File(path.into());
        let all = BTreeSet::from([file("/a"), file("b"), LogOutput::Stdout, LogOutput::Stderr]);
        assert_eq!(outputs("stdout,b,/a,stderr,b"), Ok(all));
        assert_eq!(outputs("systemd/journal"), Ok(BTreeSet::from([LogOutput::Journal])));
        assert_eq!(outputs("/a,/dev/null,stderr"), Ok(BTreeSet::from([file("/dev/null")])));
        let single = "--log-outputs requires a single file path when --log-rotate-config-json is defined";
        for (args, words) in [
            (&["--log-outputs="][..], "open sink \"\": open : no such file or directory"),
            (&["--log-outputs=default,stderr"], "multi logoutput for \"default\" is not supported yet"),
            (&["--enable-log-rotation"], single),
            (&["--enable-log-rotation", "--log-outputs=/a,/b"], single),
            (
                &["--log-outputs=systemd/journal,stderr"],
                "running with systemd/journal but other '--log-outputs' values ([\"stderr\" \"systemd/journal\"]) are \
                 configured with 'default'; override 'default' value with something else",
            ),
            (&["--logger=capnslog"], "--logger=capnslog is removed in v3.5"),
        ] {
            assert_eq!(load(args).unwrap_err().to_string(), words, "{args:?}");
        }
        assert!(load(&["--enable-log-rotation", "--log-outputs=stderr,stdout"]).is_ok(), "etcd takes it");
    }
}
