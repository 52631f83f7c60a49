//! Puts the view into a buffer. Pure.

use std::fmt::Write as _;

use handshake_common::{CloseStyle, Outcome, TlsClass, TlsOutcome, TlsVersion};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Block, Clear, Paragraph},
};

use super::view::{Data, Place, Source, View};
use crate::{
    aggregate::{Grouping, Tally},
    output::{
        ladder,
        rows::{Column, Row, RowId, Scope, per_second, rate},
        table::{Table, Tone, cut},
        text::{columns, duration, pad, wrap},
    },
    untrusted::escape,
};

/// Lines about the selected group.
const STORY: u16 = 4;
/// On a lower screen the table has the room of the story.
const LEAST_HEIGHT: u16 = 18;
/// Longest line of the log that is shown, characters.
const MAX_SAID: usize = 400;

/// Whether there are colours. Which row is selected is told without them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    pub(super) colours: bool,
}

impl Palette {
    /// Colours, unless the user has opted out.
    pub(super) fn of_environment() -> Self {
        Self { colours: std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()) }
    }

    fn colour(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn tone(self, tone: Option<Tone>) -> Style {
        match tone {
            None => Style::new(),
            Some(Tone::Failed) => self.colour(Color::Red),
            Some(Tone::Lost) => self.colour(Color::Yellow),
            Some(Tone::Slow) => self.colour(Color::Magenta),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View, data: &Data<'_>, palette: Palette) {
    let story =
        if frame.area().height >= LEAST_HEIGHT && matches!(view.place, Place::Groups) { STORY } else { 0 };
    let [head, notes, body, below, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(story),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    text(frame, head, Line::styled(heading(view, data, head.width.into()), BOLD));
    text(frame, notes, note_line(view, data, palette, notes.width.into()));
    match &view.place {
        Place::Groups => groups(frame, body, below, view, data, palette),
        Place::Connections => connections(frame, body, view, data, palette),
        Place::Ladder { .. } => one(frame, body, view, data),
    }
    footer(frame, foot, view, palette);
    if let Some(down) = &mut view.help {
        help(frame, view.grouping, down);
    }
}

fn text<'a>(frame: &mut Frame<'_>, area: Rect, text: impl Into<Text<'a>>) {
    frame.render_widget(Paragraph::new(text), area);
}

/// What is counted, and all of it together: as many facts as there is room for.
fn heading(view: &View, data: &Data<'_>, width: usize) -> String {
    let aggregate = data.aggregate;
    let tally = view.scope.tally(aggregate.all());
    let length = view.scope.length(aggregate);
    let since = match view.scope {
        Scope::Window => "last",
        Scope::Total => "in all",
    };
    let mut facts = vec![format!("by {}, {since} {}", view.grouping.as_str(), seconds(length))];
    facts.extend(rate(tally.openings(), length).map(|rate| format!("{} openings/s", per_second(rate))));
    facts.push(format!("{} failed", Column::Failed.count(&tally)));
    if let (Some(p50), Some(p99)) = (tally.setup(0.5), tally.setup(0.99)) {
        facts.push(format!("setup p50 {}, p99 {}", duration(Some(p50)), duration(Some(p99))));
    }
    facts.push(format!("{} TLS", tally.handshakes()));
    let mut line = "handshake top".to_owned();
    for fact in facts {
        let longer = format!("{line} · {fact}");
        if columns(&longer) > width {
            break;
        }
        line = longer;
    }
    cut(&line, width, false)
}

fn seconds(length: std::time::Duration) -> String {
    humantime::format_duration(std::time::Duration::from_secs(length.as_secs())).to_string()
}

/// The filter and the last line of the log at the left, what is wrong at the right.
fn note_line<'a>(view: &View, data: &Data<'_>, palette: Palette, width: usize) -> Line<'a> {
    let losses = data.losses;
    let mut wrong = Vec::new();
    if view.is_paused() {
        wrong.push("PAUSED".to_owned());
    }
    let lost = [
        (losses.records, "records (--ring-kib)"),
        (losses.connections, "connections (--max-connections)"),
        (losses.runs, "runs of a hook"),
    ];
    wrong.extend(
        lost.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("lost: {count} {what}")),
    );
    let wrong = cut(&wrong.join(" · "), width, false);
    let filter = Some(view.filter.as_str()).filter(|filter| !filter.is_empty());
    let said = data.said.as_ref().map(|said| format!("log: {said}"));
    let left = filter.map(|filter| format!("filter: {filter}")).into_iter().chain(said).collect::<Vec<_>>();
    let room = width.saturating_sub(columns(&wrong) + 1);
    let left = pad(&cut(&escape(&left.join(" · "), MAX_SAID), room, false), room);
    let gap = if room > 0 { " " } else { "" };
    Line::from(vec![
        Span::raw(left),
        Span::raw(gap),
        Span::styled(wrong, palette.colour(Color::Red).patch(BOLD)),
    ])
}

