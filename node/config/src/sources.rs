//! Merges the command line, the environment and the file with etcd's precedence: a file excludes everything else; a flag
//! and a variable of the same name, or two variables, are fatal; an empty variable is unset; an unknown one is a warning.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_yaml::Value;

use super::command_line::{self, CommandLine};
use super::flags::{self, Effect, Flag, Kind};
use super::secret::HIDDEN;
use super::{ConfigError, duration, number};

/// Prefixes of variables, ours first.
const PREFIXES: [&str; 2] = ["BALSA_", "ETCD_"];

/// Variables with such a prefix that are no flags.
const NO_FLAGS: [&str; 9] = [
    "ETCD_VERIFY",
    "ETCD_UNSUPPORTED_ARCH",
    "BALSA_FAILPOINTS",
    "BALSA_CACHE",
    "BALSA_KUBE",
    "BALSA_SEEDS",
    "BALSA_SEED",
    "BALSA_ETCD",
    "BALSA_REQUIRE_ETCD",
];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    CommandLine,
    /// A variable of this name.
    Variable(String),
    /// A key of this file.
    File(String),
}

impl Origin {
    /// The value's name there, for messages.
    fn name_of(&self, flag: Flag) -> String {
        match self {
            Origin::CommandLine => format!("--{}", flag.name),
            Origin::Variable(variable) => variable.clone(),
            Origin::File(path) => format!("{path}: {}", flag.name),
        }
    }

    /// What is said of a value that is none, in the words of Go's flags. As in etcd the command line is wrong itself, any other
    /// source has a wrong setting.
    fn refusal(&self, flag: Flag, value: &str, why: &dyn fmt::Display) -> ConfigError {
        match (self, flag.kind) {
            (Origin::CommandLine, Kind::Bool(_)) => {
                ConfigError::Usage(format!("invalid boolean value {value:?} for -{}: {why}", flag.name))
            }
            (Origin::CommandLine, _) => {
                ConfigError::Usage(format!("invalid value {value:?} for flag -{}: {why}", flag.name))
            }
            _ => ConfigError::Invalid(format!("invalid value {value:?} for {}: {why}", self.name_of(flag))),
        }
    }
}

/// Merged values, still text; the defaults are filled in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Raw {
    set: BTreeMap<&'static str, String>,
    defaults: BTreeMap<&'static str, &'static str>,
    origins: BTreeMap<&'static str, Origin>,
    /// What was accepted without effect.
    pub warnings: Vec<String>,
    /// The file that the values came from, if they did.
    pub file: Option<PathBuf>,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, defaults, origins, warnings, file } = self;
        let set: BTreeMap<_, _> = set.iter().map(|(name, value)| (*name, shown(name, value))).collect();
        let mut print = f.debug_struct("Raw");
        print.field("set", &set).field("defaults", defaults).field("origins", origins);
        print.field("warnings", warnings).field("file", file).finish()
    }
}

impl Raw {
    fn new() -> Self {
        let served = flags::all().filter(|flag| flag.effect == Effect::Served);
        Self { defaults: served.map(|flag| (flag.name, flag.kind.default())).collect(), ..Self::default() }
    }

    /// Whether the caller gave it.
    pub fn is_set(&self, name: &str) -> bool {
        self.set.contains_key(name)
    }

    /// The value as text.
    pub fn text(&self, name: &str) -> &str {
        match self.set.get(name) {
            Some(value) => value,
            None => self.defaults.get(name).copied().unwrap_or_default(),
        }
    }

    /// The value as a number.
    ///
    /// # Errors
    /// See [`wrong`](Self::wrong).
    pub fn number<T: TryFrom<i128>>(&self, name: &str) -> Result<T, ConfigError> {
        let text = self.text(name);
        let parsed = number::unsigned(text).map(i128::from).or_else(|wrong| match wrong {
            number::Wrong::Syntax => number::signed(text).map(i128::from),
            wrong => Err(wrong),
        });
        let parsed = parsed.and_then(|parsed| T::try_from(parsed).map_err(|_| number::Wrong::Range));
        parsed.map_err(|wrong| self.wrong(name, NoNumber(wrong)))
    }

