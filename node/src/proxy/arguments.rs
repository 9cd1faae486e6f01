//! The command line of a proxy, by the rules and in the words of the library that etcd reads it with (cobra): flags with two
//! dashes, of which a list may be given in parts, and no care for words that are no flags.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use crate::config::{duration, flags};

/// What a flag takes, and its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text(&'static str),
    List(&'static str),
    Time(Duration),
    /// By Go's name for it.
    Number(&'static str, &'static str),
    Switch,
}

/// A flag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// A command that starts something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    /// `gateway`.
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) about_start: &'static str,
    /// In the order of their names.
    pub(super) flags: &'static [Flag],
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    Print(String),
    Start(Given),
}

/// What the command line gives. Every flag of the command is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Given(BTreeMap<&'static str, String>);

impl Given {
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        flags::boolean(self.text(name)).unwrap_or_default()
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.text(name).split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// One that does not fit is the default of its type, which the check of a value leaves no room for.
    pub(super) fn number<T: FromStr + Default>(&self, name: &str) -> T {
        self.text(name).parse().unwrap_or_default()
    }

    pub(super) fn time(&self, name: &str) -> Duration {
        duration::parse(self.text(name)).unwrap_or_default()
    }
}

impl Command {
    /// Reads what stands behind the command's name.
    ///
    /// # Errors
    /// The text for stderr, after which the process ends with code 1.
    pub(super) fn read(&self, arguments: &[String]) -> Result<Asked, String> {
        let Some(start) = arguments.iter().position(|argument| argument == "start") else {
            return match arguments.iter().find(|argument| argument.starts_with('-') && !is_help(argument)) {
                Some(flag) => Err(self.refused(&self.usage_of_all(), &format!("unknown flag: {flag}"))),
                None => Ok(Asked::Print(self.help_of_all())),
            };
        };
        let arguments = [&arguments[..start], &arguments[start + 1..]].concat();
        if arguments.iter().any(|argument| is_help(argument)) {
            return Ok(Asked::Print(format!("{}\n\n{}", self.about_start, self.usage_of_start())));
        }
        let given = self.given(&arguments).map_err(|why| self.refused(&self.usage_of_start(), &why))?;
        Ok(Asked::Start(given))
    }

    fn given(&self, arguments: &[String]) -> Result<Given, String> {
        let mut given: BTreeMap<_, _> = self.flags.iter().map(|flag| (flag.name, flag.kind.default())).collect();
        let mut set = Vec::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(named) = argument.strip_prefix("--") else {
                if let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                    let letter = letters.chars().next().unwrap_or_default();
                    return Err(format!("unknown shorthand flag: '{letter}' in {argument}"));
                }
                continue;
            };
            if named.is_empty() {
                break;
            }
            let (name, value) = named.split_once('=').map_or((named, None), |(name, value)| (name, Some(value)));
            let flag = self.flags.iter().find(|flag| flag.name == name).ok_or(format!("unknown flag: --{name}"))?;
            let value = match (flag.kind, value) {
                (_, Some(value)) => value,
                (Kind::Switch, None) => "true",
                (_, None) => arguments.next().ok_or(format!("flag needs an argument: --{name}"))?,
            };
            flag.kind.check(name, value)?;
            let before = given.entry(flag.name).or_default();
            match flag.kind {
                // The first replaces the default, the others are added.
                Kind::List(_) if set.contains(&name) => *before = format!("{before},{value}"),
                _ => value.clone_into(before),
            }
            set.push(name);
        }
        Ok(Given(given))
    }

    fn refused(&self, usage: &str, why: &str) -> String {
        format!("Error: {why}\n{usage}\n{why}")
    }

    fn help_of_all(&self) -> String {
        format!("{}\n\n{}", self.about, self.usage_of_all())
    }

    fn usage_of_all(&self) -> String {
        let Self { name, about_start, .. } = self;
        format!(
            "Usage:\n  etcd {name} [command]\n\nAvailable Commands:\n  start       {about_start}\n\nFlags:\n  -h, --help   help \
             for {name}\n\nUse \"etcd {name} [command] --help\" for more information about a command.\n"
        )
    }

    fn usage_of_start(&self) -> String {
        let row = |flag: &Flag| (flag.name, flag.kind.usage(flag.name), flag.help.to_owned() + &flag.kind.shown());
        let help = ("help", "  -h, --help".to_owned(), "help for start".to_owned());
        let mut rows: Vec<_> = self.flags.iter().map(row).chain([help]).collect();
        rows.sort();
        let width = rows.iter().map(|(_, head, _)| head.len()).max().unwrap_or_default() + 3;
        let rows: String = rows.iter().map(|(_, head, help)| format!("{head:width$}{help}\n")).collect();
        format!("Usage:\n  etcd {} start [flags]\n\nFlags:\n{rows}", self.name)
    }
}

impl Kind {
    fn default(self) -> String {
        match self {
            Kind::Text(default) | Kind::List(default) | Kind::Number(_, default) => default.to_owned(),
            Kind::Time(default) => as_go(default),
            Kind::Switch => "false".to_owned(),
        }
    }

