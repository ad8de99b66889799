use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn boot(n: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{n:02x}")
}

fn batch(boot: String, first: u64, texts: &[&str]) -> Batch {
    let said = |text: &&str| Said {
        uptime: 1.5,
        from: Source::Kernel,
        level: Some(6),
        partial: false,
        text: (*text).to_owned(),
    };
    Batch { mac: MAC, boot, first, uptime: 2.0, lines: texts.iter().map(said).collect() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn texts(consoles: &Consoles, back: usize) -> Option<Vec<String>> {
    consoles.read(MAC, back).unwrap().map(|lines| lines.into_iter().map(|line| line.text).collect())
}

#[test]
fn a_batch_that_comes_again_is_kept_once_also_by_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let consoles = Consoles::open(dir.path()).unwrap();
    let mut live = consoles.follow();
    consoles.append(batch(boot(1), 0, &["a", "b"]), at(10)).unwrap();
    consoles.append(batch(boot(1), 0, &["a", "b"]), at(11)).unwrap();
    drop(consoles);
    let consoles = Consoles::open(dir.path()).unwrap();
    consoles.append(batch(boot(1), 1, &["b", "c"]), at(12)).unwrap();
    assert_eq!(texts(&consoles, 0).unwrap(), ["a", "b", "c"]);
    let line = &consoles.read(MAC, 0).unwrap().unwrap()[0];
    assert_eq!((line.number, line.time, line.uptime), (0, "1970-01-01T00:00:09.5Z".parse().unwrap(), 1.5));
    let told: Vec<_> = std::iter::from_fn(|| live.try_recv().ok()).map(|(_, line)| line.text).collect();
    assert_eq!(told, ["a", "b"], "by the first daemon");
}

#[test]
fn the_last_boots_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let consoles = Consoles::open(dir.path()).unwrap();
    assert_eq!(texts(&consoles, 0), None);
    for n in 0..BOOTS_MAX as u8 + 2 {
        consoles.append(batch(boot(n), 0, &[&n.to_string()]), at(n.into())).unwrap();
    }
    assert_eq!(texts(&consoles, 0).unwrap(), ["5"]);
    assert_eq!(texts(&consoles, BOOTS_MAX - 1).unwrap(), ["2"]);
    assert_eq!(texts(&consoles, BOOTS_MAX), None);
}

#[test]
fn a_boot_that_says_too_much_keeps_its_beginning_and_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let consoles = Consoles::open(dir.path()).unwrap();
    let long = "x".repeat(900);
    for n in 0..2000 {
        consoles.append(batch(boot(1), n, &[&format!("{n} {long}")]), at(10)).unwrap();
    }
    let lines = consoles.read(MAC, 0).unwrap().unwrap();
    assert_eq!(lines.first().unwrap().number, 0);
    assert_eq!(lines.last().unwrap().number, 1999);
    assert!(lines.is_sorted_by(|a, b| a.number < b.number));
    let bytes: usize = lines.iter().map(|line| line.text.len()).sum();
    assert!((100 << 10..512 << 10).contains(&bytes), "{bytes}");
}

#[test]
fn what_nodes_write_is_harmless() {
    let hostile = "\x1b]0;owned\x07 \u{9b}2J \u{202e}evil\r\n größer\x7f\t.";
    assert_eq!(visible(hostile), "^[]0;owned^G \\u{9b}2J \\u{202e}evil^M^J größer^? .");
    assert_eq!(visible(&"ü".repeat(5000)).chars().count(), LINE_MAX);

    let dir = tempfile::tempdir().unwrap();
    let consoles = Consoles::open(dir.path()).unwrap();
    for bad in ["", "../../../../../../../../../etc/passwd-x", "00000000-0000-4000-8000-00000000000/"] {
        let refused = consoles.append(batch(bad.to_owned(), 0, &["a"]), at(10));
        assert!(matches!(refused, Err(ConsoleError::NoBoot { .. })), "{bad}");
    }
    // Numbers and times that no node has.
    let mut odd = batch(boot(1), u64::MAX, &["a", "b"]);
    odd.lines[0].uptime = f64::NAN;
    odd.uptime = f64::INFINITY;
    let _ = consoles.append(odd, at(10));
    consoles.append(batch(boot(2), 0, &["fine"]), at(11)).unwrap();
    assert_eq!(texts(&consoles, 0).unwrap(), ["fine"]);
}

#[test]
fn what_a_dying_kernel_says_is_kept_beside_the_numbered_lines() {
    let dir = tempfile::tempdir().unwrap();
    let consoles = Consoles::open(dir.path()).unwrap();
    let crash = |text: &str| {
        let (from, text) = (Source::Netconsole, text.to_owned());
        Said { uptime: 9.0, from, level: Some(0), partial: false, text }
    };
    consoles.add(MAC, crash("of no boot"), at(9)).unwrap();
    assert_eq!(texts(&consoles, 0), None);
    consoles.append(batch(boot(1), 0, &["a", "b"]), at(10)).unwrap();
    consoles.add(MAC, crash("Oops: 0000"), at(11)).unwrap();
    // It lives on, and so do its numbers, also with the next daemon.
    consoles.append(batch(boot(1), 2, &["c"]), at(12)).unwrap();
    drop(consoles);
    let consoles = Consoles::open(dir.path()).unwrap();
    let mut live = consoles.follow();
    consoles.add(MAC, crash("\u{1b}Kernel panic"), at(13)).unwrap();
    consoles.append(batch(boot(1), 3, &["d"]), at(14)).unwrap();
    assert_eq!(texts(&consoles, 0).unwrap(), ["a", "b", "Oops: 0000", "c", "^[Kernel panic", "d"]);
    assert_eq!(live.try_recv().unwrap().1.from, Source::Netconsole);
    let numbers: Vec<u64> = consoles.read(MAC, 0).unwrap().unwrap().iter().map(|line| line.number).collect();
    assert_eq!(numbers, [0, 1, 1, 2, 2, 3]);
}
