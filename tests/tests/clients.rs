//! Real clients, and hostile ones, against the appliance: DHCP, TFTP, HTTP.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{ADDRESS, Appliance, address_only, find};
use lab::clients::{Dhcp, Fetch};
use lab::dnsmasq::Dnsmasq;
use lab::frames;
use lab::net::Host;
use lab::process::{PATIENCE, output, wait_for};
use lab::world::{self, World};
use serde_json::Value;

#[test]
fn dhcp_clients_get_leases() {
    world::test(&Dhcp::PROGRAMS, |world| {
        let (appliance, hosts) = Appliance::with_hosts(world, &["a", "b", "c"])?;
        let mut addresses = HashSet::new();
        for (host, client) in hosts.iter().zip(Dhcp::ALL) {
            let address = client.lease(world, host)?;
            ensure!(in_range(address), "{client:?} got {address}, which is outside the range");
            ensure!(addresses.insert(address), "{address} was given twice");
            ensure_listed(&appliance, host, address)?;
        }
        // Another program on the same machine, with another client identifier, is the same machine.
        let before = Dhcp::Udhcpc.lease(world, &hosts[0])?;
        for client in Dhcp::ALL {
            let address = client.lease(world, &hosts[0])?;
            ensure!(address == before, "{client:?} got {address} where the machine holds {before}");
        }
        Ok(())
    });
}

