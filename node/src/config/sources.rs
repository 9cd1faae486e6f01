//! Merges the command line, the environment and the file with etcd's precedence: a file excludes everything else; a flag
//! and a variable of the same name, or two variables, are fatal; an empty variable is unset; an unknown one is a warning.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, Command, value_parser};
use serde_yaml::Value;

use super::flags::{self, Flag, Kind};
use super::version::{BALSA_VERSION, ETCD_VERSION};
use super::{ConfigError, duration};

/// Prefixes of variables, ours first.
const PREFIXES: [&str; 2] = ["BALSA_", "ETCD_"];

/// Variables with such a prefix that are no flags.
const NO_FLAGS: [&str; 5] = ["ETCD_VERIFY", "ETCD_UNSUPPORTED_ARCH", "BALSA_FAILPOINTS", "BALSA_CACHE", "BALSA_SEEDS"];

/// Merged values, still text; the defaults are filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raw {
    set: BTreeMap<&'static str, String>,
    defaults: BTreeMap<&'static str, &'static str>,
    /// What was accepted without effect.
    pub warnings: Vec<String>,
    /// The file that the values came from, if they did.
    pub file: Option<PathBuf>,
}

impl Raw {
    fn new() -> Self {
        let defaults = flags::all().filter_map(|flag| match flag.kind {
            Kind::Text(default) | Kind::Number(default) | Kind::Duration(default) | Kind::Bool(default) => {
                Some((flag.name, default))
            }
            Kind::Ignored | Kind::Refused => None,
        });
        Self { defaults: defaults.collect(), ..Self::default() }
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
    /// `Usage`.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<T, ConfigError> {
        self.parsed(name, "a number", |text| text.parse().ok())
    }

    /// The value as a duration.
    ///
    /// # Errors
    /// `Usage`.
    pub fn duration(&self, name: &str) -> Result<Duration, ConfigError> {
        self.parsed(name, "a duration", duration::parse)
    }

