//! Log lines: where they go and from which level on. The level follows the active settings.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

use super::hot::HotConfig;
use super::journal::{self, Journal};
use super::log_line::LogLine;
use super::rotating_file::RotatingFile;
use super::{Config, LogFormat, LogOutput, Rotation, os_words};

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
    let outputs = Arc::new(Outputs::open(&config.log_outputs, config.log_rotation.as_ref())?);
    let lines = builder().with_writer(outputs).event_format(LogLine(config.log_format));
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

/// Starts logging for a process that has no configuration of it: to stderr, from `info` on. A second call has no effect.
pub fn start_on_stderr() {
    let outputs = Arc::new(Outputs { stderr: true, ..Outputs::default() });
    let lines = builder().with_writer(outputs).event_format(LogLine(LogFormat::Json));
    let _ = lines.with_env_filter(EnvFilter::new("info")).try_init();
}

/// Says nothing of lines that cannot be written: it would do so on stderr, and where that cannot be written either, as on a full disk or
/// when its reader is gone, the thread that logs would panic.
fn builder() -> SubscriberBuilder {
    tracing_subscriber::fmt().log_internal_errors(false)
}

/// Everything that lines are written to.
#[derive(Default)]
struct Outputs {
    stderr: bool,
    stdout: bool,
    files: Vec<File>,
    rotating: Option<Mutex<RotatingFile>>,
    journal: Option<Journal>,
}

impl Outputs {
    fn open(outputs: &BTreeSet<LogOutput>, rotation: Option<&Rotation>) -> io::Result<Self> {
        let mut opened = Self::default();
        for output in outputs {
            match (output, rotation) {
                (LogOutput::Stderr, _) => opened.stderr = true,
                (LogOutput::Stdout, _) => opened.stdout = true,
                (LogOutput::Journal, _) => opened.journal = Some(Journal::connect(Path::new(journal::PATH))?),
                (LogOutput::File(path), None) => {
                    let file = File::options().create(true).append(true).open(path);
                    opened.files.push(file.map_err(|error| not_opened(path, &error))?);
                }
                (LogOutput::File(path), Some(rules)) => {
                    let file = RotatingFile::open(path, rules).map_err(|error| not_opened(path, &error))?;
                    opened.rotating = Some(Mutex::new(file));
                }
            }
        }
        Ok(opened)
    }
}

/// In etcd's words.
fn not_opened(path: &Path, error: &io::Error) -> io::Error {
    let (name, words) = (path.display().to_string(), os_words(error));
    io::Error::new(error.kind(), format!("open sink {name:?}: open {name}: {words}"))
}

/// A line comes in one piece and goes to each as one, whichever of the others cannot be written.
impl Write for &Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut failed = None;
        let mut note = |written: io::Result<()>| failed = failed.take().or(written.err());
        if self.stderr {
            note(io::stderr().write_all(line));
        }
        if self.stdout {
            note(io::stdout().write_all(line));
        }
        if let Some(journal) = &self.journal {
            note(journal.write_line(line));
        }
        for mut file in &self.files {
            note(file.write_all(line));
        }
        if let Some(file) = &self.rotating {
            note(file.lock().write_line(line));
        }
        failed.map_or(Ok(line.len()), Err)
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
        (&Outputs::open(&outputs, None).unwrap()).write_all(b"line\n").unwrap();
        assert_eq!(std::fs::read_to_string(&paths[0]).unwrap(), "before\nline\n");
        assert_eq!(std::fs::read_to_string(&paths[1]).unwrap(), "line\n");
        let missing = BTreeSet::from([LogOutput::File(directory.path().join("no/such"))]);
        let path = directory.path().join("no/such").display().to_string();
        let words = format!("open sink {path:?}: open {path}: no such file or directory");
        assert_eq!(Outputs::open(&missing, None).err().unwrap().to_string(), words);
    }

    #[test]
    fn a_file_that_cannot_be_written_keeps_no_line_from_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("good");
        let files = [Path::new("/dev/full"), path.as_path()]
            .map(|path| File::options().append(true).create(true).open(path).unwrap());
        let outputs = Outputs { files: files.into(), ..Outputs::default() };
        assert_eq!((&outputs).write(b"line\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line\n");
    }
}
