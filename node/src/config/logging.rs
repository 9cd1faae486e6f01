//! Log lines: to stderr, one per event, as JSON or for people. The level follows the active settings.

use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use super::hot::HotConfig;
use super::{Config, LogFormat};

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
pub fn start(config: &Config, level: &str) -> LogLevel {
    let filter = EnvFilter::new(level);
    let lines = tracing_subscriber::fmt().with_timer(SystemTime).with_writer(std::io::stderr);
    let reload = |result: Result<(), tracing_subscriber::reload::Error>| {
        if let Err(error) = result {
            tracing::warn!(%error, "the log level stays as it is");
        }
    };
    let (started, level): (_, SetLevel) = match config.log_format {
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            (lines.try_init(), Box::new(move |level| reload(handle.reload(EnvFilter::new(level)))))
        }
        LogFormat::Text => {
            let lines = lines.with_ansi(false).with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            (lines.try_init(), Box::new(move |level| reload(handle.reload(EnvFilter::new(level)))))
        }
    };
    if started.is_ok() {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
    }
    LogLevel(level)
}
