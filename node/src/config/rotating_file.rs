//! A log file that is put aside when it is full, by the rules and under the names of the library that etcd has for it
//! (lumberjack): `name-2006-01-02T15-04-05.000.ext`, with `.gz` when it is compressed.
//!
//! What was put aside is thinned out and compressed by a thread of its own, because that may take seconds; what it does not
//! get to, because the process ends, is done at the next start.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Local};
use flate2::Compression;
use flate2::write::GzEncoder;
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

use super::Rotation;

/// Of a file that is made anew; one that takes another's place has its mode.
const MODE: u32 = 0o600;
/// The end of the name of a compressed file.
const COMPRESSED: &str = ".gz";
/// Rotations that the thread has not looked at yet: it looks at all files at once, so one says as much as many.
const ROTATIONS: usize = 1;
/// Files that may be put aside within one millisecond, of which each has the name of a later one.
const MOST_IN_A_MOMENT: u64 = 1_000;

/// The file.
pub(super) struct RotatingFile {
    names: Names,
    rules: Rotation,
    file: File,
    size: u64,
    rotated: SyncSender<()>,
}

impl RotatingFile {
    /// Opens it at its end; what is missing of its path is made.
    pub(super) fn open(path: &Path, rules: &Rotation) -> io::Result<Self> {
        let names = Names::of(path);
        fs::create_dir_all(&names.folder)?;
        let file = open(path, MODE)?;
        let size = file.metadata()?.len();
        let (rotated, rotations) = sync_channel(ROTATIONS);
        let (of_thread, aside) = (rules.clone(), names.clone());
        let keep = move || {
            for () in rotations {
                if let Err(error) = aside.keep(&of_thread, SystemTime::now()) {
                    tracing::warn!(%error, folder = %aside.folder.display(), "log files that were put aside stay as they are");
                }
            }
        };
        thread::Builder::new().name("log-rotation".to_owned()).spawn(keep)?;
        let this = Self { names, rules: rules.clone(), file, size, rotated };
        this.wake();
        Ok(this)
    }

    /// Writes one line, into a new file if this one would become too large.
    pub(super) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        // A line in a file that is too large is better than no line.
        if self.size > 0 && self.size + length > self.rules.max_bytes && self.rotate(SystemTime::now()).is_ok() {
            self.wake();
        }
        self.file.write_all(line)?;
        self.size += length;
        Ok(())
    }

    fn wake(&self) {
        // It is full when the thread has yet to look.
        let _ = self.rotated.try_send(());
    }

    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        let (path, aside) = (self.names.current(), self.names.free_aside(now, self.rules.local_time));
        let old = self.file.metadata()?;
        match fs::rename(&path, &aside) {
            // Somebody else has taken it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        let new = open(&path, old.permissions().mode()).inspect_err(|_| {
            let _ = fs::rename(&aside, &path);
        })?;
        // Only the owner of everything may do it, and nobody else has to.
        let _ = fchown(&new, Some(old.uid()), Some(old.gid()));
        (self.file, self.size) = (new, 0);
        Ok(())
    }
}

fn open(path: &Path, mode: u32) -> io::Result<File> {
    File::options().create(true).append(true).mode(mode).open(path)
}

/// The names that a log file and those of it that were put aside have.
#[derive(Debug, Clone)]
struct Names {
    folder: PathBuf,
    /// Before the last dot.
    stem: String,
    /// From the last dot on; empty without one.
    extension: String,
}

/// A file that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Aside {
    name: String,
    at: OffsetDateTime,
}