    /// The value as a duration; one below zero counts as none.
    ///
    /// # Errors
    /// See [`wrong`](Self::wrong).
    pub fn duration(&self, name: &str) -> Result<Duration, ConfigError> {
        duration::parse(self.text(name)).map_err(|_| self.wrong(name, NO_DURATION))
    }

    /// The value as a boolean, as Go reads one.
    ///
    /// # Errors
    /// See [`wrong`](Self::wrong).
    pub fn boolean(&self, name: &str) -> Result<bool, ConfigError> {
        flags::boolean(self.text(name)).ok_or_else(|| self.wrong(name, NO_BOOLEAN))
    }

    /// The refusal of a value that cannot be parsed, by where it came from.
    pub fn wrong(&self, name: &str, why: impl fmt::Display) -> ConfigError {
        let value = self.text(name);
        match (self.origins.get(name), flags::find(name)) {
            (Some(origin), Some(flag)) => origin.refusal(flag, value, &why),
            _ => ConfigError::Invalid(format!("invalid value {value:?} for --{name}: {why}")),
        }
    }

    /// The same with one value replaced, whatever the sources said.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.set.insert(name, value.to_owned());
        self
    }

    /// All values, defaults included, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.defaults.keys().map(|name| (*name, self.text(name)))
    }

    /// Takes one value.
    fn take(&mut self, flag: Flag, value: String, from: Origin) -> Result<(), ConfigError> {
        if let Some(why) = mismatch(flag, &value) {
            return Err(from.refusal(flag, &value, &why));
        }
        let origin = from.name_of(flag);
        // What asks for what is there anyhow changes nothing.
        let idle = value.is_empty() || value == "false" || value == flag.kind.default();
        match flag.effect {
            Effect::None(reason) if !idle || flag.kind == Kind::Bool("true") && value == "false" => {
                self.warnings.push(format!("{origin} has no effect: {reason}"));
            }
            Effect::Refused(advice) if !idle => {
                return Err(ConfigError::Invalid(format!("{origin} is not supported by this version: {advice}")));
            }
            Effect::Refused(_) => return Ok(()),
            Effect::Served if self.set.contains_key(flag.name) => {
                return Err(ConfigError::Invalid(format!(
                    "conflicting settings: {origin} is set although --{} is set elsewhere too",
                    flag.name
                )));
            }
            Effect::None(_) | Effect::Served => {}
        }
        self.origins.insert(flag.name, from);
        self.set.insert(flag.name, value);
        Ok(())
    }
}

/// The value as a print has it.
fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    if flags::is_secret(name) { HIDDEN } else { value }
}

/// A number in Go's words, and in those of whoever reads them.
struct NoNumber(number::Wrong);

impl fmt::Display for NoNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(wrong) = self;
        match wrong {
            number::Wrong::Syntax => write!(f, "{wrong} (it is not a number)"),
            number::Wrong::Range => write!(f, "{wrong}"),
        }
    }
}

const NO_DURATION: &str = "parse error (it is not a duration)";
const NO_BOOLEAN: &str = "parse error (it is not true or false)";

/// Why a value is not of its flag's kind; `None` when it is.
fn mismatch(flag: Flag, value: &str) -> Option<String> {
    match flag.kind {
        Kind::Text(_) => flags::words(flag.name)
            .filter(|(words, _)| !words.contains(&value))
            .map(|(_, what)| format!("invalid value {value:?} (it is not {what})")),
        Kind::Count(_) => number::unsigned(value).err().map(|wrong| NoNumber(wrong).to_string()),
        Kind::Number(_) => number::signed(value).err().map(|wrong| NoNumber(wrong).to_string()),
        Kind::Duration(_) => duration::nanoseconds(value).is_err().then(|| NO_DURATION.to_owned()),
        Kind::Bool(_) => flags::boolean(value).is_none().then(|| NO_BOOLEAN.to_owned()),
    }
}

/// What the merge came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Merged {
    /// Help or version.
    Print(String),
    /// Values.
    Values(Raw),
}

