//! `bridgehead top`: the whole site on one screen, updated as it runs. It asks the API, like every command.

mod frame;
mod site;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{AskError, Client};
use site::{Site, Totals};

#[derive(Debug, Args)]
pub struct Top {
    /// Print one screen as text, and end.
    #[arg(long)]
    once: bool,
    /// Between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    #[command(flatten)]
    api: super::Place,
}

/// The screen of `--once`, in columns and lines.
const SCREEN: (u16, u16) = (100, 40);

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds, from 0.1 to 3600".to_owned()),
    }
}

pub(super) fn top(top: Top, out: &mut dyn Write) -> Result<(), AskError> {
    let Top { once, interval, api } = top;
    let (client, interval) = (Client::new(&api), Duration::from_secs_f64(interval));
    // Before the screen is switched, so that an error appears where the command was typed.
    let mut looking = Looking { before: Site::ask(&client)?, at: Instant::now() };
    if once {
        std::thread::sleep(interval);
        let (site, rates) = looking.again(&client)?;
        let text = frame::text(&site, &rates, &api.api, SCREEN);
        return out.write_all(text.as_bytes()).map_err(AskError::Output);
    }
    // This also restores the terminal in a panic.
    let mut terminal = ratatui::try_init().map_err(AskError::Output)?;
    let ended = live(&mut terminal, &client, &mut looking, &api.api, interval);
    let restored = ratatui::try_restore();
    ended.and(restored).map_err(AskError::Output)
}

/// Redraws until somebody quits. A daemon that does not answer may be restarting, so errors do not end it.
fn live(
    terminal: &mut ratatui::DefaultTerminal,
    client: &Client,
    looking: &mut Looking,
    api: &str,
    interval: Duration,
) -> io::Result<()> {
    let mut picture = (looking.before.clone(), Totals::default());
    let mut trouble = None;
    loop {
        terminal.draw(|frame| frame::draw(frame, &picture.0, &picture.1, api, trouble.as_deref()))?;
        let next = Instant::now() + interval;
        while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if !event::poll(left)? {
                break;
            }
            match event::read()? {
                Event::Key(key) if ends(&key) => return Ok(()),
                Event::Resize(..) => break,
                _ => {}
            }
        }
        match looking.again(client) {
            Ok(seen) => (picture, trouble) = (seen, None),
            Err(error) => trouble = Some(error.to_string()),
        }
    }
}

fn ends(key: &KeyEvent) -> bool {
    // The terminal is in raw mode: Ctrl-C is a key.
    let interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// The last data and their time, from which rates are computed.
struct Looking {
    before: Site,
    at: Instant,
}

impl Looking {
    fn again(&mut self, client: &Client) -> Result<(Site, Totals), AskError> {
        let site = Site::ask(client)?;
        let seconds = self.at.elapsed().as_secs_f64();
        let rates = site.sent.since(&self.before.sent, seconds);
        (self.before, self.at) = (site.clone(), Instant::now());
        Ok((site, rates))
    }
}

/// A screen as lines of text, for scripts and tests.
fn rendered((width, height): (u16, u16), draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(draw);
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    let text = (0..height).map(line).collect::<Vec<_>>().join("\n");
    format!("{}\n", text.trim_end())
}
