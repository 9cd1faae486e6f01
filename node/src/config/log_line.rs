//! The form of a log line: the fields and their order are those of etcd's logger, because log pipelines and test drivers
//! read `level`, `ts`, `caller` and `msg`.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;

/// Writes one event as one line.
pub struct LogLine(pub LogFormat);

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let caller = caller(metadata.file(), metadata.line());
        let level = metadata.level().as_str().to_lowercase();
        let line = render(self.0, &level, &timestamp(SystemTime::now()), &caller, fields);
        writeln!(out, "{line}")
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.others.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.put(field, text) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { value.clone_into(&mut self.message) } else { self.put(field, value) }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string());
    }
}

fn render(format: LogFormat, level: &str, at: &str, caller: &str, fields: Fields) -> String {
    let Fields { message, others } = fields;
    match format {
        LogFormat::Json => {
            let mut line = String::from("{");
            for (name, value) in [("level", level), ("ts", at), ("caller", caller), ("msg", &message)] {
                // Writing to a string cannot fail.
                let _ = write!(line, "\"{name}\":{},", Value::from(value));
            }
            for (name, value) in others {
                let _ = write!(line, "{}:{value},", Value::from(name));
            }
            line.pop();
            line.push('}');
            line
        }
        LogFormat::Text => {
            let others = if others.is_empty() { String::new() } else { format!("\t{}", Value::from(others)) };
            format!("{at}\t{level}\t{caller}\t{message}{others}")
        }
    }
}

/// The file with the folder it lies in, and the line.
fn caller(file: Option<&str>, line: Option<u32>) -> String {
    let path = file.unwrap_or("unknown");
    let start = path.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    format!("{}:{}", &path[start..], line.unwrap_or_default())
}

/// `2006-01-02T15:04:05.000000Z`.
pub fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// The Gregorian date of a day counted from 1 January 1970, reckoned in years that begin in March.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_begins_with_etcds_fields() {
        let fields = || Fields { message: "a \"b\"".into(), others: Map::from_iter([("n".into(), 7.into())]) };
        let json = render(LogFormat::Json, "info", "T", "x/y.rs:3", fields());
        assert_eq!(json, r#"{"level":"info","ts":"T","caller":"x/y.rs:3","msg":"a \"b\"","n":7}"#);
        let text = render(LogFormat::Text, "info", "T", "x/y.rs:3", fields());
        assert_eq!(text, "T\tinfo\tx/y.rs:3\ta \"b\"\t{\"n\":7}");
        assert_eq!(caller(Some("node/src/engine/node.rs"), Some(9)), "engine/node.rs:9");
        assert_eq!(caller(Some("main.rs"), None), "main.rs:0");
    }

    #[test]
    fn dates_are_gregorian() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        let fine = SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_001);
        assert_eq!(timestamp(fine), "1970-01-01T00:00:01.500001Z");
    }
}