impl Names {
    fn of(path: &Path) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let dot = name.rfind('.').unwrap_or(name.len());
        Self { folder: folder.to_owned(), stem: name[..dot].to_owned(), extension: name[dot..].to_owned() }
    }

    fn current(&self) -> PathBuf {
        self.folder.join(format!("{}{}", self.stem, self.extension))
    }

    fn aside(&self, now: SystemTime, local: bool) -> PathBuf {
        let at = OffsetDateTime::from(now) + if local { offset_from_utc(now) } else { time::Duration::ZERO };
        let (date, time) = (at.date(), at.time());
        let (month, millisecond) = (u8::from(date.month()), time.millisecond());
        let at = format!(
            "{:04}-{month:02}-{:02}T{:02}-{:02}-{:02}.{millisecond:03}",
            date.year(),
            date.day(),
            time.hour(),
            time.minute(),
            time.second()
        );
        self.folder.join(format!("{}-{at}{}", self.stem, self.extension))
    }

    /// The name of this moment, or of the next one that no file has yet.
    fn free_aside(&self, now: SystemTime, local: bool) -> PathBuf {
        let is_free = |path: &PathBuf| !path.exists() && !compressed(path).exists();
        let mut later =
            (0..MOST_IN_A_MOMENT).map(|milliseconds| self.aside(now + Duration::from_millis(milliseconds), local));
        later.find(is_free).unwrap_or_else(|| self.aside(now, local))
    }

    /// When the file of this name was put aside, if it is one of these.
    fn time_of(&self, name: &str) -> Option<OffsetDateTime> {
        let name = name.strip_suffix(COMPRESSED).unwrap_or(name);
        let time = name.strip_prefix(&self.stem)?.strip_prefix('-')?.strip_suffix(&self.extension)?;
        let number = |from: usize, to: usize| {
            time.get(from..to).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse::<u16>().ok()
        };
        let small = |from| u8::try_from(number(from, from + 2)?).ok();
        let marks: Vec<_> = time.char_indices().filter(|(_, c)| !c.is_ascii_digit()).collect();
        if marks != [(4, '-'), (7, '-'), (10, 'T'), (13, '-'), (16, '-'), (19, '.')] || time.len() != 23 {
            return None;
        }
        let date = Date::from_calendar_date(number(0, 4)?.into(), Month::try_from(small(5)?).ok()?, small(8)?).ok()?;
        let time = Time::from_hms_milli(small(11)?, small(14)?, small(17)?, number(20, 23)?).ok()?;
        Some(PrimitiveDateTime::new(date, time).assume_utc())
    }

    /// Those that were put aside, newest first.
    fn all_aside(&self) -> io::Result<Vec<Aside>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            all.extend(self.time_of(&name).map(|at| Aside { name, at }));
        }
        all.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.name.cmp(&b.name)));
        Ok(all)
    }

    /// Removes and compresses what the rules say.
    fn keep(&self, rules: &Rotation, now: SystemTime) -> io::Result<()> {
        if rules.max_backups.is_none() && rules.max_age.is_none() && !rules.compress {
            return Ok(());
        }
        let fate = fate(self.all_aside()?, rules, now.into());
        for name in fate.remove {
            fs::remove_file(self.folder.join(name))?;
        }
        for name in fate.compress {
            compress(&self.folder.join(name))?;
        }
        Ok(())
    }
}

/// What becomes of files that were put aside.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fate {
    remove: Vec<String>,
    compress: Vec<String>,
}

/// `all` is in order, newest first. One that is there both compressed and not, because the process ended meanwhile, counts once.
fn fate(all: Vec<Aside>, rules: &Rotation, now: OffsetDateTime) -> Fate {
    let mut fate = Fate::default();
    let mut counted = BTreeSet::new();
    for Aside { name, at } in all {
        let plain = name.strip_suffix(COMPRESSED).unwrap_or(&name).to_owned();
        let is_plain = plain == name;
        counted.insert(plain);
        let too_many = rules.max_backups.is_some_and(|most| counted.len() > most);
        let too_old = rules.max_age.is_some_and(|age| now - at > age);
        match too_many || too_old {
            true => fate.remove.push(name),
            false if rules.compress && is_plain => fate.compress.push(name),
            false => {}
        }
    }
    fate
}

/// The name of a file once it is compressed.
fn compressed(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(COMPRESSED);
    name.into()
}

/// Puts a compressed file in the place of this one.
fn compress(path: &Path) -> io::Result<()> {
    let target = compressed(path);
    let mut source = File::open(path)?;
    let of_source = source.metadata()?;
    let new =
        File::options().create(true).write(true).truncate(true).mode(of_source.permissions().mode()).open(&target)?;
    let _ = fchown(&new, Some(of_source.uid()), Some(of_source.gid()));
    let mut encoder = GzEncoder::new(new, Compression::default());
    let written = io::copy(&mut source, &mut encoder).and_then(|_| encoder.finish());
    match written {
        Ok(_) => fs::remove_file(path),
        Err(error) => {
            let _ = fs::remove_file(&target);
            Err(error)
        }
    }
}

