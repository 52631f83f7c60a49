//! Text that a stranger chose: names of processes and files, cgroups, server names, the errors that quote them. Printed as
//! it is, it could drive the terminal of whoever reads it, or forge a line; so it has a type whose only `Display` writes
//! what could do harm as escapes.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest text that is shown whole, characters.
pub const MAX_LEN: usize = 256;
/// Longest line of our own that quotes such text, characters.
const MAX_LINE: usize = 4096;

/// A stranger's text. Serialised it is the text itself: [`json`] makes the bytes harmless.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Untrusted(String);

impl Untrusted {
    /// Text as the kernel or the wire has it; bytes that are not UTF-8 become `\xff`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        Self(text)
    }

    /// The text itself, for comparisons; never for output.
    #[must_use]
    pub fn raw(&self) -> &str {
        &self.0
    }
}

/// Harmless, and at most as long as the precision, or else [`MAX_LEN`].
impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape(&self.0, f.precision().unwrap_or(MAX_LEN)))
    }
}

impl From<&str> for Untrusted {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Untrusted {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&Path> for Untrusted {
    fn from(path: &Path) -> Self {
        Self::from_bytes(path.as_os_str().as_bytes())
    }
}

/// Whether a terminal shows the character where it stands, in a place of its own. Not so: control characters, and what the
/// standard library does not print either: line separators, what turns the direction of a line, what has no width, what
/// piles up on its neighbour, and what no version of Unicode has assigned yet.
#[must_use]
pub fn is_harmless(c: char) -> bool {
    // Letters by their class, but blank (Unicode: `Default_Ignorable_Code_Point`).
    const FILLERS: [char; 4] = ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}'];
    match c {
        ' '..='~' => true,
        _ => c.escape_debug().len() == 1 && !FILLERS.contains(&c),
    }
}

/// One line of at most `most` characters, cut with `…`. A backslash stays as it is: names of systemd have them.
#[must_use]
pub fn escape(text: &str, most: usize) -> String {
    let mut shown = String::new();
    // How much of it fits when `…` must, too.
    let (mut length, mut fits) = (0, 0);
    for c in text.chars() {
        let before = shown.len();
        match c {
            c if is_harmless(c) => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if c.is_ascii() => {
                let _ = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
        }
        length += shown[before..].chars().count();
        if length < most {
            fits = shown.len();
        } else if length > most {
            shown.truncate(fits);
            shown.push('…');
            break;
        }
    }
    shown
}

/// JSON that a serialiser wrote, with everything that is not harmless as `\u…`: the same values in other bytes. Outside of its
/// strings JSON has none of that but line ends.
#[must_use]
pub fn json(serialised: String) -> String {
    let stays = |c: char| c == '\n' || is_harmless(c);
    if serialised.chars().all(stays) {
        return serialised;
    }
    let mut text = String::with_capacity(serialised.len() + 64);
    for c in serialised.chars() {
        if stays(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    text
}

/// Says one line on standard error; what it quotes cannot make two of it. It does not matter if nobody can hear it.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{}", escape(&line.to_string(), MAX_LINE));
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::OsStr;

    use proptest::prelude::*;

    use super::*;

    /// What a stranger would try.
    pub(crate) const HOSTILE: &str = "a\x1b[2J\x1b]0;x\x07\n  ok  \u{9b}31m\u{202e}\u{2028}\u{200b}\x7f\t\r";

    fn shown(text: &str) -> String {
        Untrusted::from(text).to_string()
    }

    #[test]
    fn what_could_do_harm_is_an_escape() {
        assert_eq!(
            shown(HOSTILE),
            "a\\x1b[2J\\x1b]0;x\\x07\\n  ok  \\u{9b}31m\\u{202e}\\u{2028}\\u{200b}\\x7f\\t\\r"
        );
        for hidden in "\u{a0}\u{ad}\u{301}\u{34f}\u{61c}\u{200e}\u{2029}\u{2060}\u{2066}\u{feff}\u{fff9}\u{e0041}\u{3164}"
            .chars()
        {
            assert!(!is_harmless(hidden), "{hidden:?}");
        }
    }

    #[test]
    fn names_in_any_script_stay_as_they_are() {
        for name in
            ["curl", "café", "naïve-größe", "服务器", "сервер", "😀", r"system-serial\x2dgetty.slice", "\"'"]
        {
            assert_eq!(shown(name), name);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown() {
        let path = Path::new(OsStr::from_bytes(b"/a\xff\xc3\xa9\xc3"));
        assert_eq!(Untrusted::from(path).to_string(), "/a\\xffé\\xc3");
    }

    #[test]
    fn what_is_too_long_is_cut() {
        assert_eq!(escape("abcd", 4), "abcd");
        assert_eq!(escape("abcde", 4), "abc…");
        assert_eq!(escape("ab\n\n", 5), "ab\\n…", "never inside of an escape");
        assert_eq!(format!("{:.3}|{:<4}|", Untrusted::from("abcdef"), Untrusted::from("x")), "ab…|x   |");
        assert_eq!(shown(&"\x1b".repeat(4096)).chars().count(), 4 * 63 + 1);
    }

    #[test]
    fn json_keeps_the_value() {
        for text in [HOSTILE, "plain", "\u{e0041}\u{301}é😀\"\\"] {
            for written in
                [serde_json::to_string(&[text]).unwrap(), serde_json::to_string_pretty(&[text]).unwrap()]
            {
                let harmless = json(written);
                assert!(harmless.chars().all(|c| c == '\n' || is_harmless(c)), "{harmless:?}");
                assert_eq!(serde_json::from_str::<[String; 1]>(&harmless).unwrap(), [text]);
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_drives_a_terminal(text in any::<String>(), most in 1_usize..80) {
            let shown = escape(&text, most);
            prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
            prop_assert!(shown.chars().all(is_harmless), "{shown:?}");
            prop_assert!(shown.chars().count() <= most, "{shown:?}");
            prop_assert_eq!(shown.lines().count(), usize::from(!shown.is_empty()));
        }

        #[test]
        fn neither_do_bytes(bytes in any::<Vec<u8>>()) {
            let shown = Untrusted::from_bytes(&bytes).to_string();
            prop_assert!(shown.chars().all(is_harmless) && shown.chars().count() <= MAX_LEN, "{shown:?}");
        }

        #[test]
        fn json_is_harmless_and_says_the_same(text in any::<String>()) {
            let harmless = json(serde_json::to_string(&text).unwrap());
            prop_assert!(harmless.chars().all(is_harmless), "{harmless:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&harmless).unwrap(), text);
        }
    }
}
