//! Files over HTTP: GET and HEAD with Range, ETag, Last-Modified and conditions.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use futures_util::stream;

use pxe_contract::paths::ImagePart;

use super::openapi::{Served, Written};
use super::range::Wanted;
use super::session::Speaker;
use super::{ApiState, BootState, Failure, Kind, conditions};
use crate::base::text::visible;
use crate::machines::diagnosis::Note;
use crate::machines::timeline::{Happened, Stage, Timeline, Who};
use crate::provision::blob::Blob;
use crate::provision::boot::Generated;
use crate::serve::files::{OpenError, Opened};

/// Bytes read at once: large enough that handing them between threads costs little, small enough that a
/// thousand slow clients take little memory.
const PIECE: u64 = 64 * 1024;

pub(super) fn routes() -> Router<BootState> {
    root_route().route("/boot/{*path}", below("boot/")).route("/grub/{*path}", below("grub/"))
}

/// What is below the files root, for nodes.
fn root_route() -> Router<BootState> {
    Router::new().route("/files/{*path}", below(""))
}

/// The same, for people.
pub(super) async fn below_root(
    State(state): State<ApiState>,
    Path(path): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    method: Method,
    headers: HeaderMap,
) -> Result<Written<Served>, Failure> {
    let client = ipv4(peer.ip());
    let opened = open(&state.boot, path.clone(), client).await?;
    Ok(Written::new(respond(opened, &visible(&path), client, &method, &headers, &state.boot)))
}

fn below(prefix: &'static str) -> MethodRouter<BootState> {
    get(
        move |State(state): State<BootState>,
              Path(path): Path<String>,
              speaker: Speaker,
              method: Method,
              headers: HeaderMap| async move {
            let client = speaker.address;
            let path = format!("{prefix}{path}");
            if let Some(Generated::Image { part: ImagePart::Stage2, .. }) = Generated::parse(&path)
                && let Some(machine) = state.machines.by_address(client)
            {
                speaker.is(&state, machine.mac)?;
            }
            let opened = open(&state, path.clone(), client).await?;
            Ok::<_, Failure>(respond(opened, &visible(&path), client, &method, &headers, &state))
        },
    )
}

/// The client's address. Over IPv6 no client has a lease.
pub(super) fn ipv4(peer: IpAddr) -> Ipv4Addr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

pub(super) async fn open(state: &BootState, path: String, client: Ipv4Addr) -> Result<Opened, Failure> {
    let files = state.files.clone();
    let name = visible(&format!("/{path}"));
    let opened =
        tokio::task::spawn_blocking(move || files.open(&path, client)).await.map_err(Failure::internal)?;
    opened.map_err(|error| {
        let note = Note::NotServed { path: name.clone(), why: error.to_string() };
        state.timeline.note(Who::Address(client), note);
        failure(&name, error)
    })
}

pub(super) fn failure(name: &str, error: OpenError) -> Failure {
    let words = format!("{name}: {error}");
    match error {
        OpenError::NotFound => Failure::new(Kind::NotFound, words, "`bridgehead files` lists what is served"),
        OpenError::Directory => Failure::new(Kind::NotFound, words, "name a file in it"),
        OpenError::Outside => {
            Failure::new(Kind::Forbidden, words, "only what is below the files root is served")
        }
        OpenError::Refused(_) => Failure::new(Kind::Conflict, words, "`bridgehead profiles` says more"),
        OpenError::Forbidden(_) => Failure::new(Kind::Forbidden, words, "docs/trust.md says why"),
        OpenError::Io(_) => Failure::internal(words),
    }
}

