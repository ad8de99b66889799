//! The API's client.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::time::Duration;

use pxe_contract::failure::ErrorDocument;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::config::API_LISTEN;

/// How the API is asked, and how its answers are printed.
#[derive(Debug, clap::Args)]
pub struct Reading {
    /// Where the daemon's API answers.
    #[arg(long, env = "BRIDGEHEAD_API", value_name = "HOST:PORT", default_value_t = API_LISTEN.to_string())]
    pub api: String,
    /// Print JSON: one document, or one a line where there are many.
    #[arg(long)]
    pub json: bool,
}

/// An answer that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(
        "no daemon answers at {api} ({source}): is `bridgehead serve` running? --api or BRIDGEHEAD_API say where"
    )]
    NoDaemon { api: String, source: Box<ureq::Error> },
    #[error("{}; {}", .0.error, .0.hint)]
    Refused(ErrorDocument),
    #[error(
        "what answers at {api} is no Bridgehead daemon of this version ({what}): check --api and `bridgehead --version`"
    )]
    NotOurs { api: String, what: String },
    #[error("the daemon at {api} ended before its answer did: its log says why")]
    Cut { api: String },
    #[error("{}: {source}", .path.display())]
    File { path: std::path::PathBuf, source: io::Error },
    #[error("the answer could not be printed: {0}")]
    Output(io::Error),
}

pub(crate) struct Client {
    agent: Agent,
    /// As given, for messages.
    api: String,
}

impl Client {
    pub(crate) fn new(api: &str) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            // The daemon is on this machine or beside it.
            .proxy(None)
            .build()
            .new_agent();
        Self { agent, api: api.to_owned() }
    }

    pub(crate) fn get(&self, path: &str) -> Result<Response<Body>, AskError> {
        self.answer(self.agent.get(self.url(path)).call())
    }

    pub(crate) fn post(
        &self,
        path: &str,
        document: Option<&serde_json::Value>,
    ) -> Result<Response<Body>, AskError> {
        let request = self.agent.post(self.url(path));
        self.answer(match document {
            Some(document) => request.content_type("application/json").send(document.to_string()),
            None => request.send_empty(),
        })
    }

    pub(crate) fn put(&self, path: &str, document: &serde_json::Value) -> Result<Response<Body>, AskError> {
        let request = self.agent.put(self.url(path)).content_type("application/json");
        self.answer(request.send(document.to_string()))
    }

    pub(crate) fn delete(&self, path: &str) -> Result<Response<Body>, AskError> {
        self.answer(self.agent.delete(self.url(path)).call())
    }

    pub(crate) fn document<T: DeserializeOwned>(&self, answer: Response<Body>) -> Result<T, AskError> {
        let reader = answer.into_body().into_reader();
        serde_json::from_reader(reader).map_err(|error| self.unreadable(error))
    }

    /// Calls `each` with every line of the answer, as a document and as it came.
    pub(crate) fn lines<T: DeserializeOwned>(
        &self,
        answer: Response<Body>,
        mut each: impl FnMut(T, &[u8]) -> io::Result<()>,
    ) -> Result<(), AskError> {
        let mut reader = BufReader::new(answer.into_body().into_reader());
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(_) => return Err(AskError::Cut { api: self.api.clone() }),
            }
            let document = serde_json::from_slice(&line).map_err(|error| self.unreadable(error))?;
            each(document, &line).map_err(AskError::Output)?;
        }
    }

    /// Calls `each` with every block of a pcapng file, whole: who is interrupted leaves a file that
    /// ends where a block does.
    pub(crate) fn blocks(
        &self,
        answer: Response<Body>,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), AskError> {
        let mut reader = BufReader::with_capacity(1 << 20, answer.into_body().into_reader());
        let mut block = Vec::new();
        while !reader.fill_buf().map_err(|_| self.cut())?.is_empty() {
            let mut head = [0; 8];
            reader.read_exact(&mut head).map_err(|_| self.cut())?;
            let [.., a, b, c, d] = head;
            block.clear();
            block.extend(head);
            let rest = u64::from(u32::from_le_bytes([a, b, c, d])).saturating_sub(8);
            let read = reader.by_ref().take(rest).read_to_end(&mut block).map_err(|_| self.cut())?;
            if read as u64 != rest {
                return Err(self.cut());
            }
            each(&block).map_err(AskError::Output)?;
        }
        Ok(())
    }

    fn cut(&self) -> AskError {
        AskError::Cut { api: self.api.clone() }
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.api.contains("://") { "" } else { "http://" };
        format!("{scheme}{}{path}", self.api.trim_end_matches('/'))
    }

    fn answer(&self, sent: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, AskError> {
        let answer =
            sent.map_err(|error| AskError::NoDaemon { api: self.api.clone(), source: Box::new(error) })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        Err(match self.document(answer) {
            Ok(document) => AskError::Refused(document),
            Err(_) => AskError::NotOurs { api: self.api.clone(), what: format!("status {status}") },
        })
    }

    fn unreadable(&self, error: serde_json::Error) -> AskError {
        match error.classify() {
            serde_json::error::Category::Io | serde_json::error::Category::Eof => {
                AskError::Cut { api: self.api.clone() }
            }
            _ => AskError::NotOurs { api: self.api.clone(), what: error.to_string() },
        }
    }
}
