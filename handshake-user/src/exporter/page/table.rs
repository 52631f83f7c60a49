//! The frame of a table.

use std::fmt::Write as _;

/// Begins a table that can be scrolled by keyboard: first columns of words, then of numbers. All texts are
/// our own.
pub(super) fn begin(page: &mut String, id: &str, label: &str, words: &[&str], numbers: &[&str]) {
    let _ = write!(
        page,
        "<div class=\"scroll\" id=\"{id}\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\"><table>\n<thead><tr>"
    );
    for word in words {
        let _ = write!(page, "<th scope=\"col\">{word}</th>");
    }
    for number in numbers {
        let _ = match *number {
            "" => write!(page, "<td></td>"),
            number => write!(page, "<th scope=\"col\" class=\"number\">{number}</th>"),
        };
    }
    page.push_str("</tr></thead>\n<tbody>\n");
}

pub(super) fn end(page: &mut String) {
    page.push_str("</tbody></table></div>\n");
}
