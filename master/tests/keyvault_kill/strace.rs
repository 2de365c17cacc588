//! strace beside a process: it kills the process where a system call begins, or writes down all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

/// System calls after which a file, or a directory, is another one on the disk.
const CALLS: &str = "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,\
    ftruncate,truncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,link,linkat";
/// What a process says when it may be taken at its word.
pub(crate) const ANSWER: &str = ">done";
const LOG: &str = "strace.log";

/// Calls that are counted together: those of one name about one file, or about files whose names are made
/// up. Each thread counts for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    pub(crate) call: String,
    /// Below the directory.
    pub(crate) file: Option<PathBuf>,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file.as_deref().map(Path::to_string_lossy) {
            Some(file) if file.is_empty() => write!(f, "{} of the directory", self.call),
            Some(file) => write!(f, "{} of {file}", self.call),
            None => write!(f, "{}", self.call),
        }
    }
}

/// A call as the log has it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// Those in the directory that it is about.
    pub(crate) files: Vec<PathBuf>,
    /// Whether it tells the answer.
    pub(crate) is_answer: bool,
    /// Whether this is its beginning, and its end.
    pub(crate) begins: bool,
    pub(crate) ends: bool,
}

/// strace, attached.
pub(crate) struct Strace {
    process: Child,
    /// Where it tells of each new thread: it would end if nobody could read that.
    _said: BufReader<ChildStderr>,
}

impl Strace {
    /// Kills the process where the call of that number begins.
    pub(crate) fn killing(process: u32, directory: &Path, series: &Series, number: u32) -> Self {
        let Series { call, file } = series;
        let mut arguments = vec![
            format!("--trace={call}").into(),
            format!("--inject={call}:signal=SIGKILL:when={number}").into(),
            "--output=/dev/null".into(),
        ];
        if let Some(file) = file {
            arguments.push("--trace-path".into());
            // A slash at the end would be another path.
            let path: PathBuf = directory.join(file).components().collect();
            arguments.push(path.into());
        }
        Self::attach(process, arguments)
    }

    /// Writes down all calls, in the directory.
    pub(crate) fn logging(process: u32, directory: &Path) -> Self {
        let mut log = OsString::from("--output=");
        log.push(directory.join(LOG));
        let arguments = [
            format!("--trace={CALLS}").into(),
            "--decode-fds=path".into(),
            "--string-limit=16".into(),
            log,
        ];
        Self::attach(process, arguments.into())
    }

    fn attach(process: u32, arguments: Vec<OsString>) -> Self {
        let mut strace = Command::new("strace")
            .arg("--follow-forks")
            .args(arguments)
            .arg(format!("--attach={process}"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut said = BufReader::new(strace.stderr.take().expect("it is piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it says something");
        assert!(line.contains("attached"), "{line}");
        Self {
            process: strace,
            _said: said,
        }
    }

    /// Waits until it has seen the end of the process.
    pub(crate) fn wait(mut self) {
        self.process.wait().expect("it ends");
    }
}

/// What strace has written down of files in the directory.
pub(crate) fn read_log(directory: &Path) -> Vec<Call> {
    let log = fs::read_to_string(directory.join(LOG)).expect("strace wrote a log");
    let mut unfinished = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        // `THREAD call(3</file>, …) = 0`; or in two lines, `THREAD call(3</file>, … <unfinished ...>` and
        // `THREAD <... call resumed>…) = 0`.
        let Some((thread, text)) = line.split_once(' ') else {
            continue;
        };
        let text = text.trim_start();
        if text.starts_with("<... ") {
            calls.extend(unfinished.remove(thread).map(|call| Call {
                begins: false,
                ends: true,
                ..call
            }));
            continue;
        }
        let Some((name, arguments)) = text.split_once('(') else {
            continue;
        };
        let call = Call {
            name: name.to_owned(),
            files: files(directory, arguments),
            is_answer: name == "write" && arguments.contains(ANSWER),
            begins: true,
            ends: !arguments.ends_with("<unfinished ...>"),
        };
        if !call.ends {
            unfinished.insert(thread, call.clone());
        }
        calls.push(call);
    }
    calls
}

/// The series that the calls are of.
pub(crate) fn series(directory: &Path, calls: &[Call]) -> BTreeSet<Series> {
    let begun = calls.iter().filter(|call| call.begins);
    // What is renamed is the first of two.
    let series = begun.filter_map(|call| {
        Some(Series {
            call: call.name.clone(),
            file: known(directory, call.files.first()?),
        })
    });
    series.collect()
}

/// Where it is in the directory. Files that get their names by being renamed begin with a dot, and what
/// follows is made up.
fn known(directory: &Path, file: &Path) -> Option<PathBuf> {
    let file = file.strip_prefix(directory).ok()?;
    let is_made_up = file.as_os_str().as_encoded_bytes().starts_with(b".");
    (!is_made_up).then(|| file.to_owned())
}

/// Files in the directory that the arguments of a call name, by path or descriptor; and itself.
fn files(directory: &Path, arguments: &str) -> Vec<PathBuf> {
    let paths = between(arguments, '<', '>').chain(between(arguments, '"', '"'));
    paths
        .map(PathBuf::from)
        .filter(|path| path.starts_with(directory))
        .collect()
}

/// What stands between two characters, each time.
fn between(text: &str, from: char, to: char) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, behind) = rest.split_once(from)?;
        let (inside, behind) = behind.split_once(to)?;
        rest = behind;
        Some(inside)
    })
}