fn respond(
    opened: Opened,
    path: &str,
    client: Ipv4Addr,
    method: &Method,
    headers: &HeaderMap,
    state: &BootState,
) -> Response {
    let Opened { blob, stage } = opened;
    let etag = blob.etag();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let modified = blob.modified();
    if !conditions::hold(&text, &etag, modified) {
        return (StatusCode::PRECONDITION_FAILED, [(header::ETAG, etag)]).into_response();
    }
    let last_modified = modified.and_then(conditions::written).map(|date| [(header::LAST_MODIFIED, date)]);
    let common = [
        (header::ETAG, etag.clone()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CONTENT_TYPE, content_type(path).to_owned()),
    ];
    if conditions::is_unchanged(&text, &etag, modified) {
        return with(last_modified, (StatusCode::NOT_MODIFIED, common).into_response());
    }
    // RFC 9110 section 14.2: Range applies only to GET; section 13.1.5: and only while the client's
    // partial copy is of the present representation.
    let current = text(header::IF_RANGE).is_none_or(|tag| conditions::is_current(tag, &etag, modified));
    let wanted = match text(header::RANGE) {
        Some(range) if method == Method::GET && current => Wanted::parse(range, blob.len()),
        _ => Wanted::Whole,
    };
    let len = blob.len();
    let (status, part) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..len),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Unsatisfiable => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{len}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, common, range).into_response();
        }
    };
    let range = (status == StatusCode::PARTIAL_CONTENT)
        .then(|| [(header::CONTENT_RANGE, format!("bytes {}-{}/{len}", part.start, part.end - 1))]);
    let length = [(header::CONTENT_LENGTH, (part.end - part.start).to_string())];
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let note = Note::Opened { path: path.to_owned(), bytes: len, blksize: None };
        let timeline = state.timeline.clone();
        timeline.note(Who::Address(client), note);
        let stage = stage.filter(|_| part == (0..len));
        let taker = Taker { timeline, stage, client, path: path.to_owned(), started: Instant::now() };
        Sending { blob, part, taker, sent: state.http_sent.clone() }.into_body()
    };
    with(last_modified, with(range, (status, common, length, body).into_response()))
}

/// Adds a header, where there is one.
fn with(header: Option<[(header::HeaderName, String); 1]>, mut response: Response) -> Response {
    if let Some([(name, value)]) = header {
        // A date; or digits, a dash and a slash.
        response.headers_mut().extend(value.parse().ok().map(|value| (name, value)));
    }
    response
}

/// EDK2's HTTP Boot distinguishes applications from disk images by this, or by the file extension.
fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.') {
        Some((_, end)) if end.eq_ignore_ascii_case("efi") => "application/efi",
        _ => "application/octet-stream",
    }
}

/// A blob that is being sent, a piece at a time.
struct Sending {
    blob: Blob,
    /// What is still to be sent.
    part: Range<u64>,
    taker: Taker,
    sent: Arc<AtomicU64>,
}

/// The receiver of a blob.
struct Taker {
    timeline: Timeline,
    /// The stage that the machine has reached when all of the blob was handed to its connection.
    stage: Option<Stage>,
    client: Ipv4Addr,
    path: String,
    started: Instant,
}

impl Sending {
    fn into_body(self) -> Body {
        Body::from_stream(stream::try_unfold(self, |mut sending| async move {
            if sending.part.is_empty() {
                return Ok(None);
            }
            let blob = sending.blob.clone();
            let start = sending.part.start;
            let len = (sending.part.end - start).min(PIECE);
            let piece = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; len as usize];
                blob.read_at(start, &mut piece).map(|_| piece)
            })
            .await
            .map_err(io::Error::other)??;
            sending.part.start += len;
            sending.sent.fetch_add(len, Ordering::Relaxed);
            Ok::<_, io::Error>(Some((Bytes::from(piece), sending)))
        }))
    }
}

impl Drop for Sending {
    /// hyper drops a body as soon as Content-Length bytes are out, and doesn't ask for its end.
    fn drop(&mut self) {
        let Taker { timeline, stage, client, path, started } = &self.taker;
        let (who, path) = (Who::Address(*client), path.clone());
        if !self.part.is_empty() {
            let (sent, bytes) = (self.part.start, self.blob.len());
            return timeline.note(who, Note::Cut { path, sent, bytes });
        }
        timeline.note(who, Note::Sent { path: path.clone(), repeated: 0 });
        if let Some(stage) = *stage {
            let duration = Some(started.elapsed());
            timeline.record(Happened {
                bytes: Some(self.blob.len()),
                duration,
                began_ago: duration,
                ..Happened::new(who, stage).detail(path)
            });
        }
    }
}
