//! Log lines: where they go and from which level on. The level follows the active settings.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

use super::hot::HotConfig;
use super::log_line::LogLine;
use super::{Config, LogOutput};

/// The level of a process's log.
pub struct LogLevel(SetLevel);

/// Sets the level of the subscriber that was started.
type SetLevel = Box<dyn Fn(&str) + Send + Sync>;

impl LogLevel {
    /// Keeps the level at the active settings', for as long as the process runs.
    pub async fn follow(self, hot: Arc<HotConfig>) {
        let mut versions = hot.versions();
        let mut present = String::new();
        loop {
            versions.borrow_and_update();
            let level = hot.load().values.log_level.clone();
            if present != level {
                (self.0)(&level);
                present = level;
            }
            if versions.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Starts logging for the process at `level`, and writes the configuration's warnings as its first lines. A second call
/// has no effect: the first one's subscriber stays.
///
/// # Errors
/// A file that cannot be opened, with its name.
pub fn start(config: &Config, level: &str) -> io::Result<LogLevel> {
    let outputs = Arc::new(Outputs::open(&config.log_outputs)?);
    let lines = tracing_subscriber::fmt().with_writer(outputs).event_format(LogLine(config.log_format));
    let lines = lines.with_env_filter(EnvFilter::new(level)).with_filter_reloading();
    let handle = lines.reload_handle();
    if lines.try_init().is_ok() {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
    }
    Ok(LogLevel(Box::new(move |level| {
        if let Err(error) = handle.reload(EnvFilter::new(level)) {
            tracing::warn!(%error, "the log level stays as it is");
        }
    })))
}

/// Everything that lines are written to.
struct Outputs {
    stderr: bool,
    stdout: bool,
    files: Vec<File>,
}

impl Outputs {
    fn open(outputs: &BTreeSet<LogOutput>) -> io::Result<Self> {
        let mut files = Vec::new();
        for output in outputs {
            let LogOutput::File(path) = output else { continue };
            let file = File::options().create(true).append(true).open(path);
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("--log-outputs: {}: {error}", path.display()));
            files.push(file.map_err(named)?);
        }
        let has = |output| outputs.contains(&output);
        Ok(Self { stderr: has(LogOutput::Stderr), stdout: has(LogOutput::Stdout), files })
    }
}

/// A line comes in one piece and goes to each as one.
impl Write for &Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.stderr {
            io::stderr().write_all(line)?;
        }
        if self.stdout {
            io::stdout().write_all(line)?;
        }
        for mut file in &self.files {
            file.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.stdout { io::stdout().flush() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_to_every_file() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        std::fs::write(&paths[0], "before\n").unwrap();
        let outputs = paths.iter().cloned().map(LogOutput::File).collect();
        (&Outputs::open(&outputs).unwrap()).write_all(b"line\n").unwrap();
        assert_eq!(std::fs::read_to_string(&paths[0]).unwrap(), "before\nline\n");
        assert_eq!(std::fs::read_to_string(&paths[1]).unwrap(), "line\n");
        let missing = BTreeSet::from([LogOutput::File(directory.path().join("no/such"))]);
        assert!(Outputs::open(&missing).err().unwrap().to_string().contains("no/such"));
    }
}
