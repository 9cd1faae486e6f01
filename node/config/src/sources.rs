//! Merges the command line, the environment and the file with etcd's precedence: a file excludes everything else; a flag
//! and a variable of the same name, or two variables, are fatal; an empty variable is unset; an unknown one is a warning.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, Command, value_parser};
use serde_yaml::Value;

use super::flags::{self, Effect, Flag, Kind};
use super::version::{BALSA_VERSION, ETCD_VERSION};
use super::{ConfigError, duration};

/// Prefixes of variables, ours first.
const PREFIXES: [&str; 2] = ["BALSA_", "ETCD_"];

/// Variables with such a prefix that are no flags.
const NO_FLAGS: [&str; 8] = [
    "ETCD_VERIFY",
    "ETCD_UNSUPPORTED_ARCH",
    "BALSA_FAILPOINTS",
    "BALSA_CACHE",
    "BALSA_SEEDS",
    "BALSA_SEED",
    "BALSA_ETCD",
    "BALSA_REQUIRE_ETCD",
];

/// Merged values, still text; the defaults are filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raw {
    set: BTreeMap<&'static str, String>,
    defaults: BTreeMap<&'static str, &'static str>,
    /// Those that came from the command line.
    flags: BTreeSet<&'static str>,
    /// What was accepted without effect.
    pub warnings: Vec<String>,
    /// The file that the values came from, if they did.
    pub file: Option<PathBuf>,
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
    pub fn number<T: FromStr>(&self, name: &str) -> Result<T, ConfigError> {
        self.parsed(name, "a number", |text| text.parse().ok())
    }

    /// The value as a duration.
    ///
    /// # Errors
    /// See [`wrong`](Self::wrong).
    pub fn duration(&self, name: &str) -> Result<Duration, ConfigError> {
        self.parsed(name, "a duration", duration::parse)
    }

    /// The value as a boolean, as Go reads one.
    ///
    /// # Errors
    /// See [`wrong`](Self::wrong).
    pub fn boolean(&self, name: &str) -> Result<bool, ConfigError> {
        self.parsed(name, "true or false", flags::boolean)
    }

    fn parsed<T>(&self, name: &str, what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, ConfigError> {
        let text = self.text(name);
        parse(text).ok_or_else(|| self.wrong(name, format!("--{name}={text} is not {what}")))
    }

    /// A value that cannot be parsed. As in etcd the command line is wrong itself, any other source has a wrong setting.
    pub fn wrong(&self, name: &str, what: String) -> ConfigError {
        if self.flags.contains(name) { ConfigError::Usage(what) } else { ConfigError::Invalid(what) }
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
        if let Some(what) = mismatch(flag, &value) {
            return Err(self.wrong(flag.name, format!("{origin}={value} is not {what}")));
        }
        // What asks for what is there anyhow changes nothing.
        let idle = value.is_empty() || value == "false" || value == flag.kind.default();
        match flag.effect {
            Effect::None(reason) if !idle || flag.kind == Kind::Bool("true") && value == "false" => {
                self.warnings.push(format!("{origin} has no effect: {reason}"));
                self.set.insert(flag.name, value);
                Ok(())
            }
            Effect::Refused(advice) if !idle => {
                Err(ConfigError::Invalid(format!("{origin} is not supported by this version: {advice}")))
            }
            Effect::None(_) => {
                self.set.insert(flag.name, value);
                Ok(())
            }
            Effect::Refused(_) => Ok(()),
            Effect::Served => match self.set.insert(flag.name, value) {
                None => Ok(()),
                Some(_) => Err(ConfigError::Invalid(format!(
                    "conflicting settings: {origin} is set although --{} is set elsewhere too",
                    flag.name
                ))),
            },
        }
    }
}

