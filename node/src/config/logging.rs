//! Log lines: to stderr, one per event, as JSON or for people.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use super::{Config, LogFormat};

/// Starts logging for the process, and writes the configuration's warnings as its first lines. A second call has no
/// effect: the first one's subscriber stays.
pub fn start(config: &Config) {
    let filter = EnvFilter::new(&config.log_level);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_timer(SystemTime).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text => lines.with_ansi(false).try_init(),
    };
    if started.is_ok() {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
    }
}
