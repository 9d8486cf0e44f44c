//! Runs the program as a user does, for the end-to-end tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// The program, run in a folder.
#[derive(Clone, Debug)]
pub struct Program {
    path: &'static str,
    folder: PathBuf,
}

impl Program {
    /// The program at `path`, run in `folder`.
    #[must_use]
    pub fn new(path: &'static str, folder: &Path) -> Self {
        Self { path, folder: folder.to_path_buf() }
    }

    /// The program in a folder that several tests look at: it is made once, with what `prepare` leaves there.
    #[must_use]
    pub fn shared(
        path: &'static str, folder: &'static OnceLock<TempDir>, prepare: impl FnOnce(&Self),
    ) -> Self {
        let folder = folder.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a folder");
            prepare(&Self::new(path, folder.path()));
            folder
        });
        Self::new(path, folder.path())
    }

    /// A file or folder where the program runs.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path);
        // Without a default device for Burn, as users have it.
        let command_line = command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        command_line.env_remove("COLUMNS").env_remove("BURN_DEVICE");
        command
    }

    /// Starts it; its standard error goes to a file.
    #[must_use]
    pub fn start(&self, arguments: &[&str], log: &str) -> Child {
        let log = fs::File::create(self.at(log)).expect("the log can be written");
        self.command(arguments).stdout(Stdio::null()).stderr(log).spawn().expect("the program starts")
    }

    /// Starts a worker, and waits until it serves.
    #[must_use]
    pub fn serve(&self, arguments: &[&str]) -> Served {
        let command = &mut self.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut out = BufReader::new(child.stdout.take().expect("its standard output"));
        let mut line = String::new();
        out.read_line(&mut line).expect("a line");
        let port = line.trim_end().rsplit(' ').next().unwrap_or_default();
        Served { address: format!("remote:127.0.0.1:{port}"), child, out }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs it to its end, without anybody who reads more than the first line of what it prints; its exit code.
    #[must_use]
    pub fn unheard(&self, arguments: &[&str]) -> Option<i32> {
        let command = &mut self.command(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the program starts");
        drop(child.stderr.take());
        let mut line = String::new();
        let out = child.stdout.take().expect("its standard output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        child.wait().expect("it ends").code()
    }

    /// Runs it where files have at most so many blocks of 512 bytes.
    #[cfg(unix)]
    #[must_use]
    pub fn limited(&self, blocks: usize, arguments: &[&str]) -> Output {
        let limit = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limit, self.path]).args(arguments);
        command.current_dir(&self.folder).stdin(Stdio::null()).output().expect("the program starts")
    }

    /// What a command that succeeds prints to the standard output and the standard error.
    #[must_use]
    pub fn outputs(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let (out, error) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
        (out, error)
    }

    /// What a command that succeeds prints, nothing of it to the standard error.
    #[must_use]
    pub fn output(&self, arguments: &[&str]) -> String {
        let (out, error) = self.outputs(arguments);
        assert_eq!(error, "", "{arguments:?}");
        out
    }

    /// What a failing command says. It must be short, exit with 1 or 2, print nothing else and leave the folder as it was.
    #[must_use]
    pub fn error(&self, arguments: &[&str]) -> String {
        let before = listing(&self.folder);
        let output = self.run(arguments);
        let message = text(output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {message}");
        assert_eq!(text(output.stdout), "", "{arguments:?}");
        let lines: Vec<&str> = message.lines().collect();
        assert!(lines[0].starts_with("error: "), "{message}");
        assert!(lines.len() == 1 || (lines.len() == 2 && lines[1].starts_with("hint: ")), "{message}");
        assert_eq!(listing(&self.folder), before, "{arguments:?} wrote something");
        message
    }
}

/// A worker on this machine; it is killed when it is dropped.
#[derive(Debug)]
pub struct Served {
    /// Where it listens.
    pub address: String,
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Served {
    /// Ends it as Ctrl-C does; what it prints then.
    #[must_use]
    pub fn end(mut self) -> String {
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-INT", &id]).status();
        let mut said = String::new();
        let _ = self.out.read_to_string(&mut said);
        said
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The arguments of the shortest mixed training into the folder `out`: so many epochs of so many images.
#[must_use]
pub const fn supernet<'a>(epochs: &'a str, images: &'a str, out: &'a str) -> [&'a str; 12] {
    let choices = "8,4,2";
    [
        "train",
        "--mixed",
        "--choices",
        choices,
        "--float-epochs",
        "1",
        "--epochs",
        epochs,
        "--limit-train",
        images,
        "--out",
        out,
    ]
}

/// A JPEG file with an EXIF that says how it is to be turned: little-endian TIFF with one entry, 0x0112, a 16-bit number.
#[must_use]
pub fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let start = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
    let segment = [&start[..], &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat();
    let length = (segment.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], b"\xff\xe1", &length, &segment, &jpeg[2..]].concat()
}

/// What Git LFS leaves in place of a file that it has not fetched.
pub const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44\n";

/// As UTF-8.
#[must_use]
pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

/// Every file and folder below a folder; files with their content.
#[must_use]
pub fn listing(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            found.insert(path.clone(), fs::read(&path).ok());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// The epochs in a training log.
#[must_use]
pub fn epochs(log: &str) -> usize {
    log.lines().filter(|line| line.contains("validation top-1")).count()
}
