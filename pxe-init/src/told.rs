//! The files from which the workload reads the node's network settings. Pure.

use pxe_contract::settings::Settings;

/// Each file with its path below the root; one without contents stays as it is in the image.
pub(crate) fn files(settings: &Settings) -> [(&'static str, String); 5] {
    let Settings { address, name, boot, .. } = settings;
    let mut resolver = String::new();
    if !boot.search.is_empty() {
        resolver = format!("search {}\n", boot.search.join(" "));
    }
    resolver.extend(boot.dns.iter().map(|server| format!("nameserver {server}\n")));
    // The full name first, because `hostname -f` prints it.
    let domain = boot.search.first().filter(|_| !name.contains('.'));
    let whole = domain.map_or(String::new(), |domain| format!("{name}.{domain} "));
    let hosts =
        format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {whole}{name}\n");
    let servers: Vec<String> = boot.ntp.iter().map(ToString::to_string).collect();
    let (timesyncd, chrony) = match &servers[..] {
        [] => (String::new(), String::new()),
        servers => (
            format!("[Time]\nNTP={}\n", servers.join(" ")),
            servers.iter().map(|server| format!("server {server} iburst\n")).collect(),
        ),
    };
    [
        ("etc/resolv.conf", resolver),
        ("etc/hosts", hosts),
        ("etc/hostname", format!("{name}\n")),
        // Where the two usual time services look for servers from DHCP.
        ("run/systemd/timesyncd.conf.d/bridgehead.conf", timesyncd),
        ("run/chrony-dhcp/bridgehead.sources", chrony),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(words: &str) -> [(&'static str, String); 5] {
        let line = format!("bridgehead.mac=52:54:00:77:00:01 bridgehead.address=10.77.0.2/24 {words}");
        files(&Settings::parse(&line).unwrap())
    }

    #[test]
    fn everything_that_was_said() {
        let [resolver, hosts, name, timesyncd, chrony] = told(
            "bridgehead.name=n1 bridgehead.dns=10.77.0.1,9.9.9.9 bridgehead.search=lab.example,example \
             bridgehead.ntp=10.77.0.1,10.77.0.3",
        );
        assert_eq!(resolver.1, "search lab.example example\nnameserver 10.77.0.1\nnameserver 9.9.9.9\n");
        assert!(hosts.1.ends_with("\n10.77.0.2 n1.lab.example n1\n"), "{hosts:?}");
        assert_eq!(name.1, "n1\n");
        assert_eq!(timesyncd.1, "[Time]\nNTP=10.77.0.1 10.77.0.3\n");
        assert_eq!(chrony.1, "server 10.77.0.1 iburst\nserver 10.77.0.3 iburst\n");
    }

    #[test]
    fn what_was_not_said_stays_the_images() {
        let [resolver, hosts, _, timesyncd, chrony] = told("bridgehead.name=n1.example");
        assert!(hosts.1.ends_with("\n10.77.0.2 n1.example\n"), "{hosts:?}");
        for (path, contents) in [resolver, timesyncd, chrony] {
            assert_eq!(contents, "", "{path}");
        }
    }
}
