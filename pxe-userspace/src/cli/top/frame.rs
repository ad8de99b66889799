//! One screen, drawn.

use pxe_contract::stage::Stage;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};

use super::site::{Site, TIERS, Totals};
use crate::base::table::size;
use crate::base::text::word;
use crate::machines::diagnosis::Why;

/// The stages of a boot, in order. A warning is not one of them.
fn of_a_boot() -> impl Iterator<Item = Stage> {
    Stage::ALL.into_iter().filter(|stage| *stage != Stage::Warning)
}

/// The screen as text.
pub(super) fn text(site: &Site, rates: &Totals, api: &str, screen: (u16, u16)) -> String {
    super::rendered(screen, |frame| draw(frame, site, rates, api, None))
}

pub(super) fn draw(frame: &mut Frame<'_>, site: &Site, rates: &Totals, api: &str, trouble: Option<&str>) {
    let alerts = site.status.alerts.len().min(3) as u16;
    let causes = site.causes();
    let wanted = causes.len().clamp(1, 8) as u16 + 2;
    let [head, alerting, upper, middle, lower] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(alerts),
        Constraint::Length(of_a_boot().count() as u16 + 2),
        Constraint::Min(4),
        Constraint::Length(wanted),
    ])
    .areas(frame.area());
    let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(upper);

    let title = match trouble {
        Some(trouble) => Line::from(format!("no news: {trouble}")).fg(Color::Red),
        None => heading(site, api),
    };
    frame.render_widget(Paragraph::new(title), head);
    let lines: Vec<Line<'_>> =
        site.status.alerts.iter().map(|a| Line::from(format!("ALERT: {a}")).fg(Color::Red)).collect();
    frame.render_widget(Paragraph::new(lines), alerting);
    pane(frame, left, "machines by stage", bars(site, left.width));
    pane(frame, right, "sent", sent(site, rates));
    pane(frame, middle, "boots under way, the longest first", underway(site));
    let lines = match causes.as_slice() {
        [] => vec![Line::from("nothing is wrong, as far as can be seen from here")],
        causes => causes
            .iter()
            .map(|(kind, count, why)| {
                let words = why.causes.first().map_or("", |c| c.words.as_str());
                Line::from(format!("{count:4} {:18} {}: {words}", word(*kind), label(why)))
            })
            .collect(),
    };
    pane(frame, lower, "causes", lines);
}

fn heading(site: &Site, api: &str) -> Line<'static> {
    let count = site.machines.len();
    let plural = if count == 1 { "machine" } else { "machines" };
    let underway = site.underway().count();
    let time = site.now.strftime("%H:%M:%SZ");
    Line::from(format!("bridgehead at {api}, {time}: {count} {plural}, {underway} booting    q ends")).bold()
}

fn pane(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>) {
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

fn bars(site: &Site, width: u16) -> Vec<Line<'static>> {
    let stages = site.stages();
    let most = stages.values().copied().max().unwrap_or(0).max(1);
    // What the frame, the name and the number leave.
    let room = usize::from(width).saturating_sub(2 + 10 + 7);
    let bar = |stage: Stage| {
        let count = stages.get(&stage).copied().unwrap_or(0);
        let full = (count * room).div_ceil(most).min(room);
        let colour = match stage {
            Stage::Failed => Color::Red,
            Stage::Workload => Color::Green,
            // The rest: under way.
            _ => Color::Cyan,
        };
        let line = format!("{:9} {count:5} {}", word(stage), "█".repeat(full));
        Line::styled(line, Style::new().fg(if count > 0 { colour } else { Color::DarkGray }))
    };
    of_a_boot().map(bar).collect()
}

fn sent(site: &Site, rates: &Totals) -> Vec<Line<'static>> {
    let rows = TIERS.iter().zip(rates.0).zip(site.sent.0);
    let tiers = rows.map(|(((tier, _), rate), total)| {
        Line::from(format!("{tier:7} {:>12}/s {:>12}", size(rate as u64), size(total as u64)))
    });
    let ports = site.status.ports.iter().map(|p| Line::from(format!("{}: {}", p.name, word(p.tier))).dim());
    tiers.chain(ports).collect()
}

fn underway(site: &Site) -> Vec<Line<'static>> {
    let row = |why: &Why| {
        let machine = site.machines.iter().find(|m| m.mac == why.mac);
        let seconds = site.now.duration_since(why.began).as_secs_f64().max(0.0);
        let stage = why.stage.map_or_else(String::new, word);
        let words = match (why.causes.first(), machine.and_then(|m| m.fetching.as_ref())) {
            (Some(cause), _) => cause.words.clone(),
            (None, Some(fetching)) => format!("{} % of {}", fetching.percent, fetching.path),
            (None, None) => String::new(),
        };
        Line::from(format!("{:17} {stage:9} {seconds:6.1} s  {words}", label(why)))
    };
    let rows: Vec<_> = site.underway().map(row).collect();
    if rows.is_empty() { vec![Line::from("none").dim()] } else { rows }
}

fn label(why: &Why) -> String {
    why.node.clone().unwrap_or_else(|| why.mac.to_string())
}