#[test]
fn known_machines_get_their_leases_from_the_kernel() {
    world::test(&Dhcp::PROGRAMS, |world| {
        let (appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
        let host = &hosts[0];
        let count = |name: &str| -> Result<u64> {
            let status = appliance.json(&["status"])?;
            let count = status["counters"][name].as_u64();
            count.with_context(|| format!("`bridgehead status` has no {name}: {status}"))
        };
        let address = Dhcp::Udhcpc.lease(world, host)?;
        let by_daemon = (count("dhcp.discovers")?, count("dhcp.requests")?);
        ensure!(
            by_daemon == (1, 0),
            "a stranger's DISCOVER is the daemon's, and nothing else: {by_daemon:?}"
        );
        ensure!(count("kernel.tc.dhcp-acks")? == 1, "the kernel makes an ACK of the offer");
        for (client, answers) in [(Dhcp::Udhcpc, 2), (Dhcp::Dhclient, 3), (Dhcp::Dhcpcd, 4)] {
            let again = client.lease(world, host)?;
            ensure!(again == address, "{client:?} got {again} where the machine holds {address}");
            let acks = count("kernel.tc.dhcp-acks")?;
            ensure!(acks >= answers, "{client:?} was not answered by the kernel: {acks} ACKs");
        }
        let now = (count("dhcp.discovers")?, count("dhcp.requests")?);
        ensure!(now == by_daemon, "the daemon answered, too: {by_daemon:?}, then {now:?}");
        ensure!(count("kernel.tc.events-lost")? == 0, "the daemon heard of everything");

        // A renewal is sent from address to address, and its checksum is verified on the way back. dhcpcd leaves the
        // address configured; the others never configure it.
        output(host.command("ip").args(["address", "replace", &format!("{address}/24"), "dev", "eth0"]))?;
        let acks = count("kernel.tc.dhcp-acks")?;
        let ack = host.inside(|| renew(host.mac(), address))?;
        ensure!(ack[16..20] == address.octets(), "yiaddr is not {address}");
        ensure!(count("kernel.tc.dhcp-acks")? == acks + 1, "the kernel renews");

        let release = dhcp_message(7, host.mac(), address)?;
        host.inside(|| Ok(UdpSocket::bind((address, 68))?.send_to(&release, (ADDRESS, 67))?))?;
        wait_for(PATIENCE, || Ok((count("dhcp.releases")? == 1).then_some(())))?;
        ensure!(count("kernel.tc.dhcp-ends")? == 1, "the kernel forgets at once");
        Dhcp::Udhcpc.lease(world, host)?;
        ensure!(count("dhcp.discovers")? == by_daemon.0 + 1, "a machine that had left is the daemon's");
        Ok(())
    });
}

/// One frame from another station is enough to forge a machine's message. It must not be enough to be believed.
#[test]
fn nobody_speaks_for_another_machine() {
    world::test(&Dhcp::PROGRAMS, |world| {
        let [machine, forger] = [Host::new("n", 1)?, Host::new("f", 2)?];
        let ports = [machine.port(), forger.port()];
        for fast_path in ["auto", "off"] {
            let appliance = Appliance::start(world, &address_only(world, &ports, fast_path))?;
            let address = Dhcp::Udhcpc.lease(world, &machine)?;
            let forged = || -> Result<u64> {
                let status = appliance.json(&["status"])?;
                status["counters"]["dhcp.forged"].as_u64().context("`bridgehead status` has no dhcp.forged")
            };
            forger.inside(|| {
                let cable = frames::Cable::open(frames::IPV4)?;
                // RELEASE and DECLINE end a lease, a DISCOVER begins a boot.
                for (kind, option) in [(7, &[][..]), (4, &[50, 4][..]), (1, &[])] {
                    let mut message = dhcp_message(kind, machine.mac(), address)?;
                    ensure!(message.pop() == Some(255), "a message ends");
                    message.extend(option);
                    message.extend(if option.is_empty() { [0; 4] } else { address.octets() });
                    message.push(255);
                    let ends = (SocketAddrV4::new(address, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
                    let frame =
                        frames::udp_frame((frames::own_mac()?, frames::BROADCAST), ends.0, ends.1, &message);
                    ensure!(cable.send(&frame)?, "the cable is busy");
                }
                Ok(())
            })?;
            wait_for(PATIENCE, || Ok((forged()? == 3).then_some(()))).with_context(|| {
                format!("{fast_path}: {} of 3 were seen to be forged", forged().unwrap_or(0))
            })?;
            let status = appliance.json(&["status"])?;
            for count in ["dhcp.releases", "dhcp.declines"] {
                ensure!(
                    status["counters"][count] == 0,
                    "{fast_path}: {count} of another's was believed: {status}"
                );
            }
            let alert = status["alerts"][0].as_str().unwrap_or_default();
            ensure!(alert.contains(machine.mac()), "nobody is told: {status}");
            ensure_listed(&appliance, &machine, address)?;
            output(machine.command("ip").args([
                "address",
                "replace",
                &format!("{address}/24"),
                "dev",
                "eth0",
            ]))?;
            let ack = machine.inside(|| renew(machine.mac(), address))?;
            ensure!(ack[16..20] == address.octets(), "the lease goes on");
            output(machine.command("ip").args(["address", "flush", "dev", "eth0"]))?;
            appliance.stop()?;
        }
        Ok(())
    });
}

/// Renews a lease by unicast, and returns the ACK.
fn renew(mac: &str, address: Ipv4Addr) -> Result<[u8; 240]> {
    let socket = UdpSocket::bind((address, 68))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&dhcp_message(3, mac, address)?, (ADDRESS, 67))?;
    let mut reply = [0; 1024];
    let (len, from) = socket.recv_from(&mut reply).context("the answer to a renewal")?;
    ensure!(len >= 300 && from == (ADDRESS.parse::<Ipv4Addr>()?, 67).into(), "{len} bytes from {from}");
    ensure!(reply[240..243] == [53, 1, 5], "no DHCPACK: {:?}", &reply[240..243]);
    Ok(reply[..240].try_into()?)
}

/// A message of this type from a client that uses its address.
fn dhcp_message(kind: u8, mac: &str, address: Ipv4Addr) -> Result<Vec<u8>> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(b"lab!");
    message[12..16].copy_from_slice(&address.octets());
    for (byte, text) in message[28..34].iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind, 255]);
    Ok(message)
}

#[test]
fn files_arrive_byte_by_byte_over_tftp() {
    world::test(&Fetch::PROGRAMS, |world| files_arrive(world, &Fetch::TFTP));
}

#[test]
fn files_arrive_byte_by_byte_over_http() {
    world::test(&["ip", "curl"], |world| files_arrive(world, &[Fetch::CurlHttp]));
}