fn groups(
    frame: &mut Frame<'_>,
    area: Rect,
    below: Rect,
    view: &mut View,
    data: &Data<'_>,
    palette: Palette,
) {
    let layout = Column::layout(area.width.into());
    let mut heading = Vec::new();
    for &(column, width) in &layout {
        let mut title = column.heading(view.grouping).to_owned();
        let is_sorted = column == view.sort;
        if is_sorted {
            title.push(if view.reverse { '▲' } else { '▼' });
        }
        let style = if is_sorted { BOLD.add_modifier(Modifier::UNDERLINED) } else { BOLD };
        heading.push(Span::styled(cell(&title, width, column), style));
        heading.push(Span::raw(" "));
    }
    let rows = view.rows(data);
    let selected = view.selected_row(&rows);
    scroll(view, selected, rows.len(), usize::from(area.height.saturating_sub(1)));
    let mut lines = vec![Line::from(heading)];
    for (index, row) in rows.iter().enumerate().skip(view.first).take(view.page) {
        let mut spans = Vec::new();
        for &(column, width) in &layout {
            spans.push(Span::styled(cell(&column.text(row), width, column), style(column, row, palette)));
            spans.push(Span::raw(" "));
        }
        let line = Line::from(spans);
        lines.push(if index == selected { line.style(SELECTED) } else { line });
    }
    if rows.is_empty() {
        lines.push(Line::raw("no connection yet"));
    }
    text(frame, area, lines);
    if let Some(row) = rows.get(selected) {
        text(frame, below, story(row, below.width.into()));
    }
}

/// Keeps the selected line on screen.
fn scroll(view: &mut View, selected: usize, lines: usize, page: usize) {
    view.page = page.max(1);
    view.first = view.first.min(lines.saturating_sub(view.page)).min(selected);
    if selected >= view.first + view.page {
        view.first = selected + 1 - view.page;
    }
}

fn cell(text: &str, width: usize, column: Column) -> String {
    // A port is at the end of a name.
    let text = cut(text, width, column == Column::Name);
    let gap = " ".repeat(width.saturating_sub(columns(&text)));
    if column.is_number() { format!("{gap}{text}") } else { format!("{text}{gap}") }
}

fn style(column: Column, row: &Row, palette: Palette) -> Style {
    let colour = match column {
        Column::Failed | Column::TlsFailed | Column::Older => Color::Red,
        Column::Retransmits | Column::Retried | Column::Resets => Color::Yellow,
        _ => return Style::new(),
    };
    if column.count(&row.tally) > 0 { palette.colour(colour) } else { Style::new() }
}

