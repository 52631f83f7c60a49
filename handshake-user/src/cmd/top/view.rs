//! What is shown, and what keys change in it. Pure.

use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::live::Losses;
use crate::{
    aggregate::{Aggregate, Grouping, Recent},
    cli::FilterOptions,
    event::{ConnectionEvent, ConnectionId},
    filter::Filter,
    output::rows::{Column, Row, RowId, Scope, rows},
    untrusted::is_harmless,
};

/// Longest filter that can be typed, characters.
const MAX_INPUT: usize = 400;

/// What there is to show.
#[derive(Debug)]
pub(super) struct Data<'a> {
    pub(super) aggregate: &'a Aggregate,
    pub(super) losses: Losses,
    /// The last line of the log.
    pub(super) said: Option<String>,
}

/// What a key asks of the program.
#[derive(Debug)]
pub(super) enum Action {
    None,
    Quit,
    /// Like a shell's Ctrl-Z.
    Stop,
    /// [`View::is_paused`] has changed.
    Pause,
    /// Count anew, with this filter.
    Filter(Box<Filter>),
}

/// Which connections are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Row(RowId),
    Failed,
    Slow,
}

/// The part of the screen that is not always there.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The table of the groups.
    Groups,
    /// The latest connections of a group.
    Connections,
    /// One of them as a ladder: as it was when it was last listed, scrolled down and right.
    Ladder { last: Arc<ConnectionEvent>, down: u16, right: u16 },
}

/// A filter that is being typed, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Input {
    pub(super) text: String,
    pub(super) error: Option<String>,
}

/// What is shown.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) grouping: Grouping,
    pub(super) scope: Scope,
    pub(super) sort: Column,
    pub(super) reverse: bool,
    pub(super) place: Place,
    pub(super) source: Source,
    pub(super) input: Option<Input>,
    /// Whether the help is on screen, and how far it is scrolled down.
    pub(super) help: Option<u16>,
    /// The filter in force, as it is typed.
    pub(super) filter: String,
    paused: bool,
    /// The selected row; none is the first one, whichever that is.
    row: Option<RowId>,
    /// The selected connection; likewise.
    connection: Option<ConnectionId>,
    /// How many rows there was room for, and the first of them.
    pub(super) page: usize,
    pub(super) first: usize,
}

