//! Text that others chose: names of processes, files, cgroups and servers, and errors that quote them.
//! Printed verbatim it could control the reader's terminal or forge a line, so it has a type whose `Display`
//! escapes whatever is harmful.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use compact_str::CompactString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stderr::Stderr;

/// Longest text that is shown uncut, characters.
pub const MAX_LEN: usize = 256;
/// Longest line of our own that quotes such text, characters.
const MAX_LINE: usize = 4096;

/// Untrusted text. It serialises as the text itself: [`json`] makes the bytes harmless. Up to 24 bytes, which
/// hold the name of a process, are stored without an allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Untrusted(#[schemars(with = "String")] CompactString);

impl Untrusted {
    /// Text from the kernel or the wire; bytes that are not UTF-8 become escapes such as `\xff`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        // Nearly always it is UTF-8, and then it is copied in one go.
        if let Ok(text) = std::str::from_utf8(bytes) {
            return text.into();
        }
        let mut text = CompactString::with_capacity(bytes.len());
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

/// Escaped, and cut to the precision, or to [`MAX_LEN`] without one.
impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape(&self.0, f.precision().unwrap_or(MAX_LEN)))
    }
}

impl From<&str> for Untrusted {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Untrusted {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&Path> for Untrusted {
    fn from(path: &Path) -> Self {
        Self::from_bytes(path.as_os_str().as_bytes())
    }
}

/// Whether a terminal shows the character in place, in a cell of its own. Control characters are not, nor
/// what the standard library escapes: line separators, changes of text direction, characters without width,
/// combining marks, and code points that are not assigned.
#[must_use]
pub fn is_harmless(c: char) -> bool {
    // Blank, although Unicode classes them as letters (`Default_Ignorable_Code_Point`).
    const FILLERS: [char; 4] = ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}'];
    match c {
        ' '..='~' => true,
        _ => c.escape_debug().len() == 1 && !FILLERS.contains(&c),
    }
}

/// One line of at most `most` characters, cut with `…`. Backslashes are kept: systemd names contain them.
#[must_use]
pub fn escape(text: &str, most: usize) -> String {
    let mut shown = String::new();
    // How much of it still leaves a place for `…`.
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

/// Writes everything harmful in serialised JSON as `\u…`: the same values in other bytes. Outside its
/// strings, the only such characters in JSON are line ends.
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

/// Writes one line to standard error; what it quotes cannot turn it into two. A failure to write is ignored.
pub fn say(line: impl fmt::Display) {
    // In one piece.
    let _ = Stderr.write_all(format!("{}\n", escape(&line.to_string(), MAX_LINE)).as_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::OsStr;

    use proptest::prelude::*;

    use super::*;

    /// What an attacker would try.
    pub(crate) const HOSTILE: &str = "a\x1b[2J\x1b]0;x\x07\n  ok  \u{9b}31m\u{202e}\u{2028}\u{200b}\x7f\t\r";

    fn shown(text: &str) -> String {
        Untrusted::from(text).to_string()
    }

    #[test]
    fn harmful_characters_are_escaped() {
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
    fn names_in_any_script_are_kept() {
        for name in
            ["curl", "café", "naïve-größe", "服务器", "сервер", "😀", r"system-serial\x2dgetty.slice", "\"'"]
        {
            assert_eq!(shown(name), name);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_as_escapes() {
        let path = Path::new(OsStr::from_bytes(b"/a\xff\xc3\xa9\xc3"));
        assert_eq!(Untrusted::from(path).to_string(), "/a\\xffé\\xc3");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(escape("abcd", 4), "abcd");
        assert_eq!(escape("abcde", 4), "abc…");
        assert_eq!(escape("ab\n\n", 5), "ab\\n…", "never inside an escape");
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
        fn escaped_text_is_harmless(text in any::<String>(), most in 1_usize..80) {
            let shown = escape(&text, most);
            prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
            prop_assert!(shown.chars().all(is_harmless), "{shown:?}");
            prop_assert!(shown.chars().count() <= most, "{shown:?}");
            prop_assert_eq!(shown.lines().count(), usize::from(!shown.is_empty()));
        }

        #[test]
        fn escaped_bytes_are_harmless(bytes in any::<Vec<u8>>()) {
            let shown = Untrusted::from_bytes(&bytes).to_string();
            prop_assert!(shown.chars().all(is_harmless) && shown.chars().count() <= MAX_LEN, "{shown:?}");
        }

        #[test]
        fn json_is_harmless_and_keeps_any_value(text in any::<String>()) {
            let harmless = json(serde_json::to_string(&text).unwrap());
            prop_assert!(harmless.chars().all(is_harmless), "{harmless:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&harmless).unwrap(), text);
        }
    }
}