    /// The value as a boolean, as Go reads one.
    ///
    /// # Errors
    /// `Usage`.
    pub fn boolean(&self, name: &str) -> Result<bool, ConfigError> {
        self.parsed(name, "true or false", |text| match text {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => Some(true),
            "false" | "0" | "f" | "F" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    fn parsed<T>(&self, name: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, ConfigError> {
        let text = self.text(name);
        parse(text).ok_or_else(|| ConfigError::Usage(format!("--{name}={text} is not {what}")))
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

    /// Takes one value. `origin` names where it came from, for messages.
    fn take(&mut self, flag: Flag, value: String, origin: &str) -> Result<(), ConfigError> {
        match flag.kind {
            // What is only switched off changes nothing.
            Kind::Ignored | Kind::Refused if value == "false" || value.is_empty() => Ok(()),
            Kind::Refused => Err(ConfigError::Invalid(format!("{origin} is not supported by this version"))),
            Kind::Ignored => {
                self.warnings.push(format!("{origin} has no effect"));
                Ok(())
            }
            _ => match self.set.insert(flag.name, value) {
                None => Ok(()),
                Some(_) => Err(ConfigError::Invalid(format!(
                    "conflicting settings: {origin} is set although --{} is set elsewhere too",
                    flag.name
                ))),
            },
        }
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
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let given = match command_line(args)? {
        CommandLine::Help => return Ok(Merged::Print(command().render_help().to_string())),
        CommandLine::Version => return Ok(Merged::Print(version(&program))),
        CommandLine::Given(given) => given,
    };
    let mut raw = Raw::new();
    for (flag, value) in given {
        raw.take(flag, value, &format!("--{}", flag.name))?;
    }
    variables(&mut raw, environment)?;
    match raw.text("config-file").to_owned() {
        path if path.is_empty() => Ok(Merged::Values(raw)),
        path => file(&path).map(Merged::Values),
    }
}

enum CommandLine {
    Help,
    Version,
    Given(Vec<(Flag, String)>),
}

fn version(program: &str) -> String {
    let (etcd, balsa) = (format!("etcd Version: {ETCD_VERSION}\n"), format!("balsa Version: {BALSA_VERSION}\n"));
    if program.rsplit('/').next() == Some("etcd") { etcd + &balsa } else { balsa + &etcd }
}

fn command() -> Command {
    let args = flags::all().map(|flag| {
        let arg = Arg::new(flag.name).long(flag.name).help(flag.help).value_parser(value_parser!(String));
        let arg = match flag.kind {
            Kind::Text(default) | Kind::Number(default) | Kind::Duration(default) if !default.is_empty() => {
                arg.help(format!("{} [default: {default}]", flag.help))
            }
            Kind::Bool(default) => arg.help(format!("{} [default: {default}]", flag.help)).value_name("BOOL"),
            Kind::Ignored | Kind::Refused => arg.hide(true),
            _ => arg,
        };
        // A flag of a boolean takes its value only after `=`; the others take it either way.
        match flag.kind {
            Kind::Bool(_) | Kind::Ignored | Kind::Refused if takes_no_value(flag) => {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true")
            }
            _ => arg,
        }
    });
    Command::new("balsa")
        .about("One member of a Balsa cluster: an etcd-v3-compatible key-value store")
        .args_override_self(true)
        .disable_version_flag(true)
        .arg(Arg::new("version").long("version").help("Print the version").action(ArgAction::SetTrue))
        .args(args)
}

/// Flags that etcd's command line takes without a value.
fn takes_no_value(flag: Flag) -> bool {
    const SWITCHES: [&str; 21] = [
        "initial-election-tick-advance",
        "socket-reuse-port",
        "socket-reuse-address",
        "memory-mlock",
        "enable-grpc-gateway",
        "enable-pprof",
        "enable-log-rotation",
        "enable-distributed-tracing",
        "compact-hash-check-enabled",
        "peer-skip-client-san-verification",
        "enable-v2",
        "enable-lease-checkpoint",
        "enable-lease-checkpoint-persist",
        "initial-corrupt-check",
        "stop-grpc-service-on-defrag",
        "txn-mode-write-with-shared-buffer",
        "client-cert-auth",
        "auto-tls",
        "peer-client-cert-auth",
        "peer-auto-tls",
        "force-new-cluster",
    ];
    matches!(flag.kind, Kind::Bool(_)) || SWITCHES.contains(&flag.name) || flag.name == "unsafe-no-fsync"
}

/// Go takes one dash for two, and etcd's old spellings begin with `experimental-`.
fn normalized(arg: String) -> String {
    let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-').filter(|name| name.len() > 1)) else {
        return arg;
    };
    format!("--{}", name.strip_prefix(flags::EXPERIMENTAL).unwrap_or(name))
}

fn command_line(args: impl Iterator<Item = String>) -> Result<CommandLine, ConfigError> {
    use clap::error::ErrorKind;
    let args = std::iter::once("balsa".to_owned()).chain(args.map(normalized));
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => return Ok(CommandLine::Help),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            // clap has one kind for both: what begins with a dash is an unknown flag, else a stray word.
            return Err(match error.kind() {
                ErrorKind::UnknownArgument if !first.contains("'-") => ConfigError::Invalid(first),
                _ => ConfigError::Usage(first),
            });
        }
    };
    if matches.get_flag("version") {
        return Ok(CommandLine::Version);
    }
    let given = flags::all().filter_map(|flag| Some((flag, matches.get_one::<String>(flag.name)?.clone())));
    Ok(CommandLine::Given(given.collect()))
}

fn variables(raw: &mut Raw, environment: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
    for (variable, value) in environment {
        let Some(name) = PREFIXES.iter().find_map(|prefix| variable.strip_prefix(prefix)) else { continue };
        if value.is_empty() || NO_FLAGS.contains(&variable.as_str()) {
            continue;
        }
        match flags::find(&name.to_lowercase().replace('_', "-")) {
            Some(flag) => raw.take(flag, value, &variable)?,
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
    for (name, value) in values {
        let Some(value) = scalar(&value) else {
            if is_empty(&value) {
                continue;
            }
            return Err(invalid(format!("{name} is not supported by this version")));
        };
        let flag = flags::find(&name).ok_or_else(|| invalid(format!("{name} is not a known setting")))?;
        let value = match (flag.kind, value.parse::<u64>()) {
            // Durations of a file are whole nanoseconds.
            (Kind::Duration(_), Ok(nanoseconds)) => format!("{nanoseconds}ns"),
            _ => value,
        };
        raw.take(flag, value, &format!("{path}: {name}"))?;
    }
    Ok(raw)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Sections that are there and say nothing, such as `client-transport-security:` with everything off.
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
    fn every_spelling_of_a_flag_is_understood() {
        for args in [&["--name=a"][..], &["-name=a"], &["--name", "a"], &["-name", "a"], &["--name=b", "--name=a"]] {
            assert_eq!(merged(args, &[]).unwrap().text("name"), "a", "{args:?}");
        }
        for (args, expected) in [
            (&["--pre-vote"][..], true),
            (&["--pre-vote=false"], false),
            (&["-pre-vote=false", "--name=a"], false),
            (&["--pre-vote", "--name=a"], true),
        ] {
            assert_eq!(merged(args, &[]).unwrap().boolean("pre-vote"), Ok(expected), "{args:?}");
        }
    }

    #[test]
    fn unknown_flags_and_stray_words_end_with_etcds_codes() {
        assert_eq!(merged(&["--no-such-flag=1"], &[]).unwrap_err().exit_code(), 2);
        assert_eq!(merged(&["--name"], &[]).unwrap_err().exit_code(), 2);
        assert_eq!(merged(&["stray"], &[]).unwrap_err().exit_code(), 1);
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
        assert_eq!(merged(&[], &[("ETCD_NONSENSE", "1")]).unwrap().warnings.len(), 1);
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
        std::fs::write(&path, "client-transport-security:\n  cert-file: x\n").unwrap();
        assert_eq!(merged(&[&flag], &[]).unwrap_err().exit_code(), 1);
        std::fs::write(&path, "nonsense: 1\n").unwrap();
        assert_eq!(merged(&[&flag], &[]).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn what_would_weaken_the_node_is_refused_and_the_rest_ignored() {
        assert!(merged(&["--cert-file", "x"], &[]).is_err());
        assert!(merged(&["--force-new-cluster"], &[]).is_err());
        assert!(merged(&[], &[("ETCD_CERT_FILE", "x")]).is_err());
        assert!(merged(&["--client-cert-auth=false"], &[]).is_ok());
        let raw = merged(&["--enable-v2", "--experimental-corrupt-check-time=1h"], &[]).unwrap();
        assert_eq!(raw.warnings.len(), 2);
    }

    #[test]
    fn the_version_of_the_name_it_was_started_by_comes_first() {
        let print = |program: &str| merge([program.to_owned(), "--version".to_owned()], []).unwrap();
        assert_eq!(print("/usr/bin/etcd"), Merged::Print(version("etcd")));
        assert!(version("/usr/bin/etcd").starts_with("etcd Version: 3."));
        assert!(version("balsa").starts_with("balsa Version: "));
    }
}
