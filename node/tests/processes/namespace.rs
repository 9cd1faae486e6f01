//! A mount namespace of its own: the machine as a test wants it to look, for the processes that the test runs inside.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// In these a file system can be mounted: root in a user namespace of its own is enough, and where there may be none, root.
const NAMESPACES: [&[&str]; 2] = [&["--user", "--mount"], &["--mount"]];

/// The namespace, which lasts as long as the process that keeps it, and that as long as the value.
pub(crate) struct Namespace {
    keeper: Child,
    /// Which namespaces of the keeper it is.
    kinds: &'static [&'static str],
}

impl Namespace {
    /// Runs `script`, as `sh` reads it, with `$0` and the other arguments, to mount what is to be there.
    ///
    /// # Errors
    /// Why nobody can do so here.
    pub(crate) fn after<S: AsRef<OsStr>>(script: &str, arguments: &[S]) -> Result<Self, String> {
        let mut whys = Vec::new();
        for kinds in NAMESPACES {
            match Self::of(kinds, script, arguments) {
                Ok(namespace) => return Ok(namespace),
                Err(why) => whys.push(format!("{}: {why}", kinds.join(" "))),
            }
        }
        Err(whys.join("; "))
    }

    fn of<S: AsRef<OsStr>>(kinds: &'static [&'static str], script: &str, arguments: &[S]) -> Result<Self, String> {
        let mut unshare = Command::new("unshare");
        let as_root = kinds.contains(&"--user").then_some("--map-root-user");
        let script = format!("{script} && echo mounted && exec cat");
        unshare.args(kinds).args(as_root).args(["sh", "-c", &script]).args(arguments);
        unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut keeper = unshare.spawn().map_err(|error| format!("unshare: {error}"))?;
        let mut said = String::new();
        let _ = BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut said);
        if said.trim() == "mounted" {
            return Ok(Self { keeper, kinds });
        }
        let mut why = String::new();
        let _ = keeper.stderr.take().expect("piped").read_to_string(&mut why);
        let _ = keeper.wait();
        Err(why.trim().to_owned())
    }

    /// What runs `program` inside.
    pub(crate) fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.kinds).args(["--preserve-credentials", "--target", &self.keeper.id().to_string()]);
        command.arg("--").arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