fn files_arrive(world: &World, clients: &[Fetch]) -> Result<()> {
    let files = write_files(world, &[0, 1, 511, 512, 513, 1468, 1 << 20, (5 << 20) + 3])?;
    let (_appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
    let host = &hosts[0];
    host.address("10.77.0.50/24")?;
    for (name, content) in &files {
        for client in clients.iter().filter(|c| !content.is_empty() || c.takes_empty_files()) {
            let got = client.fetch(world, host, ADDRESS, name)?;
            ensure!(got == *content, "{client:?} of {name}: {} bytes, not the same", got.len());
        }
    }
    Ok(())
}

#[test]
fn two_hosts_fetch_at_once() {
    world::test(&Fetch::PROGRAMS, |world| {
        let files = write_files(world, &[3 << 20])?;
        let (name, content) = &files[0];
        let (_appliance, hosts) = Appliance::with_hosts(world, &["a", "b"])?;
        for (n, host) in (51..).zip(&hosts) {
            host.address(&format!("10.77.0.{n}/24"))?;
        }
        std::thread::scope(|scope| {
            let fetching: Vec<_> = hosts
                .iter()
                .map(|host| scope.spawn(move || Fetch::CurlTftp(1024).fetch(world, host, ADDRESS, name)))
                .collect();
            for thread in fetching {
                let got = thread.join().expect("a fetch does not panic")?;
                ensure!(got == *content, "{} bytes, not the same", got.len());
            }
            Ok(())
        })
    });
}

#[test]
fn tftp_errors_say_what_is_wrong() {
    world::test(&["ip"], |world| {
        write_files(world, &[10])?;
        fs::create_dir_all(world.path("files/directory"))?;
        let (_appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
        hosts[0].address("10.77.0.50/24")?;
        // RFC 1350 section 5: 1 file not found, 2 access violation, 4 illegal operation.
        let cases: [(u16, &str, &[u16]); 5] = [
            (READ, "missing", &[1]),
            (READ, "directory", &[1, 2]),
            (READ, "../bridgehead.toml", &[1, 2]),
            (READ, "directory/../../bridgehead.toml", &[1, 2]),
            (WRITE, "new", &[2, 4]),
        ];
        for (request, path, codes) in cases {
            let (code, words) = hosts[0].inside(|| tftp_error(request, path))?;
            ensure!(codes.contains(&code), "{path}: error {code} {words:?}, not one of {codes:?}");
            ensure!(!words.is_empty(), "{path}: error {code} without words");
        }
        ensure!(!world.path("files/new").exists(), "a write was taken");

        // A request that fills no frame comes in fragments. It is told so, from what the first one says.
        let (code, words) = hosts[0].inside(|| tftp_error(READ, &"A".repeat(4_200)))?;
        ensure!(code == 4 && words.contains("one packet"), "in fragments: error {code} {words:?}");
        Ok(())
    });
}

#[test]
fn http_errors_say_what_is_wrong() {
    world::test(&["ip", "curl"], |world| {
        write_files(world, &[1000])?;
        fs::create_dir_all(world.path("files/directory"))?;
        let (_appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
        hosts[0].address("10.77.0.50/24")?;
        let status = |arguments: &[&str], path: &str| {
            let mut curl = hosts[0].command("curl");
            curl.args(["--silent", "--path-as-is", "--output", "/dev/null", "--write-out", "%{http_code}"]);
            output(curl.args(arguments).arg(format!("http://{ADDRESS}{path}")))
        };
        let cases: [(&[&str], &str, &[&str]); 8] = [
            (&[], "/files/1000", &["200"]),
            (&["--range", "10-19"], "/files/1000", &["206"]),
            (&["--range", "1000-"], "/files/1000", &["416"]),
            (&[], "/files/missing", &["404"]),
            (&[], "/files/directory", &["403", "404"]),
            (&[], "/files/../bridgehead.toml", &["400", "403", "404"]),
            (&[], "/files/%2e%2e/bridgehead.toml", &["400", "403", "404"]),
            (&["--request", "PUT"], "/files/1000", &["405"]),
        ];
        for (arguments, path, codes) in cases {
            let code = status(arguments, path)?;
            ensure!(codes.contains(&code.as_str()), "{arguments:?} {path}: {code}, not one of {codes:?}");
        }
        Ok(())
    });
}

#[test]
fn garbage_disturbs_nobody() {
    world::test(&["ip", "udhcpc", "curl"], |world| {
        let files = write_files(world, &[100_000])?;
        let (mut appliance, hosts) = Appliance::with_hosts(world, &["a", "b"])?;
        hosts[0].address("10.77.0.50/24")?;
        hosts[0].inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_broadcast(true)?;
            for packet in garbage() {
                socket.send_to(&packet, (ADDRESS, 69))?;
                socket.send_to(&packet, (ADDRESS, 67))?;
                socket.send_to(&packet, ("10.77.0.255", 67))?;
            }
            Ok(())
        })?;
        appliance.ensure_running()?;
        let address = Dhcp::Udhcpc.lease(world, &hosts[1])?;
        ensure!(in_range(address), "{address}");
        let (name, content) = &files[0];
        let got = Fetch::CurlTftp(1024).fetch(world, &hosts[0], ADDRESS, name)?;
        ensure!(got == *content, "{} bytes, not the same", got.len());
        appliance.json(&["status"])?;
        Ok(())
    });
}

#[test]
fn another_dhcp_server_is_reported() {
    world::test(&["ip", "dnsmasq", "udhcpc"], |world| {
        let (appliance, hosts) = Appliance::with_hosts(world, &["client", "rival"])?;
        let (client, rival) = (&hosts[0], &hosts[1]);
        rival.address("10.77.0.66/24")?;
        let before = appliance.json(&["status"])?;
        ensure!(!before.to_string().contains("10.77.0.66"), "reported before it is there: {before}");
        let arguments =
            ["--interface=eth0", "--dhcp-range=10.77.0.200,10.77.0.210,1h", "--dhcp-authoritative"];
        let arguments = arguments.map(str::to_owned);
        let _dnsmasq = Dnsmasq::start(rival.command("dnsmasq"), &arguments, &world.path("dnsmasq.log"))?;
        // The client accepts the first offer; both are broadcast, as it requests.
        wait_for(PATIENCE, || {
            Dhcp::Udhcpc.lease(world, client)?;
            Ok(appliance.json(&["status"])?.to_string().contains("10.77.0.66").then_some(()))
        })
        .with_context(|| format!("status does not name the other server: {:?}", appliance.json(&["status"])))
    });
}

/// The appliance's packets, decoded by tshark: nothing is malformed, and every answer contains its server's name.
#[test]
fn tshark_understands_the_answers() {
    world::test(&["ip", "tshark", "tcpdump", "udhcpc"], |world| {
        let (_appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
        let capture = world.path("a.pcap");
        let mut tcpdump = hosts[0].command("tcpdump");
        tcpdump.args(["-i", "eth0", "-U", "--immediate-mode", "-w"]).arg(&capture);
        let log = world.path("tcpdump.log");
        let mut tcpdump = lab::process::Process::start(&mut tcpdump, &log)?;
        wait_for(PATIENCE, || Ok(fs::read_to_string(&log)?.contains("listening on").then_some(())))?;
        // First from the daemon, then from the kernel.
        Dhcp::Udhcpc.lease(world, &hosts[0])?;
        Dhcp::Udhcpc.lease(world, &hosts[0])?;
        tcpdump.terminate(PATIENCE)?;
        let tshark = |filter: &str| {
            let mut tshark = Command::new("tshark");
            tshark.args(["-n", "-o", "udp.check_checksum:TRUE", "-r"]).arg(&capture);
            tshark.args(["-Y", filter, "-T", "fields"]);
            output(tshark.args([
                "-e",
                "dhcp.option.dhcp",
                "-e",
                "dhcp.option.dhcp_server_id",
                "-e",
                "frame.number",
            ]))
        };
        let malformed = tshark(
            "_ws.malformed || ip.checksum.status == \"Bad\" || (dhcp && udp.checksum.status != \"Good\")",
        )?;
        ensure!(malformed.is_empty(), "malformed frames: {malformed}");
        let answers = tshark("dhcp.type == 2")?;
        let kinds: Vec<&str> = answers.lines().filter_map(|l| l.split('\t').next()).collect();
        ensure!(kinds == ["2", "5", "2", "5"], "no two OFFERs and ACKs: {answers}");
        ensure!(
            answers.lines().all(|l| l.contains(ADDRESS)),
            "an answer without its server's name: {answers}"
        );
        Ok(())
    });
}

const READ: u16 = 1;
const WRITE: u16 = 2;

/// Sends a request and returns the code and message of the ERROR that answers it.
fn tftp_error(request: u16, path: &str) -> Result<(u16, String)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let packet = [&request.to_be_bytes(), path.as_bytes(), b"\0octet\0"].concat();
    socket.send_to(&packet, (ADDRESS, 69))?;
    let mut answer = [0; 600];
    let (len, _) = socket.recv_from(&mut answer).with_context(|| format!("{path}: no answer"))?;
    ensure!(len >= 5 && answer[..2] == [0, 5], "{path}: not an ERROR: {:?}", &answer[..len]);
    let words = String::from_utf8_lossy(&answer[4..len - 1]).into_owned();
    Ok((u16::from_be_bytes([answer[2], answer[3]]), words))
}

/// Noise of many lengths, and truncated forms of what is expected on the ports.
fn garbage() -> Vec<Vec<u8>> {
    let mut state = 0x7777_1234_5678_9abc_u64;
    let mut random = move || {
        // xorshift64: the same noise in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // BOOTREQUEST, Ethernet, 6, with the cookie and a message type: truncated, and with wrong option lengths.
    let mut dhcp = vec![0u8; 300];
    dhcp[..4].copy_from_slice(&[1, 1, 6, 0]);
    dhcp[28..34].copy_from_slice(&[2, 0, 0, 0x66, 0x66, 0x66]);
    dhcp[236..243].copy_from_slice(&[99, 130, 83, 99, 53, 1, 1]);
    let mut packets = vec![Vec::new(), vec![0], vec![0, 1], b"\0\x01file".to_vec(), b"\0\x01\0\0".to_vec()];
    packets.push([&b"\0\x01f\0octet\0blksize\0"[..], &[b'9'; 400]].concat());
    packets.push(b"\0\x01f\0octet\0blksize\0-1\0windowsize\x000\0timeout\0999\0".to_vec());
    packets.extend((0..dhcp.len()).step_by(7).map(|len| dhcp[..len].to_vec()));
    for _ in 0..200 {
        let mut lying = dhcp.clone();
        lying[243..].fill_with(|| random() as u8);
        packets.push(lying);
        let len = random() as usize % 1400;
        packets.push((0..len).map(|_| random() as u8).collect());
    }
    packets
}

/// Writes files named after their size below the files root; returns their contents.
fn write_files(world: &World, sizes: &[usize]) -> Result<Vec<(String, Vec<u8>)>> {
    fs::create_dir_all(world.path("files"))?;
    let write = |&size: &usize| {
        let content: Vec<u8> = (0..size).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect();
        fs::write(world.path("files").join(size.to_string()), &content)?;
        Ok((size.to_string(), content))
    };
    sizes.iter().map(write).collect()
}

fn in_range(address: Ipv4Addr) -> bool {
    (Ipv4Addr::new(10, 77, 0, 100)..=Ipv4Addr::new(10, 77, 0, 199)).contains(&address)
}

fn ensure_listed(appliance: &Appliance, host: &Host, address: Ipv4Addr) -> Result<()> {
    let leases = appliance.json(&["leases"])?;
    let text = |o: &Value, key: &str| o.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let lease = find(&leases, &|o| text(o, "mac") == host.mac() && text(o, "address") == address.to_string());
    ensure!(lease.is_some(), "`bridgehead leases` has no {address} for {}: {leases}", host.mac());
    Ok(())
}