/// What a value should have been; `None` when it is of its kind.
fn mismatch(flag: Flag, value: &str) -> Option<&'static str> {
    match flag.kind {
        Kind::Text(_) => flags::words(flag.name).filter(|(words, _)| !words.contains(&value)).map(|(_, what)| what),
        Kind::Number(_) if flags::counts(flag.name) => value.parse::<u64>().is_err().then_some("a count"),
        Kind::Number(_) => value.parse::<i128>().is_err().then_some("a number"),
        Kind::Duration(_) => duration::parse(value).is_none().then_some("a duration"),
        Kind::Bool(_) => flags::boolean(value).is_none().then_some("true or false"),
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
    let given = match command_line(args)? {
        CommandLine::Help => return Ok(Merged::Print(command().render_help().to_string())),
        CommandLine::Version => return Ok(Merged::Print(version(&program))),
        CommandLine::Given(given) => given,
    };
    let mut raw = Raw::new();
    for (flag, value) in given {
        raw.flags.insert(flag.name);
        raw.take(flag, value, &format!("--{}", flag.name))?;
    }
    variables(&mut raw, environment)?;
    Ok(Merged::Values(raw))
}

enum CommandLine {
    Help,
    Version,
    Given(Vec<(Flag, String)>),
}

fn version(program: &str) -> String {
    let etcd = format!("etcd Version: {ETCD_VERSION}\n");
    let balsa = format!("balsa Version: {BALSA_VERSION}\n");
    if !is_etcd(program) {
        return balsa + &etcd;
    }
    // The four lines of etcd's, for scripts that read them by their number; there is no Go.
    let (os, arch) = (std::env::consts::OS, go_arch(std::env::consts::ARCH));
    format!("{etcd}Git SHA: balsa-{BALSA_VERSION}\nGo Version: none\nGo OS/Arch: {os}/{arch}\n{balsa}")
}

/// Whether the program was started under etcd's name.
fn is_etcd(program: &str) -> bool {
    program.rsplit('/').next() == Some("etcd")
}

/// An architecture as Go names it.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn command() -> Command {
    let args = flags::all().map(|flag| {
        let arg = Arg::new(flag.name).long(flag.name).help(flag.help).value_parser(value_parser!(String));
        let arg = match flag.kind {
            Kind::Text(default) | Kind::Number(default) | Kind::Duration(default) if !default.is_empty() => {
                arg.help(format!("{} [default: {default}]", flag.help))
            }
            Kind::Bool(default) => arg.help(format!("{} [default: {default}]", flag.help)).value_name("BOOL"),
            _ => arg,
        };
        let arg = arg.hide(flag.effect != Effect::Served);
        // A flag of a boolean takes its value only after `=`; the others take it either way.
        if flags::is_switch(flag) {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true")
        } else {
            arg.allow_hyphen_values(true)
        }
    });
    Command::new("balsa")
        .about("One member of a Balsa cluster: an etcd-v3-compatible key-value store")
        .args_override_self(true)
        .disable_version_flag(true)
        .arg(Arg::new("version").long("version").help("Print the version").action(ArgAction::SetTrue))
        .args(args)
}

/// Go takes one dash for two, and some names have an old spelling.
fn normalized(arg: String) -> String {
    let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-').filter(|name| name.len() > 1)) else {
        return arg;
    };
    match flag.split_once('=') {
        Some((name, value)) => format!("--{}={value}", flags::present_name(name)),
        None => format!("--{}", flags::present_name(flag)),
    }
}

/// Refuses a flag that is given under both of its names, as etcd does.
fn check_spellings(args: &[String]) -> Result<(), ConfigError> {
    let names: Vec<_> =
        args.iter().map(|arg| arg.trim_start_matches('-').split('=').next().unwrap_or_default()).collect();
    let both =
        names.iter().find(|name| flags::present_name(name) != **name && names.contains(&flags::present_name(name)));
    let Some(old) = both else { return Ok(()) };
    let new = flags::present_name(old);
    let text = format!("cannot set --{old} and --{new} at the same time, please use --{new} only");
    Err(ConfigError::Invalid(text))
}