/// How far the local time is ahead of UTC.
fn offset_from_utc(now: SystemTime) -> time::Duration {
    let local = DateTime::<Local>::from(now);
    time::Duration::seconds(local.offset().local_minus_utc().into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Instant;

    use super::*;

    const RULES: Rotation =
        Rotation { max_bytes: 100, max_age: None, max_backups: None, local_time: false, compress: false };

    fn names() -> Names {
        Names::of(Path::new("/logs/balsa.log"))
    }

    #[test]
    fn names_are_lumberjacks_and_are_read_again() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_251_199_007);
        let aside = names().aside(at, false);
        assert_eq!(aside, Path::new("/logs/balsa-2024-02-29T23-59-59.007.log"));
        let name = aside.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(names().time_of(&name), Some(at.into()));
        assert_eq!(names().time_of(&(name + ".gz")), Some(at.into()));
        assert_eq!(Names::of(Path::new("plain")).aside(at, false), Path::new("./plain-2024-02-29T23-59-59.007"));
        for other in
            ["balsa.log", "balsa-2024-02-30T23-59-59.007.log", "balsa-x.log", "other-2024-02-29T23-59-59.007.log"]
        {
            assert_eq!(names().time_of(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_too_many_or_too_old_goes_and_the_rest_is_compressed() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(100 * 24 * 3600);
        let aside = |days: i64, end: &str| {
            let at = now - time::Duration::days(days);
            let path = names().aside(at.into(), false);
            Aside { name: format!("{}{end}", path.file_name().unwrap().to_str().unwrap()), at }
        };
        let all = || vec![aside(1, ""), aside(2, ""), aside(2, ".gz"), aside(3, ".gz"), aside(9, "")];
        let named = |list: &[(i64, &str)]| list.iter().map(|(days, end)| aside(*days, end).name).collect::<Vec<_>>();
        let rules = Rotation { max_backups: Some(2), compress: true, ..RULES };
        let expected = Fate { remove: named(&[(3, ".gz"), (9, "")]), compress: named(&[(1, ""), (2, "")]) };
        assert_eq!(fate(all(), &rules, now), expected);
        let rules = Rotation { max_age: Some(Duration::from_secs(8 * 24 * 3600)), ..RULES };
        assert_eq!(fate(all(), &rules, now), Fate { remove: named(&[(9, "")]), compress: Vec::new() });
        assert_eq!(fate(all(), &RULES, now), Fate::default());
    }

    #[test]
    fn a_full_file_is_put_aside_and_compressed_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/folder/a.log");
        let mut file = RotatingFile::open(&path, &Rotation { compress: true, ..RULES }).unwrap();
        let line = |number: usize| format!("{number:059}\n").into_bytes();
        for number in 0..3 {
            file.write_line(&line(number)).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), line(2));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let until = Instant::now() + Duration::from_secs(30);
        let compressed = loop {
            let all = file.names.all_aside().unwrap();
            if all.len() == 2 && all.iter().all(|aside| aside.name.ends_with(".log.gz")) {
                break all;
            }
            assert!(Instant::now() < until, "{all:?}");
            thread::sleep(Duration::from_millis(5));
        };
        for (aside, number) in compressed.iter().zip([1, 0]) {
            let mut text = Vec::new();
            let packed = File::open(path.parent().unwrap().join(&aside.name)).unwrap();
            flate2::read::GzDecoder::new(packed).read_to_end(&mut text).unwrap();
            assert_eq!(text, line(number));
        }
    }

    #[test]
    fn a_file_that_was_there_is_gone_on_with_and_one_that_was_taken_away_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, [b'x'; 90]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut file = RotatingFile::open(&path, &RULES).unwrap();
        file.write_line(b"123456789\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 100);
        file.write_line(b"\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640, "as the one before");
        fs::remove_file(&path).unwrap();
        file.write_line(&[b'y'; 100]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 100);
    }
}