    fn check(self, name: &str, value: &str) -> Result<(), String> {
        let wrong = |why: String| format!("invalid argument {value:?} for \"--{name}\" flag: {why}");
        match self {
            Kind::Time(_) => duration::parse(value).map(drop).map_err(|error| wrong(error.to_string())),
            Kind::Switch if flags::boolean(value).is_none() => {
                Err(wrong(format!("strconv.ParseBool: parsing {value:?}: invalid syntax")))
            }
            Kind::Number(kind, _) if !is_number(kind, value) => {
                let function = if kind == "int" { "strconv.ParseInt" } else { "strconv.ParseUint" };
                Err(wrong(format!("{function}: parsing {value:?}: invalid syntax")))
            }
            _ => Ok(()),
        }
    }

    fn usage(self, name: &str) -> String {
        let kind = match self {
            Kind::Text(_) => " string",
            Kind::List(_) => " strings",
            Kind::Time(_) => " duration",
            Kind::Number(kind, _) => return format!("      --{name} {kind}"),
            Kind::Switch => "",
        };
        format!("      --{name}{kind}")
    }

    /// The default, unless it says nothing.
    fn shown(self) -> String {
        match self {
            Kind::Text("") | Kind::List("") | Kind::Switch | Kind::Number(_, "0") => String::new(),
            Kind::Time(Duration::ZERO) => String::new(),
            Kind::Number(_, default) => format!(" (default {default})"),
            Kind::Text(default) => format!(" (default {default:?})"),
            Kind::List(default) => format!(" (default [{default}])"),
            Kind::Time(default) => format!(" (default {})", as_go(default)),
        }
    }
}

fn is_number(kind: &str, value: &str) -> bool {
    match kind {
        "int" => value.parse::<i64>().is_ok(),
        "uint32" => value.parse::<u32>().is_ok(),
        _ => value.parse::<u64>().is_ok(),
    }
}

fn is_help(argument: &str) -> bool {
    matches!(argument, "-h" | "--help")
}

/// A duration as Go writes it.
pub(super) fn as_go(duration: Duration) -> String {
    let (seconds, rest) = (duration.as_secs(), duration.subsec_nanos());
    if seconds == 0 && rest > 0 {
        return format!("{duration:?}");
    }
    let fraction = format!("{:.9}", f64::from(rest) / 1e9);
    let fraction = fraction.trim_start_matches('0').trim_end_matches('0').trim_end_matches('.');
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: Command = Command {
        name: "gateway",
        about: "gateway related command",
        about_start: "start the gateway",
        flags: &[
            Flag { name: "endpoints", kind: Kind::List("127.0.0.1:2379"), help: "where" },
            Flag { name: "insecure", kind: Kind::Switch, help: "trust" },
            Flag { name: "listen-addr", kind: Kind::Text("127.0.0.1:1"), help: "here" },
            Flag { name: "retry-delay", kind: Kind::Time(Duration::from_secs(60)), help: "later" },
        ],
    };

    fn read(line: &str) -> Result<Asked, String> {
        COMMAND.read(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn given(line: &str) -> Given {
        match read(line).unwrap() {
            Asked::Start(given) => given,
            Asked::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn flags_are_read_as_cobra_does() {
        let nothing = given("start");
        assert_eq!(nothing.list("endpoints"), ["127.0.0.1:2379"]);
        assert_eq!((nothing.time("retry-delay"), nothing.is_on("insecure")), (Duration::from_secs(60), false));
        let all =
            given("--endpoints=a,b start stray --endpoints c --insecure --listen-addr=x=y --retry-delay 1s -- --nope");
        assert_eq!(all.list("endpoints"), ["a", "b", "c"]);
        assert_eq!((all.text("listen-addr"), all.is_on("insecure")), ("x=y", true));
        assert_eq!(all.time("retry-delay"), Duration::from_secs(1));
        assert!(given("start --endpoints=").list("endpoints").is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_in_cobras_words() {
        for (line, words) in [
            ("start --nope", "unknown flag: --nope"),
            ("start -listen-addr=x", "unknown shorthand flag: 'l' in -listen-addr=x"),
            ("start --listen-addr", "flag needs an argument: --listen-addr"),
            (
                "start --retry-delay=x",
                "invalid argument \"x\" for \"--retry-delay\" flag: time: invalid duration \"x\"",
            ),
            (
                "start --insecure=x",
                "invalid argument \"x\" for \"--insecure\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
            ("--nope", "unknown flag: --nope"),
        ] {
            let said = read(line).unwrap_err();
            assert!(
                said.starts_with(&format!("Error: {words}\nUsage:\n")) && said.ends_with(&format!("\n{words}")),
                "{said}"
            );
        }
        for line in ["", "stop", "-h"] {
            assert_eq!(read(line), Ok(Asked::Print(COMMAND.help_of_all())), "{line}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (milliseconds, text) in
            [(60_000, "1m0s"), (500, "500ms"), (1_500, "1.5s"), (0, "0s"), (3_661_000, "1h1m1s")]
        {
            assert_eq!(as_go(Duration::from_millis(milliseconds)), text);
        }
    }
}