/// Everything that is known of a group, in words.
fn story(row: &Row, width: usize) -> Vec<Line<'static>> {
    let tally = &row.tally;
    let listed = |counts: &mut dyn Iterator<Item = (u64, &str)>| {
        counts
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let outcomes = Outcome::ALL.iter().map(|&outcome| (tally.opened(Some(outcome)), outcome.as_str()));
    let mut opened = format!("{} · openings {}", row.name, tally.openings());
    let by = listed(&mut outcomes.chain([(tally.opened(None), "unknown")]));
    if !by.is_empty() {
        let _ = write!(opened, ": {by}");
    }
    if tally.syn_retransmits() > 0 {
        let _ = write!(opened, " · retransmitted {}", tally.syn_retransmits());
    }

    let outcomes = TlsOutcome::ALL.iter().map(|&outcome| (tally.shaken(Some(outcome)), outcome.as_str()));
    let versions = TlsVersion::ALL.iter().map(|&version| (tally.version(Some(version)), version.as_str()));
    let versions: Vec<String> =
        versions.filter(|it| it.0 > 0).map(|(count, word)| format!("{count} TLS {word}")).collect();
    let classes = TlsClass::ALL.iter().map(|&class| (tally.class(Some(class)), class.as_str()));
    let mut shaken = vec![format!("TLS handshakes {}", tally.handshakes())];
    shaken.push(listed(&mut outcomes.chain([(tally.shaken(None), "unknown")])));
    shaken.push(versions.join(", "));
    shaken.push(listed(&mut classes.chain([(tally.class(None), "of unknown class")])));

    let styles = CloseStyle::ALL.iter().map(|&style| (tally.closed(Some(style)), style.as_str()));
    let mut closed = vec![format!("closings {}", tally.closings())];
    closed.push(listed(&mut styles.chain([(tally.closed(None), "unknown")])));

    let joined = |parts: Vec<String>| {
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" · ")
    };
    [opened, joined(shaken), setups(tally), joined(closed)]
        .map(|line| Line::raw(cut(&line, width, false)))
        .to_vec()
}

fn setups(tally: &Tally) -> String {
    let mut text = format!("setups {}", tally.setups());
    if tally.setup(0.5).is_some() {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|quantile| duration(tally.setup(quantile)));
        let _ = write!(text, ": p50 {p50}, p90 {p90}, p99 {p99}");
    }
    if let Some(trips) = tally.round_trips() {
        let _ = write!(text, " · round trips {}, possible {}", trips.taken, trips.possible);
    }
    text
}

fn connections(frame: &mut Frame<'_>, area: Rect, view: &mut View, data: &Data<'_>, palette: Palette) {
    let table = Table::new(&[], Some(area.width.into()), false);
    let of = match &view.source {
        Source::Row(RowId::Group(group)) => {
            format!("{} {}", group.what, group.role.map_or("?", |role| role.as_str()))
        }
        Source::Row(RowId::Rest) => "others".to_owned(),
        Source::Failed => "all whose TCP or TLS handshake failed".to_owned(),
        Source::Slow => "all that took longer than the network explains".to_owned(),
    };
    let connections = view.connections(data);
    let selected = view.selected_connection(&connections);
    scroll(view, selected, connections.len(), usize::from(area.height.saturating_sub(2)));
    let title = cut(&format!("latest connections: {of}"), area.width.into(), false);
    let mut lines = vec![Line::styled(title, BOLD), Line::styled(table.heading(), BOLD)];
    for (index, event) in connections.iter().enumerate().skip(view.first).take(view.page) {
        let spans = table.pieces(event).into_iter();
        let line =
            Line::from(spans.map(|(text, tone)| Span::styled(text, palette.tone(tone))).collect::<Vec<_>>());
        lines.push(if index == selected { line.style(SELECTED) } else { line });
    }
    if connections.is_empty() {
        lines.push(Line::raw("none is known"));
    }
    text(frame, area, lines);
}