/// Merges all sources. The first argument is the program's name.
///
/// # Errors
/// [`ConfigError`].
pub fn merge(
    args: impl IntoIterator<Item = String>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Merged, ConfigError> {
    match merge_given(args, environment)? {
        Merged::Values(raw) if !raw.text("config-file").is_empty() => file(raw.text("config-file")).map(Merged::Values),
        merged => Ok(merged),
    }
}

/// Merges the command line and the environment, and reads no file, whatever they say.
///
/// # Errors
/// [`ConfigError`].
pub fn merge_given(
    args: impl IntoIterator<Item = String>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Merged, ConfigError> {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let given = match command_line::read(&program, args)? {
        CommandLine::Print(text) => return Ok(Merged::Print(text)),
        CommandLine::Given(given) => given,
    };
    let mut raw = Raw::new();
    for (flag, value) in given {
        raw.take(flag, value, Origin::CommandLine)?;
    }
    variables(&mut raw, environment)?;
    Ok(Merged::Values(raw))
}

fn variables(raw: &mut Raw, environment: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
    for (variable, value) in environment {
        let Some(name) = PREFIXES.iter().find_map(|prefix| variable.strip_prefix(prefix)) else { continue };
        if value.is_empty() || NO_FLAGS.contains(&variable.as_str()) {
            continue;
        }
        // In capitals, as etcd has it: every variable is one name, which a table of names can hold.
        let is_name = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        match flags::find(&name.to_lowercase().replace('_', "-")).filter(|_| is_name) {
            Some(flag) => raw.take(flag, value, Origin::Variable(variable))?,
            None => raw.warnings.push(format!("{variable} is not a known setting")),
        }
    }
    Ok(())
}

/// Reads a file.
///
/// # Errors
/// [`ConfigError::Invalid`], with the file's name.
pub fn file(path: &str) -> Result<Raw, ConfigError> {
    let invalid = |what: String| ConfigError::Invalid(format!("--config-file={path}: {what}"));
    let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    let values: BTreeMap<String, Value> = match text.trim() {
        "" => BTreeMap::new(),
        _ => serde_yaml::from_str(&text).map_err(|error| invalid(error.to_string()))?,
    };
    let mut raw = Raw { file: Some(PathBuf::from(path)), ..Raw::new() };
    for (name, value) in flattened(values).map_err(invalid)? {
        // etcd reads over what it does not know, sections too; it may be a slip, so it is said.
        // In capitals or not, as Go reads JSON.
        let Some(flag) = flags::find(&name.to_lowercase()) else {
            if !is_empty(&value) {
                raw.warnings.push(format!("{path}: {name} is not a known setting"));
            }
            continue;
        };
        match text_of(flag, &value) {
            Ok(Some(value)) if value.is_empty() && flags::lists_urls(flag.name) => {}
            Ok(Some(value)) => raw.take(flag, value, Origin::File(path.to_owned()))?,
            Ok(None) => {}
            Err(why) => return Err(invalid(format!("{name}: {why}"))),
        }
    }
    Ok(raw)
}

/// A value of a file as the command line writes it; `None` of one that says nothing.
fn text_of(flag: Flag, value: &Value) -> Result<Option<String>, &'static str> {
    let text = match (flag.kind, value) {
        _ if matches!(value, Value::Null) => return Ok(None),
        (Kind::Text(_), Value::Number(_) | Value::Bool(_)) => return Err("a text is needed: put it in quotes"),
        (Kind::Bool(_), Value::String(text)) => plain_yes_or_no(text).to_owned(),
        // Durations of a file are whole nanoseconds.
        (Kind::Duration(_), Value::Number(nanoseconds)) => match plain(nanoseconds) {
            fraction if fraction.contains('.') => return Err("whole nanoseconds are needed"),
            whole => format!("{whole}ns"),
        },
        (Kind::Duration(_), Value::String(text)) if text.parse::<i64>().is_ok() => format!("{text}ns"),
        (_, Value::Number(number)) => plain(number),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Bool(on)) => on.to_string(),
        (Kind::Text(_), Value::Sequence(items)) if items.is_empty() => return Ok(None),
        (Kind::Text(_), Value::Sequence(items)) => {
            let items: Option<Vec<_>> = items.iter().map(Value::as_str).collect();
            items.ok_or("a list of texts is needed")?.join(",")
        }
        _ => return Err("a section or a list is not what it takes"),
    };
    Ok(Some(text))
}

