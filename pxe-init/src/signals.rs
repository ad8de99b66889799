//! Signals by number, because most libraries have no names for real-time signals, and images use them (`SIGRTMIN+3`
//! asks systemd to halt).

use std::fs;

use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// SIGRTMIN and SIGRTMAX as C libraries define them: glibc and musl reserve those below.
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

/// A signal as in `STOPSIGNAL`. Accepts what Docker does (moby/sys/signal): a number, or a name with or without `SIG`, in
/// upper or lower case, including `RTMIN` to `RTMIN+15` and `RTMAX-14` to `RTMAX`.
pub(crate) fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RT_MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |digits: &str, most: i32| digits.parse().ok().filter(|n: &i32| (1..=most).contains(n));
    match name {
        "CLD" => Some(libc::SIGCHLD),
        "IOT" => Some(libc::SIGABRT),
        "POLL" => Some(libc::SIGIO),
        "UNUSED" => Some(libc::SIGSYS),
        "RTMIN" => Some(RT_MIN),
        "RTMAX" => Some(RT_MAX),
        name => {
            if let Some(digits) = name.strip_prefix("RTMIN+") {
                offset(digits, 15).map(|n| RT_MIN + n)
            } else if let Some(digits) = name.strip_prefix("RTMAX-") {
                offset(digits, 14).map(|n| RT_MAX - n)
            } else {
                format!("SIG{name}").parse().ok().map(|signal: Signal| signal as i32)
            }
        }
    }
}

/// Its name, for people.
pub(crate) fn name(signal: i32) -> String {
    match Signal::try_from(signal) {
        Ok(signal) => signal.to_string(),
        Err(_) if signal == RT_MIN => "SIGRTMIN".to_owned(),
        Err(_) if (RT_MIN..=RT_MAX).contains(&signal) => format!("SIGRTMIN+{}", signal - RT_MIN),
        Err(_) => format!("signal {signal}"),
    }
}

/// Whether the signal would kill the process if it were not the first one of its PID namespace, to which the kernel does
/// not deliver signals without a handler (pid_namespaces(7)).
pub(crate) fn is_spared(pid: Pid, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    is_spared_by(&status, signal)
}

fn is_spared_by(status: &str, signal: i32) -> bool {
    // Signals that by default do nothing, or stop the process.
    const HARMLESS: [i32; 8] = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_first = field("NSpid:").is_some_and(|pids| {
        let mut pids = pids.split_whitespace();
        pids.next().is_some() && pids.next_back() == Some("1")
    });
    let has = |name: &str| {
        let set = field(name).and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(u64::MAX);
        set & 1 << (signal - 1) != 0
    };
    is_first && !HARMLESS.contains(&signal) && !has("SigCgt:") && !has("SigIgn:") && !has("SigBlk:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_docker_takes_them() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("sigterm", 15),
            ("Quit", 3),
            ("9", 9),
            ("64", 64),
            ("SIGKILL", 9),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("sigrtmin+15", 49),
            ("RTMAX-1", 63),
            ("SIGRTMAX-14", 50),
            ("RTMAX", 64),
            ("CLD", 17),
            ("IOT", 6),
            ("POLL", 29),
            ("IO", 29),
            ("UNUSED", 31),
            ("STKFLT", 16),
            ("WINCH", 28),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for odd in ["", "0", "65", "-1", "SIGNOTHING", "RTMIN+16", "RTMAX-15", "RTMIN+", "SIGSIGTERM", "SIG"]
        {
            assert_eq!(parse(odd), None, "{odd}");
        }
        assert_eq!((name(9), name(34), name(37)), ("SIGKILL".into(), "SIGRTMIN".into(), "SIGRTMIN+3".into()));
    }

    #[test]
    fn a_first_process_is_spared_what_it_does_not_expect() {
        // TERM (bit 14) is caught, HUP (0) ignored, USR1 (9) blocked, so that it can be waited for.
        let status = |pids| {
            format!(
                "Name:\tx\nNSpid:\t{pids}\nSigBlk:\t0000000000000200\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000004000\n"
            )
        };
        let spared = |signal: Signal| is_spared_by(&status("84\t1"), signal as i32);
        assert!(spared(Signal::SIGINT) && spared(Signal::SIGUSR2) && is_spared_by(&status("84\t1"), 37));
        for expected in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGWINCH] {
            assert!(!spared(expected), "{expected}");
        }
        assert!(!is_spared_by(&status("84"), 2), "no namespace of its own");
        assert!(!is_spared_by(&status("84\t2"), 2) && !is_spared_by("", 2));
    }
}
