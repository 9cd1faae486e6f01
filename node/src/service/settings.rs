//! Changes of the settings that can change at run time: what a caller pushes, what the file says now, and what a restart
//! finds. The check and the swap are `config/hot.rs`; this file knows the disk and the caller.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use balsa_proto::node as wire;

use super::failure::Error;
use crate::config::Config;
use crate::config::hot::{Active, ChangeError, HotConfig, Kept};
use crate::metrics::{CONFIG_REFUSED, CONFIG_VERSION};
use crate::storage::durable;

/// The file in the data directory that keeps the last change.
const FILE_NAME: &str = "settings.json";

/// How often the file is looked at. Kubernetes takes up to a minute to bring a changed ConfigMap into a pod.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The settings that a process starts with: the configuration's, with a change from before the restart. A change that
/// cannot be read or is no longer allowed is left out; the second value says so.
///
/// # Errors
/// Those of the configuration itself.
pub fn at_start(config: &Config) -> Result<(Arc<HotConfig>, Option<String>), crate::config::ConfigError> {
    let restored = kept(&config.data_dir).and_then(|kept| HotConfig::new(config, kept.as_ref()).map_err(words));
    let (hot, warning) = match restored {
        Ok(hot) => (hot, None),
        Err(what) => (HotConfig::new(config, None)?, Some(format!("{FILE_NAME} is left out: {what}"))),
    };
    CONFIG_VERSION.set(number(hot.load().version));
    Ok((Arc::new(hot), warning))
}

/// Takes over what was pushed, and says what is active then.
///
/// # Errors
/// `StaleConfig`, `InvalidRequest`, `Internal` when the change cannot be kept.
pub fn push(
    hot: &HotConfig,
    data_dir: &Path,
    request: wire::SetConfigRequest,
) -> Result<wire::SetConfigResponse, Error> {
    let pushed: BTreeMap<String, String> = request.settings.into_iter().collect();
    let active = hot.push(request.version, &pushed, |kept| keep(data_dir, kept)).map_err(refused)?;
    changed(&active, "a push");
    Ok(wire::SetConfigResponse { version: active.version, config_hash: active.hash.clone() })
}

/// What is active, and what was refused last.
pub fn describe(hot: &HotConfig) -> wire::GetConfigResponse {
    let active = hot.load();
    let (settings, config_hash) = (active.texts().into_iter().collect(), active.hash.clone());
    let refused = hot.refused();
    let refusal = refused.as_ref().map(|refused| refused.error.to_string()).unwrap_or_default();
    let refused = refused.map(|refused| refused.settings.into_iter().collect()).unwrap_or_default();
    wire::GetConfigResponse { version: active.version, config_hash, settings, refused, refusal }
}

/// Takes over what the file of the configuration says, if there is one, for as long as the process runs.
pub async fn follow_file(path: Option<PathBuf>, hot: Arc<HotConfig>, data_dir: PathBuf) {
    if let Some(path) = path {
        SettingsFile::new(path, hot, data_dir).follow().await;
    }
}

/// The file of the configuration, as it was last looked at.
pub struct SettingsFile {
    path: PathBuf,
    text: Option<Vec<u8>>,
    /// What it said when that could not be kept. This is tried again, and told once.
    not_kept: Option<Vec<u8>>,
    hot: Arc<HotConfig>,
    data_dir: PathBuf,
}

impl SettingsFile {
    /// The file `path`. The first look reads it, because it may have changed since the process started.
    pub fn new(path: PathBuf, hot: Arc<HotConfig>, data_dir: PathBuf) -> Self {
        Self { text: None, not_kept: None, path, hot, data_dir }
    }

    /// Looks at the file again and again, for as long as the process runs.
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            // What is taken over is written to the disk, which may stand still: no thread of the runtime waits for it.
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(file) => self = file,
                Err(error) => return tracing::error!(%error, "the file of the configuration is not followed any more"),
            }
        }
    }

    /// Takes over what the file says, if it says something else than before. A file that is wrong is left alone until it
    /// changes again; one that is right and cannot be kept, on a full disk perhaps, is tried until it can. It is compared by
    /// its text: a time of change is too coarse, and a ConfigMap is swapped as a link.
    fn look(&mut self) {
        // A file that is away for a moment is being replaced.
        let Ok(text) = fs::read(&self.path) else { return };
        if self.text.as_ref() == Some(&text) {
            return;
        }
        let again = self.not_kept.as_ref() == Some(&text);
        let taken = self.take_over(again);
        let not_kept = matches!(taken, Err(ChangeError::NotKept(_)));
        if let Err(error) = taken
            && !(again && not_kept)
        {
            let (path, error) = (self.path.display(), refused(error));
            tracing::warn!(%path, %error, "the changed file is refused, the settings stay as they are");
        }
        if not_kept {
            self.not_kept = Some(text);
        } else {
            (self.text, self.not_kept) = (Some(text), None);
        }
    }

    fn take_over(&self, again: bool) -> Result<(), ChangeError> {
        let config = Config::from_file(&self.path)?;
        for name in self.hot.needs_restart(&config).into_iter().filter(|_| !again) {
            tracing::warn!(setting = name, "changed in the file and takes effect at the next start");
        }
        if let Some(active) = self.hot.rebase(&config, |kept| keep(&self.data_dir, kept))? {
            changed(&active, "the file");
        }
        Ok(())
    }
}

