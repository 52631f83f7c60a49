//! The same ladder as a picture: this end to the left, the peer to the right.

use std::fmt::Write as _;

use super::{
    draw::{self, Scale},
    step::{Direction, Step},
};
use crate::{
    output::{markup::Escaped, text::wrap},
    untrusted::escape,
};

/// Pixels: where times end, the two ends, and where remarks begin.
const TIME: u32 = 92;
const HERE: u32 = 108;
const PEER: u32 = 548;
const REMARK: u32 = 562;
const WIDTH: u32 = 900;
/// Height of a rung, and of each further line of a remark.
const RUNG: u32 = 30;
const LINE: u32 = 14;
/// Characters of a line of a remark, and all that are shown of it.
const REMARK_LINE: usize = 46;
const MAX_REMARK: usize = 160;

/// These rungs as an `<svg>` element with this label.
pub(super) fn picture(label: &str, steps: impl Iterator<Item = Step>, scale: Scale) -> String {
    let (mut rungs, mut y) = (String::new(), 8);
    for step in steps {
        let middle = y + RUNG / 2 + 4;
        let time = draw::time(&step, scale);
        let about = if time.starts_with('~') { " about" } else { "" };
        let _ = write!(
            rungs,
            r#"<text class="at{about}" x="{TIME}" y="{middle}" text-anchor="end">{}</text>"#,
            Escaped(&time)
        );
        let what = Escaped(&step.what);
        let center = HERE.midpoint(PEER);
        let (above, head) = (middle - 5, 9);
        let _ = match step.direction {
            Direction::Sent => write!(
                rungs,
                r#"<g class="sent"><text x="{center}" y="{above}" text-anchor="middle">{what}</text><path d="M{HERE} {middle}H{PEER}m-{head} -4l{head} 4l-{head} 4"/></g>"#
            ),
            Direction::Received => write!(
                rungs,
                r#"<g class="received"><text x="{center}" y="{above}" text-anchor="middle">{what}</text><path d="M{PEER} {middle}H{HERE}m{head} -4l-{head} 4l{head} 4"/></g>"#
            ),
            Direction::Here => write!(
                rungs,
                r#"<g class="here"><circle cx="{HERE}" cy="{y}" r="3"/><text x="{x}" y="{middle}">{what}</text></g>"#,
                y = middle - 4,
                x = HERE + 12
            ),
        };
        let remark = wrap(&escape(&step.remark, MAX_REMARK), REMARK_LINE, 0);
        let mut lines = 0;
        for (line, at) in remark.lines().zip((middle..).step_by(LINE as usize)) {
            let line = Escaped(line);
            let _ = write!(rungs, r#"<text class="remark" x="{REMARK}" y="{at}">{line}</text>"#);
            lines += 1;
        }
        y += RUNG + LINE * u32::saturating_sub(lines, 1);
    }
    let height = y + 10;
    let label = Escaped(label);
    format!(
        r#"<svg class="ladder" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}"><path class="end" d="M{HERE} 4V{height}M{PEER} 4V{height}"/>{rungs}</svg>"#
    )
}