impl View {
    pub(super) fn new(grouping: Grouping, filter: String) -> Self {
        Self {
            grouping,
            scope: Scope::Window,
            sort: Column::Openings,
            reverse: false,
            place: Place::Groups,
            source: Source::Failed,
            input: None,
            help: None,
            filter,
            paused: false,
            row: None,
            connection: None,
            page: 1,
            first: 0,
        }
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn rows(&self, data: &Data<'_>) -> Vec<Row> {
        rows(data.aggregate, self.scope, self.sort, self.reverse)
    }

    /// The index of the selected row.
    pub(super) fn selected_row(&self, rows: &[Row]) -> usize {
        self.row.as_ref().and_then(|id| rows.iter().position(|row| row.id == *id)).unwrap_or(0)
    }

    /// The connections that are listed, the latest first.
    pub(super) fn connections(&self, data: &Data<'_>) -> Vec<Arc<ConnectionEvent>> {
        let aggregate = data.aggregate;
        let recent: Option<&Recent> = match &self.source {
            Source::Row(RowId::Group(group)) => aggregate.get(group).map(|member| &member.latest),
            Source::Row(RowId::Rest) => aggregate.rest().map(|member| &member.latest),
            Source::Failed => Some(aggregate.failed()),
            Source::Slow => Some(aggregate.slow()),
        };
        recent.into_iter().flat_map(Recent::iter).cloned().collect()
    }

    /// The index of the selected connection.
    pub(super) fn selected_connection(&self, connections: &[Arc<ConnectionEvent>]) -> usize {
        let id = self.connection.as_ref();
        id.and_then(|id| connections.iter().position(|event| event.id == *id)).unwrap_or(0)
    }

    /// What the ladder on screen is of: the newest that is known of it.
    pub(super) fn ladder(&self, data: &Data<'_>) -> Option<Arc<ConnectionEvent>> {
        let Place::Ladder { last, .. } = &self.place else { return None };
        let newer = self.connections(data).into_iter().find(|event| event.id == last.id);
        Some(newer.unwrap_or_else(|| Arc::clone(last)))
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent, data: &Data<'_>) -> Action {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Action::Quit,
                KeyCode::Char('z') => return Action::Stop,
                KeyCode::Char('u') => {
                    if let Some(input) = &mut self.input {
                        *input = Input::default();
                    }
                    return Action::None;
                }
                // Some terminals send the Enter key like this.
                KeyCode::Char('j' | 'm') => {}
                _ => return Action::None,
            }
        }
        let code = match key.code {
            KeyCode::Char('j' | 'm') if key.modifiers.contains(KeyModifiers::CONTROL) => KeyCode::Enter,
            code => code,
        };
        if self.input.is_some() {
            return self.type_filter(code);
        }
        if let Some(down) = &mut self.help {
            match code {
                KeyCode::Down | KeyCode::PageDown => *down += 1,
                KeyCode::Up | KeyCode::PageUp => *down = down.saturating_sub(1),
                KeyCode::Char('q') => return Action::Quit,
                _ => self.help = None,
            }
            return Action::None;
        }
        match code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = Some(0),
            KeyCode::Char('/') => {
                self.input = Some(Input { text: self.filter.clone(), error: None });
            }
            KeyCode::Char(' ') => {
                self.paused = !self.paused;
                return Action::Pause;
            }
            KeyCode::Char('p') => self.group(Grouping::Process),
            KeyCode::Char('s') => self.group(Grouping::Service),
            KeyCode::Char('n') => self.group(Grouping::Network),
            KeyCode::Char('f') => self.list(Source::Failed),
            KeyCode::Char('l') => self.list(Source::Slow),
            KeyCode::Char('t') => {
                self.scope = if self.scope == Scope::Window { Scope::Total } else { Scope::Window };
            }
            KeyCode::Esc | KeyCode::Backspace => self.back(),
            KeyCode::Enter => self.enter(data),
            _ => self.steer(code, data),
        }
        Action::None
    }

    fn type_filter(&mut self, code: KeyCode) -> Action {
        let Some(input) = &mut self.input else { return Action::None };
        match code {
            KeyCode::Esc => self.input = None,
            KeyCode::Backspace => {
                input.error = None;
                input.text.pop();
            }
            KeyCode::Char(c) if is_harmless(c) && input.text.chars().count() < MAX_INPUT => {
                input.error = None;
                input.text.push(c);
            }
            KeyCode::Enter => match FilterOptions::parse(&input.text) {
                Ok(options) => {
                    self.filter = options.to_string();
                    self.input = None;
                    self.paused = false;
                    (self.place, self.row, self.connection) = (Place::Groups, None, None);
                    return Action::Filter(Box::new(options.filter()));
                }
                Err(why) => input.error = Some(why),
            },
            _ => {}
        }
        Action::None
    }

    fn group(&mut self, grouping: Grouping) {
        self.grouping = grouping;
        (self.place, self.row, self.first) = (Place::Groups, None, 0);
    }

    fn list(&mut self, source: Source) {
        self.source = source;
        (self.place, self.connection, self.first) = (Place::Connections, None, 0);
    }

    fn back(&mut self) {
        self.first = 0;
        self.place = match self.place {
            Place::Ladder { .. } => Place::Connections,
            Place::Connections | Place::Groups => Place::Groups,
        };
    }

    fn enter(&mut self, data: &Data<'_>) {
        match self.place {
            Place::Groups => {
                let rows = self.rows(data);
                if let Some(row) = rows.get(self.selected_row(&rows)) {
                    self.row = Some(row.id.clone());
                    self.list(Source::Row(row.id.clone()));
                }
            }
            Place::Connections => {
                let connections = self.connections(data);
                if let Some(event) = connections.get(self.selected_connection(&connections)) {
                    self.connection = Some(event.id.clone());
                    self.place = Place::Ladder { last: Arc::clone(event), down: 0, right: 0 };
                }
            }
            Place::Ladder { .. } => {}
        }
    }

    /// Keys that move through what is on screen.
    fn steer(&mut self, code: KeyCode, data: &Data<'_>) {
        let page = self.page.max(1);
        let step = |at: usize, last: usize| match code {
            KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => at.saturating_add(1).min(last),
            KeyCode::PageUp => at.saturating_sub(page),
            KeyCode::PageDown => at.saturating_add(page).min(last),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => last,
            _ => at,
        };
        match &mut self.place {
            Place::Groups => match code {
                KeyCode::Left | KeyCode::Char('<') => self.sort_by_neighbour(false),
                KeyCode::Right | KeyCode::Char('>') => self.sort_by_neighbour(true),
                KeyCode::Char('r') => self.reverse = !self.reverse,
                _ => {
                    let rows = self.rows(data);
                    let at = self.selected_row(&rows);
                    let to = step(at, rows.len().saturating_sub(1));
                    if to != at {
                        self.row = rows.get(to).map(|row| row.id.clone());
                    }
                }
            },
            Place::Connections => {
                let connections = self.connections(data);
                let at = self.selected_connection(&connections);
                let to = step(at, connections.len().saturating_sub(1));
                if to != at {
                    self.connection = connections.get(to).map(|event| event.id.clone());
                }
            }
            Place::Ladder { down, right, .. } => match code {
                KeyCode::Left => *right = right.saturating_sub(8),
                KeyCode::Right => *right = right.saturating_add(8),
                // Drawing keeps it within the text.
                _ => *down = u16::try_from(step((*down).into(), u16::MAX.into())).unwrap_or(u16::MAX),
            },
        }
    }

    fn sort_by_neighbour(&mut self, is_right: bool) {
        let at = Column::ALL.iter().position(|column| *column == self.sort).unwrap_or(0);
        let to = if is_right { at + 1 } else { at + Column::ALL.len() - 1 };
        self.sort = Column::ALL[to % Column::ALL.len()];
        self.reverse = false;
    }
}
