//! One viewer's stream: Server-Sent Events (HTML Living Standard, section 9.2), whose ids are positions among the frames.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use pxe_common::Mac;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError, error::TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::live::{Live, Next, Position};
use crate::api::console::Told;
use crate::api::{ApiState, Failure, Kind, read};
use crate::base::text::word;
use crate::machines::console::{Consoles, Line};

/// The last lines of a console that a viewer is sent at the beginning.
pub(super) const TAIL: usize = 200;

/// Lines of one message.
const BATCH: usize = 100;

/// A comment is sent when nothing else was for this long, so that a viewer who is gone is noticed.
const SILENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::api) struct Wanted {
    /// Where the page that asks begins.
    after: Option<String>,
    /// Only of this machine, with its console and its workload's output.
    of: Option<String>,
    /// Anything but 0: go on.
    #[serde(default)]
    follow: u8,
}

pub(in crate::api) async fn stream(
    State(state): State<ApiState>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failure> {
    const HINT: &str = "the query takes after=POSITION, of=NAME and follow=1";
    let Query(wanted) = wanted.map_err(|e| Failure::new(Kind::Invalid, e.body_text(), HINT))?;
    let of = wanted.of.as_deref().map(|name| read::find(&state.boot.machines, name)).transpose()?;
    let of = of.map(|machine| machine.mac);
    let place = (wanted.follow != 0).then(|| state.access.follow()).transpose()?;
    // A browser that comes back says what it has seen. It may have been another run's.
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let position = seen.or(wanted.after).and_then(|position| position.parse().ok());
    let (out, body) = mpsc::channel(1);
    let viewer = Viewer { live: state.live.clone(), of, out };
    let screens = [Screen::of("console", &state.boot.consoles), Screen::of("log", &state.boot.logs)];
    tokio::spawn(async move {
        // When the viewer is gone, there is nobody to tell.
        let _: Result<(), Gone> = viewer.send(position, screens, place).await;
    });
    let body = Body::from_stream(ReceiverStream::new(body));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

/// The viewer has disconnected.
struct Gone;

struct Viewer {
    live: Live,
    of: Option<Mac>,
    /// Holds one message: a viewer who reads slowly costs no more than that, and finds frames in the ring, or not.
    out: mpsc::Sender<Result<Bytes, Infallible>>,
}

/// The lines of one machine: its console, or its workload's output.
struct Screen {
    name: &'static str,
    lines: Consoles,
    live: Receiver<(Mac, Line)>,
}

impl Screen {
    fn of(name: &'static str, lines: &Consoles) -> Self {
        Self { name, live: lines.follow(), lines: lines.clone() }
    }
}

impl Viewer {
    async fn send(
        self,
        position: Option<Position>,
        screens: [Screen; 2],
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Gone> {
        self.say("retry: 1000\n\n".to_owned()).await?;
        let mut newest = self.live.follow();
        // Also keeps the frames coming for who looks at a page of an earlier run.
        let now = self.live.position();
        let mut at = match position {
            Some(position) => position,
            None => now,
        };
        let [mut console, mut log] = screens;
        let mut told = [Told::up_to(&[]), Told::up_to(&[])];
        if self.of.is_some() {
            told = [self.tail(&console).await?, self.tail(&log).await?];
        }
        loop {
            newest.mark_unchanged();
            match self.live.behind(at, self.of) {
                Next::Anew(here) => {
                    at = here;
                    self.say(format!("event: anew\nid: {at}\ndata: {{}}\n\n")).await?;
                }
                Next::Frames(frames) => {
                    for (position, said) in frames {
                        at = position;
                        if let Some(said) = said {
                            self.frame(at, &said).await?;
                        }
                    }
                }
            }
            if place.is_none() {
                return Ok(());
            }
            tokio::select! {
                changed = newest.changed() => changed.map_err(|_| Gone)?,
                line = console.live.recv(), if self.of.is_some() => self.lines(&mut console, &mut told[0], line).await?,
                line = log.live.recv(), if self.of.is_some() => self.lines(&mut log, &mut told[1], line).await?,
                () = tokio::time::sleep(SILENCE) => self.say(":\n\n".to_owned()).await?,
                () = self.out.closed() => return Err(Gone),
            }
        }
    }

    async fn frame(&self, at: Position, said: &Bytes) -> Result<(), Gone> {
        let head = format!("event: patch\nid: {at}\ndata: ");
        let message = [head.as_bytes(), said, b"\n\n"].concat();
        self.out.send(Ok(message.into())).await.map_err(|_| Gone)
    }

    async fn say(&self, message: String) -> Result<(), Gone> {
        self.out.send(Ok(message.into())).await.map_err(|_| Gone)
    }

    /// The last lines that are stored, in place of whatever the viewer has. Returns up to where they go.
    async fn tail(&self, screen: &Screen) -> Result<Told, Gone> {
        let Some(mac) = self.of else { return Ok(Told::up_to(&[])) };
        let past = tail(&screen.lines, mac).await;
        let document = document(screen.name, past.iter());
        self.say(format!("event: tail\ndata: {document}\n\n")).await?;
        Ok(Told::up_to(&past))
    }

    /// A line that arrived, with those that arrived with it.
    async fn lines(
        &self,
        screen: &mut Screen,
        told: &mut Told,
        first: Result<(Mac, Line), RecvError>,
    ) -> Result<(), Gone> {
        let mut lines = Vec::new();
        let mut next = first.map_err(|error| match error {
            RecvError::Lagged(lost) => TryRecvError::Lagged(lost),
            RecvError::Closed => TryRecvError::Closed,
        });
        loop {
            match next {
                Ok((mac, line)) if Some(mac) == self.of && !told.has(&line) => lines.push(line),
                Ok(_) => {}
                // They arrived faster than they were read: the viewer starts anew with what is stored.
                Err(TryRecvError::Lagged(_)) => {
                    *told = self.tail(screen).await?;
                    return Ok(());
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Closed) => return Err(Gone),
            }
            if lines.len() >= BATCH {
                break;
            }
            next = screen.live.try_recv();
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.say(format!("event: lines\ndata: {}\n\n", document(screen.name, lines.iter()))).await
    }
}

/// The last lines of a machine's console. What can't be read is none; the log says so.
pub(super) async fn tail(lines: &Consoles, mac: Mac) -> Vec<Line> {
    let lines = lines.clone();
    let read = tokio::task::spawn_blocking(move || lines.read(mac, 0)).await;
    let mut past = match read.map_err(|e| e.to_string()).and_then(|read| read.map_err(|e| e.to_string())) {
        Ok(past) => past.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(error, %mac, "a console can't be shown");
            Vec::new()
        }
    };
    past.split_off(past.len().saturating_sub(TAIL))
}

fn document<'a>(screen: &str, lines: impl Iterator<Item = &'a Line>) -> Value {
    let mut boot = "";
    let lines: Vec<Value> = lines
        .map(|line| {
            boot = &line.boot;
            json!([uptime(line), word(line.from), line.text])
        })
        .collect();
    json!({ "of": screen, "boot": boot, "lines": lines })
}

/// Seconds since the kernel started, as it prints them itself.
pub(super) fn uptime(line: &Line) -> String {
    format!("{:.3}", line.uptime)
}