fn changed(active: &Active, by: &str) {
    CONFIG_VERSION.set(number(active.version));
    tracing::info!(version = active.version, hash = active.hash, by, "the settings of this version are active");
}

/// Counts a refusal and gives it its place in the table of failures.
fn refused(error: ChangeError) -> Error {
    CONFIG_REFUSED.inc();
    match error {
        ChangeError::Stale { .. } => Error::StaleConfig(error.to_string()),
        ChangeError::Invalid(error) => Error::InvalidRequest(error.to_string()),
        ChangeError::NotKept(_) => Error::Internal(error.to_string()),
    }
}

fn keep(data_dir: &Path, kept: &Kept) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(kept).map_err(words)?;
    durable::create_directory(data_dir).map_err(words)?;
    durable::replace_file(&data_dir.join(FILE_NAME), &text).map_err(words)
}

fn kept(data_dir: &Path) -> Result<Option<Kept>, String> {
    match fs::read(data_dir.join(FILE_NAME)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(words),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(words(error)),
    }
}

fn words(error: impl ToString) -> String {
    error.to_string()
}

fn number(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Invocation;

    fn config(data: &Path) -> Config {
        let args = ["balsa".to_owned(), format!("--data-dir={}", data.display())];
        match Config::load(args, []).unwrap() {
            Invocation::Run(config) => *config,
            Invocation::Print(text) => panic!("{text}"),
        }
    }

    fn request(version: u64, value: &str) -> wire::SetConfigRequest {
        wire::SetConfigRequest {
            version,
            settings: [("max-txn-ops".to_owned(), value.to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_push_is_found_again_after_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().join("not-there-yet");
        let (hot, warning) = at_start(&config(&directory)).unwrap();
        assert_eq!((describe(&hot).version, warning), (1, None));
        let answer = push(&hot, &directory, request(4, "20")).unwrap();
        assert_eq!((answer.version, answer.config_hash), (4, describe(&hot).config_hash));
        let stale = push(&hot, &directory, request(4, "30")).unwrap_err();
        assert_eq!(stale.row().reason, wire::Reason::StaleConfig);
        assert_eq!(describe(&hot).refusal, "", "its version says nothing about its settings");
        assert_eq!(push(&hot, &directory, request(5, "0")).unwrap_err().row().reason, wire::Reason::InvalidRequest);
        let told = describe(&hot);
        assert_eq!(
            (told.version, told.refused, told.refusal.contains("must not be 0")),
            (4, request(5, "0").settings, true)
        );
        push(&hot, &directory, request(5, "20")).unwrap();
        assert_eq!((describe(&hot).refused.len(), describe(&hot).refusal.as_str()), (0, ""));

        let (again, _) = at_start(&config(&directory)).unwrap();
        assert_eq!(describe(&again), describe(&hot));
        assert_eq!(again.load().values.max_txn_ops, 20);
        fs::write(directory.join(FILE_NAME), "{").unwrap();
        let (without, warning) = at_start(&config(&directory)).unwrap();
        assert_eq!((without.load().values.max_txn_ops, warning.is_some()), (128, true));
    }

    #[test]
    fn a_file_that_is_wrong_changes_nothing_until_it_is_right() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("config.yaml");
        fs::write(&path, "max-txn-ops: 10\n").unwrap();
        let hot = Arc::new(HotConfig::new(&Config::from_file(&path).unwrap(), None).unwrap());
        let mut file = SettingsFile::new(path.clone(), hot.clone(), data.path().to_owned());
        for unchanged in ["max-txn-ops: 10\n", "max-txn-ops: 0\nlog-level: debug\n", "max-txn-ops: [\n"] {
            fs::write(&path, unchanged).unwrap();
            file.look();
            let active = hot.load();
            assert_eq!((active.version, active.values.max_txn_ops, active.values.log_level.as_str()), (1, 10, "info"));
        }
        fs::remove_file(&path).unwrap();
        file.look();
        fs::write(&path, "max-txn-ops: 20\nlog-level: debug\n").unwrap();
        file.look();
        let active = hot.load();
        assert_eq!((active.version, active.values.max_txn_ops, active.values.log_level.as_str()), (2, 20, "debug"));
    }

    #[test]
    fn a_file_that_cannot_be_kept_is_taken_over_once_it_can() {
        let above = tempfile::tempdir().unwrap();
        let (path, data) = (above.path().join("config.yaml"), above.path().join("data"));
        fs::write(&path, "max-txn-ops: 10\n").unwrap();
        let hot = Arc::new(HotConfig::new(&Config::from_file(&path).unwrap(), None).unwrap());
        let mut file = SettingsFile::new(path.clone(), hot.clone(), data.clone());
        fs::write(&data, "in the way").unwrap();
        fs::write(&path, "max-txn-ops: 20\n").unwrap();
        for _ in 0..2 {
            file.look();
            assert_eq!((hot.load().version, hot.load().values.max_txn_ops), (1, 10));
        }
        fs::remove_file(&data).unwrap();
        file.look();
        assert_eq!((hot.load().version, hot.load().values.max_txn_ops), (2, 20));
        assert_eq!(kept(&data).unwrap().unwrap().version, 2);
    }
}