fn command_line(args: impl Iterator<Item = String>) -> Result<CommandLine, ConfigError> {
    use clap::error::ErrorKind;
    let args: Vec<_> = args.collect();
    check_spellings(&args)?;
    let args = std::iter::once("balsa".to_owned()).chain(args.into_iter().map(normalized));
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
        // In capitals, as etcd has it: every variable is one name, which a table of names can hold.
        let is_name = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        match flags::find(&name.to_lowercase().replace('_', "-")).filter(|_| is_name) {
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
    for (name, value) in flattened(values) {
        let text = scalar(&value).or_else(|| list(&value));
        if text.is_none() && is_empty(&value) {
            continue;
        }
        // etcd reads over what it does not know, sections too; it may be a slip, so it is said.
        // In capitals or not, as Go reads JSON.
        let Some(flag) = flags::find(&name.to_lowercase()) else {
            raw.warnings.push(format!("{path}: {name} is not a known setting"));
            continue;
        };
        let Some(value) = text else {
            return Err(invalid(format!("{name} is not supported by this version")));
        };
        let value = match (flag.kind, value.parse::<u64>()) {
            // Durations of a file are whole nanoseconds.
            (Kind::Duration(_), Ok(nanoseconds)) => format!("{nanoseconds}ns"),
            _ => value,
        };
        raw.take(flag, value, &format!("{path}: {name}"))?;
    }
    Ok(raw)
}

/// The two sections of a file as the flags that they stand for.
fn flattened(values: BTreeMap<String, Value>) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (name, value) in values {
        match (name.as_str(), value) {
            ("client-transport-security", Value::Mapping(section)) => flat.extend(section_flags(&section, "")),
            ("peer-transport-security", Value::Mapping(section)) => flat.extend(section_flags(&section, "peer-")),
            (_, value) => flat.push((name, value)),
        }
    }
    flat
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

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A list of scalars, as the command line writes it.
fn list(value: &Value) -> Option<String> {
    let Value::Sequence(items) = value else { return None };
    let items: Option<Vec<_>> = items.iter().map(scalar).collect();
    items.filter(|items| !items.is_empty()).map(|items| items.join(","))
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
    fn both_spellings_of_one_flag_are_refused() {
        let both = ["--experimental-corrupt-check-time=1s", "--corrupt-check-time=1s"];
        let error = merged(&both, &[]).unwrap_err();
        let text = "cannot set --experimental-corrupt-check-time and --corrupt-check-time at the same time, please use \
                    --corrupt-check-time only";
        assert_eq!(error, ConfigError::Invalid(text.to_owned()));
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
    fn what_would_weaken_the_node_is_refused_and_the_rest_ignored() {
        assert!(merged(&["--force-new-cluster"], &[]).is_err());
        assert!(merged(&[], &[("ETCD_FORCE_NEW_CLUSTER", "true")]).is_err());
        assert!(merged(&["--force-new-cluster=false"], &[]).is_ok());
        let raw = merged(&["--enable-v2", "--experimental-compaction-batch-limit=7", "--max-wals=5"], &[]).unwrap();
        assert_eq!(
            raw.warnings,
            [
                "--compaction-batch-limit has no effect: compaction is paced by what it finds",
                "--enable-v2 has no effect: there is no v2 store",
            ]
        );
        assert_eq!(merged(&["--initial-election-tick-advance=false"], &[]).unwrap().warnings.len(), 1);
        assert_eq!(merged(&["--max-wals=x"], &[]).unwrap_err().exit_code(), 2, "a wrong value is one all the same");
        assert_eq!(merged(&["--backend-batch-interval=5"], &[]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_version_of_the_name_it_was_started_by_comes_first() {
        let print = |program: &str| merge([program.to_owned(), "--version".to_owned()], []).unwrap();
        assert_eq!(print("/usr/bin/etcd"), Merged::Print(version("etcd")));
        let etcd = version("/usr/bin/etcd");
        let heads: Vec<_> = etcd.lines().map(|line| line.split(": ").next().unwrap()).collect();
        assert_eq!(heads, ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch", "balsa Version"]);
        assert!(etcd.starts_with("etcd Version: 3."));
        assert!(version("balsa").starts_with("balsa Version: "));
    }
}