/// One connection as a ladder. Words are wrapped, rungs are not.
fn one(frame: &mut Frame<'_>, area: Rect, view: &mut View, data: &Data<'_>) {
    let Some(event) = view.ladder(data) else { return };
    let ladder = ladder::draw(&event);
    let lines: Vec<String> = ladder
        .lines()
        .map(|line| if line.contains('─') { line.to_owned() } else { wrap(line, area.width.into(), 6) })
        .chain([String::new()])
        .chain(ladder::legend().lines().map(|line| wrap(line, area.width.into(), 0)))
        .flat_map(|line| line.split('\n').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let wide = lines.iter().map(|line| columns(line)).max().unwrap_or(0);
    view.page = area.height.into();
    if let Place::Ladder { down, right, .. } = &mut view.place {
        let most = |of: usize, shown: u16| u16::try_from(of.saturating_sub(shown.into())).unwrap_or(u16::MAX);
        *down = (*down).min(most(lines.len(), area.height));
        *right = (*right).min(most(wide, area.width));
        let text = Text::from(lines.into_iter().map(Line::raw).collect::<Vec<_>>());
        frame.render_widget(Paragraph::new(text).scroll((*down, *right)), area);
    }
}

/// The keys, or the filter that is being typed.
fn footer(frame: &mut Frame<'_>, area: Rect, view: &View, palette: Palette) {
    let width = usize::from(area.width);
    if let Some(input) = &view.input {
        let error =
            input.error.as_ref().map_or_else(String::new, |why| format!("  {}", escape(why, MAX_SAID)));
        let error = cut(&error, width / 2, false);
        // The end of what is typed is what one looks at.
        let room = width.saturating_sub(columns(&error) + 2);
        let typed = escape(&input.text, usize::MAX);
        let mut shown = typed.as_str();
        while columns(shown) > room {
            let mut rest = shown.chars();
            rest.next();
            shown = rest.as_str();
        }
        let at = area.x.saturating_add(u16::try_from(1 + columns(shown)).unwrap_or(u16::MAX));
        let line = vec![Span::raw(format!("/{shown} ")), Span::styled(error, palette.colour(Color::Red))];
        text(frame, area, Line::from(line));
        frame.set_cursor_position((at.min(area.right().saturating_sub(1)), area.y));
        return;
    }
    let keys = match view.place {
        Place::Groups => "q quit  ? help  Enter connections  / filter  p s n rows  ←→ sort  space pause",
        Place::Connections => "q quit  ? help  Enter ladder  Esc back  ↑↓ move  space pause",
        Place::Ladder { .. } => "q quit  ? help  Esc back  ↑↓←→ scroll",
    };
    text(frame, area, Line::styled(cut(keys, width, false), SELECTED));
}

/// Drawing keeps how far it is scrolled down within the text.
fn help(frame: &mut Frame<'_>, grouping: Grouping, down: &mut u16) {
    let keys = [
        ("p s n", "rows are processes, services, networks of the peers"),
        ("↑ ↓", "select; PgUp, PgDn, Home, End too"),
        ("Enter", "latest connections of the row; again: one as a ladder"),
        ("Esc", "back"),
        ("f l", "latest connections that failed, that took too long"),
        ("← → r", "sort by another column, the other way round"),
        ("t", "numbers of the window, or since the start"),
        ("/", "filter, by the flags of trace: --port 443 --role client"),
        ("space", "pause what is shown; counting goes on"),
        ("q", "quit"),
    ];
    let keys = keys.map(|(key, what)| format!("{key:<8}{what}"));
    let meanings = Column::ALL.map(|column| format!("{:<8}{}", column.heading(grouping), column.meaning()));
    let lines: Vec<String> = keys.into_iter().chain([String::new()]).chain(meanings).collect();
    let area = frame.area();
    let total = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let height = (total + 2).min(area.height);
    let width = 80.min(area.width);
    let window = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    *down = (*down).min(total.saturating_sub(height.saturating_sub(2)));
    let keys = if total + 2 > height { "↓ more · another key closes this" } else { "a key closes this" };
    let block = Block::bordered().title("handshake top").title_bottom(Line::raw(keys).right_aligned());
    frame.render_widget(Clear, window);
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines).scroll((*down, 0)).block(block), window);
}