/// A number without a fraction of nothing: `1e9` and `1.0` are whole ones in JSON.
fn plain(number: &serde_yaml::Number) -> String {
    match number.as_f64() {
        // The cast is exact below the bound.
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => (float as i64).to_string(),
        _ => number.to_string(),
    }
}

/// The further words that YAML 1.1, which etcd reads, has for a boolean.
fn plain_yes_or_no(text: &str) -> &str {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => "true",
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => "false",
        other => other,
    }
}

/// The sections of etcd's file whose keys stand for flags, and what these are named before them.
const SECTIONS: [(&str, &str); 3] =
    [("client-transport-security", ""), ("peer-transport-security", "peer-"), ("socket-options", "socket-")];

/// The section whose keys stand in sections of their own, which the names of flags leave out.
const NESTED: &str = "discovery-config";

/// The sections of a file as the flags that they stand for.
fn flattened(values: BTreeMap<String, Value>) -> Result<Vec<(String, Value)>, String> {
    let mut flat = Vec::new();
    for (name, value) in values {
        match (SECTIONS.iter().find(|(section, _)| *section == name), value) {
            (Some((_, prefix)), Value::Mapping(section)) => flat.extend(section_flags(&section, prefix)),
            (Some(_), Value::Null) => {}
            (Some(_), _) => return Err(format!("{name} is not a section")),
            (None, value) if name == NESTED => flat.extend(nested_flags(&name, value)?),
            (None, value) => flat.push((name, value)),
        }
    }
    Ok(flat)
}

fn nested_flags(name: &str, section: Value) -> Result<Vec<(String, Value)>, String> {
    let section = match section {
        Value::Mapping(section) => section,
        Value::Null => return Ok(Vec::new()),
        _ => return Err(format!("{name} is not a section")),
    };
    let mut flat = Vec::new();
    for (key, value) in section {
        match key.as_str().unwrap_or_default() {
            inner @ ("client" | "secure" | "auth") => flat.extend(nested_flags(inner, value)?),
            "username" => flat.push(("discovery-user".to_owned(), value)),
            key => flat.push((format!("discovery-{key}"), value)),
        }
    }
    Ok(flat)
}

fn section_flags<'a>(section: &'a serde_yaml::Mapping, prefix: &'a str) -> impl Iterator<Item = (String, Value)> + 'a {
    section.iter().map(move |(key, value)| {
        let key = key.as_str().unwrap_or_default();
        let flag = match (key, prefix) {
            ("allowed-hostname", "") => "client-cert-allowed-hostname".to_owned(),
            ("allowed-hostname", _) => "peer-cert-allowed-hostname".to_owned(),
            ("allowed-cn", "peer-") => "peer-cert-allowed-cn".to_owned(),
            _ => format!("{prefix}{key}"),
        };
        (flag, value.clone())
    })
}

