//! Reports to the appliance: this node's progress. A separate thread sends them in order, and retries until the
//! appliance has them; the boot never waits for it.

use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use pxe_contract::backoff::Backoff;
use pxe_contract::paths::node;
use pxe_contract::report::{Report, Reported};

use crate::appliance::Appliance;
use crate::lock::Unpoisoned as _;
use crate::say;

/// Accepts reports. Cloning it is cheap; without an appliance, reports are dropped.
#[derive(Clone)]
pub(crate) struct Reporter {
    mac: String,
    queue: Option<Queue>,
}

#[derive(Clone)]
struct Queue {
    reports: mpsc::Sender<Report<String>>,
    unsent: Arc<(Mutex<usize>, Condvar)>,
}

impl Reporter {
    /// Starts the thread that sends to `appliance`.
    pub(crate) fn start(appliance: Option<Appliance>, mac: &str) -> Self {
        let queue = appliance.and_then(|appliance| {
            let (reports, queued) = mpsc::channel::<Report<String>>();
            let unsent = Arc::new((Mutex::new(0), Condvar::new()));
            let sent = Arc::clone(&unsent);
            let send = move || {
                for report in queued {
                    deliver(&appliance, &report);
                    *sent.0.lock().unpoisoned() -= 1;
                    sent.1.notify_all();
                }
            };
            let thread = std::thread::Builder::new().name("report".into()).spawn(send);
            thread.inspect_err(|e| say!("no reports will be sent: {e}")).ok()?;
            Some(Queue { reports, unsent })
        });
        Self { mac: mac.to_owned(), queue }
    }

    /// The node reached a stage.
    pub(crate) fn reached(&self, stage: Reported, detail: impl Into<String>) {
        self.send(Report { detail: Some(detail.into()), ..self.report(stage) });
    }

    /// The same, with the time since this process's first instruction.
    pub(crate) fn reached_after(&self, stage: Reported, detail: String, took: Duration) {
        let duration = Some(took.as_secs_f64());
        self.send(Report { detail: Some(detail), duration, ..self.report(stage) });
    }

    /// The image is ready, after this many bytes were fetched in this time.
    pub(crate) fn fetched(&self, detail: impl Into<String>, bytes: u64, took: Duration) {
        let (bytes, duration) = (Some(bytes), Some(took.as_secs_f64()));
        self.send(Report { detail: Some(detail.into()), bytes, duration, ..self.report(Reported::Image) });
    }

    /// The workload runs, but is unhealthy.
    pub(crate) fn unhealthy(&self, cause: String) {
        let detail = Some("unhealthy".to_owned());
        self.send(Report { detail, cause: Some(cause), ..self.report(Reported::Workload) });
    }

    /// The boot can't go on.
    pub(crate) fn failed(&self, cause: impl Into<String>) {
        self.send(Report { cause: Some(cause.into()), ..self.report(Reported::Failed) });
    }

    /// The workload ended; `code` as a shell gives it, a signal counting from 128.
    pub(crate) fn exited(&self, code: i32, cause: impl Into<String>) {
        let cause = Some(cause.into());
        self.send(Report { cause, exit_code: Some(code), ..self.report(Reported::Exited) });
    }

    /// Waits until everything was sent, for a limited time.
    pub(crate) fn flush(&self, at_most: Duration) {
        let Some(queue) = &self.queue else { return };
        let unsent = queue.unsent.0.lock().unpoisoned();
        let _ = queue.unsent.1.wait_timeout_while(unsent, at_most, |n| *n > 0);
    }

    fn report(&self, stage: Reported) -> Report<String> {
        Report { uptime: Some(uptime()), ..Report::new(self.mac.clone(), stage) }
    }

    fn send(&self, report: Report<String>) {
        let Some(queue) = &self.queue else { return };
        *queue.unsent.0.lock().unpoisoned() += 1;
        // The thread holds the other end for as long as this one exists.
        let _ = queue.reports.send(report);
    }
}

/// Sends one report until the appliance accepts it, or refuses it for good.
fn deliver(appliance: &Appliance, report: &Report<String>) {
    let body = serde_json::to_vec(report).expect("a report has only text keys");
    let mut pauses = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match appliance.post(node::REPORT, &body) {
            Ok(200..=299) => return,
            Ok(status @ 400..=499) => {
                say!("the appliance refused a report ({status}): {}", String::from_utf8_lossy(&body));
                return;
            }
            Ok(_) | Err(_) => std::thread::sleep(pauses.pause()),
        }
    }
}

fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, SocketAddrV4, TcpListener};

    use super::*;

    /// An appliance that answers each connection with the next status, and records the requests.
    fn appliance(
        statuses: &'static [u16],
    ) -> (SocketAddrV4, std::thread::JoinHandle<Vec<serde_json::Value>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        let served = std::thread::spawn(move || {
            let mut bodies = Vec::new();
            for status in statuses {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut len = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.strip_prefix("Content-Length: ") {
                        len = value.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; len];
                reader.read_exact(&mut body).unwrap();
                bodies.push(serde_json::from_slice(&body).unwrap());
                write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
            bodies
        });
        (address, served)
    }

    #[test]
    fn reports_arrive_in_order_and_are_repeated_until_taken() {
        let (address, served) = appliance(&[503, 204, 400, 204]);
        let reporter = Reporter::start(Some(Appliance::plain(address)), "52:54:00:77:00:01");
        reporter.reached(Reported::Stage1, "6.1.0");
        reporter.failed("refused for good");
        reporter.exited(137, "killed by SIGKILL");
        reporter.flush(Duration::from_secs(10));
        let bodies = served.join().unwrap();
        let stages: Vec<_> = bodies.iter().map(|b| b["stage"].as_str().unwrap()).collect();
        assert_eq!(stages, ["stage1", "stage1", "failed", "exited"]);
        assert_eq!(bodies[0]["mac"], "52:54:00:77:00:01");
        assert_eq!(bodies[0]["detail"], "6.1.0");
        assert_eq!(bodies[2]["cause"], "refused for good");
        assert_eq!(bodies[3]["exit-code"], 137);
        assert!(bodies[3]["uptime"].as_f64().unwrap() > 0.0);
    }
}
