//! The log: one line per event, whatever untrusted text it quotes.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    sync::OnceLock,
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
    reload,
};

use crate::{settings::LogLevel, stderr::Stderr, untrusted::escape};

/// Longest value that is logged uncut, characters.
const MAX_LEN: usize = 1024;

/// Exchanges the filter of the log; absent where the command line or `RUST_LOG` has chosen one.
static RELOAD: OnceLock<Reload> = OnceLock::new();
type Reload = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Logs go to standard error: standard output belongs to the records.
pub fn to_stderr(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let chosen = EnvFilter::try_from_default_env();
    let is_chosen = verbose > 0 || chosen.is_ok();
    let filter = chosen.unwrap_or_else(|_| EnvFilter::new(default));
    // Colours only on a terminal, and unless the user has opted out.
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let log = tracing_subscriber::fmt().fmt_fields(Fields).with_env_filter(filter).with_writer(|| Stderr);
    let log = log.with_target(false).with_ansi(colours).with_filter_reloading();
    let handle = log.reload_handle();
    log.init();
    if !is_chosen {
        // It is set once.
        let _ = RELOAD.set(Box::new(move |filter| handle.reload(filter)));
    }
}

/// Logs from this level on, unless `-v` or `RUST_LOG` says otherwise.
///
/// # Errors
/// When the log has gone.
pub fn set_level(level: LogLevel) -> Result<(), reload::Error> {
    RELOAD.get().map_or(Ok(()), |reload| reload(EnvFilter::new(level.to_string())))
}

/// Writes the message and the values of an event with everything harmful escaped, including line ends.
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_begun: false, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_begun: bool,
    result: fmt::Result,
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Events from the `log` crate carry their source in such fields.
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        let gap = if std::mem::replace(&mut self.is_begun, true) { " " } else { "" };
        let name = match field.name() {
            "message" => String::new(),
            name => format!("{name}="),
        };
        let value = escape(&format!("{value:?}"), MAX_LEN);
        self.result = write!(self.writer, "{gap}{name}{value}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;
    use crate::untrusted::{is_harmless, tests::HOSTILE};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged of one event.
    fn logged(event: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt().fmt_fields(Fields).with_writer(move || writer.clone());
        tracing::subscriber::with_default(log.with_ansi(false).without_time().finish(), event);
        let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_harmless_line() {
        let path = std::path::Path::new(HOSTILE);
        let error = io::Error::other(HOSTILE);
        let line = logged(|| {
            tracing::warn!(path = %path.display(), %error, reason = HOSTILE, debugged = ?path, count = 3, "{HOSTILE}");
        });
        let line = line.strip_suffix('\n').unwrap();
        assert!(line.chars().all(is_harmless), "{line:?}");
        for part in [" path=a\\x1b[2J", " error=a\\x1b[2J", " count=3"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn long_value_does_not_displace_the_others() {
        let line = logged(|| tracing::warn!(path = %"x".repeat(9999), error = %"why", "it failed"));
        assert!(line.contains("it failed") && line.contains("…") && line.contains("error=why"), "{line}");
        assert!(line.chars().count() < 2 * MAX_LEN, "{line}");
    }
}
