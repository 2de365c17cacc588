//! Panics, without what they say of values.

use std::{backtrace::Backtrace, fmt, panic};

/// A panic, as it may be shown.
pub struct Panic<'a> {
    /// File, line and column.
    pub location: String,
    /// The thread's name.
    pub thread: &'a str,
    /// What it says, if that is a text of the program's own. A text that was put together when it
    /// panicked may hold anything, and is withheld.
    pub message: Option<&'static str>,
    /// Names of functions, where `RUST_BACKTRACE` asks for them.
    pub backtrace: Backtrace,
}

impl fmt::Display for Panic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message.unwrap_or("message withheld");
        write!(
            f,
            "panic at {} in thread {}: {message}",
            self.location, self.thread
        )
    }
}

/// Has every panic of the process reported by `report` alone.
pub fn on_panic(report: fn(&Panic<'_>)) {
    panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        report(&Panic {
            location: info
                .location()
                .map_or_else(|| "an unknown place".to_owned(), ToString::to_string),
            thread: thread.name().unwrap_or("unnamed"),
            message: info.payload().downcast_ref::<&'static str>().copied(),
            backtrace: Backtrace::capture(),
        });
    }));
}