/// What is there and says nothing, such as a section with everything off.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Mapping(entries) => entries.iter().all(|(_, value)| is_empty(value)),
        Value::Sequence(items) => items.is_empty(),
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(args: &[&str], environment: &[(&str, &str)]) -> Result<Raw, ConfigError> {
        let args = ["balsa"].iter().chain(args).map(|arg| (*arg).to_owned());
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        match merge(args, environment)? {
            Merged::Values(raw) => Ok(raw),
            Merged::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn a_variable_is_a_flag_unless_both_are_set() {
        assert_eq!(merged(&[], &[("ETCD_NAME", "a")]).unwrap().text("name"), "a");
        assert_eq!(merged(&[], &[("BALSA_DRAIN_DELAY", "1s")]).unwrap().text("drain-delay"), "1s");
        assert_eq!(merged(&["--name=a"], &[("ETCD_NAME", "")]).unwrap().text("name"), "a", "empty is unset");
        for environment in [&[("ETCD_NAME", "b")][..], &[("BALSA_NAME", "b")]] {
            assert_eq!(merged(&["--name=a"], environment).unwrap_err().exit_code(), 1);
        }
        assert!(merged(&[], &[("ETCD_NAME", "a"), ("BALSA_NAME", "a")]).is_err());
        for unknown in ["ETCD_NONSENSE", "BALSA_config_file", "BALSA_CONFIG-FILE"] {
            let raw = merged(&[], &[(unknown, "/dev/null")]).unwrap();
            assert_eq!((raw.warnings.len(), raw.text("config-file")), (1, ""), "{unknown}");
        }
        assert!(merged(&[], &[("PATH", "x"), ("ETCD_VERIFY", "all")]).unwrap().warnings.is_empty());
    }

    #[test]
    fn a_file_excludes_flags_and_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let text = "name: f\nwatch-progress-notify-interval: 5000000000\nheartbeat-interval: 50\n\
                    client-transport-security:\n  client-cert-auth: false\n";
        std::fs::write(&path, text).unwrap();
        let flag = format!("--config-file={}", path.display());
        let raw = merged(&[&flag, "--name=a", "--max-txn-ops=1"], &[("ETCD_DATA_DIR", "x")]).unwrap();
        assert_eq!((raw.text("name"), raw.text("max-txn-ops"), raw.text("data-dir")), ("f", "128", ""));
        assert_eq!(raw.duration("watch-progress-notify-interval"), Ok(Duration::from_secs(5)));
        std::fs::write(&path, "nonsense: 1\nlog-outputs: [stdout, /x]\n").unwrap();
        let raw = merged(&[&flag], &[]).unwrap();
        assert_eq!((raw.warnings.len(), raw.text("log-outputs")), (1, "stdout,/x"), "etcd reads over the first");
        let text = "client-transport-security:\n  cert-file: x\n  client-cert-auth: true\n\
                    peer-transport-security:\n  cert-file: y\n  allowed-cn: [a, b]\n  skip-client-san-verification: true\n";
        std::fs::write(&path, text).unwrap();
        let raw = merged(&[&flag], &[]).unwrap();
        assert_eq!((raw.text("cert-file"), raw.text("peer-cert-file")), ("x", "y"));
        assert_eq!((raw.text("peer-cert-allowed-cn"), raw.boolean("client-cert-auth")), ("a,b", Ok(true)));
        assert_eq!(raw.boolean("peer-skip-client-san-verification"), Ok(true));
    }

    #[test]
    fn the_section_of_discovery_has_sections() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let text = "discovery-config:\n  token: t\n  client:\n    endpoints: [a:1, b:1]\n    dial-timeout: 1000000000\n    \
                    secure: {insecure-transport: false, cacert: x}\n    auth: {username: u, password: p}\n";
        std::fs::write(&path, text).unwrap();
        let raw = file(&path.to_string_lossy()).unwrap();
        let read = ["token", "endpoints", "insecure-transport", "cacert", "user", "password"];
        let read = read.map(|name| raw.text(&format!("discovery-{name}")).to_owned());
        assert_eq!(read, ["t", "a:1,b:1", "false", "x", "u", "p"]);
        assert_eq!(raw.duration("discovery-dial-timeout"), Ok(Duration::from_secs(1)));
        assert!(raw.warnings.is_empty(), "{:?}", raw.warnings);
        for text in ["discovery-config: 5\n", "discovery-config: {client: [x]}\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(file(&path.to_string_lossy()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_files_values_have_the_kinds_that_etcd_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let flag = format!("--config-file={}", path.display());
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            merged(&[&flag], &[])
        };
        for (text, name, expected) in [
            ("quota-backend-bytes: 0x10", "quota-backend-bytes", "16"),
            ("quota-backend-bytes: 1e3", "quota-backend-bytes", "1000"),
            ("quota-backend-bytes: 1.0", "quota-backend-bytes", "1"),
            ("quota-backend-bytes:", "quota-backend-bytes", "0"),
            ("pre-vote: no", "pre-vote", "false"),
            ("grpc-keepalive-min-time: -5", "grpc-keepalive-min-time", "-5ns"),
            ("grpc-keepalive-min-time: 1e9", "grpc-keepalive-min-time", "1000000000ns"),
            ("initial-cluster-token: \"5\"", "initial-cluster-token", "5"),
            ("client-transport-security:", "cert-file", ""),
        ] {
            assert_eq!(read(text).unwrap().text(name), expected, "{text}");
        }
        assert_eq!(read("quota-backend-bytes: 1_000").unwrap().number("quota-backend-bytes"), Ok(1000));
        for text in [
            "initial-cluster-token: 5",
            "name: true",
            "auto-compaction-retention: 1.5",
            "quota-backend-bytes: 1.5",
            "quota-backend-bytes: [1]",
            "quota-backend-bytes: true",
            "max-txn-ops: -1",
            "pre-vote: [true]",
            "pre-vote: 5",
            "log-outputs: [stderr, 5]",
            "grpc-keepalive-min-time: 1.5",
            "grpc-keepalive-min-time: true",
            "client-transport-security: 5",
            "client-transport-security: []",
            "client-transport-security: {cert-file: 5}",
        ] {
            let refused = read(text).map(|_| ());
            assert!(matches!(refused, Err(ConfigError::Invalid(_))), "{text}: {refused:?}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_in_gos_words() {
        for (args, environment, code, words) in [
            (&["--max-wals=x"][..], None, 2, "invalid value \"x\" for flag -max-wals: parse error"),
            (&["--max-wals=-1"], None, 2, "invalid value \"-1\" for flag -max-wals: parse error"),
            (&["--max-txn-ops=18446744073709551616"], None, 2, "for flag -max-txn-ops: value out of range"),
            (&["--pre-vote=x"], None, 2, "invalid boolean value \"x\" for -pre-vote: parse error"),
            (&["--backend-batch-interval=5"], None, 2, "for flag -backend-batch-interval: parse error"),
            (&["--discovery-fallback=x"], None, 2, "invalid value \"x\" for flag -discovery-fallback: invalid value"),
            (&[], Some(("ETCD_MAX_WALS", "x")), 1, "invalid value \"x\" for ETCD_MAX_WALS: parse error"),
            (&[], Some(("ETCD_PRE_VOTE", "x")), 1, "invalid value \"x\" for ETCD_PRE_VOTE: parse error"),
        ] {
            let environment: Vec<_> = environment.into_iter().collect();
            let error = merged(args, &environment).unwrap_err();
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    /// Every flag that does nothing here, asked for something.
    #[test]
    fn what_has_no_effect_is_said_with_its_reason() {
        for flag in flags::all() {
            let Effect::None(reason) = flag.effect else { continue };
            let (what, value) = match flag.kind {
                Kind::Bool("true") => ("off", "false"),
                Kind::Bool(_) => ("on", "true"),
                Kind::Duration(_) => ("a time", "7h"),
                Kind::Number(_) | Kind::Count(_) => ("a number", "7"),
                Kind::Text(_) => match flags::words(flag.name) {
                    Some((words, _)) => ("a word", words[1]),
                    None => ("a text", "x"),
                },
            };
            let said = merged(&[&format!("--{}={value}", flag.name)], &[]).unwrap().warnings;
            assert_eq!(said, [format!("--{} has no effect: {reason}", flag.name)], "{what}");
        }
    }

    #[test]
    fn what_would_weaken_the_node_is_refused_and_the_rest_ignored() {
        assert!(merged(&["--discovery=https://example.com"], &[]).is_err());
        assert!(merged(&[], &[("ETCD_DISCOVERY", "https://example.com")]).is_err());
        assert!(merged(&["--discovery="], &[]).is_ok());
        let raw = merged(&["--enable-v2", "--experimental-memory-mlock", "--max-wals=5"], &[]).unwrap();
        assert_eq!(
            raw.warnings,
            [
                "--enable-v2 has no effect: there is no v2 store",
                "--memory-mlock has no effect: no file is mapped into memory",
            ]
        );
        assert_eq!(merged(&["--initial-election-tick-advance=false"], &[]).unwrap().warnings.len(), 1);
        assert_eq!(merged(&["--max-wals=x"], &[]).unwrap_err().exit_code(), 2, "a wrong value is one all the same");
        assert_eq!(merged(&["--backend-batch-interval=5"], &[]).unwrap_err().exit_code(), 2);
    }
}
