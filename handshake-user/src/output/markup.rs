//! Text inside of HTML and SVG.

use std::fmt::{self, Write as _};

use crate::untrusted::is_harmless;

/// Text as content or as the value of a quoted attribute: it cannot end either. Whoever made it, it is shown
/// as it is, without what a reader could not see ([`is_harmless`]).
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if is_harmless(c) => f.write_char(c)?,
                _ => f.write_char('\u{fffd}')?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn markup_is_shown_not_obeyed() {
        let text = "\"><script>alert('x')</script>&\x1b\u{202e}";
        assert_eq!(
            Escaped(text).to_string(),
            "&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;\u{fffd}\u{fffd}"
        );
    }

    proptest! {
        #[test]
        fn nothing_ends_content_or_attribute(text: String) {
            let shown = Escaped(&text).to_string();
            prop_assert!(!shown.contains(['<', '>', '"', '\'']), "{shown}");
            let all = shown.match_indices('&').all(|(at, _)| {
                ["&lt;", "&gt;", "&amp;", "&quot;", "&#39;"].iter().any(|it| shown[at..].starts_with(it))
            });
            prop_assert!(all, "{shown}");
        }
    }
}
