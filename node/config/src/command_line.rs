//! The command line as Go's flags read it: one dash or two, a value behind `=` or in the next argument, a boolean's only behind
//! `=`, the last of several values; nothing is read behind the first word that is no flag.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, Command};

use super::ConfigError;
use super::flags::{self, Effect, Flag, Kind};
use super::version::{BALSA_VERSION, ETCD_VERSION};

/// What the command line asks for.
pub(super) enum CommandLine {
    /// To print this.
    Print(String),
    /// To run with these values.
    Given(Vec<(Flag, String)>),
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// `Usage` for what is no flag and for a flag without its value; `Invalid` for a stray word and for one flag under two names.
pub(super) fn read(program: &str, args: impl IntoIterator<Item = String>) -> Result<CommandLine, ConfigError> {
    let mut args = args.into_iter();
    let (mut given, mut names, mut version) = (BTreeMap::new(), Vec::new(), false);
    let stray = loop {
        let Some(arg) = args.next() else { break None };
        let Some(flag) = arg.strip_prefix('-').filter(|flag| !flag.is_empty()) else { break Some(arg) };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        if flag.is_empty() {
            break args.next();
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            _ if name.is_empty() || name.starts_with('-') => return Err(usage(format!("bad flag syntax: {arg}"))),
            "h" | "help" => return Ok(CommandLine::Print(command().render_help().to_string())),
            "version" => version = switch(name, value)?,
            _ => {
                let found =
                    flags::find(name).ok_or_else(|| usage(format!("flag provided but not defined: -{name}")))?;
                let value = match value {
                    Some(value) => value,
                    None if flags::is_switch(found) => "true".to_owned(),
                    None => args.next().ok_or_else(|| usage(format!("flag needs an argument: -{name}")))?,
                };
                names.push(name.to_owned());
                if !(value.is_empty() && flags::lists_urls(found.name)) {
                    given.insert(found.name, (found, value));
                }
            }
        }
    };
    if let Some(stray) = stray {
        return Err(ConfigError::Invalid(format!("{stray:?} is not a valid flag")));
    }
    check_spellings(&names)?;
    Ok(if version {
        CommandLine::Print(version_of(program))
    } else {
        CommandLine::Given(given.into_values().collect())
    })
}

fn usage(what: String) -> ConfigError {
    ConfigError::Usage(what)
}

fn switch(name: &str, value: Option<String>) -> Result<bool, ConfigError> {
    let Some(value) = value else { return Ok(true) };
    flags::boolean(&value).ok_or_else(|| usage(format!("invalid boolean value {value:?} for -{name}: parse error")))
}

/// Refuses a flag that is given under both of its names, as etcd does.
fn check_spellings(names: &[String]) -> Result<(), ConfigError> {
    let is_given = |name: &str| names.iter().any(|given| given == name);
    let both = names.iter().find(|name| flags::present_name(name) != **name && is_given(flags::present_name(name)));
    let Some(old) = both else { return Ok(()) };
    let new = flags::present_name(old);
    let text = format!("cannot set --{old} and --{new} at the same time, please use --{new} only");
    Err(ConfigError::Invalid(text))
}

/// For its help alone: it reads a command line in another way than Go.
fn command() -> Command {
    let args = flags::all().filter(|flag| flag.effect == Effect::Served).map(|flag| {
        let default = flag.kind.default();
        let help = match default {
            "" => flag.help.to_owned(),
            _ => format!("{} [default: {default}]", flag.help),
        };
        let arg = Arg::new(flag.name).long(flag.name).help(help);
        match flag.kind {
            Kind::Bool(_) => arg.num_args(0..=1).require_equals(true).value_name("BOOL"),
            _ => arg,
        }
    });
    let version = Arg::new("version").long("version").help("Print the version").action(ArgAction::SetTrue);
    Command::new("balsa")
        .about("One member of a Balsa cluster: an etcd-v3-compatible key-value store")
        .disable_version_flag(true)
        .arg(version)
        .args(args)
}

pub(super) fn version_of(program: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Result<Vec<String>, ConfigError> {
        match read("balsa", args.iter().map(|arg| (*arg).to_owned()))? {
            CommandLine::Print(text) => Ok(vec![text]),
            CommandLine::Given(given) => {
                Ok(given.into_iter().map(|(flag, value)| format!("{}={value}", flag.name)).collect())
            }
        }
    }

    #[test]
    fn every_spelling_of_a_flag_is_understood() {
        for args in [&["--name=a"][..], &["-name=a"], &["--name", "a"], &["-name", "a"], &["--name=b", "--name=a"]] {
            assert_eq!(given(args), Ok(vec!["name=a".to_owned()]), "{args:?}");
        }
        for (args, expected) in [
            (&["--pre-vote"][..], "pre-vote=true"),
            (&["-pre-vote=false"], "pre-vote=false"),
            (&["--name==x"], "name==x"),
            (&["--name", "-x"], "name=-x"),
            (&["--name=a", "--"], "name=a"),
        ] {
            assert_eq!(given(args), Ok(vec![expected.to_owned()]), "{args:?}");
        }
    }

    #[test]
    fn what_is_no_command_line_is_said_in_gos_words() {
        for (args, code, words) in [
            (&["--no-such-flag=1"][..], 2, "flag provided but not defined: -no-such-flag"),
            (&["--no-such-flag", "stray"], 2, "flag provided but not defined: -no-such-flag"),
            (&["stray", "--no-such-flag"], 1, "\"stray\" is not a valid flag"),
            (&["-"], 1, "\"-\" is not a valid flag"),
            (&["--", "--name=a"], 1, "\"--name=a\" is not a valid flag"),
            (&["--pre-vote", "false"], 1, "\"false\" is not a valid flag"),
            (&["--name"], 2, "flag needs an argument: -name"),
            (&["---x"], 2, "bad flag syntax: ---x"),
            (&["--=x"], 2, "bad flag syntax: --=x"),
            (&["--version=x"], 2, "invalid boolean value \"x\" for -version: parse error"),
        ] {
            let error = given(args).unwrap_err();
            assert_eq!((error.exit_code(), error.to_string().as_str()), (code, words), "{args:?}");
        }
    }

    #[test]
    fn both_spellings_of_one_flag_are_refused() {
        let both = ["--experimental-corrupt-check-time=1s", "--corrupt-check-time=1s"];
        let text = "cannot set --experimental-corrupt-check-time and --corrupt-check-time at the same time, please use \
                    --corrupt-check-time only";
        assert_eq!(given(&both), Err(ConfigError::Invalid(text.to_owned())));
    }

    #[test]
    fn the_version_of_the_name_it_was_started_by_comes_first() {
        let Ok(CommandLine::Print(etcd)) = read("/usr/bin/etcd", ["--version".to_owned()]) else {
            panic!("no version")
        };
        let heads: Vec<_> = etcd.lines().map(|line| line.split(": ").next().unwrap()).collect();
        assert_eq!(heads, ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch", "balsa Version"]);
        assert!(etcd.starts_with("etcd Version: 3."));
        assert!(version_of("balsa").starts_with("balsa Version: "));
        assert_eq!(given(&["--version=false", "--name=a"]), Ok(vec!["name=a".to_owned()]));
    }

    #[test]
    fn the_help_lists_what_has_an_effect() {
        let help = given(&["-h"]).unwrap().remove(0);
        assert!(help.contains("--quota-backend-bytes") && !help.contains("--max-wals"), "{help}");
    }
}
